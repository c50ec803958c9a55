"""The shared trainer: session, loops, callbacks, checkpoints, loggers. It knows no biology."""

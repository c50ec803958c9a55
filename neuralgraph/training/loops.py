"""The plain training loop every system can use."""

from __future__ import annotations

from neuralgraph.core.bounds import Count, Natural, NotNegative, Positive
from neuralgraph.training.session import Session


def fit(
    session: Session,
    *,
    n_epochs: Natural,
    learning_rate: NotNegative,
    batch_size: Count,
    clip_norm: Positive | None,
) -> None:
    """Pass over the frames in random order, ``n_epochs`` times, all parameters at one rate.

    Args:
        session: The session to train.
        n_epochs: Passes over the training frames.
        learning_rate: Step size of every parameter that is not frozen.
        batch_size: Frames in a batch.
        clip_norm: Largest norm of the whole gradient, ``None`` for no clipping.
    """
    clip = {} if clip_norm is None else {"": clip_norm}
    with session.phase("fit", train={"": learning_rate}, clip=clip) as phase:
        for _ in phase.epochs(n_epochs):
            for batch in session.batches(batch_size):
                session.step(batch)

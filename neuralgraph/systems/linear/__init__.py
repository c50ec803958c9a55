"""Linear networks ``dx/dt = A x``: the template system, the tutorial and the smoke run."""

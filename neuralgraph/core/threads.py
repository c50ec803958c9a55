"""One number of threads for every numerical library of the process."""

from __future__ import annotations

import os
import sys

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def limit_threads(n_threads: int) -> None:
    """Let torch, NumPy and SciPy use ``n_threads`` threads each.

    Libraries that are loaded already are told, those that come later read the environment. Sums
    split over another number of threads differ in their last bits, so that this number is part of
    what makes a run repeatable.
    """
    for variable in VARIABLES:
        os.environ[variable] = str(n_threads)
    if "numpy" in sys.modules:
        import threadpoolctl  # pyright: ignore[reportMissingTypeStubs]  # ships none

        threadpoolctl.threadpool_limits(n_threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(n_threads)

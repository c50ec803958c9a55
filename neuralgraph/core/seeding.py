"""One seed, many named and independent streams of random numbers.

Every random draw in the project takes a generator made here, so that adding a draw in one place
never changes the numbers of another, and the global generators are left alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np


def derived_seed(seed: int, name: str) -> int:
    """Seed of the stream ``name`` under the run's ``seed``: a stable 63-bit hash.

    >>> derived_seed(42, "network") == derived_seed(42, "network")
    True
    >>> derived_seed(42, "network") == derived_seed(42, "training")
    False
    """
    digest = hashlib.blake2b(f"{int(seed)}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def torch_generator(seed: int, name: str) -> torch.Generator:
    """Generator on the CPU (the same numbers whatever the device of the run)."""
    return torch.Generator().manual_seed(derived_seed(seed, name))


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """NumPy generator of the stream ``name``."""
    import numpy as np

    return np.random.default_rng(derived_seed(seed, name))

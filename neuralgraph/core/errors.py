"""Errors a user can act on: each message says what was expected, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeuralGraphError(Exception):
    """Base of every error that is the user's to mend; entry points print it without a traceback."""


class ConfigError(NeuralGraphError):
    """A configuration key or value that cannot work."""


class DataError(NeuralGraphError):
    """Input data that cannot be used as they are."""


class MissingDataError(DataError):
    """A data file that is in none of the places searched."""


class CheckpointError(NeuralGraphError):
    """A checkpoint that is broken, or belongs to another model."""


class RunFolderError(NeuralGraphError):
    """A run folder that cannot be written, is finished, or is in use by another run."""


class TrainingError(NeuralGraphError):
    """Training cannot go on: a non-finite loss term, an empty batch."""


class SolverError(NeuralGraphError):
    """An integrator that fails or whose step underflows."""


class MissingExtraError(NeuralGraphError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"run  pip install 'neuralgraph[{extra}]'"
        )


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Sentence that lists the known names closest to a misspelt one.

    >>> nearest("glocose", ["glucose", "lactose", "ATP"], n=1)
    "did you mean 'glucose'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    shown = ", ".join(known[:12]) + (f" … ({len(known)} in all)" if len(known) > 12 else "")
    return f"known: {shown}" if known else "none are known"

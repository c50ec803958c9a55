"""A product of a run: a file that others can read without this software."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Product:
    """One result that outlives the run.

    Args:
        path: The file in the run folder; ``None`` for one that could not be written, of which
            ``caption`` says why.
        title: A noun phrase without a full stop.
        caption: Sentences that say what the file holds and how to read it.
        preview: The first lines as plain text, empty for none.
    """

    path: Path | None
    title: str
    caption: str
    preview: str = ""

"""A figure of the report: where it lies and what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One saved picture.

    Args:
        path: PNG file.
        title: A noun phrase without a full stop.
        caption: Sentences that say what to look for.
    """

    path: Path
    title: str
    caption: str

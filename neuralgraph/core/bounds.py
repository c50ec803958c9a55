"""Annotations with bounds: the signature says what a knob may be, and configs are held to it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from annotated_types import Ge, Gt, Le, Lt

Count: TypeAlias = Annotated[int, Ge(1)]
"""A whole number, at least 1."""
Natural: TypeAlias = Annotated[int, Ge(0)]
"""A whole number, at least 0."""
Positive: TypeAlias = Annotated[float, Gt(0)]
"""A number above 0."""
NotNegative: TypeAlias = Annotated[float, Ge(0)]
"""A number, 0 or above."""
Part: TypeAlias = Annotated[float, Ge(0), Lt(1)]
"""A share in [0, 1)."""
Share: TypeAlias = Annotated[float, Gt(0), Le(1)]
"""A share in (0, 1]."""

"""Columns of a table of cells that settings name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from neuralgraph.core.errors import DataError, nearest

SHOWN = 20
"""Most columns that a message lists."""


def check_columns(present: Iterable[object], wanted: Mapping[str, str | None], table: str) -> None:
    """Refuse settings that name a column which is not there.

    Args:
        present: Columns of the table.
        wanted: Setting -> the column it names, ``None`` for none.
        table: What to call the table.

    Raises:
        DataError: names every such setting, similar columns, and the columns there are.
    """
    known = [str(name) for name in present]
    missing = {key: name for key, name in wanted.items() if name is not None and name not in known}
    if not missing:
        return
    named = []
    for key, name in missing.items():
        close = nearest(name, known)
        hint = f"; {close}" if close.startswith("did you mean") else ""
        named.append(f"'{name}' ({key}{hint})")
    columns = ", ".join(known[:SHOWN]) + (" …" if len(known) > SHOWN else "")
    raise DataError(
        f"{table} has no column {' and '.join(named)}. Its columns: {columns or 'none'}. Set "
        + " and ".join(f"{key}=NAME" for key in missing)
    )

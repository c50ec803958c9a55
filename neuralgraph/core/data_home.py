"""Where real data files are looked up: ``NEURALGRAPH_DATA`` first, then the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from neuralgraph.core.errors import MissingDataError

VARIABLE = "NEURALGRAPH_DATA"


def cache_folder() -> Path:
    """Folder of downloaded data, as the operating system wants it; it may not exist yet."""
    from platformdirs import user_cache_path

    return user_cache_path("neuralgraph") / "data"


def data_folders() -> tuple[Path, ...]:
    """Folders searched, in this order."""
    named = os.environ.get(VARIABLE)
    return (Path(named).expanduser(), cache_folder()) if named else (cache_folder(),)


def find_data(name: str | Path) -> Path:
    """Path of a data file.

    Args:
        name: An existing path, or ``folder/file`` inside one of :func:`data_folders`, such as
            ``bigg/textbook.xml.gz``.

    Raises:
        MissingDataError: the file is in none of the folders; says which were searched, and the
            command that downloads it.
    """
    path = Path(name).expanduser()
    if path.is_absolute() or path.is_file():
        if path.is_file():
            return path
        raise MissingDataError(f"there is no file {path}")
    for folder in data_folders():
        if (folder / path).is_file():
            return folder / path
    searched = " and ".join(str(folder) for folder in data_folders())
    raise MissingDataError(
        f"the data file {name} is not in {searched}: download it with  python -m "
        f"neuralgraph.fetch {path.parts[0]}  or set {VARIABLE} to the folder that holds it"
    )

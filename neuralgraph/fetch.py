"""Download documented public data: ``python -m neuralgraph.fetch NAME``.

What is downloaded and what comes out of it are both checked against SHA-256 sums that stand in this
file, so that everyone computes on the same bytes. Files appear whole or not at all, and a download
that was cut off continues where it stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.data_home import cache_folder
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError, nearest
from neuralgraph.core.files import write_bytes

ATTEMPTS = 3
CHUNK = 1 << 16
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class DataFile:
    """One file as it lies in the data folder.

    Args:
        path: Place in the data folder, ``folder/name``.
        sha256: Checksum of its bytes.
        member: Name inside the downloaded zip archive; ``None`` when the download is the file.
    """

    path: str
    sha256: str
    member: str | None = None


@dataclass(frozen=True)
class Source:
    """One download and what is kept of it.

    Args:
        name: What the user asks for.
        title: One line on the content.
        url: Where it is downloaded from.
        sha256: Checksum of the download.
        files: What is kept.
        licence: Terms of use as the origin states them.
    """

    name: str
    title: str
    url: str
    sha256: str
    files: tuple[DataFile, ...]
    licence: str


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="bigg",
            title="SBML of three genome-scale metabolic models: textbook (E. coli core), iJO1366, "
            "salmonella; structure only",
            # Package files of PyPI under its stable URL pattern; the wheel carries the models.
            url="https://files.pythonhosted.org/packages/py2.py3/c/cobra/"
            "cobra-0.32.1-py2.py3-none-any.whl",
            sha256="6ebfc29503224371ff5390ce0ce347b738415bd37a2dfb8a9683591c6e5535dc",
            files=(
                DataFile(
                    "bigg/textbook.xml.gz",
                    "c674befd7a8199f037fd851c4f8ea8502730d0328ef51b1c46946f19fb44f72a",
                    "cobra/data/textbook.xml.gz",
                ),
                DataFile(
                    "bigg/iJO1366.xml.gz",
                    "e100c6a9fdc30f6b880d390f8af9941422202b8714c7786629f19c98b076d208",
                    "cobra/data/iJO1366.xml.gz",
                ),
                DataFile(
                    "bigg/salmonella.xml.gz",
                    "de43ce568b09b78999a6faed3761a1b62e146fc84d96d45d9372c70955120cbd",
                    "cobra/data/salmonella.xml.gz",
                ),
            ),
            licence="COBRApy wheel, LGPL-2.0-or-later OR GPL-2.0-or-later; models by BiGG (UCSD)",
        ),
        Source(
            name="biomd51",
            title="BioModels BIOMD0000000051 (Chassagnole 2002): kinetic model of E. coli central "
            "carbon metabolism",
            url="https://raw.githubusercontent.com/biomodels/BIOMD0000000051/"
            "92843fdc466e704445d491fb42b4142d4c70c3f6/BIOMD0000000051/BIOMD0000000051.xml",
            sha256="28deec2bf55de027f116b46a8b1a75a820b05bdc9c5cd72dcf260bfacba75302",
            files=(
                DataFile(
                    "biomd51/BIOMD0000000051.xml",
                    "28deec2bf55de027f116b46a8b1a75a820b05bdc9c5cd72dcf260bfacba75302",
                ),
            ),
            licence="CC0-1.0",
        ),
    )
}


def short_name(file: DataFile) -> str:
    """Name by which one file alone is asked for.

    >>> short_name(DataFile("bigg/textbook.xml.gz", ""))
    'textbook'
    """
    return Path(file.path).name.split(".")[0]


def find_source(name: str) -> Source:
    """The source called ``name``, or the part of one that holds the file called ``name``.

    >>> [file.path for file in find_source("textbook").files]
    ['bigg/textbook.xml.gz']

    Raises:
        ConfigError: no source and no file has that name.
    """
    if name in SOURCES:
        return SOURCES[name]
    for source in SOURCES.values():
        for file in source.files:
            if name in (short_name(file), file.path):
                return replace(source, files=(file,))
    known = [*SOURCES, *(short_name(f) for s in SOURCES.values() for f in s.files)]
    raise ConfigError(f"there is no data set called '{name}': {nearest(name, known)}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(source: Source, folder: Path | str, *, say: Callable[[str], None] = print) -> list[Path]:
    """Make sure that every file of a source lies in ``folder`` with the right content.

    Args:
        source: What to download.
        folder: Data folder; files go to their own subfolder of it.
        say: Receives one line for each thing done.

    Returns:
        The files, in the order of the source.

    Raises:
        MissingDataError: the server does not have the file or cannot be reached.
        DataError: the download was cut off, or a checksum is wrong.
    """
    folder = Path(folder)
    targets = [folder / file.path for file in source.files]
    missing = []
    for file, target in zip(source.files, targets, strict=True):
        if target.is_file() and sha256_of(target) == file.sha256:
            say(f"already there: {target}")
        else:
            if target.exists():
                say(f"has another content than expected and is replaced: {target}")
            missing.append((file, target))
    if not missing:
        return targets
    part = folder / ".downloads" / f"{source.sha256}.part"
    say(f"downloading {source.url}")
    _download(source.url, part)
    got = sha256_of(part)
    if got != source.sha256:
        part.unlink()
        raise DataError(
            f"{source.url} has the wrong content: expected SHA-256 {source.sha256}, got {got}. "
            "The file at the source has changed or was altered on the way; nothing was kept. "
            "Try again, or name another place with url=…"
        )
    content = part.read_bytes()
    for file, target in missing:
        kept = content if file.member is None else _member(content, file.member, source.url)
        got = hashlib.sha256(kept).hexdigest()
        if got != file.sha256:
            raise DataError(
                f"{file.path} out of {source.url} has the wrong content: expected SHA-256 "
                f"{file.sha256}, got {got}; nothing was written"
            )
        _write(target, kept)
        say(f"written: {target} ({len(kept):,} bytes, checksum verified)")
    part.unlink()
    if not any(part.parent.iterdir()):
        part.parent.rmdir()
    for subfolder in sorted({target.parent for target in targets}):
        note = f"origin: {source.url}\nsha256: {source.sha256}\nlicence: {source.licence}\n"
        _write(subfolder / "SOURCE.txt", note.encode())
    return targets


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): name a folder of your own with folder=…"
        ) from error


def _member(content: bytes, member: str, url: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{url} holds no '{member}': it is not the expected archive") from error


def _download(url: str, part: Path) -> None:
    """Bytes of ``url`` into ``part``, continuing what an earlier attempt left there."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{part.parent} cannot be made ({error.strerror}): name a folder of your own with "
            "folder=…"
        ) from error
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file: its checksum decides
                return
            raise MissingDataError(
                f"{url} answers {error.code} {error.reason}: the file is not there (any more). "
                "Download it by hand, or name another place with url=…"
            ) from error
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == ATTEMPTS:
                size = part.stat().st_size if part.exists() else 0
                raise DataError(
                    f"the download of {url} was cut off {ATTEMPTS} times ({error}); {size:,} bytes "
                    "are kept: run the same command again to continue"
                ) from error
        except (urllib.error.URLError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise MissingDataError(
                f"{url} cannot be reached ({reason}): check the connection and the proxy "
                "(HTTPS_PROXY), or name another place with url=…"
            ) from error


def _continue(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "neuralgraph", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        # A server that ignores the range answers 200 with the whole file: begin again.
        append = have > 0 and answer.status == 206
        length = answer.headers.get("Content-Length")
        got = 0
        with part.open("ab" if append else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                got += len(chunk)
        if length is not None and got < int(length):
            raise http.client.IncompleteRead(b"", int(length) - got)


def listing() -> str:
    """What can be fetched, one paragraph for each source."""
    lines = ["python -m neuralgraph.fetch NAME, with NAME one of", ""]
    for source in SOURCES.values():
        lines += [f"  {source.name}", f"      {source.title}", f"      licence: {source.licence}"]
        parts = [short_name(file) for file in source.files]
        if len(parts) > 1:
            lines.append(f"      alone: {', '.join(parts)}")
    return "\n".join(lines)


def with_name(arguments: Sequence[str]) -> list[str]:
    """Command line in which a bare NAME has become ``name=NAME``.

    >>> with_name(["textbook", "folder=/data"])
    ['name=textbook', 'folder=/data']
    >>> with_name(["--config-dir", "conf", "name=bigg"])
    ['--config-dir', 'conf', 'name=bigg']
    """
    result: list[str] = []
    for argument in arguments:
        after_option = bool(result) and result[-1] in (
            "--config-dir",
            "-cd",
            "--config-name",
            "-cn",
            "--config-path",
            "-cp",
            "--cfg",
            "-c",
            "--package",
            "-p",
            "--info",
            "-i",
        )
        bare = not argument.startswith(("-", "+", "~")) and "=" not in argument
        result.append(f"name={argument}" if bare and not after_option else argument)
    return result


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="fetch")
def task(cfg: DictConfig) -> None:
    """Fetch what the config names, or list what there is."""
    if cfg.name is None:
        print(listing())
        return
    source = find_source(str(cfg.name))
    if cfg.url is not None:
        source = replace(source, url=str(cfg.url))
    fetch(source, cfg.folder or cache_folder())


if __name__ == "__main__":
    sys.argv[1:] = with_name(sys.argv[1:])
    guarded(task)

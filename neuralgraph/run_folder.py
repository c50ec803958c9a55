"""The run folder: claimed by one process, never overwritten, resumed on demand."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neuralgraph import __version__
from neuralgraph.core.errors import RunFolderError
from neuralgraph.core.files import write_text

NOT_PART_OF_THE_RUN = ("resume", "run", "logger", "identify")
OWN = (
    "data", "checkpoints", "figures", "metrics.jsonl", "metrics.csv", "evaluation.jsonl",
    "timing.json", "scorecard.json", "analysis.log", "report.html", "run.json", "config.yaml",
    "provenance.json", "identifiability.csv", "identifiability.json", "identifiability.html",
    "identifiability_structure.csv", "rate_constants.csv",
)  # fmt: skip
"""What a run writes into its folder."""
PACKAGES = (
    "torch", "torch-geometric", "torchdiffeq", "hydra-core", "omegaconf", "numpy", "scipy",
    "scikit-learn", "matplotlib", "geoopt", "anndata", "scanpy", "wandb", "python-libsbml",
    "libroadrunner",
)  # fmt: skip


def fingerprint(config: Mapping[str, Any]) -> str:
    """Hash of the resolved config, leaving out what does not change the result."""
    kept = {k: v for k, v in config.items() if k not in NOT_PART_OF_THE_RUN}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


class RunFolder:
    """One run's folder, held by a lock while the process lives.

    Args:
        path: The folder; created with its parents.
        config: Resolved config of the run.
        resume: Whether what lies there goes on.
        has_more: Whether a finished run has more to do under this config, so that it may be resumed
            too (a search of more blocks); without it a finished run stays as it is.

    Raises:
        RunFolderError: not writable, in use, finished, or unfinished without ``resume``.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        has_more: Callable[[Path], bool] | None = None,
    ) -> None:
        self.path = path
        self.config = dict(config)
        self._has_more = has_more
        self._lock: Any = None
        _make(path)
        self._take_lock()
        state = read_state(path)
        if state is not None and state["status"] == "failed":
            self._clear()
            state = None
        if state is not None:
            self._check(state, resume=resume)
        self.resumed = state is not None
        if not self.resumed:
            self._write_origin()
        self._write_state("running")

    def finish(self) -> None:
        """Mark the run as finished and let go of the folder."""
        self._write_state("finished")
        self.release()

    def fail(self) -> None:
        """Mark the run as failed for a reason only another config can mend; the folder is free."""
        self._write_state("failed")
        self.release()

    def release(self) -> None:
        """Let go of the folder; an unfinished run stays resumable."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _clear(self) -> None:
        """Remove what a failed run left, and nothing else."""
        for name in OWN:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _check(self, state: Mapping[str, Any], *, resume: bool) -> None:
        is_open = resume and self._has_more is not None and self._has_more(self.path)
        if state["status"] == "finished" and not is_open:
            self.release()
            again = f"; 'python -m neuralgraph.evaluate run={self.path}' judges it again"
            raise RunFolderError(
                f"{self.path} holds a finished run: choose another hydra.run.dir, or delete it"
                + (again if (self.path / "checkpoints").is_dir() else "")
            )
        if not resume:
            self.release()
            raise RunFolderError(
                f"{self.path} holds an unfinished run: go on with resume=auto, or choose another "
                "hydra.run.dir"
            )
        if state["fingerprint"] != fingerprint(self.config):
            self.release()
            changed = differences(load_config(self.path), self.config)
            raise RunFolderError(
                f"{self.path} was started with another config; these keys differ: "
                f"{', '.join(changed[:6])}. Give the same values, or start a new run"
            )

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no flock: the state file alone guards the folder
            return
        file = (self.path / ".lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise RunFolderError(
                f"another run is writing to {self.path} right now: choose another hydra.run.dir"
            ) from error
        self._lock = file

    def _write_origin(self) -> None:
        import yaml

        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)
        write_text(self.path / "provenance.json", json.dumps(provenance(), indent=2) + "\n")

    def _write_state(self, status: str) -> None:
        content = {"status": status, "fingerprint": fingerprint(self.config)}
        write_text(self.path / "run.json", json.dumps(content) + "\n")


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunFolderError(
            f"the run folder {path} cannot be written ({error.strerror or error}): choose another "
            "with hydra.run.dir=DIR"
        ) from error


def read_state(path: Path) -> dict[str, Any] | None:
    """Content of ``run.json``, or ``None`` where there is no run."""
    file = path / "run.json"
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{file} is broken: delete the folder or choose another") from error


def load_config(path: Path) -> dict[str, Any]:
    """Resolved config of a run folder."""
    import yaml

    file = path / "config.yaml"
    if not file.is_file():
        raise RunFolderError(f"{path} is no run folder: it has no config.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def finished_folder(run: str | None) -> Path:
    """The folder ``run=DIR`` names, which must hold a finished run."""
    if run is None:
        raise RunFolderError("say which run: run=DIR (a run folder, see runs/)")
    path = Path(run).absolute()
    state = read_state(path)
    if state is None:
        raise RunFolderError(f"run={run}: there is no run in that folder")
    if state["status"] != "finished":
        raise RunFolderError(f"run={run} is not finished: go on with resume={run} first")
    return path


def newest_unfinished(parent: Path, config: Mapping[str, Any]) -> Path | None:
    """The newest folder beside ours that holds an unfinished run of the same config."""
    wanted = fingerprint(config)
    candidates = []
    for file in parent.glob("*/run.json"):
        state = read_state(file.parent)
        if state and state["status"] == "running" and state["fingerprint"] == wanted:
            candidates.append((file.stat().st_mtime, file.parent))
    return max(candidates)[1] if candidates else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b']
    """
    found: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        name = f"{prefix}{key}"
        if not prefix and key in NOT_PART_OF_THE_RUN:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append(name)
    return found


def provenance() -> dict[str, Any]:
    """Command, versions, git commit and machine kind of this process."""
    versions: dict[str, str] = {"python": platform.python_version(), "neuralgraph": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "git_commit": _git_commit(),
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _module() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).stem


def _git_commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        ask = ["git", "-C", str(here)]
        top = subprocess.run(
            [*ask, "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.split()  # fmt: skip
        if Path(top[0]) != here.parent:
            return "not in a checkout"
        changed = subprocess.run(
            [*ask, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError, IndexError):
        return "not in a checkout"
    return top[1] + ("+changes" if changed else "")

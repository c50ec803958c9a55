"""What the entry points share: readable errors, and the folder a run works in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuralgraph.core.errors import NeuralGraphError, RunFolderError


def guarded(task: Callable[[], Any]) -> None:
    """Run a Hydra task; a user's mistake ends with one readable message and exit status 1."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    full = "NEURALGRAPH_FULL_ERROR" in os.environ
    try:
        task()
    except (NeuralGraphError, HydraException, OmegaConfBaseException) as error:
        if full:
            raise
        _complain(_innermost(error))
    except PermissionError as error:
        if full:
            raise
        _complain(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}")
    except (NotADirectoryError, FileExistsError) as error:
        if full:
            raise
        _complain(f"{error.filename}: {error.strerror}; choose another folder with hydra.run.dir=DIR")
    except KeyboardInterrupt:
        _complain("interrupted; go on with the same command and resume=auto", status=130)


def _innermost(error: BaseException) -> str:
    """Hydra wraps the useful sentence in others: keep it, and the first line around it."""
    message = str(error).strip()
    cause = error.__cause__
    while cause is not None:
        text = str(cause).strip()
        if text and text not in message:
            message += f"\n  {text}"
        cause = cause.__cause__
    return message


def _complain(message: str, *, status: int = 1) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    console.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)
    sys.exit(status)


def plain(cfg: Any) -> dict[str, Any]:
    """Resolved plain dictionary of a Hydra config; a missing value is named."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def claim_folder(config: dict[str, Any]) -> Any:
    """The folder this run writes to: Hydra's, or the one it resumes.

    ``resume=auto`` takes the newest unfinished run of the same config (the chosen folder itself
    first), ``resume=DIR`` the one named; without either, a fresh or empty folder is needed.
    """
    from hydra.core.hydra_config import HydraConfig

    from neuralgraph.run_folder import RunFolder, newest_unfinished, read_state

    chosen = Path(HydraConfig.get().runtime.output_dir)
    resume = config["resume"]
    target = chosen
    if resume == "auto":
        if read_state(chosen) is None:
            target = newest_unfinished(chosen.parent, config) or chosen
    elif resume is not None:
        target = Path(resume).absolute()
        if read_state(target) is None:
            raise RunFolderError(
                f"resume={resume}: there is no run in that folder. Give a run folder, or "
                "resume=auto for the newest unfinished one"
            )
    folder = RunFolder(target, config, resume=resume is not None)
    if target != chosen and chosen.is_dir() and not any(chosen.iterdir()):
        chosen.rmdir()
    return folder

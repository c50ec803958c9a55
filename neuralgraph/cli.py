"""What the entry points share: readable errors, and the folder a run works in."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from neuralgraph.core.errors import ConfigError, NeuralGraphError, RunFolderError, nearest


def reported(task: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """End a single run on a user's mistake before Hydra adds a line of its own to the message.

    In a sweep the error goes on to Hydra, which knows what to do with the other jobs.
    """

    @functools.wraps(task)
    def wrapper(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            return task(cfg)
        except NeuralGraphError as error:
            if HydraConfig.get().mode != RunMode.RUN or "NEURALGRAPH_FULL_ERROR" in os.environ:
                raise
            _complain(_innermost(error))

    return wrapper


def only_run(verb: str) -> None:
    """Refuse overrides that a verb on a finished run would ignore."""
    from hydra.core.hydra_config import HydraConfig

    other = [o for o in HydraConfig.get().overrides.task if not o.startswith("run=")]
    if other:
        raise ConfigError(
            f"{verb} works on a finished run with that run's own config, so {other[0]} would have "
            "no effect: leave it out, or train again"
        )


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
    except OSError as error:
        if full or not _is_about_the_folder(error):
            raise
        _complain(
            f"{error.filename} cannot be written ({error.strerror}): choose another folder with "
            "hydra.run.dir=DIR"
        )
    except KeyboardInterrupt:
        _complain("interrupted; go on with the same command and resume=auto", status=130)


def _is_about_the_folder(error: OSError) -> bool:
    """Whether Hydra itself failed to make the run folder, before our code began."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("hydra" in f.filename for f in frames) and not any(
        f.filename.endswith(("pipeline.py", "run_folder.py")) for f in frames
    )


def _innermost(error: BaseException) -> str:
    """Hydra wraps the useful sentence in others: keep both, and name the nearest known key."""
    message = str(error).strip()
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).strip()
        if text and text not in message:
            message += f"\n  {text}"
        node, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
        if node is not None and isinstance(key, str) and hasattr(node, "keys"):
            message += f"\n  {nearest(key, [str(k) for k in node])}"
            break
        cause = cause.__cause__
    return message


def _complain(message: str, *, status: int = 1) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    console.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)
    sys.exit(status)


def plain(cfg: Any) -> dict[str, Any]:
    """Resolved plain dictionary of a Hydra config; a missing value is named.

    Raises:
        ConfigError: no experiment chosen, or a value left open.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(cfg))
    if "simulator" in missing:
        raise ConfigError(
            "no experiment is chosen: add +experiment=NAME, one of " + ", ".join(experiments(cfg))
        )
    if missing:
        raise ConfigError(f"{missing[0]} has no value: set {missing[0]}=… on the command line")
    # the root of a config is a mapping with string keys, which OmegaConf's types cannot say
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))


def experiments(cfg: Any) -> list[str]:
    """Names of the experiments on the search path, the user's ``--config-dir`` included."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    return loader.get_group_options("experiment")


def claim_folder(config: dict[str, Any], *, has_more: Callable[[Path], bool] | None = None) -> Any:
    """The folder this run writes to: Hydra's, or the one it resumes.

    ``resume=auto`` takes the newest unfinished run of the same config (the chosen folder itself
    first), ``resume=DIR`` the one named; without either, a fresh or empty folder is needed.

    Args:
        config: Resolved config.
        has_more: Whether a finished run in a folder has more to do; see
            :class:`neuralgraph.run_folder.RunFolder`.
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
    folder = RunFolder(target, config, resume=resume is not None, has_more=has_more)
    if target != chosen and chosen.is_dir() and not any(chosen.iterdir()):
        chosen.rmdir()
    return folder

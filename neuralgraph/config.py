"""The root schema of every run, and where the configs lie. Imports no torch, so help is instant."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


def config_folder() -> str:
    """The packaged ``conf`` (an installed wheel), else the checkout's."""
    package = Path(__file__).resolve().parent
    packaged = package / "conf"
    return str(packaged if packaged.is_dir() else package.parent / "conf")


@dataclass
class EarlyStopConfig:
    """End a phase early: ``patience: null`` never does."""

    metric: str = "loss"
    patience: int | None = None
    min_delta: float = 0.0


@dataclass
class TrainerConfig:
    """What surrounds the loop."""

    checkpoint_every: int = 1
    progress: bool = True
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)


@dataclass
class IdentifyConfig:
    """Of ``python -m neuralgraph.identify``: ``at`` is ``prior`` or ``truth``; ``replicates`` is
    the number of Monte-Carlo refits that check the standard errors, 0 for none.
    """

    at: str = "prior"
    replicates: int = 0


@dataclass
class RunConfig:
    """Every key a run may have; a key that is not here is an error.

    ``seed`` sets everything; ``training_seed`` overrides it for the model's start and the order of
    batches, ``simulator.seed`` for network and data.
    """

    name: str = "run"
    question: str = ""
    seed: int = 42
    training_seed: int | None = None
    device: str = "cpu"
    precision: str = "float32"
    n_threads: int = 1
    resume: str | None = None
    run: str | None = None
    prior: dict[str, bool] = field(default_factory=dict)
    simulator: Any = MISSING
    dataset: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    loop: Any = MISSING
    optimizer: Any = MISSING
    evaluation: Any = MISSING
    report: Any = MISSING
    identifiability: Any = None
    identify: IdentifyConfig = field(default_factory=IdentifyConfig)
    budget: Any = MISSING
    logger: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    search_space: Any = None
    search_plan: Any = None
    explore: Any = None


def register() -> None:
    """Put schema and resolvers where Hydra finds them (idempotent)."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    if not OmegaConf.has_resolver("unique"):
        OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(3), use_cache=True)


register()
CONFIG_FOLDER = config_folder()


def experiment(name: str, *overrides: str) -> dict[str, Any]:
    """Resolved config of an experiment as a plain dictionary, for notebooks.

    Args:
        name: Experiment, as in ``+experiment=NAME``.
        overrides: As on the command line, ``"seed=7"``.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose("train", [f"+experiment={name}", *overrides])
    # the root of a config is a mapping with string keys, which OmegaConf's types cannot say
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))

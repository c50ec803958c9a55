"""The story of a run, in one function: simulate, cut, build, fit, judge, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuralgraph.building import bind_switches, build
from neuralgraph.core.contracts import (
    Evaluator,
    Identifier,
    Loop,
    Objective,
    Reporter,
    Simulator,
)
from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.files import write_text
from neuralgraph.core.glossary import explain
from neuralgraph.core.recording import Recording, Truth, load_tensors, save_tensors
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.seeding import derived_seed, torch_generator
from neuralgraph.core.threads import limit_threads
from neuralgraph.training.budget import Budget
from neuralgraph.training.callbacks import (
    Callback,
    EarlyStop,
    PeriodicEvaluation,
    PeriodicFigures,
    Progress,
)
from neuralgraph.training.checkpoint import load_checkpoint, load_weights
from neuralgraph.training.loggers import Logger
from neuralgraph.training.session import Session, choose_device
from neuralgraph.training.trainer import train, training_log

__all__ = [
    "compose",
    "examine",
    "judge",
    "reopen",
    "run",
    "simulate",
    "training_log",
    "write_report",
]

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Parts:
    """Everything a run is composed of, built from its config and checked before any work."""

    simulator: Simulator
    dataset: Callable[..., Any]
    model: Callable[..., nn.Module]
    loss: Objective
    loop: Loop
    optimizer: Callable[..., torch.optim.Optimizer]
    evaluation: Evaluator
    report: Reporter
    budget: Budget
    logger: Logger
    identifiability: Identifier | None = None


def compose(config: Mapping[str, Any]) -> Parts:
    """Build every part and bind every postponed call; nothing has been computed yet.

    Raises:
        ConfigError: a key, a type or a name that cannot work, named in full.
    """
    if config["precision"] not in PRECISIONS:
        raise ConfigError(f"precision must be one of {[*PRECISIONS]}, got '{config['precision']}'")
    if config["n_threads"] < 1:
        raise ConfigError(f"n_threads must be at least 1, got {config['n_threads']}")
    choose_device(config["device"])
    simulator_seed(config)
    optional = "identifiability" if config.get("identifiability") is None else ""
    groups = [group for group in Parts.__annotations__ if group != optional]
    parts = Parts(**{group: build(config[group], group) for group in groups})
    bind_switches(parts.simulator.reveal, config["prior"])
    trainer = config["trainer"]
    if trainer["checkpoint_every"] < 1:
        raise ConfigError(
            f"trainer.checkpoint_every must be at least 1 epoch, got {trainer['checkpoint_every']}"
        )
    patience = trainer["early_stop"]["patience"]
    if patience is not None and patience < 1:
        raise ConfigError(f"trainer.early_stop.patience must be at least 1, got {patience}")
    if parts.evaluation.every < 0:
        raise ConfigError(f"evaluation.every must be 0 or above, got {parts.evaluation.every}")
    try:
        parts.optimizer([{"params": [torch.zeros(1, requires_grad=True)], "lr": 1e-3}])
    except Exception as error:
        raise ConfigError(f"optimizer: {error}") from error
    refuse = getattr(getattr(parts.loop, "func", parts.loop), "refuse", None)
    if refuse is not None:  # a loop may know combinations it cannot work with
        refuse(config)
    return parts


def run(config: Mapping[str, Any], folder: Path) -> Scorecard:
    """Do one run in its folder and return its scorecard.

    Args:
        config: Plain resolved config (see :class:`neuralgraph.config.RunConfig`).
        folder: The claimed run folder.
    """
    parts = compose(config)
    began = time.perf_counter()
    seconds: dict[str, float] = {}
    limit_threads(config["n_threads"])

    recording, truth, given = simulate(parts.simulator, config, folder / "data")
    seconds["simulate"] = time.perf_counter() - began

    data, model = cut_and_build(parts, config, recording, given)
    logger, session = open_session(parts, config, folder, data, model, truth)
    failed = True
    try:
        logger.start(config, folder, config["name"])
        log = train(session, parts.loop)
        seconds["train"] = time.perf_counter() - began - seconds["simulate"]

        scorecard = judge(parts.evaluation, config, session.model, session.data, truth, log, given)
        scorecard.save(folder)
        seconds["evaluate"] = time.perf_counter() - began - sum(seconds.values())
        examine(parts, config, session, folder)
        seconds["identify"] = time.perf_counter() - began - sum(seconds.values())

        figures = write_report(parts.report, config, folder, session, truth, scorecard)
        seconds["report"] = time.perf_counter() - began - sum(seconds.values())
        logger.result(scorecard, figures)
        failed = False
    finally:
        logger.finish(failed=failed)
        timing = {"seconds": seconds, "phases": session.seconds}
        write_text(folder / "timing.json", json.dumps(timing, indent=2) + "\n")
    return scorecard


def simulate(
    simulator: Simulator, config: Mapping[str, Any], folder: Path
) -> tuple[Recording, Truth | None, dict[str, Tensor]]:
    """Recording, truth and what is given, from the simulator or (a resumed run) from disk.

    The truth lies in a file of its own; nothing on the way to the model opens it.
    """
    if (folder / "given.pt").exists():
        return read_data(folder)
    recording, truth = simulator.simulate(simulator_seed(config))
    given = simulator.reveal(recording, truth, **config["prior"])
    recording.save(folder / "recording.pt")
    if truth is not None:
        truth.save(folder / "truth.pt")
    content = {"kind": "given", "given": given, "prior": dict(config["prior"])}
    save_tensors(folder / "given.pt", content)
    return recording, truth, given


def read_data(folder: Path) -> tuple[Recording, Truth | None, dict[str, Tensor]]:
    """What :func:`simulate` wrote; a missing ``truth.pt`` means that there is no truth."""
    recording = Recording.load(folder / "recording.pt")
    truth = Truth.load(folder / "truth.pt") if (folder / "truth.pt").exists() else None
    return recording, truth, load_tensors(folder / "given.pt", kind="given")["given"]


def cut_and_build(
    parts: Parts, config: Mapping[str, Any], recording: Recording, given: Mapping[str, Tensor]
) -> tuple[Any, nn.Module]:
    """Dataset and model, in the precision of the run. The truth is not among the arguments."""
    dtype = PRECISIONS[config["precision"]]
    data = parts.dataset(recording, given).astype(dtype)
    generator = torch_generator(training_seed(config), "model")
    return data, parts.model(data.spec, generator=generator).to(dtype)


def simulator_seed(config: Mapping[str, Any]) -> int:
    """``simulator.seed``, or ``seed`` where it is not set."""
    own = config["simulator"].get("seed")
    if own is not None and not (isinstance(own, int) and not isinstance(own, bool)):
        raise ConfigError(f"simulator.seed must be an integer or null, got {own!r}")
    return config["seed"] if own is None else own


def training_seed(config: Mapping[str, Any]) -> int:
    """``training_seed``, or ``seed`` where it is not set."""
    own = config["training_seed"]
    return config["seed"] if own is None else own


def open_session(
    parts: Parts,
    config: Mapping[str, Any],
    folder: Path,
    data: Any,
    model: nn.Module,
    truth: Truth | None,
) -> tuple[Any, Session]:
    """Session with its callbacks; the truth goes into watchers of files, no further."""
    trainer = config["trainer"]
    callbacks: list[Callback] = []
    if parts.evaluation.every and truth is not None:
        callbacks.append(
            PeriodicEvaluation(
                watch=lambda model, data: parts.evaluation.watch(model, data, truth),
                every=parts.evaluation.every,
                path=folder / "evaluation.jsonl",
            )
        )
    draw = getattr(parts.report, "watch", None)
    if parts.evaluation.every and draw is not None and getattr(parts.report, "is_periodic", False):
        callbacks.append(
            PeriodicFigures(
                draw=lambda model, data, label: draw(model, data, truth, folder, label),
                every=parts.evaluation.every,
            )
        )
    if trainer["early_stop"]["patience"] is not None:
        callbacks.append(EarlyStop(**trainer["early_stop"]))
    callbacks.append(parts.logger)
    if trainer["progress"]:
        callbacks.append(Progress())
    session = Session(
        model,
        data,
        parts.loss,
        optimizer=parts.optimizer,
        seed=derived_seed(training_seed(config), "session"),
        folder=folder,
        device=config["device"],
        budget=parts.budget,
        callbacks=callbacks,
        checkpoint_every=trainer["checkpoint_every"],
    )
    return parts.logger, session


def judge(
    evaluation: Evaluator,
    config: Mapping[str, Any],
    model: nn.Module,
    data: Any,
    truth: Truth | None,
    log: Mapping[str, Any],
    given: Mapping[str, Tensor],
) -> Scorecard:
    """Scorecard of a fitted model, with what it was given and where it came from."""
    scorecard = evaluation(model, data, truth, log=log)
    scorecard.meaning = explain(scorecard.metrics, getattr(evaluation, "meanings", {}))
    if log["notes"]:
        scorecard.facts["training"] = "; ".join(log["notes"])
    scorecard.given = {
        "prior": dict(config["prior"]),
        "tensors": {name: list(value.shape) for name, value in given.items()},
    }
    scorecard.provenance = {
        "name": config["name"],
        "seed": config["seed"],
        "simulator_seed": simulator_seed(config),
        "training_seed": training_seed(config),
        "primary_metric": evaluation.primary_metric,
        "direction": evaluation.direction,
        "truth": "simulator" if truth is not None else "none: measured data",
    }
    return scorecard


def examine(parts: Parts, config: Mapping[str, Any], session: Session, folder: Path) -> None:
    """``identifiability.csv`` and ``.json`` of the fitted model, where the system has its part."""
    from neuralgraph.identifying import examine_fitted

    examine_fitted(parts.identifiability, session, folder, seed=config["seed"])


def write_report(
    reporter: Reporter,
    config: Mapping[str, Any],
    folder: Path,
    session: Session,
    truth: Truth | None,
    scorecard: Scorecard,
) -> list[Path]:
    """Figures, products and ``report.html``; returns the paths of the figures."""
    from neuralgraph.identifying import section
    from neuralgraph.reporting import render

    model, data = session.model, session.data
    figures = list(reporter.figures(model, data, truth, scorecard, folder))
    produce = getattr(reporter, "products", None)  # a recovered network as files, without truth
    products = list(produce(model, data, scorecard, folder, store=session.store)) if produce else []
    recording = Recording.load(folder / "data" / "recording.pt")
    html = render(config, folder, recording, scorecard, figures, products, section(folder))
    write_text(folder / "report.html", html)
    return [figure.path for figure in figures]


def reopen(config: Mapping[str, Any], folder: Path) -> tuple[Parts, Session, Truth | None, dict]:
    """Parts, session with the final weights, truth and given of a finished run folder."""
    parts = compose(config)
    limit_threads(config["n_threads"])
    recording, truth, given = read_data(folder / "data")
    data, model = cut_and_build(parts, config, recording, given)
    content = load_checkpoint(folder / "checkpoints" / "final.pt")
    load_weights(model, content["model"], source=str(folder / "checkpoints" / "final.pt"))
    session = Session(model, data, parts.loss, device=config["device"], budget=parts.budget)
    session.n_steps = int(content["n_steps"])
    session.store = dict(content["store"])
    session.model.eval()
    return parts, session, truth, given


class SavedSimulation:
    """Data of an earlier run or simulation, as a simulator that cannot be reseeded.

    Args:
        path: A run folder, or its ``data`` folder. ``truth.pt`` may be missing: training does not
            need it, and the scores that do are named as not computed.
    """

    def __init__(self, *, path: str) -> None:
        folder = Path(path)
        self.folder = folder / "data" if (folder / "data").is_dir() else folder
        if not (self.folder / "recording.pt").is_file():
            raise DataError(f"{path} holds no recording.pt: give the folder of a run or simulation")

    def simulate(self, seed: int) -> tuple[Recording, Truth | None]:
        """Read; the seed changes nothing."""
        recording, truth, _ = read_data(self.folder)
        return recording, truth

    def reveal(
        self, recording: Recording, truth: Truth | None, /, **prior: bool
    ) -> dict[str, Tensor]:
        """What was given then; another prior than then is refused."""
        content = load_tensors(self.folder / "given.pt", kind="given")
        if content["prior"] != prior:
            raise ConfigError(
                f"the saved data were given prior {content['prior']}, this run asks for {prior}: "
                "use the same prior, or simulate again"
            )
        return content["given"]

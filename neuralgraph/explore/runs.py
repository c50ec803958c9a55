"""One run of a search: what a worker does, wherever it is."""

from __future__ import annotations

import copy
import os
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuralgraph.core.errors import NeuralGraphError
from neuralgraph.explore.plan import Plan, with_variant
from neuralgraph.explore.space import VARIANT

DATA_FILES = ("recording.pt", "truth.pt", "given.pt")
NO_REPORT = {"_target_": "neuralgraph.explore.runs.NoFigures"}


@dataclass(frozen=True)
class Job:
    """What a worker is asked to do.

    Args:
        kind: ``run``, or ``simulate`` (data and truth that runs of one seed share).
        config: Whole config of the run.
        folder: Where it works.
        data: Folder with the shared data, or ``None``.
    """

    kind: str
    config: dict[str, Any]
    folder: str
    data: str | None


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Args:
        status: ``finished`` or ``failed``.
        metrics: Of the scorecard.
        not_computed: Reasons, of the scorecard.
        facts: Verdicts in words, of the scorecard.
        baselines: Trivial scores, of the scorecard.
        problem: Why it failed, one line.
        losses: Attempts that were lost with their worker.
    """

    status: str
    metrics: dict[str, float]
    not_computed: dict[str, str]
    facts: dict[str, str]
    baselines: dict[str, dict[str, float]]
    problem: str = ""
    losses: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain content."""
        return asdict(self)


class NoFigures:
    """Reporter of a search that draws no figures (``explore.report=false``)."""

    def figures(self, model: Any, data: Any, truth: Any, scorecard: Any, folder: Path) -> list[Any]:
        """None."""
        return []


def configured(
    base: Mapping[str, Any], values: Mapping[str, Any], plan: Plan, *, report: bool, group: str
) -> dict[str, Any]:
    """Config of one run.

    Args:
        base: The experiment's config.
        values: Values of the space, the training seed, the variant.
        plan: Holds the variants.
        report: Whether figures are drawn.
        group: Name under which a tracker groups the runs of this search.
    """
    config: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in values.items():
        if key == VARIANT:
            continue
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    if values[VARIANT] is not None:
        variant = plan.variants[values[VARIANT]]
        config[variant.group] = with_variant(config[variant.group], variant)
    config |= {"search_space": None, "search_plan": None, "explore": None, "resume": None}
    config["trainer"]["progress"] = False
    if "identifiability" in config:  # what the data determine is the same for every run
        config["identifiability"] = None
    if not report:
        config["report"] = dict(NO_REPORT)
    if "group" in config["logger"] and config["logger"]["group"] is None:
        config["logger"]["group"] = group
    return config


def do(job: Job) -> Result:
    """Do one job; what the user or the numbers did wrong becomes a failed result."""
    from neuralgraph.core.threads import limit_threads

    limit_threads(job.config["n_threads"])
    try:
        return _simulate(job) if job.kind == "simulate" else _run(job)
    except NeuralGraphError as error:
        return _failed(str(error))
    except Exception as error:
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return _failed(f"{type(error).__name__}: {error}")


def _simulate(job: Job) -> Result:
    from neuralgraph import pipeline

    parts = pipeline.compose(job.config)
    pipeline.simulate(parts.simulator, job.config, Path(job.folder))
    return Result("finished", {}, {}, {}, {})


def _run(job: Job) -> Result:
    from neuralgraph import pipeline
    from neuralgraph.core.scorecard import Scorecard
    from neuralgraph.run_folder import RunFolder, fingerprint, read_state

    path = Path(job.folder)
    state = read_state(path)
    if state is not None and state["fingerprint"] != fingerprint(job.config):
        shutil.rmtree(path)  # left by an attempt with another config
        state = None
    if state is not None and state["status"] == "finished":
        return _result(Scorecard.load(path))
    folder = RunFolder(path, job.config, resume=state is not None)
    try:
        if job.data is not None:
            share(Path(job.data), path / "data")
        scorecard = pipeline.run(job.config, path)
    except NeuralGraphError:
        folder.fail()
        raise
    except BaseException:
        folder.release()
        raise
    folder.finish()
    return _result(scorecard)


def share(source: Path, target: Path) -> None:
    """Hard links of the shared data, or copies where links cannot be made."""
    target.mkdir(parents=True, exist_ok=True)
    for name in DATA_FILES:
        if not (source / name).exists() or (target / name).exists():
            continue
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)


def _result(scorecard: Any) -> Result:
    return Result(
        "finished",
        dict(scorecard.metrics),
        dict(scorecard.not_computed),
        {k: v for k, v in scorecard.facts.items() if isinstance(v, str)},
        dict(scorecard.facts.get("baselines", {})),
    )


def _failed(problem: str) -> Result:
    return Result("failed", {}, {}, {}, {}, problem=" ".join(problem.split()))

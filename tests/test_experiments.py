"""Every experiment of the menu composes, builds, and runs to a report with ``budget=smoke``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
LONG = {
    "metabolism_ijo1366_k",
    "metabolism_salmonella_k",
    "metabolism_joint_noise5",
    "metabolism_s_noise",
    "metabolism_s_roles",
    "metabolism_s_single",
}
"""Thousands of reactions, which no budget makes small, or the path of a shorter one again."""
SHORTER = {
    "perturb_ode": (
        "model.n_seed=2",
        "evaluation.twin.n_component=[8]",
        "evaluation.twin.n_hidden=[16]",
        "evaluation.twin.n_epochs=20",
    ),
}
"""Shorter lists of what a judge tries or repeats, which no budget bounds."""
SMALLER = {"metabolism_s", "metabolism_s_support", "metabolism_joint_noise"}
"""Run on networks of a fifth of their size, whose decoding takes seconds."""
VERBS = sorted(
    path.stem
    for path in (ROOT / "conf").glob("*.yaml")
    if "base" in path.read_text() and path.stem != "base"
)


@pytest.fixture
def composed():
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph.config import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        yield lambda verb, *overrides: compose(verb, list(overrides))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_under_every_verb_and_carries_its_own_name(composed, name):
    for verb in VERBS:
        cfg = composed(verb, f"+experiment={name}")
        assert cfg.name == name
    assert cfg.question.strip().endswith((".", "?"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_builds_and_names_how_it_is_judged(composed, name):
    from neuralgraph.cli import plain
    from neuralgraph.core.errors import MissingDataError
    from neuralgraph.pipeline import compose as build_all

    config = plain(composed("train", f"+experiment={name}"))
    try:
        parts = build_all(config)
    except MissingDataError as error:
        pytest.skip(str(error))
    assert parts.evaluation.direction in ("maximize", "minimize")
    assert isinstance(parts.evaluation.primary_metric, str)
    assert isinstance(parts.evaluation.every, int)
    for key, space in (config["search_space"] or {}).items():
        node = config
        for part in key.split("."):
            assert part in node, f"search_space names {key}, which the config does not have"
            node = node[part]
        assert "group" in space and ("values" in space or {"low", "high", "scale"} <= set(space))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in EXPERIMENTS]
)
def test_an_experiment_runs_to_a_report_with_a_smoke_budget(inside, tmp_path, name):
    status, message = inside(
        "train",
        f"+experiment={name}",
        "budget=smoke",
        "hydra.run.dir=out",
        "trainer.progress=false",
        *SHORTER.get(name, ()),
    )
    if status and "NEURALGRAPH_DATA" in message:
        pytest.skip(message)
    assert status == 0, message
    out = tmp_path / "out"
    card = json.loads((out / "scorecard.json").read_text())
    assert set(card["metrics"]) == set(card["meaning"]), "a metric that nobody explains"
    assert card["provenance"]["primary_metric"] in {**card["metrics"], **card["not_computed"]}
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "run.json").read_text().count("finished") == 1
    for metric in card["metrics"]:
        assert metric not in card["not_computed"]


def test_every_claimed_experiment_is_written_up():
    """A notebook page and the numbers to expect, for each experiment of the menu."""
    for name in EXPERIMENTS:
        folder = ROOT / "experiments" / name
        assert (folder / "README.md").exists(), f"experiments/{name}/README.md is missing"
        expected = json.loads((folder / "expected.json").read_text())
        assert expected["metrics"] and isinstance(expected["seed"], int), name

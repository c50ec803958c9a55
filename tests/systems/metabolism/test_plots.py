from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.metabolism.plots import MetabolismReporter
from neuralgraph.viz import style

_path = Path(__file__).with_name("test_evaluation.py")
_spec = importlib.util.spec_from_file_location("metabolism_case", _path)
assert _spec is not None and _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Few pixels: what is drawn does not depend on them."""
    monkeypatch.setattr(style, "DPI", 30)


def reporter(**changes):
    knobs = {
        "n_metabolite_shown": 4,
        "n_curve_shown": 3,
        "max_image_size": 1000,
        "is_periodic": False,
    }
    return MetabolismReporter(**{**knobs, **changes})


def draw(folder, *, truth=True, **options):
    model, data, known = cases.case(**options)
    known = known if truth else None
    knobs = {"class_metric": "rate_constants_R2", "degeneracy": None}
    card = cases.evaluator(**knobs)(model, data, known, log=cases.LOG)
    folder.mkdir()
    row = {"phase": "fit", "epoch": 0, "step": 5, "loss": 0.5, "regul_total": 0.1}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return list(reporter().figures(model, data, known, card, folder))


def names(figures):
    return [figure.path.stem for figure in figures]


def test_every_figure_is_drawn_titled_and_captioned(tmp_path):
    figures = draw(tmp_path / "run", planted=False)
    assert names(figures) == [
        "concentrations",
        "kinograph",
        "stoichiometry",
        "comparison_final",
        "MLP_sub_final",
        "identifiability",
        "loss",
    ]
    for figure in figures:
        assert figure.path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert figure.title and not figure.title.endswith(".")
        assert figure.caption.strip().endswith(".")
    lines = (tmp_path / "run" / "identifiability_structure.csv").read_text().splitlines()
    assert len(lines) == 17


def test_the_same_run_gives_the_same_bytes(tmp_path):
    first, second = (draw(tmp_path / name, planted=False) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes(), one.path.stem


def test_without_truth_only_figures_that_need_none_are_drawn(tmp_path):
    figures = draw(tmp_path / "run", truth=False)
    assert names(figures) == ["concentrations", "kinograph", "MLP_sub_final", "loss"]
    assert not (tmp_path / "run" / "identifiability_structure.csv").exists()


def test_given_stoichiometry_and_homeostasis_bring_their_own_figures(tmp_path):
    figures = draw(tmp_path / "run", stoichiometry=True, homeostasis=True)
    assert "stoichiometry" not in names(figures)
    assert {"MLP_node_final", "embedding_final", "comparison_final"} <= set(names(figures))


def test_a_diverging_model_still_gets_its_report(tmp_path):
    model, data, truth = cases.case()
    with torch.no_grad():
        model.log_k += 6
    card = cases.evaluator(rollout_method="euler")(model, data, truth, log=cases.LOG)
    figures = list(reporter(max_image_size=1).figures(model, data, truth, card, tmp_path))
    assert "kinograph" not in names(figures)
    assert "diverged" in figures[0].caption


def test_learned_rate_laws_are_drawn_without_truth_too(tmp_path):
    _, data, _ = cases.case()
    model = cases.Metabolism_Propagation(
        data.spec, generator=torch.Generator().manual_seed(0), kinetics="learned_rate"
    ).double()
    card = cases.evaluator()(model, data, None, log=cases.LOG)
    figures = list(reporter().figures(model, data, None, card, tmp_path))
    assert "rate_law" in names(figures)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        reporter(n_curve_shown=0)


@pytest.mark.parametrize("truth", [True, False])
def test_figures_of_document_002_while_training(tmp_path, truth):
    model, data, known = cases.case(planted=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = reporter(is_periodic=True).watch(
        model, data, known if truth else None, tmp_path, "00000020"
    )
    expected = ["comparison_00000020"] * truth + ["MLP_sub_00000020", "loss"]
    assert names(found) == expected
    written = {path.name for path in (tmp_path / "figures").rglob("*")}
    assert not any(name.endswith(".part") for name in written)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])

"""References of ceilings, controls of differential genes, reasons for what is not computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from neuralgraph.systems.hyperbolic_response.evaluation import (
    NOT_VS_MEAN,
    VS_MEAN,
    ResponseEvaluator,
    judge,
    matched_rows,
)
from neuralgraph.systems.hyperbolic_response.metrics import BASELINES, METRICS, name_of
from neuralgraph.systems.hyperbolic_response.model import ResponseModel
from neuralgraph.systems.hyperbolic_response.tasks import Builder


def evaluator(**changed) -> ResponseEvaluator:
    asked: dict[str, Any] = {
        "every": 0, "primary_metric": "pearson_delta", "direction": "maximize", "subgroup": None,
        "reference_baseline": "additive", "n_bootstrap": 20, "fdr": 0.05, "max_cells": 20,
    }  # fmt: skip
    return ResponseEvaluator(**{**asked, **changed})


def untrained(data) -> ResponseModel:
    return ResponseModel(
        data.spec, generator=torch.Generator().manual_seed(0), manifold="euclidean",
        baseline="additive", dim=2, n_layer=0, n_hidden=3, n_loading=2, n_member=2,
        n_control_split=data.n_control_split, init_std=0.1, learnable_curvature=True,
    )  # fmt: skip


@pytest.fixture
def screen(simulated, cut):
    recording, truth, given = simulated()
    return cut(recording, given, graph="simulator"), truth


def test_the_ceiling_against_the_mean_is_one_for_equal_halves_whatever_the_controls(screen):
    data, _ = screen
    for fold in data.folds:  # both halves of the cells say exactly the mean of all of them
        test = fold.test
        object.__setattr__(test, "half_a", test.mean - test.control)
        object.__setattr__(test, "half_b", test.mean - test.control_truth)
    model = untrained(data)
    judged = judge(model, Builder(data, model.settings), subgroup=None, fdr=0.05)
    values = evaluator().values(judged, data)
    against_mean = values["pearson_delta", True, True, "ceiling"]
    assert torch.allclose(against_mean, torch.ones_like(against_mean))
    direction = values["direction_match", True, True, "ceiling"]
    assert torch.allclose(direction.nan_to_num(1.0), torch.ones_like(direction))
    # against control the truth half and the prediction half are two samples: noise stays
    assert float(values["pearson_delta", False, True, "ceiling"].max()) < 0.999


def test_every_score_and_baseline_is_computed_or_has_a_reason(screen):
    data, truth = screen
    card = evaluator()(untrained(data), data, truth, log={"final_loss": 0.0})
    for metric in METRICS:
        for vs_mean in (False, True):
            for disjoint in (False, True):
                for baseline in ("", *BASELINES):
                    name = name_of(metric, vs_mean=vs_mean, disjoint=disjoint, baseline=baseline)
                    assert (name in card.metrics) != (name in card.not_computed), name
                    if vs_mean and metric in NOT_VS_MEAN:
                        assert card.not_computed[name] == NOT_VS_MEAN[metric]
    assert set(VS_MEAN) | set(NOT_VS_MEAN) == set(METRICS)
    assert "cancels" not in NOT_VS_MEAN["de_overlap"]
    assert "epistasis_pearson_additive_shrunk" in card.metrics
    assert card.facts["ridge"].count("components") == len(data.folds)


def test_an_untrained_model_takes_no_control_to_be_off(screen):
    data, _ = screen
    model = untrained(data)
    judged = judge(model, Builder(data, model.settings), subgroup=None, fdr=None)
    assert all(float(level.abs().max()) == 0 for level in judged.level["ours"])
    assert float(judged.level["additive_shrunk"][0].abs().max()) == 0
    assert float(judged.level["additive_shrunk"][1].abs().max()) > 0


def test_genes_called_against_the_first_cut_are_scored_on_it_alone(screen):
    data, _ = screen
    model = untrained(data)
    judged = judge(model, Builder(data, model.settings), subgroup=None, fdr=0.05)
    values = evaluator().values(judged, data)
    other = dataclasses.replace(
        judged,
        prediction={
            name: [table if form < 2 else -table.flip(1) for form, table in enumerate(tables)]
            for name, tables in judged.prediction.items()
        },
    )
    again = evaluator().values(other, data)
    for metric, same in (("de_overlap", True), ("direction_match", True), ("mse", False)):
        key = (metric, False, True, "additive")
        assert torch.allclose(values[key], again[key], equal_nan=True) == same, metric


def test_differential_genes_are_called_against_controls_of_the_same_batches(simulated, cut):
    recording, _, given = simulated()
    data = cut(recording, given, reference="batch", graph="simulator")
    fold = data.folds[0]
    mine = fold.test.rows[0]
    keep = torch.cat([mine[data.stratum_of(mine) == 0], mine[data.stratum_of(mine) == 1][:1]])
    object.__setattr__(fold.test, "rows", (keep, *fold.test.rows[1:]))
    rows = matched_rows(data, fold, "all", 0)
    share = (data.stratum_of(rows) == 0).double().mean()
    wanted = (data.stratum_of(keep) == 0).double().mean()
    assert float(share) == pytest.approx(float(wanted), abs=0.08)
    everyone = cut(recording, given, graph="simulator")  # one stratum: every control serves
    n = sum(len(part) for part in everyone.folds[0].control_rows.values())
    assert len(matched_rows(everyone, everyone.folds[0], "all", 0)) == n


def test_the_ridge_and_its_choice_see_nothing_of_a_test_condition(simulated, cut):
    """Cells of the test conditions may be anything."""
    recording, _, given = simulated(n_double=24)
    asked = {"graph": "simulator", "fold": 0}
    data = cut(recording, given, **asked)
    state = recording.state.clone()
    for rows in data.folds[0].test.rows:
        state[rows] = state[rows].flip(-1)
    other = cut(dataclasses.replace(recording, state=state), given, **asked)
    said = []
    for one in (data, other):
        model = untrained(one)
        said.append(judge(model, Builder(one, model.settings), subgroup=None, fdr=None))
    assert not torch.equal(said[0].truth[0], said[1].truth[0])
    for form in range(2):
        assert torch.equal(*(judged.prediction["ridge"][form] for judged in said))

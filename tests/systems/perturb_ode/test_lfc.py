"""Movement between days: what is known of it where the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording
from neuralgraph.systems.perturb_ode.lfc import (
    CellGroups,
    fold_changes,
    movement,
    permuted,
    split,
    subsampled,
)
from neuralgraph.systems.perturb_ode.sequential import CommonChange, DayPairs, MovementEvaluator


def groups(mean, n_cell, seed=0, dispersion=0.2):
    """Counts with means ``(K, T, G)`` and ``(K, T)`` cells."""
    rng = np.random.default_rng(seed)
    rows, condition, day = [], [], []
    for k in range(mean.shape[0]):
        for t in range(mean.shape[1]):
            n = int(n_cell[k, t])
            rate = mean[k, t] * rng.gamma(1 / dispersion, dispersion, (n, mean.shape[2]))
            rows.append(rng.poisson(rate))
            condition += [k] * n
            day += [t] * n
    return CellGroups(
        torch.tensor(np.concatenate(rows), dtype=torch.float64),
        torch.tensor(condition),
        torch.tensor(day),
        torch.ones(mean.shape[0], mean.shape[2]),
        0.1,
    )


def still(seed, n_condition=4, n_day=2, n_gene=12, n=40):
    level = 2 + np.random.default_rng(seed).random((n_condition, 1, n_gene)) * 3
    mean = np.repeat(level, n_day, axis=1)
    return groups(mean, np.full((n_condition, n_day), n), seed)


KNOBS = {"n_permutation": 59, "n_bootstrap": 40, "level": 0.9, "seed": 0}


def test_the_permutation_p_is_uniform_for_cells_at_rest():
    p = [
        float(movement(still(seed), **{**KNOBS, "n_bootstrap": 2}).specific_p[0])
        for seed in range(200)
    ]
    # 0.1 within 3 standard errors of a share of 200
    assert 0.04 < np.mean(np.array(p) <= 0.1001) < 0.16
    assert 0.44 < np.mean(p) < 0.56


def test_noise_is_taken_out_and_known_movement_is_found():
    still_one = movement(still(1, n_condition=6), **KNOBS)
    assert float(still_one.mean[0]) > 0.1  # sampling alone
    assert float(still_one.specific[0]) < 0.06 and float(still_one.common[0]) < 0.08
    mean = np.full((6, 2, 40), 5.0)
    mean[:, 1] *= 1.3  # shared
    mean[0, 1] *= np.where(np.arange(40) % 2, 2.0, 0.5)
    found = movement(groups(mean, np.full((6, 2), 200)), **KNOBS)
    # one of six moves by ±1: what it shares goes into the common part
    assert float(found.own[0, 0]) == pytest.approx(5 / 6, abs=0.06)
    expected = (np.log2(1.3) ** 2 + (1 / 6) ** 2) ** 0.5
    assert float(found.common[0]) == pytest.approx(expected, abs=0.05)
    assert float(found.own_p[0, 0]) == pytest.approx(1 / 60)
    verdicts = found.verdicts(0.5)
    assert verdicts[0] == "moving" and verdicts[1:] == ["settled"] * 5
    assert found.own_low[0, 0] < found.own[0, 0] < found.own_high[0, 0]


def test_few_cells_are_undecided():
    mean = np.full((3, 2, 20), 5.0)
    sizes = np.array([[300, 300], [300, 300], [6, 6]])
    found = movement(groups(mean, sizes), **KNOBS)
    assert found.verdicts(0.3) == ["settled", "settled", "undecided"]


def test_more_cells_lower_the_raw_change_and_not_that_at_equal_numbers():
    mean = np.full((4, 3, 30), 3.0)
    sizes = np.tile([20, 20, 400], (4, 1))
    found = movement(groups(mean, sizes), **KNOBS)
    assert float(found.mean[1] / found.mean[0]) < 0.85
    assert found.equal_n == 20
    assert float(found.equal_mean[1] / found.equal_mean[0]) == pytest.approx(1, abs=0.1)


def test_the_parts_of_a_change_add_up_and_perturbed_genes_count_nowhere():
    change = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    measured = torch.ones(4, 5)
    measured[1, 3] = 0
    common, rest = split(change, measured)
    assert rest[1, :, 3].abs().max() == 0
    kept = measured[:, None].expand(4, 2, 5) > 0
    torch.testing.assert_close((rest + common)[kept], change[kept])
    other = change.clone()
    other[1, :, 3] += 100
    torch.testing.assert_close(split(other, measured)[1], rest)


def test_whole_groups_are_their_own_subsample_and_shuffles_keep_their_sizes():
    cells = still(0, n=10)
    torch.testing.assert_close(subsampled(cells, 1, 10, seed=0)[0], fold_changes(cells))
    drawn = permuted(cells, 300, seed=0)
    assert drawn.mean(0).abs().max() < 0.1 and drawn.shape == (300, 4, 1, 12)


def test_the_margin_is_a_rate():
    cells = still(0, n_day=3)
    time = torch.tensor([1.0, 2.0, 3.0]).expand(4, -1)
    counted = Recording(
        time=time,
        state=torch.zeros(4, 3, 12),
        names=tuple(f"G{i}" for i in range(12)),
        inputs={},
        graph={
            "cells": cells.expression.log1p(),
            "cell_condition": cells.condition,
            "cell_day": cells.day,
            "target": torch.zeros(4, 12),
        },
        units={"time": "day"},
        provenance={"conditions": [f"P{k}" for k in range(4)]},
    )
    verdicts = []
    for gap in (1.0, 30.0):
        data = DayPairs(replace(counted, time=gap * counted.time), {}, pseudocount=0.1)
        judge = MovementEvaluator(
            every=0, primary_metric="specific_rms_last", direction="minimize", n_permutation=5,
            n_bootstrap=5, level=0.9, margin=0.03, seed=0,
        )  # fmt: skip
        model = CommonChange(data.spec, generator=torch.Generator())
        card = judge(model, data, None, log={"final_loss": 0.0})
        assert card.facts["margin"] == pytest.approx(0.03 * gap)
        verdicts.append(card.metrics["n_settled"])
    assert verdicts[0] < verdicts[1]


def test_means_alone_are_refused():
    from neuralgraph.systems.perturb_ode.simulator import HillScreen

    knobs = {
        "n_gene": 4, "min_regulators": 1, "max_regulators": 2, "n_train_single": 2,
        "n_test_single": 0, "n_test_double": 0, "n_medium": 0, "days": [2.0], "noise": 0.0,
        "n_replicate": 1, "has_control": True, "measurement": None,
    }  # fmt: skip
    with pytest.raises(DataError, match="keep_cells=true"):
        DayPairs(HillScreen(**knobs).simulate(0)[0], {}, pseudocount=0.1)

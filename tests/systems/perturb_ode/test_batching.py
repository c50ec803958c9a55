"""Variance formulas against Monte-Carlo and counted cells; warnings; the sampler; the verb."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.perturb_ode.batching import (
    LAYOUTS,
    MatchedBatchSampler,
    Variances,
    best_cells_per_batch,
    best_control_ratio,
    effect_variance,
    estimate_variances,
    floor_of_variance,
    layout,
    read_design,
    stratified_variance,
    warnings_of,
)
from neuralgraph.systems.perturb_ode.measurement import Measurement

V = Variances(batch=0.16, batch_condition=0.0225, cell=1.0)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(treated, control, rng, n=20_000):
    """Effects estimated in simulated experiments, pooled and within batches."""
    b = len(treated)
    batch = 0.4 * rng.standard_normal((n, b))
    pair = 0.15 * rng.standard_normal((n, b))
    noise = [rng.standard_normal((n, b)) / np.sqrt(np.maximum(m, 1)) for m in (treated, control)]
    seen_p, seen_0 = batch + pair + noise[0], batch + noise[1]
    pooled = seen_p @ (treated / treated.sum()) - seen_0 @ (control / control.sum())
    both = (treated > 0) & (control > 0)
    precision = 1 / (0.0225 + 1 / treated[both] + 1 / control[both]) if both.any() else None
    within = None
    if precision is not None:
        within = ((seen_p - seen_0)[:, both] @ precision) / precision.sum()
    return pooled, within


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_variance_of_an_effect_is_that_of_simulated_experiments(name):
    treated, control = layout(name, n_treated=200, n_control=400, n_batch=4)
    pooled, within = drawn(treated.numpy(), control.numpy(), np.random.default_rng(0))
    assert pooled.var() == pytest.approx(effect_variance(treated, control, V), rel=0.04)
    expected = stratified_variance(treated, control, V)
    if within is None:
        assert math.isinf(expected)
    else:
        assert within.var() == pytest.approx(expected, rel=0.04)


def test_known_designs_have_the_variances_of_the_reference():
    crossed = layout("crossed", n_treated=200, n_control=400, n_batch=4)
    assert effect_variance(*crossed, V) == pytest.approx(0.013125)
    assert effect_variance(tensor(200, 0), tensor(0, 400), V) == pytest.approx(0.35)
    separate = effect_variance(tensor(100, 100, 0, 0), tensor(0, 0, 200, 200), V)
    assert separate == pytest.approx(0.17875)


def test_more_cells_do_not_help_a_confounded_design():
    few, many = (
        effect_variance(*layout("separate", n_treated=n, n_control=n, n_batch=4), V)
        for n in (200, 200_000)
    )
    floor = floor_of_variance(*layout("separate", n_treated=1, n_control=1, n_batch=4), V)
    assert floor == pytest.approx(V.batch * (1 / 2 + 1 / 2) + V.batch_condition / 2)
    assert few > many > floor > 0.9 * few


def test_the_best_ratio_and_the_best_number_of_cells_are_minima():
    k, total = 23, 10_000.0

    def at_ratio(ratio: float) -> float:
        per = total / (k + ratio)
        return 1 / per + 1 / (ratio * per)

    best = best_control_ratio(k)
    assert at_ratio(best) < min(at_ratio(best * 1.05), at_ratio(best / 1.05))
    cost = {"cost_batch": 1500.0, "cost_cell": 0.1}
    cells = best_cells_per_batch(V, n_perturbation=k, **cost)

    def for_one_unit_of_money(n: float) -> float:
        variance = V.batch_condition + V.cell * (1 / n + 1 / (math.sqrt(k) * n))
        return variance * (cost["cost_batch"] + cost["cost_cell"] * n * (k + math.sqrt(k)))

    assert for_one_unit_of_money(cells) < min(
        for_one_unit_of_money(1.1 * cells), for_one_unit_of_money(cells / 1.1)
    )
    assert math.isinf(best_cells_per_batch(Variances(1, 0, 1), n_perturbation=k, **cost))


def test_the_formula_holds_for_counted_cells():
    """Count, take logarithms of mean abundance, and regress the variance on the formula."""
    depth, n_gene, phi = 4000.0, 300, 0.3
    how = Measurement(
        depth=depth, depth_spread=0.0, batch_spread=0.3, batch_condition_spread=0.12,
        dispersion=phi, dropout="none", dropout_rate=0.0, dropout_steepness=1.0,
        dropout_percentile=65.0, reference=0.0,
    )  # fmt: skip
    cv2 = 1 / (depth / n_gene) + phi
    variances = Variances(0.09, 0.0144, cv2)
    found, expected = [], []
    for number, (treated, control) in enumerate(
        [
            ((20, 20, 20, 20), (40, 40, 40, 40)),
            ((10, 10, 10, 10, 10, 10, 10, 10), (10, 10, 10, 10, 10, 10, 10, 10)),
            ((40, 0, 0, 0), (20, 20, 20, 20)),
            ((30, 30, 0, 0), (0, 0, 30, 30)),
            ((60, 20), (20, 60)),
        ]
    ):
        batch = np.concatenate([np.repeat(np.arange(len(c)), c) for c in (treated, control)])
        condition = np.repeat([0, 1], [sum(treated), sum(control)])
        squares = []
        for draw in range(3):
            rng = np.random.default_rng(10 * number + draw)
            counted = how(np.ones((len(batch), n_gene)), batch, condition, rng)
            # cells of one depth: log of the mean count by batch, averaged over batches
            means = [
                sum(
                    (condition == c)[batch == b].sum()
                    / (condition == c).sum()
                    * np.log(counted.count[(condition == c) & (batch == b)].mean(0))
                    for b in np.unique(batch[condition == c])
                )
                for c in (0, 1)
            ]
            squares.append(np.square(means[0] - means[1]).mean())
        found.append(np.mean(squares))
        both = 0.0144 * float((tensor(*control) / sum(control)).square().sum())
        expected.append(effect_variance(tensor(*treated), tensor(*control), variances) + both)
    slope = np.dot(found, expected) / np.dot(expected, expected)
    assert slope == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(found, expected, rtol=0.2)


def test_a_confounded_design_is_warned_of_and_a_good_one_is_not():
    for name, words in (
        ("separate", "confounded"),
        ("control_in_one", "3 of 4 of its batches hold no control"),
        ("one_batch_each", "one batch alone"),
    ):
        (warning,) = warnings_of(*layout(name, n_treated=40, n_control=40, n_batch=4), V)
        assert words in warning
    assert warnings_of(*layout("crossed", n_treated=40, n_control=40, n_batch=4), V) == []
    assert "no control cells" in warnings_of(tensor(3.0), tensor(0.0), V)[0]


def pilot(rng, n_gene=60, n_batch=12):
    import anndata
    import pandas as pd

    rows, labels, batches = [], [], []
    shift = 0.4 * rng.standard_normal((n_batch, n_gene))
    for b in range(n_batch):
        for p in ("control", "A", "B"):
            own = 0.25 * rng.standard_normal(n_gene) * (p != "control")
            rows.append(2 + shift[b] + own + rng.standard_normal((25, n_gene)))
            labels += [p] * 25
            batches += [f"b{b}"] * 25
    index = [f"c{i}" for i in range(len(labels))]
    obs = pd.DataFrame({"perturbation": labels, "batch": batches}, index=index)
    return anndata.AnnData(np.concatenate(rows), obs=obs)


READ = {
    "perturbation_column": "perturbation",
    "batch_column": "batch",
    "control_label": "control",
    "min_cells": 5,
}


def test_variances_come_back_from_a_pilot():
    found, by_gene = estimate_variances(pilot(np.random.default_rng(0)), **READ)
    assert found.batch == pytest.approx(0.16, rel=0.15)
    assert found.batch_condition == pytest.approx(0.0625, rel=0.15)
    assert found.cell == pytest.approx(1.0, rel=0.03)
    assert by_gene["batch"].shape == (60,)


def test_a_pilot_that_cannot_tell_is_refused_by_name():
    cells = pilot(np.random.default_rng(0), n_gene=2, n_batch=2)
    with pytest.raises(DataError, match="'lane'"):
        estimate_variances(cells, **{**READ, "batch_column": "lane"})
    with pytest.raises(DataError, match="no cell is labelled 'ntc'"):
        estimate_variances(cells, **{**READ, "control_label": "ntc"})
    with pytest.raises(DataError, match="1 batches"):
        estimate_variances(cells[cells.obs["batch"] == "b0"], **READ)
    with pytest.raises(DataError, match="columns batch, perturbation, cells"):
        read_design([{"batch": "1"}], "control")
    with pytest.raises(ConfigError, match=r"variance\.cell"):
        Variances(1, 1, -1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: np.where(x == x.max(), np.nan, x), "1 of its values are not finite"),
        (lambda x: np.where(x == x.max(), np.inf, x), "1 of its values are not finite"),
        (lambda x: 100 * np.abs(x), "which no log expression does"),
        (lambda x: np.round(np.abs(x)), "whole numbers only"),
        (lambda x: x[:, :0], "is empty"),
    ],
)
def test_a_pilot_that_is_no_log_expression_is_refused(spoil, words):
    import anndata

    cells = pilot(np.random.default_rng(0), n_gene=2, n_batch=2)
    with pytest.raises(DataError, match=words):
        estimate_variances(anndata.AnnData(spoil(np.asarray(cells.X)), obs=cells.obs), **READ)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("b1,control,9\nb1,A", "row 2 .* one value for each column .*cells=None"),
        ("b1,control,9\nb1", "row 2 .*perturbation=None"),
        ("b1,control,9\nb1,A,1,000", "row 2 .*more fields than columns"),
        ("b1,control,9\nb1,A,many", "got 'many'"),
        ("b1,control,9\nb2,control,9", "every row of the design is 'control'"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(rows, words, inside, tmp_path):
    (tmp_path / "design.csv").write_text("batch,perturbation,cells\n" + rows + "\n")
    status, message = inside("plan_batches", "table=design.csv")
    assert status == 1 and re.search(words, " ".join(message.split())), message
    assert "Traceback" not in message


def test_minibatches_are_matched_and_their_contrast_is_free_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    batch = torch.arange(8).repeat_interleave(50)
    is_control = torch.arange(50).repeat(8) < 25
    is_control[batch == 7] = False
    shift = torch.randn(8, generator=generator)
    value = shift[batch] + 0.1 * torch.randn(len(batch), generator=generator)
    knobs = {"n_treated": 20, "n_control": 20, "n_minibatch": 300, "generator": generator}
    sampler = MatchedBatchSampler(batch, is_control, **knobs)
    assert sampler.left_out == [7] and len(sampler) == 300
    contrasts = []
    for treated, control in sampler:
        assert (batch[treated] == batch[control][0]).all() and not is_control[treated].any()
        contrasts.append(float(value[treated].mean() - value[control].mean()))
    matched = float(np.var(contrasts))
    pools = [is_control.nonzero()[:, 0], (~is_control & (batch < 7)).nonzero()[:, 0]]
    random = []
    for _ in range(300):
        means = [
            value[pool[torch.randint(len(pool), (20,), generator=generator)]].mean()
            for pool in pools
        ]
        random.append(float(means[1] - means[0]))
    assert matched < 0.1 * float(np.var(random))
    with pytest.raises(DataError, match="no batch holds both"):
        MatchedBatchSampler(torch.tensor([0, 1]), torch.tensor([True, False]), **knobs)


def test_the_verb_writes_a_plan_and_warns(inside, tmp_path):
    status, message = inside("plan_batches", "layout=separate", "hydra.run.dir=out")
    assert status == 0, message
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["best_control_cells_per_treated_cell"] == pytest.approx(23**0.5)
    assert "confounded" in plan["warnings"][0]
    assert plan["rows"][0]["variance_stratified"] is None
    assert "confounded" in (tmp_path / "out" / "report.html").read_text()
    rows = "batch,perturbation,cells\nb1,control,100\nb1,A,50\nb2,control,100\nb2,A,50\nb2,B,50\n"
    (tmp_path / "design.csv").write_text(rows)
    status, message = inside("plan_batches", "table=design.csv", "hydra.run.dir=two")
    assert status == 0, message
    plan = json.loads((tmp_path / "two" / "plan.json").read_text())
    assert [row["design"] for row in plan["rows"]] == ["A", "B"]
    assert plan["rows"][0]["variance"] == pytest.approx(0.0225 / 2 + 1 / 100 + 1 / 200)
    assert len(plan["warnings"]) == 1 and "'B'" in plan["warnings"][0]
    # the layouts are compared at the sizes of the table, not at those of the settings
    assert plan["layouts_compared_at"] == {"n_treated": 75, "n_control": 200, "n_batch": 2}
    crossed = 0.0225 / 2 + 1 / 75 + 1 / 200
    assert plan["variance_by_layout"]["crossed"] == pytest.approx(crossed)
    assert (tmp_path / "two" / "figures" / "plan.png").exists()
    (tmp_path / "empty.csv").write_text("batch,perturbation,cells\nb1,control,0\nb1,A,5\n")
    status, message = inside("plan_batches", "table=empty.csv", "hydra.run.dir=three")
    assert status == 0, message
    plan = json.loads((tmp_path / "three" / "plan.json").read_text())
    assert plan["variance_by_layout"] == {} and plan["layouts_compared_at"] == {}
    assert not (tmp_path / "three" / "figures" / "plan.png").exists()
    status, message = inside("plan_batches", "n_batch=0")
    assert status == 1 and "n_batch must be a whole number" in message

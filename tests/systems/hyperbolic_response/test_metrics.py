"""Scores of predicted responses, against closed forms and against scipy."""

from __future__ import annotations

import math

import pytest
import torch

from neuralgraph.systems.hyperbolic_response import metrics


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pearson_is_one_for_a_scaled_copy_and_undefined_for_a_constant():
    truth = draw(3, 40)
    prediction = torch.stack([2 * truth[0] + 1, -truth[1], torch.zeros(40)])
    value = metrics.pearson(prediction, truth)
    assert value[:2].tolist() == pytest.approx([1.0, -1.0])
    assert math.isnan(value[2])


def test_mse_top_looks_only_at_the_genes_that_respond_most():
    response = torch.arange(10.0)[None]
    prediction = torch.zeros(1, 10)
    prediction[0, :5] = 100.0  # wrong where nothing happens
    assert float(metrics.mse_top(prediction, torch.zeros(1, 10), response, n_top=5)) == 0.0


def test_direction_match_gives_a_coin_to_zero_and_nothing_without_a_responding_gene():
    truth = torch.tensor([[1.0, -1.0, 2.0, 3.0]] * 2)
    prediction = torch.tensor([[1.0, 1.0, 0.0, 5.0]] * 2)
    is_de = torch.tensor([[True, True, True, False], [False] * 4])
    value = metrics.direction_match(prediction, truth, is_de)
    assert float(value[0]) == pytest.approx(0.5) and math.isnan(value[1])


@pytest.mark.parametrize("n", [2, 5, 8])
def test_pds_gives_a_constant_predictor_one_half_and_a_perfect_one_one(n):
    truth = draw(n, 30)
    none = torch.zeros(n, 30, dtype=torch.bool)
    assert metrics.pds(truth, truth, none).tolist() == [1.0] * n
    same = torch.zeros(n, 30, dtype=torch.float64)
    assert float(metrics.pds(same, truth, none).mean()) == pytest.approx(0.5)
    tied = torch.ones(n, 30, dtype=torch.float64)  # every truth the same: all tie
    assert metrics.pds(draw(n, 30, seed=1), tied, none).tolist() == [0.5] * n


def test_pds_leaves_out_the_target_gene():
    truth = torch.zeros(2, 3)
    truth[1] = torch.tensor([0.0, 1.0, 1.0])
    prediction = truth.clone()
    prediction[0] = torch.tensor([9.0, 0.1, 0.1])
    is_target = torch.zeros(2, 3, dtype=torch.bool)
    is_target[0, 0] = True
    assert metrics.pds(prediction, truth, is_target).tolist() == [1.0, 1.0]


def test_de_overlap_of_a_constant_is_the_share_of_de_genes():
    is_de = torch.zeros(1, 20, dtype=torch.bool)
    is_de[0, :5] = True
    assert float(metrics.de_overlap(torch.zeros(1, 20), is_de)) == pytest.approx(0.25)
    assert float(metrics.de_overlap(is_de.double() * -2, is_de)) == 1.0
    assert math.isnan(metrics.de_overlap(torch.ones(1, 20), torch.zeros(1, 20, dtype=bool)))


def test_rank_sum_and_rates_agree_with_scipy():
    from scipy import stats

    generator = torch.Generator().manual_seed(3)
    a = torch.poisson(torch.full((40, 9), 1.0), generator=generator)
    b = torch.poisson(torch.linspace(0.5, 3, 9).expand(60, 9), generator=generator)
    _, p = metrics.rank_sum(a, b)
    test = stats.mannwhitneyu(a, b, axis=0, method="asymptotic", use_continuity=False)
    assert p.tolist() == pytest.approx(test.pvalue.tolist(), rel=1e-6)
    rates = stats.false_discovery_control(test.pvalue)
    assert metrics.benjamini_hochberg(p).tolist() == pytest.approx(rates.tolist(), rel=1e-6)


def test_a_gene_that_does_not_vary_is_not_differential():
    z, p = metrics.rank_sum(torch.zeros(5, 2), torch.zeros(6, 2))
    assert z.tolist() == [0, 0] and p.tolist() == [1, 1]


def test_energy_distance_is_near_zero_for_one_law_and_grows_with_a_shift():
    x, y = draw(400, 5, seed=1), draw(400, 5, seed=2)
    assert abs(metrics.energy_distance(x, y)) < 0.05
    assert metrics.energy_distance(x, y + 2) > 1


def test_interval_covers_the_mean_and_leaves_undefined_values_out():
    values = torch.cat([draw(200) + 1, torch.tensor([math.nan])])
    low, high = metrics.interval(values, 2000)
    assert low < 1 < high and high - low < 0.4
    assert math.isnan(metrics.interval(torch.tensor([1.0]), 100)[0])


def test_a_gain_of_the_detectable_size_is_found_with_the_stated_power():
    from scipy import stats

    n, sd = 12, 1.0
    spread = torch.linspace(-1, 1, n, dtype=torch.float64)
    size = metrics.detectable(spread / spread.std())
    drawn = draw(4000, n, seed=5) * sd + size
    found = torch.tensor(stats.ttest_1samp(drawn.numpy(), 0, axis=1).pvalue < 0.05)
    assert float(found.double().mean()) == pytest.approx(0.8, abs=0.05)


def test_a_gain_is_positive_where_ours_is_better():
    ours, other = torch.tensor([1.0]), torch.tensor([2.0])
    assert float(metrics.gain(ours, other, "mse")) == 1.0
    assert float(metrics.gain(ours, other, "pds")) == -1.0


def test_names_follow_the_contract():
    assert metrics.name_of("mse", vs_mean=False, disjoint=False) == "mse"
    named = metrics.name_of("pds", vs_mean=False, disjoint=True, baseline="ceiling", bound="hi")
    assert named == "pds_disjoint_ceiling_hi"

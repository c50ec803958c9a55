from __future__ import annotations

import math

import pytest
import torch

from neuralgraph.metrics.regression import (
    least_squares_slope,
    mean_pearson,
    mse,
    pearson,
    r2_identity,
    r2_refit,
)


def test_identity_r2_of_a_hand_computed_example():
    target = torch.tensor([1.0, 2.0, 3.0])
    prediction = torch.tensor([1.0, 2.5, 3.0])
    assert r2_identity(prediction, target, per_variable=False) == pytest.approx(1 - 0.25 / 2)
    assert mse(prediction, target) == pytest.approx(0.25 / 3)


def test_identity_r2_sees_scale_offset_and_sign_where_the_refitted_line_is_blind():
    target = torch.linspace(-1, 2, 20)
    for prediction in (2 * target, target + 1, -target):
        assert r2_identity(prediction, target, per_variable=False) < 0.5
        assert r2_refit(prediction, target) == pytest.approx(1)
    assert r2_identity(target, target, per_variable=False) == 1


def test_per_variable_centring_does_not_credit_known_means():
    target = torch.tensor([[10.0, 0.0], [12.0, 0.0]])
    prediction = torch.tensor([[11.0, 0.0], [11.0, 0.0]])
    assert r2_identity(prediction, target, per_variable=True) == 0
    assert r2_identity(prediction, target, per_variable=False) > 0.9


def test_mean_pearson_leaves_constant_targets_out_and_counts_constant_predictions_as_zero():
    target = torch.tensor([[1.0, 1.0, 5.0], [2.0, 2.0, 5.0], [3.0, 3.0, 5.0]])
    prediction = torch.tensor([[2.0, 7.0, 1.0], [4.0, 7.0, 2.0], [6.0, 7.0, 0.0]])
    assert mean_pearson(prediction, target) == pytest.approx(0.5)


def test_undefined_scores_are_nan_and_shapes_are_checked():
    constant = torch.ones(3)
    assert math.isnan(r2_identity(constant, constant, per_variable=False))
    assert math.isnan(pearson(constant, torch.arange(3.0)))
    assert math.isnan(mse(torch.zeros(0), torch.zeros(0)))
    with pytest.raises(ValueError, match="one shape"):
        mse(torch.zeros(2), torch.zeros(3))


def test_slope():
    x = torch.arange(5.0)
    assert least_squares_slope(3 * x + 2, x) == pytest.approx(3)

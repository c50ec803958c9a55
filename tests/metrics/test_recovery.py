from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralgraph.metrics.recovery import (
    exact_fraction,
    nearest_integer_scale,
    sign_accuracy,
    support_f1,
)


def test_hand_computed_scores():
    target = torch.tensor([1.0, -2.0, 2.0, 0.0])
    prediction = torch.tensor([1.4, -1.4, -2.0, 0.1])
    assert exact_fraction(prediction, target) == 0.5
    assert sign_accuracy(prediction, target) == pytest.approx(2 / 3)
    assert support_f1(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])) == 0.5
    assert math.isnan(exact_fraction(target[:0], target[:0]))


def test_a_zero_has_no_sign():
    assert sign_accuracy(torch.zeros(2), torch.tensor([1.0, -1.0])) == 0


@pytest.mark.parametrize(
    ("values", "integer"),
    [
        ([2.0, 1.0, -1.0], [2, 1, -1]),
        ([1.0, 1.0, 1.0], [1, 1, 1]),
        ([1.0, 0.93, -0.48, 0.55], [2, 2, -1, 1]),
        ([0.9, 0.8, 0.74], [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 37.0])
def test_nearest_integer_scale_finds_the_pattern_at_any_scale(values, integer, scale):
    found = nearest_integer_scale(torch.tensor(values) * scale, largest=2, allow_zero=False)
    assert found.integer.tolist() == integer
    fixed = torch.tensor(values).double() * scale * found.scale
    assert float((fixed - found.integer).norm()) == pytest.approx(found.distance, abs=1e-6)


def test_absent_entries_round_to_zero_only_where_presence_is_not_given():
    values = torch.tensor([1.0, 0.02, -0.5])
    assert nearest_integer_scale(values, largest=2, allow_zero=True).integer.tolist() == [2, 0, -1]
    assert nearest_integer_scale(values, largest=2, allow_zero=False).integer.tolist() == [2, 1, -1]


def test_larger_coefficients_are_found_when_they_are_allowed():
    values = torch.tensor([6.0, 1.0, -4.0, 3.0]) * 0.21
    found = nearest_integer_scale(values, largest=6, allow_zero=False)
    assert found.integer.tolist() == [6, 1, -4, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-2, 2).filter(bool), min_size=2, max_size=7).filter(
        lambda v: 1 in [abs(i) for i in v]
    ),
    st.floats(1e-4, 1e4),
    st.randoms(use_true_random=False),
)
def test_scaling_and_permuting_change_nothing_but_the_scale(pattern, alpha, random):
    values = torch.tensor(pattern, dtype=torch.float64)
    order = list(range(len(pattern)))
    random.shuffle(order)
    found = nearest_integer_scale(alpha * values[order], largest=2, allow_zero=False)
    assert found.integer.tolist() == values[order].tolist()
    assert found.scale == pytest.approx(1 / alpha, rel=1e-9)


def test_a_vector_of_zeros_stays_zero():
    found = nearest_integer_scale(torch.zeros(3), largest=2, allow_zero=False)
    assert found.integer.tolist() == [0, 0, 0] and found.scale == 1

"""What the surrogate expects: known effects, unknown parameters, seeds, runs under way."""

from __future__ import annotations

import numpy as np
import pytest

from neuralgraph.explore.surrogate import NOISE, SIGNAL, Surrogate

UP, OTHER = {"loop.rate": 1e-2}, {"loop.batch": 64}


@pytest.fixture
def learned(kit):
    def surrogate(*iterations):
        return Surrogate(kit.history(*iterations), kit.toy().space)

    return surrogate


def gains(surrogate, *changes):
    root = {"loop.rate": 1e-3, "loop.batch": 16, "loss.penalty": 0.0}
    mean, unknown = surrogate.gains(root, [{**root, **change} for change in changes])
    return mean / surrogate.scale, unknown / surrogate.scale


def rates(kit, effect, n=9):
    """Runs that vary the learning rate alone."""
    position = np.linspace(0, 1, n)
    return [
        kit.made(i + 1, rewards=0.4 + effect * p, lr=1e-4 * 1e3**p) for i, p in enumerate(position)
    ]


def test_a_parameter_that_no_run_varied_keeps_its_prior_variance(kit, learned):
    before, after = learned(), learned(*rates(kit, 0.3))
    batch = after.keys.index("loop.batch")
    assert after.weight[batch] == pytest.approx(SIGNAL / len(after.keys))
    (_, known), (_, unknown) = gains(before, OTHER), gains(after, OTHER)
    assert unknown == pytest.approx(known)
    assert after.weight[after.keys.index("loop.rate")] > 2 * after.weight[batch]


def test_an_effect_is_expected_where_it_was_seen_and_less_uncertain(kit, learned):
    mean, unknown = gains(learned(*rates(kit, 0.3)), UP, OTHER)
    assert mean[0] > 0.5 and mean[1] == pytest.approx(0.0, abs=1e-9)
    assert unknown[0] < 0.5 * unknown[1]


def test_a_parameter_that_was_varied_to_no_effect_loses_weight(kit, learned):
    rng = np.random.default_rng(0)
    runs = [
        kit.made(
            n + 1, rewards=0.2 + 0.5 * p, lr=1e-4 * 1e3**p, penalty=(0.0, 0.1, 1.0)[rng.integers(3)]
        )
        for n, p in enumerate(rng.random(24))
    ]
    found = learned(*runs)
    weight = dict(zip(found.keys, found.weight, strict=True))
    assert weight["loss.penalty"] < 0.5 * weight["loop.batch"] < weight["loop.rate"]


def test_noise_is_what_seeds_say(kit, learned):
    quiet = [kit.made(i, rewards=0.5 + 1e-4 * i, seed=i, lr=1e-3) for i in range(1, 9)]
    ends = [kit.made(9, rewards=0.2, lr=1e-4), kit.made(10, rewards=0.8, lr=1e-1)]
    loud = [kit.made(i, rewards=0.5 + 0.3 * (-1) ** i, seed=i) for i in range(1, 9)]
    assert learned(*quiet, *ends).noise < 0.5 * NOISE < 0.8 < learned(*loud, *ends).noise


def test_runs_under_way_are_expected_as_before_and_less_uncertain(kit, learned):
    known = learned(*rates(kit, 0.3))
    root = kit.made(1).values
    pending = known.given([{**root, **OTHER}])
    (mean, unknown), (mean_then, unknown_then) = gains(known, UP, OTHER), gains(pending, UP, OTHER)
    assert mean_then == pytest.approx(mean)
    assert unknown_then[1] < 0.8 * unknown[1]
    assert unknown_then[0] == pytest.approx(unknown[0], rel=0.05)
    assert known.given([]) is known


def test_draws_have_the_mean_and_the_spread_of_the_posterior(kit, learned):
    found = learned(*rates(kit, 0.3))
    root = kit.made(1).values
    news = [{**root, **UP}, {**root, **OTHER}]
    rng = np.random.default_rng(0)
    drawn = np.array([found.draw(root, news, rng) for _ in range(400)])
    mean, unknown = found.gains(root, news)
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=4 * unknown.max() / 400**0.5)
    assert drawn.std(axis=0) == pytest.approx(unknown, rel=0.15)

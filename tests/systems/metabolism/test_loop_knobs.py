"""No dead knobs: what a loop leaves without effect it refuses, what is searched has an effect."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from neuralgraph.core.errors import ConfigError

SMALL = (
    "simulator.n_met=20", "simulator.n_rxn=30", "simulator.n_run=40", "simulator.n_test_run=2",
    "budget=smoke", "trainer.progress=false",
)  # fmt: skip


def config_of(*overrides, name="metabolism_s"):
    from neuralgraph.config import experiment

    return experiment(name, *SMALL, *overrides)


@pytest.mark.parametrize(
    "key",
    [
        "loop.learning_rate_S_start",
        "loop.clip_S",
        "loss.coeff_S_L1",
        "loss.coeff_S_L2",
        "loss.coeff_S_integer",
        "loss.coeff_mass_conservation",
        "loss.first_coeff_L1",
    ],
)
def test_knobs_of_a_gradient_that_s_does_not_see_are_refused_before_any_work(key):
    from neuralgraph import pipeline

    with pytest.raises(ConfigError, match=key) as refused:
        pipeline.compose(config_of(f"{key}=0.5"))
    assert "loop=metabolism_adam" in str(refused.value)
    pipeline.compose(config_of(f"{key}=0.5", name="metabolism_s_adam"))
    if key != "loss.first_coeff_L1":
        pipeline.compose(config_of(f"{key}=0.5", "loop.start=random"))


@cache
def simulated():
    from neuralgraph import pipeline

    config = config_of()
    parts = pipeline.compose(config)
    recording, truth = parts.simulator.simulate(1)
    return recording, parts.simulator.reveal(recording, truth, **config["prior"])


def trained(monkeypatch, *overrides):
    """Parameters after the gradient phase, from one start that stands for the closed form."""
    from neuralgraph import pipeline
    from neuralgraph.systems.metabolism import loop
    from neuralgraph.training.session import Session

    monkeypatch.setattr(loop, "closed_form_start", lambda *_, **__: ("sto_sub", "sto_all"))
    config = config_of(*overrides)
    parts = pipeline.compose(config)
    recording, given = simulated()
    data, model = pipeline.cut_and_build(parts, config, recording, given)
    session = Session(model, data, parts.loss, optimizer=parts.optimizer, budget=parts.budget)
    parts.loop(session)
    return copy.deepcopy(model.state_dict())


def test_every_key_of_the_search_space_changes_what_is_trained(monkeypatch):
    for key, space in config_of()["search_space"].items():
        low, high = (space["low"], space["high"]) if "low" in space else sorted(space["values"])[:2]
        one, other = (trained(monkeypatch, f"{key}={value}") for value in (low, high))
        assert any(not torch.equal(one[name], other[name]) for name in one), key

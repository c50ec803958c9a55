"""Active choice of perturbations: rewards are what they say, and so are the agents."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.hyperbolic_response.active import (
    AGENTS,
    MeasurementEnv,
    campaign,
    edge_signs,
    posterior,
)
from neuralgraph.systems.hyperbolic_response.treelikeness import path_lengths, regular_tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tree_env(seed: int = 0, *, noise: float = 0.05):
    """Responses drawn from the very process on a binary tree of 15 genes."""
    edges = regular_tree(2, 3)
    distance = path_lengths(15, edges)
    sign = edge_signs(15, edges, torch.where(torch.arange(14) % 3 == 0, -1.0, 1.0))
    kernel = sign[:, None] * sign * torch.exp(-distance / 3)
    root = torch.linalg.cholesky(kernel + 1e-9 * torch.eye(15))
    truth = root @ torch.randn(15, 40, generator=generator(seed), dtype=torch.float64)
    measured = truth + noise * torch.randn(15, 40, generator=generator(seed + 1)).double()
    return MeasurementEnv(distance, sign, measured, truth, test=[3, 6, 9, 12], start=[0])


def test_edge_signs_multiply_along_edges():
    edges = regular_tree(3, 2)
    sign = torch.where(torch.arange(edges.shape[1]) % 2 == 0, -1.0, 1.0).double()
    found = edge_signs(13, edges, sign)
    torch.testing.assert_close(found[edges[0]] * found[edges[1]], sign)
    assert edge_signs(3, edges[:, :0], None).tolist() == [1.0, 1.0, 1.0]


def test_the_kernel_on_a_tree_is_positive_definite_and_the_posterior_interpolates():
    env = tree_env(noise=0.0)
    found = posterior(env.distance, env.sign, list(range(15)), env.truth)
    assert (env.belief.variance.diagonal() >= -1e-9).all()
    assert found.variance.diagonal().max() < env.belief.variance.diagonal().max()
    assert (found.mean - env.truth).square().mean() < 0.05 * env.truth.square().mean()


def test_rewards_add_up_to_the_fall_of_the_held_out_error():
    env = tree_env()
    first = env.error()
    seen, rewards = [], []
    for action in (1, 7, 14):
        response, reward = env.step(action)
        seen.append(response)
        rewards.append(reward)
    assert first - env.error() == pytest.approx(sum(rewards))
    assert torch.equal(seen[1], env.measured[7])
    assert env.chosen == [0, 1, 7, 14]
    with pytest.raises(ConfigError, match="cannot be measured"):
        env.step(7)
    with pytest.raises(ConfigError, match="cannot be measured"):
        env.step(3)


def test_no_agent_measures_what_is_held_out_or_changes_the_environment():
    env = tree_env()
    for name, agent in AGENTS.items():
        errors = campaign(env, agent, 20, generator())
        assert len(errors) == 11, name
        assert env.chosen == [0] and len(env.errors) == 1
        assert errors[-1] == pytest.approx(campaign(env, AGENTS["random"], 20, generator(5))[-1])


def test_no_agent_but_the_oracle_sees_held_out_responses():
    env = tree_env()
    blind = env.fork()
    blind.truth = torch.zeros_like(env.truth) + 1.0
    for name in ("random", "most_uncertain", "most_informative", "largest_effect"):
        assert AGENTS[name](env, generator(3)) == AGENTS[name](blind, generator(3)), name


def test_informed_choice_beats_chance_where_its_model_is_true():
    gains = []
    for seed in range(8):
        env = tree_env(10 * seed)
        chance = [sum(campaign(env, AGENTS["random"], 4, generator(s))) for s in range(6)]
        gains.append(
            sum(chance) / 6 - sum(campaign(env, AGENTS["most_informative"], 4, generator()))
        )
        oracle = sum(campaign(env, AGENTS["oracle"], 1, generator()))
        first = [sum(campaign(env, AGENTS["random"], 1, generator(s))) for s in range(6)]
        assert oracle <= min(first) + 1e-12
    assert sum(gains) / len(gains) > 0


def test_something_to_start_from_and_to_judge_is_asked_for():
    env = tree_env()
    for test, start in (([], [0]), ([1], []), ([1], [1])):
        with pytest.raises(ConfigError, match="start from and others to be judged"):
            MeasurementEnv(env.distance, env.sign, env.measured, env.truth, test=test, start=start)

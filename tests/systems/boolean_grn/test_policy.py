"""The policy that writes circuits: probabilities, what it is paid for, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.seeding import numpy_generator, torch_generator
from neuralgraph.systems.boolean_grn import exploration
from neuralgraph.systems.boolean_grn.circuit import canonical_form
from neuralgraph.systems.boolean_grn.design.generators import Learned
from neuralgraph.systems.boolean_grn.design.search import search
from neuralgraph.systems.boolean_grn.design.task import DesignTask
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, analyse_circuits, label_circuits
from neuralgraph.systems.boolean_grn.policy import CircuitPolicy, policy_gradient, reward
from neuralgraph.systems.boolean_grn.simulator import core_keys
from neuralgraph.training.checkpoint import save_checkpoint
from neuralgraph.training.session import Session

EXPLORER = {
    "n_gene_max": 4, "n_hidden": 32, "in_degree": 2.0, "share_inhibition": 0.5,
    "share_random": 0.0,
}  # fmt: skip
STAGE = {
    "n_epochs": 2, "n_round": 12, "sizes": [4], "n_circuit": 24, "n_reuse": 2,
    "learning_rate": 3e-2, "clip": 0.3, "shaping": 0.3, "novelty": 0.3,
}  # fmt: skip
KNOBS = {
    "policy": None, "n_hidden": 32, "in_degree": 2.0, "share_inhibition": 0.5,
    "share_random": 0.0, "learning_rate": 0.05, "n_reuse": 4, "n_memory": 4, "clip": 0.3,
    "shaping": 0.3, "novelty": 0.1, "n_patience": 10,
}  # fmt: skip


def policy_of(**changes):
    return CircuitPolicy(**{**EXPLORER, **changes}, generator=torch_generator(0, "policy"))


def task_of(phenotype, n_gene):
    return DesignTask(
        phenotype=phenotype, n_gene=n_gene, rule="threshold", update="synchronous",
        feedback="self_activation", is_connected=True,
    )  # fmt: skip


def learned(task, seed=0, **changes):
    return Learned(task, numpy_generator(seed, "design"), **{**KNOBS, **changes})


def found(task, generator, n=20, n_evaluation_max=20_000):
    return search(
        task, generator, n=n, n_batch=25, n_evaluation_max=n_evaluation_max, objective="first"
    )


@pytest.mark.parametrize("share_random", [0.0, 0.2])
def test_the_probability_of_a_circuit_is_the_one_it_was_drawn_with(share_random):
    policy = policy_of(share_random=share_random)
    for n_gene in (1, 3, 4):
        rollouts = policy.sample(torch.arange(6), n_gene, torch_generator(1, "draw"))
        log_each = policy.log_probability(rollouts)
        assert torch.allclose(log_each.exp().sum(-1), torch.ones(6, n_gene**2), atol=1e-5)
        log_p = log_each.gather(2, rollouts.choices[..., None])[..., 0].sum(1)
        assert torch.allclose(log_p, rollouts.log_p, atol=1e-4)


def test_the_probabilities_of_all_circuits_sum_to_one():
    policy = policy_of()
    choices = torch.cartesian_prod(*[torch.arange(3)] * 4)
    one = policy.sample(torch.tensor([2]), 2, torch_generator(0, "draw"))
    every = replace(one, choices=choices, phenotype=torch.full((81,), 2))
    log_p = policy.log_probability(every).gather(2, choices[..., None])[..., 0].sum(1)
    assert float(log_p.exp().sum().detach()) == pytest.approx(1, abs=1e-5)
    assert len({m.tobytes() for m in policy.matrices(every)}) == 81


def test_a_new_policy_writes_plain_random_circuits():
    policy = policy_of(n_hidden=4)
    rollouts = policy.sample(torch.zeros(3000, dtype=torch.long), 4, torch_generator(2, "draw"))
    matrices = policy.matrices(rollouts)
    assert np.abs(matrices).sum((1, 2)).mean() / 4 == pytest.approx(2, abs=0.25)
    assert (matrices < 0).sum() / (matrices != 0).sum() == pytest.approx(0.5, abs=0.06)


def test_the_gradient_on_fresh_circuits_is_that_of_reinforce_with_a_baseline():
    policy = policy_of()
    rollouts = policy.sample(torch.arange(6).repeat(8), 3, torch_generator(3, "draw"))
    rollouts.reward[:] = torch.rand(48, generator=torch_generator(4, "reward"))
    policy_gradient(policy, rollouts, clip=0.3).backward()
    ours = policy.bias.grad.clone()
    policy.zero_grad()
    log_p = policy.log_probability(rollouts).gather(2, rollouts.choices[..., None])[..., 0].sum(1)
    (-(rollouts.advantage() * log_p).mean()).backward()
    assert torch.allclose(ours, policy.bias.grad, atol=1e-6)
    for wish in range(6):
        assert abs(float(rollouts.advantage()[rollouts.phenotype == wish].mean())) < 1e-5


def test_a_repeat_earns_nothing_and_a_new_class_a_bonus():
    value = reward(
        np.array([1.0, 1.0, 0.0, 1.7]), np.array([1.0, 1.0, 0.5, 1.0]),
        is_new=np.array([True, False, False, False]),
        is_repeat=np.array([False, True, False, False]), shaping=0.2, novelty=0.4,
    )  # fmt: skip
    assert value.tolist() == pytest.approx([1.4, 0.0, 0.1, 1.7])


def test_fewer_evaluations_than_a_policy_that_does_not_learn():
    for phenotype, n_gene in (("amplifier", 5), ("toggle_switch", 6)):
        task = task_of(phenotype, n_gene)
        ours = found(task, learned(task))
        plain = found(task, learned(task, n_reuse=0))
        assert (label_circuits(ours.circuits) == task.label).all() and len(ours.circuits) == 20
        assert ours.evaluations_per_success < 0.5 * plain.evaluations_per_success


def test_a_policy_that_meets_nothing_starts_anew():
    generator = learned(task_of("amplifier", 4), n_patience=3)
    before = generator.policy.bias.clone()
    for k in range(1, 7):
        circuits = generator.propose(25)
        facts = analyse_circuits(circuits)
        generator.learn(canonical_form(circuits), facts, np.zeros(25))
        assert torch.equal(generator.policy.bias, before) == (k % 3 == 0)
    generator.learn(canonical_form(generator.propose(25)), facts, np.ones(25))
    assert generator.n_idle == 0


def test_the_same_seed_gives_the_same_proposals():
    task = task_of("toggle_switch", 4)
    first, again, other = (found(task, learned(task, s)).circuits for s in (1, 1, 2))
    assert (first == again).all() and not np.array_equal(first, other)


def test_stage_five_learns_and_goes_on_to_the_same_bytes(learning, small, tmp_path):
    data = small[2].without_validation()

    def session(folder, stop=None):
        model = learning.rows(data.spec, structure=False, explorer=EXPLORER)
        s = Session(model, data, learning.objective(), seed=0, folder=folder)
        step, count = s.step, 0

        def counted(batch):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            return step(batch)

        s.step = counted  # type: ignore[method-assign]
        return s

    whole = session(None)
    before = {k: v.clone() for k, v in whole.model.state_dict().items()}
    exploration.explore(whole, clip_norm=1.0, **STAGE)
    assert whole.last_row["success"] > 0.5 and whole.last_row["success_new"] > 0.3
    for name, value in whole.model.state_dict().items():
        is_moved = not torch.equal(value, before[name])
        assert is_moved == name.startswith("explorer."), name
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(KeyboardInterrupt):
        exploration.explore(session(tmp_path, stop=30), clip_norm=1.0, **STAGE)
    again = session(tmp_path)
    assert again.resume_from(tmp_path / "checkpoints" / "last.pt")
    exploration.explore(again, clip_norm=1.0, **STAGE)
    for (name, a), b in zip(
        whole.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    # the design verb goes on from it
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    save_checkpoint(folder / "checkpoints" / "final.pt", {"model": whole.model.state_dict()})
    task = task_of("amplifier", 4)
    start = found(task, learned(task, policy=str(folder))).evaluations_per_success
    assert start < found(task, learned(task)).evaluations_per_success
    with pytest.raises(ConfigError, match="up to 4 genes, got n_genes=5"):
        learned(task_of("amplifier", 5), policy=str(folder))
    with pytest.raises(DataError, match=r"no checkpoints/final\.pt"):
        learned(task, policy=str(tmp_path / "nowhere"))


def test_connected_circuits_of_the_phenotype_are_hits_and_nothing_else():
    repressilator = np.array([[0, -1, 0], [0, 0, -1], [-1, 0, 0]], dtype=np.int8)
    apart = np.array([[-1, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=np.int8)
    oscillator, stable = PHENOTYPES.index("oscillator"), PHENOTYPES.index("stable")
    circuits = np.stack([repressilator, repressilator, apart])
    answer = exploration.asked(circuits, np.array([oscillator, stable, oscillator]))
    assert answer.is_hit.tolist() == [True, False, False]
    assert answer.credit[2] == 0 and math.isclose(answer.score.sum(), 1)


def test_only_new_hits_earn_the_bonus():
    oscillator = PHENOTYPES.index("oscillator")
    ring = np.zeros((4, 4), dtype=np.int8)
    ring[[0, 1, 2], [1, 2, 0]] = -1
    spare = ring.copy()  # a repressilator and a gene on its own: its core was learnt from
    tail = ring.copy()
    tail[3, 0] = 1  # a whole oscillator
    chain = np.zeros((4, 4), dtype=np.int8)
    chain[[1, 2, 3], [0, 1, 2]] = 1  # whole, and no oscillator
    circuits = np.stack([spare, chain, tail, tail[::-1, ::-1]])
    answer = exploration.asked(circuits, np.full(4, oscillator))
    assert answer.is_hit.tolist() == [False, False, True, True]
    known = frozenset(core_keys(ring[None]))
    is_new, is_repeat = exploration.news(answer, known, set())
    assert is_new.tolist() == [False, False, True, False]
    assert is_repeat.tolist() == [False, False, False, True]
    learnt, _ = exploration.news(answer, frozenset(core_keys(tail[None])), set())
    assert not learnt.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": [7]}, "sizes must hold sizes from 1 to model.explorer.n_gene_max = 4"),
        ({"sizes": []}, "sizes must hold"),
        ({"n_round": 0}, "n_round cannot be 0"),
        ({"clip": 0.0}, "clip cannot be"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_a_stage_five_that_cannot_work_is_refused(change, words):
    exploration.check_exploration(STAGE, 4)
    with pytest.raises(ConfigError, match=words):
        exploration.check_exploration({**STAGE, **change}, 4)

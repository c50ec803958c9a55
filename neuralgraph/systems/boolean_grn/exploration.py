"""Stage 5 of the curriculum: a policy learns to write circuits from the oracle's answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neuralgraph.core.bounds import Count, NotNegative, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.core.terms import Terms
from neuralgraph.systems.boolean_grn.circuit import Adjacency, are_connected, canonical_keys
from neuralgraph.systems.boolean_grn.dataset import GRNData
from neuralgraph.systems.boolean_grn.design.generators import partial_credit
from neuralgraph.systems.boolean_grn.model import GRNRows
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, analyse_circuits
from neuralgraph.systems.boolean_grn.policy import Rollouts, policy_gradient, reward
from neuralgraph.systems.boolean_grn.simulator import core_keys
from neuralgraph.training.session import Session


class ExplorationObjective:
    """Share of the proposals that miss their phenotype, with the gradient of the policy.

    The value is the share of failures, which a reader can follow; its gradient is that of
    :func:`~neuralgraph.systems.boolean_grn.policy.policy_gradient`.

    Args:
        clip: Bound on the change of a probability within one batch's steps.
    """

    def __init__(self, *, clip: Positive) -> None:
        self.clip = clip

    def __call__(self, model: nn.Module, batch: tuple[Rollouts, float]) -> Terms:
        """Of rollouts and the share of them that failed."""
        rollouts, failed = batch
        assert isinstance(model, GRNRows) and model.explorer is not None
        surrogate = policy_gradient(model.explorer, rollouts, clip=self.clip)
        return Terms(failed + surrogate - surrogate.detach())


@dataclass(frozen=True)
class Answer:
    """What the oracle says of circuits that were wished for.

    Args:
        keys: Canonical keys.
        is_hit: Connected, and of the phenotype wished for.
        score: 1 for a hit, else 0.
        credit: Partial credit of the others, 0 where they are not connected.
    """

    keys: list[bytes]
    is_hit: NDArray[np.bool_]
    score: NDArray[np.float64]
    credit: NDArray[np.float64]


def asked(circuits: Adjacency, wish: NDArray[np.int64]) -> Answer:
    """Ask the oracle whether each circuit has the phenotype wished for."""
    facts = analyse_circuits(circuits)
    is_whole = are_connected(circuits) & (circuits != 0).any((1, 2))
    is_hit = (facts.label == wish) & is_whole
    credit = np.zeros(len(circuits))
    for index, name in enumerate(PHENOTYPES):
        own = wish == index
        if own.any():
            credit[own] = partial_credit(name, circuits, facts)[own]
    return Answer(
        canonical_keys(circuits), is_hit, is_hit.astype(np.float64), np.where(is_whole, credit, 0)
    )


def explore(
    session: Session,
    *,
    clip_norm: Positive,
    n_epochs: Count,
    n_round: Count,
    sizes: list[int],
    n_circuit: Count,
    n_reuse: Count,
    learning_rate: Positive,
    clip: Positive,
    shaping: NotNegative,
    novelty: NotNegative,
) -> None:
    """Train ``model.explorer`` on wishes for every phenotype and size.

    In each round the policy writes circuits for every phenotype, the exact oracle labels them, and
    steps of the policy gradient follow. A class met before in the epoch earns nothing, a new one
    that is as wished and not in the training data a bonus.

    Args:
        session: With a :class:`GRNRows` that holds a policy and :class:`GRNData`.
        clip_norm: Largest norm of the gradient.
        n_epochs: Epochs; what was met is forgotten between two of them.
        n_round: Rounds in an epoch.
        sizes: Genes of the circuits.
        n_circuit: Circuits of each phenotype and size in a round.
        n_reuse: Gradient steps after each round.
        learning_rate: Of the optimiser.
        clip: Bound on the change of a probability within a round's steps.
        shaping: Weight of the partial credit.
        novelty: Bonus for a hit that is new.
    """
    model, data = session.model, session.data
    assert isinstance(model, GRNRows) and isinstance(data, GRNData) and model.explorer is not None
    policy = model.explorer
    session.objective = ExplorationObjective(clip=clip)
    known = training_classes(data)
    wish = torch.arange(len(PHENOTYPES)).repeat_interleave(n_circuit)
    with session.phase(
        "5 exploration", train={"explorer": learning_rate}, clip={"explorer": clip_norm}
    ) as phase:
        for epoch in phase.epochs(n_epochs):
            draws = torch_generator(session.seed, f"exploration/{epoch}")
            met: set[bytes] = set()
            n_hit, n_new, n_all = 0, 0, 0
            for _ in range(session.budget.steps(n_round)):
                for size in sizes:
                    rollouts = policy.sample(wish, size, draws)
                    answer = asked(policy.matrices(rollouts), wish.numpy())
                    is_new, is_repeat = news(answer, known, met)
                    worth = reward(
                        answer.score, answer.credit, is_new=is_new, is_repeat=is_repeat,
                        shaping=shaping, novelty=novelty,
                    )  # fmt: skip
                    rollouts.reward[:] = torch.from_numpy(worth).to(rollouts.reward)
                    for _ in range(n_reuse):
                        session.step((rollouts, float(1 - answer.is_hit.mean())))
                    n_all += len(wish)
                    n_hit += int(answer.is_hit.sum())
                    n_new += int(is_new.sum())
            session.log(success=n_hit / n_all, success_new=n_new / n_all)


def news(
    answer: Answer, known: frozenset[bytes], met: set[bytes]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which circuits earn the bonus, and which repeat a class; ``met`` takes up their classes.

    The bonus is for hits alone. They are connected, so that their keys compare with those of
    :func:`training_classes`; of a circuit with genes to spare the keys would not.
    """
    is_repeat = np.zeros(len(answer.keys), dtype=bool)
    for k, key in enumerate(answer.keys):
        is_repeat[k] = key in met
        met.add(key)
    is_known = np.array([key in known for key in answer.keys], dtype=bool)
    return answer.is_hit & ~is_repeat & ~is_known, is_repeat


def training_classes(data: GRNData) -> frozenset[bytes]:
    """Keys of the circuits that were learnt from, without their unconnected genes."""
    learnt = torch.cat([data.train, data.held])
    n = int(data.n_gene[learnt].max())
    return frozenset(core_keys(data.adjacency[learnt, :n, :n].cpu().numpy()))


def check_exploration(arguments: Mapping[str, Any], n_gene_max: int | None) -> None:
    """Refuse a stage 5 that cannot work.

    Args:
        arguments: ``loop.exploration``.
        n_gene_max: Largest circuits of the policy, or ``None`` where there is none.

    Raises:
        ConfigError: missing or unknown keys, no sizes, or sizes beyond the policy's.
    """
    keys = {*inspect.signature(explore).parameters} - {"session", "clip_norm"}
    if set(arguments) != keys:
        wrong = ", ".join(sorted(keys ^ set(arguments)))
        raise ConfigError(
            f"loop.exploration must have the keys {sorted(keys)}; these are missing or too many: "
            f"{wrong}"
        )
    for name, value in arguments.items():
        is_whole = name.startswith("n_")
        if name != "sizes" and not (
            value >= 1 and value == int(value) if is_whole else value > 0 or name in ZERO_IS_FINE
        ):
            raise ConfigError(f"loop.exploration.{name} cannot be {value}")
    sizes = arguments["sizes"]
    if not sizes or min(sizes) < 1 or (n_gene_max is not None and max(sizes) > n_gene_max):
        raise ConfigError(
            f"loop.exploration.sizes must hold sizes from 1 to model.explorer.n_gene_max = "
            f"{n_gene_max}, got {list(sizes)}"
        )


ZERO_IS_FINE = ("shaping", "novelty")
"""Knobs of :func:`explore` that switch something off at 0."""

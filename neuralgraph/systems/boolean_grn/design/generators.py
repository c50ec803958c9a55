"""Who proposes circuits. A proposal is a matrix of signs, so an edge cannot have two of them.

A generator is built as ``Generator(task, random, *, knobs)``; ``propose`` draws circuits, and
``learn`` hears what the oracle said of those that were new. A generator of your own is another
class of the same shape, with a stem in ``conf/generator``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from neuralgraph.core.bounds import Count, Natural, NotNegative, Part, Positive, Share
from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.boolean_grn import policy as policies
from neuralgraph.systems.boolean_grn.circuit import (
    Adjacency,
    are_connected,
    canonical_keys,
    random_circuits,
)
from neuralgraph.systems.boolean_grn.design.task import DesignTask
from neuralgraph.systems.boolean_grn.oracle import CircuitFacts
from neuralgraph.training.checkpoint import load_checkpoint


class Generator(Protocol):
    """A source of proposals.

    Proposals that are isomorphic to earlier ones, or not connected where that is asked for, never
    reach the oracle and are not counted.
    """

    def propose(self, n_circuit: int) -> Adjacency:
        """Draw circuits, ``(n_circuit, n, n)`` int8."""
        ...

    def learn(self, circuits: Adjacency, facts: CircuitFacts, score: NDArray[np.float64]) -> None:
        """Hear the oracle's answer on new circuits.

        Args:
            circuits: ``(n, n_gene, n_gene)``, the proposals that went to the oracle.
            facts: What it said, :attr:`CircuitFacts.label` above all.
            score: ``(n,)``: 1 for a circuit of the phenotype (its robustness where that is the
                objective, then 1 + robustness), else 0.
        """
        ...


class RandomSearch:
    """Independent circuits with independent edges: the plain row every other is compared with.

    Args:
        task: What is designed.
        random: Source of the draws.
        in_degree: Expected regulators of a gene.
        share_inhibition: Expected share of inhibitions.
    """

    def __init__(
        self,
        task: DesignTask,
        random: np.random.Generator,
        *,
        in_degree: Positive,
        share_inhibition: Share,
    ) -> None:
        self.n_gene = task.n_gene
        self.random = random
        self.in_degree = min(in_degree, task.n_gene)
        self.share_inhibition = share_inhibition

    def propose(self, n_circuit: int) -> Adjacency:
        """Draw anew."""
        return random_circuits(
            n_circuit,
            self.n_gene,
            in_degree=self.in_degree,
            share_inhibition=self.share_inhibition,
            generator=self.random,
        )

    def learn(self, circuits: Adjacency, facts: CircuitFacts, score: NDArray[np.float64]) -> None:
        """Random search does not learn."""


class Evolution:
    """Mutants of the best circuits so far: first towards the phenotype, then along it.

    Until a circuit has the phenotype, fitness is a partial credit for what the phenotype needs
    (mutual inhibition and several fixed points for a toggle switch, no feedback and a cascade for
    an amplifier, …), from facts the oracle gives anyway. Circuits of the phenotype are parents in
    turn, those with the fewest children first, so that the search spreads instead of dwelling on
    one family; a share of fresh random circuits keeps it open.

    Args:
        task: What is designed.
        random: Source of the draws.
        in_degree: Expected regulators of a gene in fresh circuits.
        share_inhibition: Expected share of inhibitions in fresh circuits.
        n_parent: Circuits kept as parents while none has the phenotype.
        mutation_rate: Expected edges changed in a child, at least one.
        share_crossover: Share of children that take whole genes' inputs from a second parent.
        share_fresh: Share of random circuits among the proposals.
    """

    def __init__(
        self,
        task: DesignTask,
        random: np.random.Generator,
        *,
        in_degree: Positive,
        share_inhibition: Share,
        n_parent: Count,
        mutation_rate: Positive,
        share_crossover: float,
        share_fresh: float,
    ) -> None:
        for name, value in (("share_crossover", share_crossover), ("share_fresh", share_fresh)):
            if not 0 <= value <= 1:
                raise ConfigError(f"generator.{name} must lie in [0, 1], got {value}")
        self.task = task
        self.random = random
        self.fresh = RandomSearch(
            task, random, in_degree=in_degree, share_inhibition=share_inhibition
        )
        self.n_parent = n_parent
        self.mutation_rate = mutation_rate
        self.share_crossover = share_crossover
        self.share_fresh = share_fresh
        n = task.n_gene
        self.parents = np.zeros((0, n, n), dtype=np.int8)
        self.fitness = np.zeros(0)
        self.n_child = np.zeros(0, dtype=np.int64)

    def propose(self, n_circuit: int) -> Adjacency:
        """Children of the parents, and some fresh circuits; only fresh ones at the start."""
        if len(self.parents) == 0:
            return self.fresh.propose(n_circuit)
        n_fresh = int(self.random.binomial(n_circuit, self.share_fresh))
        n_child = n_circuit - n_fresh
        chosen = self._parents(n_child)
        children = self.parents[chosen].copy()
        n = self.task.n_gene
        mates = self.parents[self.random.permutation(chosen)]
        is_crossed = self.random.random(n_child) < self.share_crossover
        is_taken = (self.random.random((n_child, n)) < 0.5) & is_crossed[:, None]
        children = np.where(is_taken[:, None, :], mates, children)
        is_changed = self.random.random((n_child, n, n)) < (self.mutation_rate - 1) / n**2
        at = self.random.integers(0, n * n, n_child)
        is_changed.reshape(n_child, -1)[np.arange(n_child), at] = True
        shift = self.random.integers(1, 3, children.shape)
        children = np.where(is_changed, (children + 1 + shift) % 3 - 1, children).astype(np.int8)
        return np.concatenate([children, self.fresh.propose(n_fresh)]) if n_fresh else children

    def learn(self, circuits: Adjacency, facts: CircuitFacts, score: NDArray[np.float64]) -> None:
        """Keep the fittest as parents; every circuit of the phenotype once there are any."""
        credit = partial_credit(self.task.phenotype, circuits, facts)
        fitness = np.where(score > 0, score, 0.9 * credit)
        self.parents = np.concatenate([self.parents, circuits])
        self.fitness = np.concatenate([self.fitness, fitness])
        self.n_child = np.concatenate([self.n_child, np.zeros(len(circuits), dtype=np.int64)])
        is_hit = self.fitness >= 1
        if is_hit.sum() >= self.n_parent:
            kept = is_hit
        else:
            kept = np.zeros(len(self.fitness), dtype=bool)
            kept[np.argsort(-self.fitness, kind="stable")[: self.n_parent]] = True
            kept |= is_hit
        self.parents = self.parents[kept]
        self.fitness = self.fitness[kept]
        self.n_child = self.n_child[kept]

    def _parents(self, n_child: int) -> NDArray[np.intp]:
        """The fittest with the fewest children, in turn."""
        is_hit = self.fitness >= 1
        pool = np.flatnonzero(is_hit) if is_hit.any() else np.arange(len(self.fitness))
        # robustness, where it is the objective, lies beyond 1
        rank = self.n_child[pool] - 8.0 * self.fitness[pool]
        order = pool[np.argsort(rank + 1e-3 * self.random.random(len(pool)), kind="stable")]
        chosen = order[np.arange(n_child) % max(1, min(len(order), self.n_parent))]
        np.add.at(self.n_child, chosen, 1)
        return chosen


class Learned:
    """A policy that writes circuits, trained by policy gradient on what the oracle says.

    It goes on learning during the request, whose first proposals come from a random circuit, or
    from a policy that has learnt before (stage 5 of ``+experiment=grn_phenotype``). The reward
    is the oracle's answer, with partial credit where the circuit is not of the phenotype, and a
    bonus for a class met for the first time; a repeat earns nothing. Repeats and circuits that are
    not connected are known without the oracle and cost no evaluation.

    Args:
        task: What is designed.
        random: Source of the draws.
        policy: Run folder of ``+experiment=grn_phenotype`` whose policy to start from, or ``None``.
        n_hidden: Width of the policy's state (of a new one).
        in_degree: Expected regulators of a gene in the random circuit it starts from.
        share_inhibition: Expected share of inhibitions in it.
        share_random: Share of the random circuit in each choice, against a policy that repeats
            itself.
        learning_rate: Of Adam.
        n_reuse: Gradient steps after each batch.
        n_memory: Last batches a step is taken on.
        clip: Bound on the change of a probability within one batch's steps.
        shaping: Weight of the partial credit.
        novelty: Bonus for a class met for the first time.
        n_patience: Batches without a circuit of the phenotype after which the policy starts anew
            (partial credit can lead it to where there is none).

    Raises:
        ConfigError: a policy for smaller circuits.
        DataError: the folder holds no policy.
    """

    def __init__(
        self,
        task: DesignTask,
        random: np.random.Generator,
        *,
        policy: str | None,
        n_hidden: Count,
        in_degree: Positive,
        share_inhibition: Share,
        share_random: Part,
        learning_rate: Positive,
        n_reuse: Natural,
        n_memory: Count,
        clip: Positive,
        shaping: NotNegative,
        novelty: NotNegative,
        n_patience: Count,
    ) -> None:
        self.task = task
        self.draws = torch.Generator().manual_seed(int(random.integers(2**62)))
        if policy is None:
            self.policy = policies.CircuitPolicy(
                n_gene_max=task.n_gene,
                n_hidden=n_hidden,
                in_degree=in_degree,
                share_inhibition=share_inhibition,
                share_random=share_random,
                generator=self.draws,
            )
        else:
            self.policy = load_policy(Path(policy), task.n_gene, share_random)
        self.start = {name: value.clone() for name, value in self.policy.state_dict().items()}
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)
        self.learning_rate = learning_rate
        self.n_patience = n_patience
        self.n_idle = 0
        self.n_reuse = n_reuse
        self.n_memory = n_memory
        self.clip = clip
        self.shaping = shaping
        self.novelty = novelty
        self.pending: list[tuple[policies.Rollouts, list[bytes]]] = []
        self.memory: list[policies.Rollouts] = []

    def propose(self, n_circuit: int) -> Adjacency:
        """Write circuits."""
        wish = torch.full((n_circuit,), self.task.label)
        rollouts = self.policy.sample(wish, self.task.n_gene, self.draws)
        matrices = self.policy.matrices(rollouts)
        self.pending.append((rollouts, canonical_keys(matrices)))
        return matrices

    def learn(self, circuits: Adjacency, facts: CircuitFacts, score: NDArray[np.float64]) -> None:
        """Take steps of the policy gradient; proposals that never reached the oracle earn 0."""
        credit = partial_credit(self.task.phenotype, circuits, facts)
        is_new = np.ones(len(circuits), dtype=bool)
        worth = policies.reward(
            score, credit, is_new=is_new, is_repeat=~is_new, shaping=self.shaping,
            novelty=self.novelty,
        )  # fmt: skip
        value = {matrix.tobytes(): float(w) for matrix, w in zip(circuits, worth, strict=True)}
        for rollouts, keys in self.pending:
            for k, key in enumerate(keys):
                rollouts.reward[k] = value.pop(key, 0.0)
            self.memory.append(rollouts)
        self.pending = []
        self.memory = self.memory[-self.n_memory :]
        self.n_idle = 0 if (score > 0).any() else self.n_idle + 1
        if self.n_idle >= self.n_patience:
            self._start_anew()
            return
        batch = policies.joined(self.memory)
        for _ in range(self.n_reuse):
            self.optimizer.zero_grad()
            policies.policy_gradient(self.policy, batch, clip=self.clip).backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self.optimizer.step()

    def _start_anew(self) -> None:
        self.policy.load_state_dict(self.start)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.learning_rate)
        self.memory, self.n_idle = [], 0


def load_policy(folder: Path, n_gene: int, share_random: float) -> policies.CircuitPolicy:
    """The policy of a run of ``grn_phenotype``, to be trained on.

    Raises:
        DataError: the folder holds none.
        ConfigError: it writes smaller circuits only.
    """
    file = folder / "checkpoints" / "final.pt"
    if not file.is_file():
        raise DataError(
            f"generator.policy={folder} holds no checkpoints/final.pt: give the folder of a run of "
            "+experiment=grn_phenotype"
        )
    state = load_checkpoint(file)["model"]
    own = {k.removeprefix("explorer."): v for k, v in state.items() if k.startswith("explorer.")}
    if not own:
        raise DataError(
            f"the run in {folder} has no policy: train with model.explorer, as "
            "+experiment=grn_phenotype does"
        )
    n_gene_max, n_hidden = len(own["size"]) - 1, own["wish"].shape[1]
    if n_gene > n_gene_max:
        raise ConfigError(
            f"the policy in {folder} writes circuits of up to {n_gene_max} genes, got n_genes="
            f"{n_gene}: leave generator.policy out, so that a new one is trained for the request"
        )
    policy = policies.CircuitPolicy(
        n_gene_max=n_gene_max, n_hidden=n_hidden, in_degree=2.0, share_inhibition=0.5,
        share_random=share_random, generator=torch.Generator(),
    )  # fmt: skip
    policy.load_state_dict(own)
    return policy


def partial_credit(phenotype: str, circuits: Adjacency, facts: CircuitFacts) -> NDArray[np.float64]:
    """How much of what the phenotype needs a circuit has already, 0 to 1, ``(n_circuit,)``."""
    up, down = circuits > 0, circuits < 0
    n = circuits.shape[1]
    off = ~np.eye(n, dtype=bool)
    chain = ((up & off).astype(np.int32) @ (up & off).astype(np.int32)) > 0
    if phenotype == "toggle_switch":
        parts = (facts.has_mutual_inhibition, facts.is_multistable)
    elif phenotype == "oscillator":
        parts = (facts.has_negative_loop, facts.n_cycle > 0)
    elif phenotype == "pulse_generator":
        onto = ((up & off).astype(np.int32) @ (down & off).astype(np.int32)) > 0
        motif = (onto & up & off).any((1, 2))
        parts = (motif, facts.n_fixed_point > 0, facts.n_loop_cycle == 0)
    elif phenotype == "amplifier":
        parts = ((chain & off).any((1, 2)), ~facts.has_negative_loop, facts.n_input > 0)
    elif phenotype == "adaptation":
        parts = (facts.has_negative_loop, facts.is_monostable, facts.n_cycle == 0)
    else:
        parts = (facts.n_cycle == 0, ~facts.has_mutual_inhibition)
    return np.mean([np.asarray(part, dtype=float) for part in parts], axis=0)


def usable(task: DesignTask, circuits: Adjacency) -> NDArray[np.bool_]:
    """Circuits that may go to the oracle: with an edge, and connected where that is asked for."""
    has_edge = (circuits != 0).any((1, 2))
    return has_edge & are_connected(circuits) if task.is_connected else has_edge

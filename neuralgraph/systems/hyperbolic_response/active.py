r"""Which perturbation to measure next: a loop whose actions are perturbations.

An agent has measured a few perturbations. Each action measures one more, and the reward is by how
much the error on *held-out* perturbations falls, which neither agent nor predictor ever measures.
The predictor is a Gaussian process over perturbed genes with the kernel
$\sigma_g \sigma_h e^{-d(g, h) / \ell}$ on geodesic distances of their embedding: distances of
hyperbolic spaces and of trees are conditionally negative definite, so the kernel is a kernel.
$\sigma$ is the product of the signs of edges from the root, so that a gene that represses another
counts as its opposite.

Source:
    Document 003, section 5.3 (loops whose actions are perturbation choices); Rasmussen & Williams
    (2006), equations 2.25 and 2.30; MacKay (1992) and Cohn (1996) for the two acquisitions; own
    otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
NOISES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Grids the marginal likelihood chooses from: length scale, and noise over signal variance."""


def edge_signs(n_node: int, edge_index: Tensor, sign: Tensor | None) -> Tensor:
    """±1 for each node, so that the sign of an edge is the product of those at its ends.

    Exact on trees; on other graphs exact along a breadth-first tree from the node of highest
    degree of each component. Unknown signs count as +1.

    Args:
        n_node: Nodes.
        edge_index: ``(2, n_edge)`` long.
        sign: ``(n_edge,)``, or ``None``.
    """
    found = torch.zeros(n_node, dtype=torch.float64)
    neighbours: list[list[tuple[int, float]]] = [[] for _ in range(n_node)]
    for edge, (a, b) in enumerate(edge_index.T.tolist()):
        s = 1.0 if sign is None or float(sign[edge]) >= 0 else -1.0
        neighbours[a].append((b, s))
        neighbours[b].append((a, s))
    for start in sorted(range(n_node), key=lambda v: -len(neighbours[v])):
        if found[start] != 0:
            continue
        found[start] = 1.0
        queue = [start]
        while queue:
            node = queue.pop(0)
            for other, s in neighbours[node]:
                if found[other] == 0:
                    found[other] = s * found[node]
                    queue.append(other)
    return found


@dataclass(frozen=True)
class Posterior:
    """Of the responses of all perturbations, n of them.

    Args:
        mean: ``(n, G)``.
        variance: Of each response, in units of the signal variance, ``(n, n)`` covariance.
        length: Length scale the marginal likelihood chose.
        noise: Noise variance over signal variance.
    """

    mean: Tensor
    variance: Tensor
    length: float
    noise: float


def posterior(distance: Tensor, sign: Tensor, measured: Sequence[int], seen: Tensor) -> Posterior:
    """Gaussian process on the perturbations measured so far; its two scales by likelihood.

    Args:
        distance: Between perturbed genes, ``(n, n)``.
        sign: Of each perturbed gene, ``(n,)``.
        measured: Which have been measured, m of them.
        seen: Their measured responses, ``(m, G)``.
    """
    at = torch.tensor(list(measured))
    best: tuple[float, float, float] | None = None
    m, n_gene = seen.shape
    for length in LENGTHS:
        k = _kernel(distance[at][:, at], sign[at], length)
        values, vectors = torch.linalg.eigh(k)
        turned = (vectors.T @ seen).square().sum(1)
        for noise in NOISES:
            spread = values.clamp_min(0.0) + noise
            signal = float((turned / spread).mean() / n_gene)  # its maximum-likelihood value
            fit = -0.5 * (float(spread.log().sum()) + m * torch.tensor(signal + 1e-30).log())
            if best is None or float(fit) > best[0]:
                best = float(fit), length, noise
    assert best is not None
    _, length, noise = best
    whole = _kernel(distance, sign, length)
    inside = whole[at][:, at] + noise * torch.eye(m, dtype=whole.dtype)
    weights = torch.linalg.solve(inside, whole[at])
    return Posterior(weights.T @ seen, whole - whole[at].T @ weights, length, noise)


def _kernel(distance: Tensor, sign: Tensor, length: float) -> Tensor:
    return sign[:, None] * sign[None, :] * torch.exp(-distance / length)


class MeasurementEnv:
    """Measure perturbations one by one; the reward is the fall of the held-out error.

    Args:
        distance: Between the perturbed genes, ``(n, n)``.
        sign: ``(n,)``, see :func:`edge_signs`.
        measured: What a measurement of each would show (cells of one half), ``(n, G)``.
        truth: Response by which predictions are judged (cells and controls of the other half),
            ``(n, G)``.
        test: Perturbations that are never measured, and judged.
        start: Perturbations measured at the start, one or more.

    Raises:
        ConfigError: nothing to start from, or to judge, or both at once.
    """

    def __init__(
        self,
        distance: Tensor,
        sign: Tensor,
        measured: Tensor,
        truth: Tensor,
        *,
        test: Sequence[int],
        start: Sequence[int],
    ) -> None:
        if not test or not start or set(test) & set(start):
            raise ConfigError(
                "active selection needs perturbations to start from and others to be judged on, "
                f"got start={list(start)} and test={list(test)}"
            )
        self.distance, self.sign = distance.double(), sign.double()
        self.measured, self.truth = measured.double(), truth.double()
        self.test = torch.tensor(list(test))
        self.chosen = list(start)
        self.belief = self._learn()
        self.errors = [self.error()]

    @property
    def open(self) -> list[int]:
        """Actions: perturbations that may be measured next."""
        closed = {*self.chosen, *self.test.tolist()}
        return [i for i in range(len(self.distance)) if i not in closed]

    def error(self) -> float:
        """Mean squared error on the held-out perturbations, over that of predicting no change."""
        wanted = self.truth[self.test]
        return float((self.belief.mean[self.test] - wanted).square().sum() / wanted.square().sum())

    def step(self, action: int) -> tuple[Tensor, float]:
        """Measure one perturbation.

        Returns:
            What was measured ``(G,)``, and the reward: the fall of :meth:`error`.

        Raises:
            ConfigError: it is measured already, or held out.
        """
        if action not in self.open:
            raise ConfigError(
                f"perturbation {action} cannot be measured: choose one of {self.open}"
            )
        self.chosen.append(action)
        self.belief = self._learn()
        self.errors.append(self.error())
        return self.measured[action], self.errors[-2] - self.errors[-1]

    def fork(self) -> MeasurementEnv:
        """A copy to try an action in."""
        other = object.__new__(MeasurementEnv)
        other.__dict__.update(self.__dict__)
        other.chosen, other.errors = list(self.chosen), list(self.errors)
        return other

    def _learn(self) -> Posterior:
        return posterior(self.distance, self.sign, self.chosen, self.measured[self.chosen])


Agent: TypeAlias = Callable[[MeasurementEnv, torch.Generator], int]
"""Chooses the next action; it may look at ``belief``, never at ``truth`` or ``test`` responses."""


def at_random(env: MeasurementEnv, generator: torch.Generator) -> int:
    """Any open perturbation."""
    return env.open[int(torch.randint(len(env.open), (1,), generator=generator))]


def most_uncertain(env: MeasurementEnv, generator: torch.Generator) -> int:
    """The one whose response is least determined by what was measured (MacKay's D-optimality)."""
    variance = env.belief.variance.diagonal()[env.open]
    return env.open[int(variance.argmax())]


def most_informative(env: MeasurementEnv, generator: torch.Generator) -> int:
    """The one that would lower the variance of the held-out responses most (Cohn's A-optimality).

    It knows *which* perturbations will be asked for, not what they do.
    """
    covariance = env.belief.variance
    onto = covariance[env.open][:, env.test].square().sum(1)
    gain = onto / (covariance.diagonal()[env.open] + env.belief.noise)
    return env.open[int(gain.argmax())]


def largest_effect(env: MeasurementEnv, generator: torch.Generator) -> int:
    """The one whose predicted response is largest: greedy for effects, as a policy head is."""
    size = env.belief.mean[env.open].square().sum(1)
    return env.open[int(size.argmax())]


def best_reward(env: MeasurementEnv, generator: torch.Generator) -> int:
    """The one with the largest reward, looked up: an oracle, to show what choice could gain."""
    gains = [env.fork().step(action)[1] for action in env.open]
    return env.open[max(range(len(gains)), key=gains.__getitem__)]


AGENTS: dict[str, Agent] = {
    "random": at_random,
    "most_uncertain": most_uncertain,
    "most_informative": most_informative,
    "largest_effect": largest_effect,
    "oracle": best_reward,
}


def campaign(
    env: MeasurementEnv, agent: Agent, n_round: int, generator: torch.Generator
) -> list[float]:
    """Held-out error before the first and after each of ``n_round`` choices of an agent."""
    trial = env.fork()
    for _ in range(min(n_round, len(trial.open))):
        trial.step(agent(trial, generator))
    return trial.errors

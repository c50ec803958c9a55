"""What can be said of a held-out knock-out without a differential equation, and a local field.

Everything here is closed form, from means, cell covariances and cell counts of a time series.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Series:
    """Statistics of single cells; K conditions, T days, G genes.

    Args:
        mean: Mean expression, ``(K, T, G)``.
        covariance: Covariance of single cells, ``(K, T, G, G)``.
        n_cell: Cells, ``(K, T)``.
        measured: 0 for the knocked-out gene of a condition, else 1, ``(K, G)``.
    """

    mean: Tensor
    covariance: Tensor
    n_cell: Tensor
    measured: Tensor

    def error(self, prediction: Tensor, row: int) -> float:
        """Mean squared error on the days after the first, without the knocked-out gene."""
        squared = (prediction - self.mean[row, 1:]) ** 2 * self.measured[row]
        return float(squared.sum() / (self.measured[row].sum() * squared.shape[0]))

    def noise(self, row: int) -> float:
        """Sampling variance of the target means, averaged as :meth:`error` averages."""
        variance = self.covariance[row, 1:].diagonal(dim1=-2, dim2=-1) / self.n_cell[row, 1:, None]
        return float(
            (variance * self.measured[row]).sum() / (self.measured[row].sum() * len(variance))
        )


def mean_path(trajectories: Tensor) -> Tensor:
    """Mean of trajectories ``(K, T, G)``."""
    return trajectories.mean(0)


def median_path(trajectories: Tensor) -> Tensor:
    """Geometric median of whole trajectories ``(K, T, G)``, by Weiszfeld's iteration.

    One condition with a large response cannot drag it.
    """
    weight = torch.full((trajectories.shape[0],), 1.0 / trajectories.shape[0]).to(trajectories)
    path = trajectories.mean(0)
    for _ in range(200):
        distance = (trajectories - path).flatten(1).norm(dim=1).clamp_min(1e-12)
        weight = 1 / distance / (1 / distance).sum()
        path = torch.tensordot(weight, trajectories, 1)
    return path


PATHS: dict[str, Callable[[Tensor], Tensor]] = {"mean": mean_path, "median": median_path}


def cell_components(series: Series, train: Sequence[int], n_component: int) -> Tensor:
    """Principal components ``(G, n_component)`` of training cells, the mean of each day removed."""
    rows = list(train)
    mean, n_cell = series.mean[rows], series.n_cell[rows]
    centre = (n_cell[..., None] * mean).sum(0) / n_cell.sum(0)[:, None]
    apart = mean - centre
    scatter = ((n_cell - 1)[..., None, None] * series.covariance[rows]).sum((0, 1))
    scatter = scatter + torch.einsum("kt,ktg,kth->gh", n_cell, apart, apart)
    _, vectors = torch.linalg.eigh(scatter / n_cell.sum())
    return vectors.flip(1)[:, :n_component]


class Shrunk:
    """Deviations from a reference path on components, shrunk by their reliability.

    The score of a condition on a component is multiplied by τ² / (τ² + v): v its own sampling
    variance, τ² the variance between the training conditions beyond sampling (empirical Bayes).

    Args:
        series: The statistics.
        train: Conditions to learn from.
        path: Name of the reference path, one of ``PATHS``.
        n_component: Components of single cells.
    """

    def __init__(
        self, series: Series, train: Sequence[int], *, path: str, n_component: int
    ) -> None:
        self.series, self.train = series, list(train)
        self.path = PATHS[path](series.mean[self.train])
        self.basis = cell_components(series, train, n_component)
        score = (series.mean - self.path) @ self.basis
        variance = (
            torch.einsum("gq,ktgh,hq->ktq", self.basis, series.covariance, self.basis)
            / series.n_cell[..., None]
        )
        between = (score[self.train] ** 2 - variance[self.train]).mean(0).clamp_min(0)
        self.score = score * between / (between + variance).clamp_min(1e-30)
        """Shrunk scores of every condition and day, ``(K, T, n_component)``."""

    def genes(self, scores: Tensor) -> Tensor:
        """Expression on the days after the first from scores ``(T - 1, q)`` or ``(q,)``."""
        return self.path[1:] + scores @ self.basis.T


def persistence(shrunk: Shrunk, row: int) -> Tensor:
    """The baseline: the shrunk deviation of the first day stays, ``(T - 1, G)``."""
    return shrunk.genes(shrunk.score[row, 0])


def kernel_field(shrunk: Shrunk, row: int, *, ridge: float, power: float) -> Tensor:
    r"""A scale-free local autonomous field, started at the first day: ``(T - 1, G)``.

    :math:`z_{t+1} = z_t + |z_t|\,k(u_t)^\top (K + \lambda I)^{-1} r` with directions
    :math:`u = z / |z|`, increments :math:`r = (z_{t+1} - z_t) / |z_t|` of the training conditions
    and the kernel :math:`\max(\cos, 0)^p`: conditions that point elsewhere have no vote, and
    without a neighbour the deviation persists.

    Args:
        shrunk: Scores and reference path.
        row: Condition to predict; its first day alone is used.
        ridge: λ.
        power: p.
    """
    seen = shrunk.score[shrunk.train]
    length = seen[:, :-1].norm(dim=-1, keepdim=True).clamp_min(1e-12)
    direction = (seen[:, :-1] / length).flatten(0, 1)
    increment = (seen.diff(dim=1) / length).flatten(0, 1)
    kernel = (direction @ direction.T).clamp_min(0) ** power
    eye = torch.eye(len(kernel), dtype=kernel.dtype)
    weight = torch.linalg.solve(kernel + ridge * eye, increment)
    state, frames = shrunk.score[row, 0], []
    for _ in range(seen.shape[1] - 1):
        size = state.norm().clamp_min(1e-12)
        near = (direction @ (state / size)).clamp_min(0) ** power
        state = state + size * (near @ weight)
        frames.append(state)
    return shrunk.genes(torch.stack(frames))


@dataclass(frozen=True)
class Choice:
    """A prediction whose settings were chosen without its target.

    Args:
        prediction: ``(T - 1, G)``.
        settings: The chosen settings.
        inner_error: Their mean error on the inner held-out conditions.
    """

    prediction: Tensor
    settings: dict[str, float | str]
    inner_error: float


def nested(
    series: Series,
    family: str,
    grid: dict[str, Sequence[float | str]],
    held_out: Sequence[int],
) -> dict[int, Choice]:
    """Leave-one-out predictions of every condition, settings chosen by inner leave-one-out.

    For the condition h, each setting is refitted without h and another condition v and judged on
    v; the setting of lowest mean error over all v is fitted without h alone.

    Args:
        series: The statistics.
        family: ``persistence`` or ``kernel_field``.
        grid: Values by setting: ``path`` and ``n_component``, for the field ``ridge`` and
            ``power`` too.
        held_out: Conditions that are held out in turn; the others are always trained on.
    """
    rows = list(held_out)
    always = [row for row in range(series.mean.shape[0]) if row not in rows]
    own = {k: v for k, v in grid.items() if k not in ("path", "n_component")}
    bases = [(str(p), int(n)) for p in grid["path"] for n in grid["n_component"]]
    tails = [dict(zip(own, v, strict=True)) for v in itertools.product(*own.values())]

    def predict(shrunk: Shrunk, row: int, tail: dict) -> Tensor:
        return (
            persistence(shrunk, row)
            if family == "persistence"
            else kernel_field(shrunk, row, **tail)
        )

    inner: dict[tuple[int, int], list[float]] = {(h, v): [] for h in rows for v in rows if h != v}
    for path, n_component in bases:
        for first, second in itertools.combinations(rows, 2):
            kept = always + [row for row in rows if row not in (first, second)]
            shrunk = Shrunk(series, kept, path=path, n_component=n_component)
            for held, judged in ((first, second), (second, first)):
                inner[held, judged] += [
                    series.error(predict(shrunk, judged, tail), judged) for tail in tails
                ]
    found = {}
    for held in rows:
        scores = torch.tensor([inner[held, v] for v in rows if v != held]).mean(0)
        best = int(scores.argmin())
        (path, n_component), tail = bases[best // len(tails)], tails[best % len(tails)]
        others = always + [row for row in rows if row != held]
        shrunk = Shrunk(series, others, path=path, n_component=n_component)
        settings = {"path": path, "n_component": n_component, **tail}
        found[held] = Choice(predict(shrunk, held, tail), settings, float(scores[best]))
    return found

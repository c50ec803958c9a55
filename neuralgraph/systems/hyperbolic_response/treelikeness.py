"""How tree-like a graph is, and how faithfully a space holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Positive
from neuralgraph.core.errors import DataError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.nn.hyperbolic import Geometry, ManifoldEmbedding, ManifoldName, geometry
from neuralgraph.training.riemannian import RiemannianAdam

FLAT_SCALE = 3.0
"""Graph distance per unit of geodesic distance where an embedding starts."""
START_NOISE = 0.02
"""Standard deviation of what is added to classical scaling: sets symmetric branches apart."""
EXACT_UP_TO = 2_000_000
"""Quadruples that are all looked at; more are sampled."""


@dataclass(frozen=True)
class Hyperbolicity:
    """Gromov's δ of a metric space.

    Args:
        delta: Largest half difference of the two larger sums of the four-point condition.
        mean: Mean of it over the quadruples.
        diameter: Largest distance.
        n_point: Points.
        n_quadruple: Quadruples looked at.
        is_exact: Whether those are all; a sample gives a lower bound of ``delta``.
    """

    delta: float
    mean: float
    diameter: float
    n_point: int
    n_quadruple: int
    is_exact: bool

    @property
    def relative(self) -> float:
        """2δ / diameter: 0 for a tree, 1 at most."""
        return 2 * self.delta / self.diameter if self.diameter else 0.0


def hyperbolicity(distance: Tensor, *, n_sample: Count, seed: int) -> Hyperbolicity:
    r"""Gromov's δ by the four-point condition.

    For four points let $S_1 \ge S_2 \ge S_3$ be the sums of distances of opposite pairs:
    $\delta = \max (S_1 - S_2) / 2$. It is 0 exactly for trees (and metrics that embed in one), 1
    for a square of four edges, and at most half the diameter.

    Args:
        distance: ``(n, n)``, finite.
        n_sample: Quadruples drawn where there are more than :data:`EXACT_UP_TO`.
        seed: Of the draw.

    Raises:
        DataError: fewer than four points, or some that no path joins.

    Source:
        Gromov (1987); Fournier, Ismail & Vigneron (2015) for the relative form.
    """
    n = len(distance)
    if n < 4:
        raise DataError(f"δ-hyperbolicity needs 4 points or more, got {n}")
    if not bool(torch.isfinite(distance).all()):
        raise DataError("some points are not joined by a path: take the largest component first")
    total = math.comb(n, 4)
    is_exact = total <= EXACT_UP_TO
    if is_exact:
        quadruples = torch.combinations(torch.arange(n), 4)
    else:
        draw = torch_generator(seed, "quadruples")
        quadruples = torch.randint(n, (n_sample, 4), generator=draw)
        pairs = torch.combinations(torch.arange(4))
        apart = (quadruples[:, pairs[:, 0]] != quadruples[:, pairs[:, 1]]).all(1)
        quadruples = quadruples[apart]
    a, b, c, d = quadruples.T
    sums = (
        torch.stack(
            [
                distance[a, b] + distance[c, d],
                distance[a, c] + distance[b, d],
                distance[a, d] + distance[b, c],
            ]
        )
        .sort(0)
        .values
    )
    half = (sums[2] - sums[1]).double() / 2
    return Hyperbolicity(
        float(half.max()), float(half.mean()), float(distance.max()), n, len(quadruples), is_exact
    )


def path_lengths(n_node: int, edge_index: Tensor) -> Tensor:
    """Edges on the shortest path between any two nodes, directions ignored, ``(n, n)``.

    Args:
        n_node: Nodes.
        edge_index: ``(2, n_edge)`` long.

    Returns:
        float64; infinite where no path joins two nodes.
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import shortest_path

    source, target = edge_index.cpu().numpy()
    matrix = csr_matrix((np.ones(len(source)), (source, target)), shape=(n_node, n_node))
    found = shortest_path(matrix, directed=False, unweighted=True)
    return torch.from_numpy(np.asarray(found))


def largest_component(distance: Tensor) -> Tensor:
    """Nodes of the largest set that paths join, ``(m,)`` long, ascending."""
    is_joined = torch.isfinite(distance)
    return is_joined[is_joined.sum(1).argmax()].nonzero()[:, 0]


def regular_tree(branching: Count, depth: Count) -> Tensor:
    """Edges of the tree in which every inner node has ``branching`` children, ``(2, n_edge)``.

    >>> regular_tree(2, 2).tolist()
    [[0, 0, 1, 1, 2, 2], [1, 2, 3, 4, 5, 6]]
    """
    parents, last, n = [], [0], 1
    for _ in range(depth):
        children = list(range(n, n + branching * len(last)))
        parents += [node for node in last for _ in range(branching)]
        n, last = n + len(children), children
    return torch.tensor([parents, list(range(1, n))])


def average_distortion(distance: Tensor, embedded: Tensor) -> float:
    r"""Mean over pairs of $|s\, d_e / d_g - 1|$ at the best scale $s$ of the embedding.

    The same freedom for every space: a Euclidean embedding has no unit, and the curvature of a
    hyperbolic one is its unit.

    Args:
        distance: Of the graph, ``(n, n)``, above 0 off the diagonal.
        embedded: Of the points, ``(n, n)``.

    Source:
        Sala et al., Representation tradeoffs for hyperbolic embeddings (2018), with the scale.
    """
    i, j = torch.triu_indices(*distance.shape, offset=1)
    ratio = (embedded[i, j] / distance[i, j]).double()
    # the minimum of a sum of |s r - 1| = r |s - 1/r| is a weighted median of 1/r
    order = ratio.argsort(descending=True)
    weight = ratio[order].cumsum(0)
    at = int((weight >= weight[-1] / 2).nonzero()[0])
    scale = 1.0 / ratio[order][at].clamp_min(1e-300)
    return float((scale * ratio - 1.0).abs().mean())


def mean_average_precision(distance: Tensor, embedded: Tensor) -> float:
    """How well neighbours in the graph are nearest in the embedding, in (0, 1].

    For each node, and each of its neighbours in the graph: the share of neighbours among the points
    no farther than that one; averaged over neighbours, then over nodes.

    Args:
        distance: Of the graph, in edges, ``(n, n)``; 1 marks neighbours.
        embedded: Of the points, ``(n, n)``.

    Source:
        Nickel & Kiela (2017), section 4.1.
    """
    is_neighbour = distance == 1
    total, n_used = 0.0, 0
    for node in range(len(distance)):
        near = embedded[node, is_neighbour[node]]
        if near.numel() == 0:
            continue
        others = torch.cat((embedded[node, :node], embedded[node, node + 1 :]))
        within = (others[None, :] <= near[:, None]).sum(1)
        hits = (near[None, :] <= near[:, None]).sum(1)
        total += float((hits / within).double().mean())
        n_used += 1
    if n_used == 0:
        raise DataError("no node has a neighbour: mean average precision has no value")
    return total / n_used


@dataclass(frozen=True)
class Embedding:
    """Points of a graph in a space.

    Args:
        space: The space.
        points: ``(n, coordinates)``, float64.
        distance: Between the points, ``(n, n)``.
        distortion: See :func:`average_distortion`.
        precision: See :func:`mean_average_precision`; NaN where no two points are neighbours.
        loss: Mean squared relative error of the pairs at the end.
    """

    space: Geometry
    points: Tensor
    distance: Tensor
    distortion: float
    precision: float
    loss: float


def classical_scaling(distance: Tensor, dim: Count) -> Tensor:
    """Flat coordinates by the leading eigenvectors of the centred squared distances, ``(n, dim)``.

    Directions beyond the rank are 0.

    Source:
        Torgerson (1952).
    """
    n = len(distance)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    gram = -0.5 * centre @ distance.double().square() @ centre
    values, vectors = torch.linalg.eigh(gram)
    n_used = min(dim, n)
    found = vectors.flip(1)[:, :n_used] * values.flip(0)[:n_used].clamp_min(0.0).sqrt()
    return torch.nn.functional.pad(found, (0, dim - n_used))


def embed(
    distance: Tensor,
    manifold: ManifoldName,
    dim: Count,
    *,
    n_step: Count,
    learning_rate: Positive,
    seed: int,
) -> Embedding:
    r"""Points whose distances follow those of a graph, by RiemannianAdam.

    Minimises the mean over pairs of $(s\, d_e / d_g - 1)^2$. The scale $s$ falls from 3 to 1 in the
    first half of the steps and is then learned, as a curvature would be: points start at classical
    scaling plus noise, all near the origin where every space is flat, and branches settle before
    space bends between them. The rate falls by half a cosine. All spaces get the same loss, start
    (in the tangent space at the origin), steps and numbers of parameters.

    Args:
        distance: Of the graph, ``(n, n)``, finite, above 0 off the diagonal.
        manifold: The space.
        dim: Its dimension.
        n_step: Steps, each over all pairs.
        learning_rate: Highest rate.
        seed: Of the start.
    """
    n = len(distance)
    space = geometry(manifold, curvature=1.0, learnable=False)
    draw = torch_generator(seed, "embedding")
    table = ManifoldEmbedding(space, n, dim, generator=draw).double()
    noise = START_NOISE * torch.randn(n, dim, generator=draw, dtype=torch.float64)
    start = classical_scaling(distance, dim) / (2 * FLAT_SCALE) + noise
    table.point.data.copy_(space.parameter(start).data)
    log_scale = torch.nn.Parameter(torch.tensor(math.log(FLAT_SCALE), dtype=torch.float64))
    i, j = torch.triu_indices(n, n, offset=1)
    wanted = distance[i, j].double()
    optimizer = RiemannianAdam([table.point, log_scale], lr=learning_rate)
    for step in range(n_step):
        rate = 0.5 * learning_rate * (1 + math.cos(math.pi * step / n_step))
        optimizer.param_groups[0]["lr"] = rate
        log_scale.requires_grad_(2 * step >= n_step)
        if not log_scale.requires_grad:
            log_scale.data.fill_(math.log(FLAT_SCALE) * (1 - 2 * step / n_step))
        optimizer.zero_grad()
        points = table()
        loss = (log_scale.exp() * space.dist(points[i], points[j]) / wanted - 1).square().mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        points = table()
        between = torch.zeros(n, n, dtype=torch.float64)
        between[i, j] = space.dist(points[i], points[j])
        between = between + between.T
        loss = (log_scale.exp() * between[i, j] / wanted - 1).square().mean()
    return Embedding(
        space,
        points,
        between,
        average_distortion(distance, between),
        mean_average_precision(distance, between) if bool((distance == 1).any()) else math.nan,
        float(loss),
    )

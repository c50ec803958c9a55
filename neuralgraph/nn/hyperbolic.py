r"""Hyperbolic geometry with one switch, and the layers built on it.

Three spaces, one interface (:class:`Geometry`): the Poincaré ball and the Lorentz hyperboloid are
two charts of the *same* space of curvature $-c$, the Euclidean space is their limit $c \to 0$. All
three take the same tangent vectors at the origin, in the coordinates of the ball (where the metric
at the origin is 4 times the Euclidean one), so that a layer with the same numbers is the same
function in both charts, goes over into the Euclidean layer as $c \to 0$, and has the same number
of parameters in all three.

Manifold maths comes from geoopt and runs in **float64 whatever the dtype of the model** (float32
loses points near the boundary: geoopt pulls them back to 0.996 of the radius); results return in
the dtype that came in. Where geoopt's Lorentz formulas cancel in the neighbourhood of a point (its
``logmap0`` shrinks vectors below 1e-4, its ``dist`` and ``transp0`` divide 0 by 0) the closed form
stands here and says so. geoopt clamps the argument of artanh at 1 − 1e-7, hence no distance above
$16.8/\sqrt c$ can be represented: tangent norms are capped at $4/\sqrt c$ (:data:`MAX_TANGENT`),
which keeps the distance between two mapped points below $16/\sqrt c$. Sums of points are exact up
to geoopt's projection, a tangent norm of $6.1/\sqrt c$.

Source:
    Ganea, Bécigneul & Hofmann, Hyperbolic neural networks (2018); Chami et al., Hyperbolic graph
    convolutional neural networks (2019); Nickel & Kiela, Poincaré embeddings (2017); Bécigneul &
    Ganea, Riemannian adaptive optimization methods (2019); geoopt 0.5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import geoopt
import torch
from geoopt.manifolds.base import Manifold as GeooptManifold
from geoopt.manifolds.lorentz import math as lorentz
from geoopt.manifolds.stereographic import math as ball
from torch import Tensor, nn

from neuralgraph.core.errors import ConfigError, DataError, nearest

ManifoldName: TypeAlias = Literal["poincare", "lorentz", "euclidean"]

CURVATURE_BOUNDS = (0.1, 10.0)
"""Range of a learnable curvature."""
MAX_TANGENT = 4.0
r"""Largest norm of a tangent vector at the origin, in units of $1/\sqrt c$."""
EMBEDDING_STD = 1e-2
"""Standard deviation of fresh embeddings: near the origin, never on it."""

_WIDTH = CURVATURE_BOUNDS[1] - CURVATURE_BOUNDS[0]


def bounded_curvature(raw: Tensor) -> Tensor:
    r"""A positive curvature from a free number, inside :data:`CURVATURE_BOUNDS`.

    $c = l + w\,(1 - \mathrm{sp}(w - \mathrm{sp}(r)) / \mathrm{sp}(w))$ with the softplus
    $\mathrm{sp}$, lower bound $l$ and width $w$: about $l + \mathrm{sp}(r)$, bending at the upper
    bound instead of stopping, so that the gradient is nowhere 0.

    Args:
        raw: Free numbers.

    Returns:
        Curvatures, same shape.

    >>> [round(float(bounded_curvature(torch.tensor(r))), 3) for r in (-60.0, 0.0, 60.0)]
    [0.1, 0.793, 10.0]
    """
    softplus = nn.functional.softplus
    top = math.log1p(math.exp(_WIDTH))
    return CURVATURE_BOUNDS[0] + _WIDTH * (1.0 - softplus(_WIDTH - softplus(raw)) / top)


def free_curvature(curvature: float) -> float:
    """Inverse of :func:`bounded_curvature`.

    >>> round(float(bounded_curvature(torch.tensor(free_curvature(2.0)))), 4)
    2.0
    """
    low, high = CURVATURE_BOUNDS
    if not low < curvature < high:
        raise ConfigError(
            f"a learnable curvature starts inside ({low}, {high}), got {curvature}: choose another "
            "or set learnable_curvature=false"
        )
    top = math.log1p(math.exp(_WIDTH))
    inner = _WIDTH - math.log(math.expm1(top * (1.0 - (curvature - low) / _WIDTH)))
    return math.log(math.expm1(inner))


class Geometry(nn.Module, ABC):
    r"""A space with an origin: the interface, and what the three spaces share.

    Points carry ``coordinates(d)`` numbers in the last dimension (``d``, and ``d + 1`` on the
    hyperboloid), tangent vectors at the origin ``d``. Laws, tested by property: ``dist(x, x) = 0``,
    symmetry, triangle inequality, ``logmap0(expmap0(u)) = u`` below the cap,
    ``add(negate(x), add(x, y)) = y``.

    Args:
        curvature: Start value of $c > 0$ (sectional curvature $-c$).
        learnable: Learn $c$ inside :data:`CURVATURE_BOUNDS`. In the Euclidean space the number is
            kept, so that parameters are counted alike, and frozen: it has nothing to act on.
    """

    name: ManifoldName

    def __init__(self, *, curvature: float, learnable: bool) -> None:
        super().__init__()
        if not curvature > 0:
            raise ConfigError(
                f"curvature must be above 0 (sectional curvature is minus that), got {curvature}: "
                "use manifold=euclidean for the flat space"
            )
        self.is_learnable = learnable
        start = free_curvature(curvature) if learnable else curvature
        self.raw_curvature = nn.Parameter(
            torch.tensor(start, dtype=torch.float64), requires_grad=learnable
        )

    @property
    def curvature(self) -> Tensor:
        """$c$, scalar, float64."""
        raw = self.raw_curvature.double()
        return bounded_curvature(raw) if self.is_learnable else raw

    def coordinates(self, dim: int) -> int:
        """Numbers that a point of dimension ``dim`` carries."""
        return dim

    def cap(self, tangent: Tensor) -> Tensor:
        r"""Tangent vectors with norms of at most :data:`MAX_TANGENT` $/\sqrt c$, direction kept."""
        return _capped(tangent, MAX_TANGENT / self.curvature.sqrt())

    def expmap0(self, tangent: Tensor) -> Tensor:
        r"""Exponential map at the origin, of capped vectors.

        Ball: $\tanh(\sqrt c |u|) \, u / (\sqrt c |u|)$.

        Args:
            tangent: ``(*batch, d)``.

        Returns:
            Points, ``(*batch, coordinates(d))``.
        """
        return self._expmap0(self.cap(tangent.double())).to(tangent.dtype)

    def logmap0(self, point: Tensor) -> Tensor:
        r"""Inverse of :meth:`expmap0`.

        Ball: $\mathrm{artanh}(\sqrt c |x|) \, x / (\sqrt c |x|)$; $\log_0 (0.5, 0) = (0.549, 0)$ at
        $c = 1$.

        Args:
            point: ``(*batch, coordinates(d))``.

        Returns:
            Tangent vectors at the origin, ``(*batch, d)``.
        """
        return self._logmap0(self._enter(point)).to(point.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Geodesic distance.

        Ball: $\frac{2}{\sqrt c} \mathrm{artanh}(\sqrt c\, |(-x) \oplus y|)$; flat limit
        $2 |x - y|$.

        Args:
            x: Points, ``(*batch, coordinates(d))``.
            y: Points, broadcast against ``x``.

        Returns:
            ``(*batch)``, not negative.
        """
        return self._dist(self._enter(x), self._enter(y)).to(x.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Möbius addition: go from ``x`` along ``y``, transported there from the origin.

        $x \oplus y = \exp_x(P_{0 \to x} \log_0 y)$; in the ball
        $\frac{(1 + 2c\langle x, y\rangle + c|y|^2) x + (1 - c|x|^2) y}
        {1 + 2c\langle x, y\rangle + c^2 |x|^2 |y|^2}$. Neither commutative nor associative; left
        cancellation holds.

        Source:
            Ganea et al. (2018), equations 4 and 26.
        """
        return self._add(self._enter(x), self._enter(y)).to(x.dtype)

    def negate(self, x: Tensor) -> Tensor:
        r"""$\ominus x$: the point opposite the origin."""
        return -x

    def matvec(self, matrix: Tensor, x: Tensor) -> Tensor:
        r"""$M \otimes x = \exp_0(M \log_0 x)$.

        Args:
            matrix: ``(d_out, d_in)``.
            x: Points, ``(*batch, coordinates(d_in))``.

        Returns:
            Points, ``(*batch, coordinates(d_out))``.

        Source:
            Ganea et al. (2018), definition 3.2.
        """
        tangent = self._logmap0(self._enter(x)) @ matrix.double().T
        return self._expmap0(self.cap(tangent)).to(x.dtype)

    def midpoint(self, points: Tensor, weights: Tensor) -> Tensor:
        r"""Weighted midpoints of all points.

        Ball: $\frac12 \otimes \sum_j w_j \lambda_j x_j / \sum_j w_j (\lambda_j - 1)$, the
        gyromidpoint, which is the centroid of the hyperboloid; flat: the weighted mean. The scale
        of the weights of a row does not matter.

        Args:
            points: ``(*batch, n, coordinates(d))``.
            weights: ``(*batch, m, n)``, not negative, no row all 0.

        Returns:
            ``(*batch, m, coordinates(d))``.

        Source:
            Ungar (2010); geoopt ``weighted_midpoint`` (held to it by a test).
        """
        parts, mass = self._moments(self._enter(points))
        weight = weights.double()
        return self._centre(weight @ parts, weight @ mass).to(points.dtype)

    def midpoint_edges(
        self, points: Tensor, edge_index: Tensor, weights: Tensor, n_target: int
    ) -> Tensor:
        """:meth:`midpoint` along the edges of a graph, in time and memory of the edges.

        Args:
            points: ``(*batch, n, coordinates(d))``.
            edge_index: ``(2, n_edge)`` long: source, target.
            weights: ``(n_edge,)``, not negative.
            n_target: Number of midpoints.

        Returns:
            ``(*batch, n_target, coordinates(d))``; a target without edges gets the origin.
        """
        parts, mass = self._moments(self._enter(points))
        source, target = edge_index
        weight = weights.double()[:, None]

        def gather(values: Tensor) -> Tensor:
            shape = (*values.shape[:-2], n_target, values.shape[-1])
            along = values.index_select(-2, source) * weight
            return values.new_zeros(shape).index_add(-2, target, along)

        return self._centre(gather(parts), gather(mass)).to(points.dtype)

    @abstractmethod
    def disk(self, point: Tensor) -> Tensor:
        """Points in the unit ball, for figures: the Poincaré chart scaled to radius 1.

        Flat points are scaled so that the farthest lies at 0.95.
        """

    @abstractmethod
    def parameter(self, tangent: Tensor) -> geoopt.ManifoldParameter:
        """Learnable points that start at ``expmap0(tangent)``; ``d`` free numbers each.

        Optimise them with :class:`neuralgraph.training.riemannian.RiemannianAdam`, and read them
        with :meth:`points`.
        """

    @abstractmethod
    def points(self, parameter: Tensor) -> Tensor:
        """Points of a :meth:`parameter`, under the curvature of the moment."""

    # ---- of each space, in float64 ---------------------------------------------------------------

    @abstractmethod
    def _enter(self, point: Tensor) -> Tensor:
        """Float64, and back on the manifold after rounding or a change of curvature."""

    @abstractmethod
    def _expmap0(self, tangent: Tensor) -> Tensor: ...

    @abstractmethod
    def _logmap0(self, point: Tensor) -> Tensor: ...

    @abstractmethod
    def _dist(self, x: Tensor, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _add(self, x: Tensor, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _moments(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """What midpoints are sums of: vectors and masses (``(*batch, n, 1)``)."""

    @abstractmethod
    def _centre(self, parts: Tensor, mass: Tensor) -> Tensor:
        """The midpoint of summed moments."""


class PoincareBall(Geometry):
    r"""The ball $|x| < 1/\sqrt c$ with metric $\lambda_x^2 = 4 / (1 - c|x|^2)^2$ (geoopt)."""

    name = "poincare"

    @property
    def k(self) -> Tensor:
        """Sectional curvature, as geoopt's functions take it."""
        return -self.curvature

    def disk(self, point: Tensor) -> Tensor:
        """Scale to radius 1."""
        return self._enter(point) * self.curvature.sqrt()

    def parameter(self, tangent: Tensor) -> geoopt.ManifoldParameter:
        """Coordinates in the ball, on geoopt's manifold of the present curvature."""
        with torch.no_grad():
            start = self.expmap0(tangent)
        return _parameter(start, _Ball(self))

    def points(self, parameter: Tensor) -> Tensor:
        """The parameter, inside the ball of the moment and within the cap."""
        return self._within(parameter.double()).to(parameter.dtype)

    def _within(self, point: Tensor) -> Tensor:
        return _capped(point, math.tanh(MAX_TANGENT) / self.curvature.sqrt())

    def _enter(self, point: Tensor) -> Tensor:
        return ball.project(point.double(), k=self.k)

    def _expmap0(self, tangent: Tensor) -> Tensor:
        return ball.expmap0(tangent, k=self.k)

    def _logmap0(self, point: Tensor) -> Tensor:
        return ball.logmap0(point, k=self.k)

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return ball.dist(x, y, k=self.k)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return ball.project(ball.mobius_add(x, y, k=self.k), k=self.k)

    def _moments(self, points: Tensor) -> tuple[Tensor, Tensor]:
        factor = ball.lambda_x(points, k=self.k, keepdim=True)
        return factor * points, factor - 1.0

    def _centre(self, parts: Tensor, mass: Tensor) -> Tensor:
        doubled = parts / mass.clamp_min(1e-30)
        # half a gyrovector in closed form: no direction to divide by at the origin
        inside = (1.0 - self.curvature * doubled.pow(2).sum(-1, keepdim=True)).clamp_min(1e-15)
        return ball.project(doubled / (1.0 + inside.sqrt()), k=self.k)


class Lorentz(Geometry):
    r"""The upper sheet $-x_0^2 + |\vec x|^2 = -1/c$; points carry $x_0$ in front.

    $x_0$ is computed anew from the rest wherever a point enters, so float32 points stay exact. The
    parameter holds the $d$ numbers $\vec x$ (:class:`_Sheet`), as many as the other spaces.
    """

    name = "lorentz"

    @property
    def k(self) -> Tensor:
        """Squared radius, as geoopt's functions take it."""
        return 1.0 / self.curvature

    def coordinates(self, dim: int) -> int:
        """One more than the dimension."""
        return dim + 1

    def negate(self, x: Tensor) -> Tensor:
        """Mirror at the axis of the sheet."""
        return torch.cat((x[..., :1], -x[..., 1:]), -1)

    def disk(self, point: Tensor) -> Tensor:
        """Stereographic projection to the unit ball."""
        x = self._enter(point) * self.curvature.sqrt()
        return x[..., 1:] / (1.0 + x[..., :1])

    def parameter(self, tangent: Tensor) -> geoopt.ManifoldParameter:
        """Coordinates without the first, with the metric that the sheet gives them."""
        with torch.no_grad():
            start = self.expmap0(tangent)[..., 1:].contiguous()
        return _parameter(start, _Sheet(self))

    def points(self, parameter: Tensor) -> Tensor:
        """Lifted onto the sheet of the moment, within the cap."""
        return _lift(self._within(parameter.double()), self.k).to(parameter.dtype)

    def _within(self, spatial: Tensor) -> Tensor:
        return _capped(spatial, math.sinh(2.0 * MAX_TANGENT) / self.curvature.sqrt())

    def _enter(self, point: Tensor) -> Tensor:
        return _lift(point[..., 1:].double(), self.k)

    def _expmap0(self, tangent: Tensor) -> Tensor:
        vector = nn.functional.pad(2.0 * tangent, (1, 0))
        return lorentz.project(lorentz.expmap0(vector, k=self.k), k=self.k)

    def _logmap0(self, point: Tensor) -> Tensor:
        # geoopt's logmap0 clamps norms at 1e-4: vectors below come back too short
        spatial, root = point[..., 1:], self.curvature.sqrt()
        norm = (root * spatial.norm(dim=-1, keepdim=True)).clamp_min(1e-12)
        return 0.5 * torch.asinh(norm) / norm * spatial

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        # geoopt's arcosh(-<x, y>) cancels for close points; the chord <x - y, x - y> does not
        root = self.curvature.sqrt()
        chord = lorentz.inner(x - y, x - y)
        is_apart = chord > 0
        length = torch.where(is_apart, chord, torch.ones_like(chord)).sqrt()
        return torch.where(is_apart, 2.0 / root * torch.asinh(0.5 * root * length), 0.0 * chord)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        vector = nn.functional.pad(2.0 * self._logmap0(y), (1, 0))
        # geoopt's transp0 divides by dist0(x)^2; the same transport without a quotient 0 / 0:
        root = self.k.sqrt()
        along = lorentz.inner(x, vector, keepdim=True) / (self.k + root * x[..., :1])
        first = torch.cat((x[..., :1] + root, x[..., 1:]), -1)
        moved = vector + along * first
        return lorentz.project(lorentz.expmap(x, moved, k=self.k), k=self.k)

    def _moments(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return points, points[..., :1]

    def _centre(self, parts: Tensor, mass: Tensor) -> Tensor:
        # -<s, s> >= (sum of weights)^2 / c > 0: no cancellation that matters
        time, spatial = parts[..., :1], parts[..., 1:]
        norm2 = time.pow(2) - spatial.pow(2).sum(-1, keepdim=True)
        scale = torch.where(norm2 > 0, norm2, torch.ones_like(norm2)).sqrt()
        return _lift(spatial / (scale * self.curvature.sqrt()), self.k)


class Euclidean(Geometry):
    """The limit of both for vanishing curvature: maps are identities, ``dist`` is 2 |x − y|.

    The factor 2 is the limit of the ball's (metric at the origin: 4 times the flat one).
    """

    name = "euclidean"

    def __init__(self, *, curvature: float, learnable: bool) -> None:
        super().__init__(curvature=curvature, learnable=learnable)
        self.raw_curvature.requires_grad_(False)

    def cap(self, tangent: Tensor) -> Tensor:
        """Nothing to cap."""
        return tangent

    def disk(self, point: Tensor) -> Tensor:
        """Scaled so that the farthest point lies at 0.95."""
        return 0.95 * point.double() / point.double().norm(dim=-1).max().clamp_min(1e-12)

    def parameter(self, tangent: Tensor) -> geoopt.ManifoldParameter:
        """Plain coordinates; one second moment for each row, as on the curved spaces."""
        return _parameter(tangent.clone(), geoopt.Euclidean(ndim=1))

    def points(self, parameter: Tensor) -> Tensor:
        """The parameter."""
        return parameter.as_subclass(Tensor) * 1.0

    def _enter(self, point: Tensor) -> Tensor:
        return point.double()

    def _expmap0(self, tangent: Tensor) -> Tensor:
        return tangent

    def _logmap0(self, point: Tensor) -> Tensor:
        return point

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return 2.0 * (x - y).norm(dim=-1)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def _moments(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return points, torch.ones_like(points[..., :1])

    def _centre(self, parts: Tensor, mass: Tensor) -> Tensor:
        return parts / mass.clamp_min(1e-30)


GEOMETRIES: dict[str, type[Geometry]] = {
    "poincare": PoincareBall,
    "lorentz": Lorentz,
    "euclidean": Euclidean,
}


def geometry(manifold: ManifoldName, *, curvature: float = 1.0, learnable: bool = True) -> Geometry:
    """The switch.

    Args:
        manifold: ``poincare``, ``lorentz`` or ``euclidean``.
        curvature: Start value of c.
        learnable: Whether c is learned (see :class:`Geometry`).

    Raises:
        ConfigError: an unknown manifold, or a curvature out of range.
    """
    if manifold not in GEOMETRIES:
        raise ConfigError(f"manifold '{manifold}' is unknown: {nearest(manifold, GEOMETRIES)}")
    return GEOMETRIES[manifold](curvature=curvature, learnable=learnable)


class HyperbolicDense(nn.Module):
    r"""$y = \exp_0(\sigma(\log_0(W \otimes x \oplus \exp_0 b)))$.

    Args:
        space: Geometry of the points; shared by the layers of a model.
        n_in: Dimension of the input.
        n_out: Dimension of the output.
        activation: Applied in the tangent space at the origin; ``None`` for none.
        bias: Whether $b$ is there; it starts at 0.
        generator: Source of the initial weights (Glorot uniform).

    Source:
        Ganea et al. (2018), section 3.2.
    """

    def __init__(
        self,
        space: Geometry,
        n_in: int,
        n_out: int,
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
        bias: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.space = space
        self.activation = activation
        self.weight = nn.Parameter(glorot(n_out, n_in, generator))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map points ``(*batch, coordinates(n_in))`` to ``(*batch, coordinates(n_out))``."""
        y = self.space.matvec(self.weight, x)
        if self.bias is not None:
            y = self.space.add(y, self.space.expmap0(self.bias.to(y.dtype)).expand_as(y))
        return activated(self.space, y, self.activation)


class HyperbolicGraphConv(nn.Module):
    r"""A dense step, then the weighted midpoint of the neighbours, then the activation.

    $y_i = \sigma^{\otimes}(\mathrm{mid}_j(a_{ij}, W \otimes x_j \oplus b))$. The midpoint
    does not depend on the scale of the weights of a node: the adjacency acts row-normalised, and
    the output stays on the manifold whatever the degree. Ball coordinates are never summed.
    Equivariant under permutations of the nodes; costs O(edges).

    Args:
        space: Geometry of the points.
        n_in: Dimension of the input.
        n_out: Dimension of the output.
        activation: Applied in the tangent space at the origin; ``None`` for none.
        generator: Source of the initial weights.

    Source:
        Chami et al. (2019), section 4.2, with the midpoint of geoopt instead of their mean in
        tangent spaces.
    """

    def __init__(
        self,
        space: Geometry,
        n_in: int,
        n_out: int,
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.space = space
        self.activation = activation
        self.dense = HyperbolicDense(space, n_in, n_out, generator=generator)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Points of the nodes after one round.

        Args:
            x: ``(*batch, n_node, coordinates(n_in))``.
            edge_index: ``(2, n_edge)`` long, source and target; with self loops, or a node does not
                see itself.
            edge_weight: ``(n_edge,)``, not negative.

        Returns:
            ``(*batch, n_node, coordinates(n_out))``; a node without incoming edges gets the origin.
        """
        y = self.dense(x)
        y = self.space.midpoint_edges(y, edge_index, edge_weight, y.shape[-2])
        return activated(self.space, y, self.activation)


class HyperbolicAttention(nn.Module):
    r"""Attention by geodesic distance, values by weighted midpoint.

    $\alpha_{ij} = \mathrm{softmax}_j(-d(q_i, k_j) / \tau)$ with one learnable temperature
    $\tau > 0$ for each head; heads are joined in the tangent space at the origin.

    Args:
        space: Geometry of the points.
        dim: Dimension of input and output, divisible by ``n_head``.
        n_head: Number of heads.
        generator: Source of the initial weights.

    Raises:
        ConfigError: a dimension that the heads cannot share.

    Source:
        Gulcehre et al., Hyperbolic attention networks (2019), with geoopt's midpoint.
    """

    def __init__(
        self, space: Geometry, dim: int, *, n_head: int = 1, generator: torch.Generator
    ) -> None:
        super().__init__()
        if n_head < 1 or dim % n_head:
            raise ConfigError(
                f"attention of dimension {dim} cannot be shared by {n_head} heads: choose a divisor"
            )
        self.space, self.n_head, self.width = space, n_head, dim // n_head
        self.query = nn.Parameter(glorot(dim, dim, generator))
        self.key = nn.Parameter(glorot(dim, dim, generator))
        self.value = nn.Parameter(glorot(dim, dim, generator))
        self.out = HyperbolicDense(space, dim, dim, generator=generator)
        self.raw_tau = nn.Parameter(torch.full((n_head,), math.log(math.expm1(1.0))))

    @property
    def tau(self) -> Tensor:
        """Temperatures, ``(n_head,)``."""
        return nn.functional.softplus(self.raw_tau) + 1e-3

    def weights(self, query: Tensor, key: Tensor, is_open: Tensor | None = None) -> Tensor:
        """Attention of each head, ``(*batch, n_head, n_query, n_key)``; rows sum to 1."""
        q = self._heads(query, self.query)
        k = self._heads(key, self.key)
        distance = self.space.dist(q[..., :, None, :], k[..., None, :, :])
        score = -distance / self.tau[:, None, None]
        if is_open is not None:
            score = score.masked_fill(~is_open.unsqueeze(-3), -torch.inf)
        return score.softmax(-1)

    def forward(self, query: Tensor, key: Tensor, is_open: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: Points, ``(*batch, n_query, coordinates(dim))``.
            key: Points that give keys and values, ``(*batch, n_key, coordinates(dim))``.
            is_open: ``(*batch, n_query, n_key)`` bool: which keys a query may see, at least one.

        Returns:
            Points, ``(*batch, n_query, coordinates(dim))``.
        """
        alpha = self.weights(query, key, is_open)
        mixed = self.space.midpoint(self._heads(key, self.value), alpha)
        joined = self.space.logmap0(mixed).movedim(-3, -2).flatten(-2)
        return self.out(self.space.expmap0(joined))

    def _heads(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Linear in the tangent space, then points of each head, ``(*batch, head, n, coord)``."""
        tangent = self.space.logmap0(x) @ matrix.to(x.dtype).T
        return self.space.expmap0(tangent.unflatten(-1, (self.n_head, self.width)).movedim(-2, -3))


class ManifoldEmbedding(nn.Module):
    """A learnable point for each of ``n`` things.

    The only manifold parameter of a model: everything else lives in the tangent space at the
    origin. Starts at ``expmap0`` of normal vectors of standard deviation :data:`EMBEDDING_STD`.

    Args:
        space: Geometry of the points.
        n: Number of points.
        dim: Dimension; free numbers of each point.
        generator: Source of the start.
        init_std: Standard deviation at the start, above 0: gradients vanish at the exact origin in
            float32.

    Raises:
        ConfigError: a spread of 0.

    Source:
        Nickel & Kiela (2017); geoopt ``ManifoldParameter``.
    """

    def __init__(
        self,
        space: Geometry,
        n: int,
        dim: int,
        *,
        generator: torch.Generator,
        init_std: float = EMBEDDING_STD,
    ) -> None:
        super().__init__()
        if not init_std > 0:
            raise ConfigError(
                f"init_std must be above 0, got {init_std}: never start on the origin"
            )
        self.space = space
        start = init_std * torch.randn(n, dim, generator=generator, dtype=torch.float64)
        self.point = space.parameter(start.to(torch.get_default_dtype()))

    def forward(self, index: Tensor | None = None) -> Tensor:
        """Points ``(*index, coordinates(dim))``, all of them without an index."""
        points = self.space.points(self.point)
        return points if index is None else points[index]


def activated(space: Geometry, x: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    """An activation applied in the tangent space at the origin."""
    return x if activation is None else space.expmap0(activation(space.logmap0(x)))


def glorot(n_out: int, n_in: int, generator: torch.Generator) -> Tensor:
    """Uniform start of a weight matrix, ``(n_out, n_in)``, within sqrt(6 / (n_in + n_out))."""
    bound = math.sqrt(6.0 / (n_in + n_out))
    return bound * (2.0 * torch.rand(n_out, n_in, generator=generator) - 1.0)


def row_normalised(edge_index: Tensor, edge_weight: Tensor, n_node: int) -> Tensor:
    """Weights that sum to 1 over the incoming edges of each node, ``(n_edge,)``.

    Raises:
        DataError: a negative weight: a midpoint has none (take magnitudes, keep signs apart).
    """
    if bool((edge_weight < 0).any()):
        raise DataError(
            f"midpoints need weights of 0 or above, got {float(edge_weight.min()):g}: take the "
            "magnitude of signed edges"
        )
    total = edge_weight.new_zeros(n_node).index_add(0, edge_index[1], edge_weight)
    return edge_weight / total.clamp_min(torch.finfo(edge_weight.dtype).tiny)[edge_index[1]]


# ---- geoopt manifolds that follow the curvature of a geometry ------------------------------------


class _Ball(geoopt.Stereographic):
    """geoopt's ball with the curvature of a :class:`PoincareBall` at each step."""

    def __init__(self, owner: PoincareBall) -> None:
        super(geoopt.Stereographic, self).__init__()
        self._owner = (owner,)  # in a tuple: no submodule of the parameter's manifold

    @property
    def k(self) -> Tensor:  # type: ignore[override]  # geoopt keeps a parameter under this name
        return self._owner[0].k.detach()

    def retr(self, x: Tensor, u: Tensor, *, dim: int = -1) -> Tensor:
        return self._owner[0]._within(super().retr(x, u, dim=dim))

    def projx(self, x: Tensor, *, dim: int = -1) -> Tensor:
        return self._owner[0]._within(super().projx(x, dim=dim))


class _Sheet(GeooptManifold):
    r"""The hyperboloid in the coordinates $\vec x$ without $x_0$: $d$ free numbers.

    Metric $I - \vec x \vec x^T / x_0^2$, inverse $I + c\, \vec x \vec x^T$; steps and transport are
    geoopt's, on the lifted vectors.
    """

    name = "Lorentz sheet"
    ndim = 1
    reversible = False

    def __init__(self, owner: Lorentz) -> None:
        super().__init__()
        self._owner = (owner,)

    @property
    def k(self) -> Tensor:
        return self._owner[0].k.detach()

    def _check_point_on_manifold(self, x: Tensor, **_: Any) -> tuple[bool, str | None]:
        return True, None

    def _check_vector_on_tangent(self, x: Tensor, u: Tensor, **_: Any) -> tuple[bool, str | None]:
        return True, None

    def projx(self, x: Tensor) -> Tensor:
        return self._owner[0]._within(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return u + (x * u).sum(-1, keepdim=True) / self.k * x

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        v = u if v is None else v
        time2 = self.k + x.pow(2).sum(-1, keepdim=True)
        mixed = (x * u).sum(-1, keepdim=True) * (x * v).sum(-1, keepdim=True) / time2
        value = (u * v).sum(-1, keepdim=True) - mixed
        return value if keepdim else value.squeeze(-1)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        point = _lift(x.double(), self.k)
        vector = _lift_vector(point, u.double())
        moved = lorentz.expmap(point, vector, k=self.k)
        return self.projx(moved[..., 1:]).to(x.dtype)

    retr = expmap

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        a, b = _lift(x.double(), self.k), _lift(y.double(), self.k)
        vector = _lift_vector(a, v.double())
        along = lorentz.inner(b, vector, keepdim=True)
        along = along / (self.k - lorentz.inner(a, b, keepdim=True))
        return (vector + along * (a + b))[..., 1:].to(v.dtype)


def _parameter(start: Tensor, manifold: GeooptManifold) -> geoopt.ManifoldParameter:
    make: Any = geoopt.ManifoldParameter  # its __new__ is hidden from type checkers
    return make(start, manifold=manifold)


def _lift(spatial: Tensor, k: Tensor) -> Tensor:
    """Points of the sheet from their coordinates without the first."""
    time = (k + spatial.pow(2).sum(-1, keepdim=True)).sqrt()
    return torch.cat((time, spatial), -1)


def _lift_vector(point: Tensor, spatial: Tensor) -> Tensor:
    """Tangent vectors at points of the sheet from their coordinates without the first."""
    time = (point[..., 1:] * spatial).sum(-1, keepdim=True) / point[..., :1]
    return torch.cat((time, spatial), -1)


def _capped(vector: Tensor, largest: Tensor) -> Tensor:
    """Vectors with norms of at most ``largest``, direction kept, gradients finite at 0."""
    norm = vector.norm(dim=-1, keepdim=True)
    is_long = norm > largest
    scale = largest / torch.where(is_long, norm, torch.ones_like(norm))
    return torch.where(is_long, vector * scale.to(vector.dtype), vector)


__all__ = [
    "CURVATURE_BOUNDS",
    "MAX_TANGENT",
    "Euclidean",
    "Geometry",
    "HyperbolicAttention",
    "HyperbolicDense",
    "HyperbolicGraphConv",
    "Lorentz",
    "ManifoldEmbedding",
    "ManifoldName",
    "PoincareBall",
    "activated",
    "bounded_curvature",
    "free_curvature",
    "geometry",
    "row_normalised",
]

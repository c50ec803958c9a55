r"""Fit of the two shared networks of a rate law to exact derivatives.

The rate of a reaction is $k_j\,softplus(rate(\sum_i msg([c_i, |s_{ij}|])))$. A Gauss-Newton step
in the weights needs the normal equations in the coefficients ``theta`` of the polynomial law only:
the residual is that of the networks, and the Jacobian of the networks is written in ``theta``.
The cost of a step therefore does not depend on the number of weights times the number of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.recovery_law import (
    Collocation,
    PolynomialLaw,
    collocation,
)
from neuralgraph.systems.metabolism.recovery_messages import StoichiometryDecoder

Array = np.ndarray
SHARPENING = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
"""Metrics in which the networks approach a polynomial law, as shares of that of the data."""


def networks_from(weights: Sequence[Array]) -> tuple[nn.Sequential, nn.Sequential]:
    """``msg`` and ``rate`` networks, float64, from alternating weights and biases."""
    layers = []
    for w, b in zip(weights[::2], weights[1::2], strict=True):
        layer = nn.utils.skip_init(nn.Linear, *w.shape, dtype=torch.float64)
        with torch.no_grad():
            for p, value in zip(layer.parameters(), (w.T, b.reshape(-1)), strict=True):
                p.copy_(torch.from_numpy(value))
        layers.append(layer)
    msg = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    return msg, nn.Sequential(layers[2], nn.Tanh(), layers[3])


class SharedRateNetwork:
    """The rate law of two networks, its ``theta``, and the derivative of ``theta`` by the weights.

    Args:
        msg_mlp: ``(*, 2) -> (*, n_message)``, features [c, |s|].
        rate_mlp: ``(*, n_message) -> (*, 1)``.
        points: Where the law is sampled.
    """

    def __init__(self, msg_mlp: nn.Module, rate_mlp: nn.Module, points: Collocation) -> None:
        self.net = nn.ModuleDict({"msg": msg_mlp, "rate": rate_mlp}).double()
        self.points = points
        self.names = [n for n, _ in self.net.named_parameters()]
        self.shapes = [p.shape for _, p in self.net.named_parameters()]
        self.n_weight = sum(p.numel() for p in self.net.parameters())
        self._point = [
            (torch.from_numpy(np.stack([c, s], axis=-1)))
            for c, s in zip(points.concentration, points.size, strict=True)
        ]

    def on(self, points: Collocation) -> SharedRateNetwork:
        """The same networks sampled at other points."""
        return SharedRateNetwork(self.net["msg"], self.net["rate"], points)

    @property
    def weights(self) -> Tensor:
        """All weights as one vector (a copy)."""
        return torch.cat([p.detach().reshape(-1) for p in self.net.parameters()])

    @weights.setter
    def weights(self, vector: Tensor) -> None:
        with torch.no_grad():
            start = 0
            for p in self.net.parameters():
                p.copy_(vector[start : start + p.numel()].view_as(p))
                start += p.numel()

    def _split(self, vector: Tensor) -> Mapping[str, Tensor]:
        out, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            out[name] = vector[start : start + shape.numel()].view(shape)
            start += shape.numel()
        return out

    def _one(self, vector: Tensor, x: Tensor) -> Tensor:
        """Rate at one point ``(n, 2)``."""
        w = self._split(vector)
        part = {
            k: {n[len(k) + 1 :]: v for n, v in w.items() if n.startswith(k + ".")}
            for k in ("msg", "rate")
        }
        h = torch.func.functional_call(self.net["msg"], part["msg"], (x,)).sum(0)
        y = torch.func.functional_call(self.net["rate"], part["rate"], (h[None],))
        return nn.functional.softplus(y).reshape(())

    @torch.no_grad()
    def theta(self) -> Array:
        """Coefficients of the polynomial law closest to the networks, ``(n_theta,)``."""
        parts = []
        for x, inverse in zip(self._point, self.points.inverse, strict=True):
            y = nn.functional.softplus(self.net["rate"](self.net["msg"](x).sum(1)))[:, 0]
            parts.append(inverse @ y.numpy())
        return np.concatenate(parts)

    def theta_jacobian(self) -> Array:
        """Derivative of ``theta`` by the weights, ``(n_theta, n_weight)``."""
        vector = self.weights
        grad = torch.func.vmap(torch.func.grad(self._one), in_dims=(None, 0))
        return np.concatenate(
            [
                inverse @ grad(vector, x).numpy()
                for x, inverse in zip(self._point, self.points.inverse, strict=True)
            ]
        )

    @torch.no_grad()
    def rates(
        self, concentration: Array, decoder: StoichiometryDecoder, shape: Array | None = None
    ) -> Array:
        """Rate functions on frames ``(n_met, n_frame)``.

        Returns:
            ``(n_rxn, n_shape, n_frame)``; with ``shape`` given only these, ``(n_rxn, n_frame)``.
        """
        poly = decoder.poly
        n_frame = concentration.shape[1]
        c = torch.from_numpy(np.ascontiguousarray(concentration))
        rate = self.net["rate"]
        first = rate[0] if isinstance(rate, nn.Sequential) else None
        if isinstance(rate, nn.Sequential) and isinstance(first, nn.Linear):
            # the first layer is linear: apply it per metabolite, sum over substrates afterwards
            tail: nn.Module = rate[1:]
            weight, bias = first.weight.T, first.bias
        else:
            tail, weight, bias = rate, None, None
        message = []
        for s in range(1, poly.max_coefficient + 1):
            x = torch.stack([c, torch.full_like(c, float(s))], dim=-1)
            m = self.net["msg"](x)
            message.append(m if weight is None else m @ weight)
        full = shape is None
        size = (decoder.n_rxn, decoder.n_shape, n_frame) if full else (decoder.n_rxn, n_frame)
        out = np.zeros(size)
        for rxn, code, substrates, sizes in decoder.rate_groups(shape):
            subs = torch.from_numpy(substrates)
            h = message[sizes[0] - 1][subs[:, 0]]
            for q in range(1, len(sizes)):
                h = h + message[sizes[q] - 1][subs[:, q]]
            if bias is not None:
                h = h + bias
            v = nn.functional.softplus(tail(h))[..., 0].numpy()
            if full:
                out[rxn, code] = v
            else:
                out[rxn] = v
        return out


class LawMetric:
    """Normal equations in ``theta``, factored for steps in the weights of the networks.

    Args:
        h: Gauss-Newton matrix, ``(n_theta, n_theta)``, in units of the inverse noise.
    """

    def __init__(self, h: Array) -> None:
        value, vector = np.linalg.eigh((h + h.T) / 2)
        keep = value > 1e-15 * value[-1]
        self.root = np.sqrt(value[keep])
        self.vector = vector[:, keep]

    def whiten(self, theta: Array) -> Array:
        """Coordinates in which the metric is the identity."""
        return (self.vector * self.root).T @ theta

    def steps(self, jacobian: Array, target: Array) -> Callable[[float], Array]:
        r"""Levenberg-Marquardt steps $\min |J w - t|^2 + \lambda |w|^2$ as a function of λ.

        Args:
            jacobian: Of ``theta`` by the weights, ``(n_theta, n_weight)``.
            target: Whitened displacement.
        """
        a = self.whiten(jacobian)
        value, vector = np.linalg.eigh(a @ a.T)
        value = np.maximum(value, 0.0)
        t = vector.T @ target

        def step(damping: float) -> Array:
            return a.T @ (vector @ (t / (value + damping)))

        return step

    def target(self, g: Array) -> Array:
        """Whitened displacement that a gradient in ``theta`` asks for."""
        return (self.vector.T @ g) / self.root


def fit_to_theta(net: SharedRateNetwork, theta: Array, h: Array, n_step: int = 80) -> float:
    """Fit the weights so that their ``theta`` equals the given one in the metric ``h``.

    Returns:
        The squared distance reached; in units of the noise it should be near ``n_theta``.
    """
    metric = LawMetric(h)
    left = metric.whiten(theta - net.theta())
    best, damping, slow = float(left @ left), 1e2, 0
    for _ in range(n_step):
        step, start = metric.steps(net.theta_jacobian(), left), net.weights
        value = best
        for _ in range(8):
            net.weights = start + torch.from_numpy(step(damping))
            left_new = metric.whiten(theta - net.theta())
            value = float(left_new @ left_new)
            if value < best:
                break
            damping *= 8
        else:
            net.weights = start
            break
        gain = 1 - value / best
        best, left, damping = value, left_new, max(damping / 4, 1e-3)
        slow = slow + 1 if gain < 0.02 else 0
        if slow >= 4 or best < 1.0:
            break
    return best


class FixedStoichiometry:
    """Rate constants, residuals and normal equations for known integers."""

    def __init__(self, decoder: StoichiometryDecoder, size: Array, shape: Array) -> None:
        self.d, self.shape = decoder, shape
        self.s = np.zeros((decoder.n_met, decoder.n_rxn))
        np.add.at(self.s, (decoder.met, decoder.rxn), decoder.sign * size)
        self.basis = decoder.basis(shape)

    def solve(self, rate: Array, weight: Array, centre: Array | None = None) -> tuple[Array, Array]:
        """Least-squares k and the residual ``(n_met, n_frame)``.

        Args:
            rate: Rate functions, ``(n_rxn, n_frame)``.
            weight: Inverse noise variance of the rows, ``(n_met,)``.
            centre: Mean of a Gaussian prior on k with a relative deviation of 1; none without.
        """
        pull = np.zeros(self.d.n_rxn) if centre is None else 1 / centre**2
        k = np.zeros(self.d.n_rxn) if centre is None else centre
        h = ((self.s * weight[:, None]).T @ self.s) * (rate @ rate.T)
        h[np.diag_indices_from(h)] += pull
        scale = np.sqrt(np.maximum(np.diag(h), 1e-300))
        h = h / np.outer(scale, scale)
        h[np.diag_indices_from(h)] += 1e-14
        left, start = self.d.y - self.s @ (k[:, None] * rate), k
        for _ in range(2):  # the second is a refinement: normal equations lose half the digits
            b = ((self.s * weight[:, None]).T @ left * rate).sum(1) + pull * (start - k)
            k = k + np.linalg.solve(h, b / scale) / scale
            left = self.d.y - self.s @ (k[:, None] * rate)
        return k, left

    def normal(self, rate: Array, k: Array, left: Array, weight: Array) -> tuple[Array, Array]:
        """Normal equations in ``theta`` after the rate constants are eliminated."""
        d, n = self.d, self.d.poly.n_theta
        h, g = np.zeros((n, n)), np.zeros(n)
        cross = np.zeros((n, d.n_rxn))
        x = np.empty((n, d.n_frame))
        for i in range(d.n_met):
            rxn = np.flatnonzero(self.s[i])
            if not len(rxn):
                continue
            x[:] = 0
            for j in rxn:
                block, value = self.basis[j]
                x[block] += (self.s[i, j] * k[j]) * value
            h += weight[i] * (x @ x.T)
            g += weight[i] * (x @ left[i])
            cross[:, rxn] += weight[i] * (x @ rate[rxn].T) * self.s[i, rxn]
        kk = ((self.s * weight[:, None]).T @ self.s) * (rate @ rate.T)
        kk[np.diag_indices_from(kk)] *= 1 + 1e-12
        kk[np.diag_indices_from(kk)] += 1e-300
        gk = ((self.s * weight[:, None]).T @ left * rate).sum(1)
        solved = np.linalg.solve(kk, np.column_stack([cross.T, gk]))
        return h - cross @ solved[:, :-1], g - cross @ solved[:, -1]


@dataclass(frozen=True)
class RateFit:
    """Result of :func:`fit_rate_mlp`.

    Attributes:
        log_k: log10 of the rate constants in the scale of the networks, ``(n_rxn,)``.
        relative_residual: rms residual over rms derivative, per metabolite, ``(n_met,)``.
        n_step: Accepted steps.
    """

    log_k: Array
    relative_residual: Array
    n_step: int


def fit_networks(
    decoder: StoichiometryDecoder,
    concentration: Array,
    net: SharedRateNetwork,
    size: Array,
    shape: Array,
    k: Array,
    n_step: int,
    tolerance: float,
    log: Callable[[str], None] | None = None,
    *,
    careful: bool = False,
) -> tuple[Array, Array, int]:
    """Fit the networks in place for fixed integers; see :func:`fit_rate_mlp`."""
    fixed = FixedStoichiometry(decoder, size, shape)
    live = decoder.rms > 1e-9 * decoder.rms.max()
    weight = np.where(live, 1 / decoder.rms**2, 0.0)
    # polynomial law first: it is linear given k
    ones = np.zeros((decoder.n_rxn, decoder.n_frame))
    theta = np.zeros(decoder.poly.n_theta)
    for _ in range(4):
        h, g = fixed.normal(ones, k, decoder.y, weight)
        ridge = 1e-11 * np.diag(h) + 1e-13 * np.diag(h).max()
        theta = np.linalg.solve(h + np.diag(ridge), g)
        rate = decoder.polynomial_rates(theta)[np.arange(decoder.n_rxn), shape]
        k_new, left = fixed.solve(rate, weight, k if careful else None)
        k = np.where(k_new > 0.2 * k, k_new, k)
        relative = np.sqrt((left**2).mean(1)) / decoder.rms
        weight = np.where(live, 1 / (decoder.rms**2 * (relative**2 + np.median(relative) ** 2)), 0)
    # k held: the metric then keeps the scales between the types, which the data alone leave free
    h, _ = fixed.normal(ones, k, decoder.y, weight)
    start = net.theta()
    common = decoder.poly.constant
    used = np.isin(np.arange(len(common)), _used_types(decoder, shape))
    gauge = float(np.median(start[common[used]] / theta[common[used]]))
    theta, k = theta * gauge, k / gauge
    # the metric of exact data is so sharp that steps from afar fail: sharpen it little by little
    for share in SHARPENING if careful else (1.0,):
        fit_to_theta(net, theta, share * h / gauge**2)

    rate = net.rates(concentration, decoder, shape)
    centre = k if careful else None
    k, left = fixed.solve(rate, weight, centre)
    damping, accepted, still = 1e2, 0, 0
    for it in range(n_step):
        relative = np.sqrt((left**2).mean(1)) / decoder.rms
        floor = np.median(relative[live])
        weight = np.where(live, 1 / (decoder.rms**2 * (relative**2 + floor**2)), 0.0)
        value = float((weight * (left**2).mean(1)).sum())
        h, g = fixed.normal(rate, k, left, weight)
        metric, origin = LawMetric(h), net.weights
        step = metric.steps(net.theta_jacobian(), metric.target(g))
        for _ in range(7):
            net.weights = origin + torch.from_numpy(step(damping))
            new_rate = net.rates(concentration, decoder, shape)
            new_k, new_left = fixed.solve(new_rate, weight, centre)
            new_value = float((weight * (new_left**2).mean(1)).sum())
            if new_value < value:
                break
            damping *= 10
        else:
            net.weights = origin
            break
        rate, k, left = new_rate, new_k, new_left
        damping = max(damping / 5, 1e-3)
        accepted += 1
        still = still + 1 if new_value > 0.9 * value else 0
        if log is not None:
            log(f"fit step {it}: median row residual {floor:.1e}, gain {value / new_value:.2f}")
        if floor < tolerance or still >= 3:
            break
    return k, left, accepted


def _used_types(decoder: StoichiometryDecoder, shape: Array) -> list[int]:
    kind = {t: i for i, t in enumerate(decoder.poly.types)}
    return sorted(
        {
            kind[tuple(sorted(decoder.poly.shapes[int(n)][c]))]
            for n, c in zip(decoder.n_sub, shape, strict=True)
        }
    )


def fit_rate_mlp(
    concentration: Array,
    dx_dt: Array,
    met_sub: Array,
    rxn_sub: Array,
    met_all: Array,
    rxn_all: Array,
    *,
    sto_sub: Array,
    sto_all: Array,
    log_k: Array,
    msg_mlp: nn.Module,
    rate_mlp: nn.Module,
    n_met: int,
    n_rxn: int,
    rng: np.random.Generator,
    degree: Sequence[int] = (10, 7, 6),
    max_frames: int = 576,
    n_step: int = 40,
    tolerance: float = 1e-8,
    careful: bool = False,
    log: Callable[[str], None] | None = None,
) -> RateFit:
    r"""Train the shared networks in place with the stoichiometry fixed.

    Minimises the robustly weighted relative residual of $\dot c = S v$,
    $v_j = k_j\,softplus(rate(\sum_i msg([c_i, |s_{ij}|])))$, with the $k_j$ solved in closed form.
    A polynomial law is fitted first and the networks to it, then the networks to the data. The
    networks keep their parameter type; the arithmetic is float64.

    Args:
        concentration: ``(n_frame, n_met)``, mM.
        dx_dt: ``(n_frame, n_met)``, mM min⁻¹.
        met_sub: Metabolite of each substrate edge.
        rxn_sub: Reaction of each substrate edge.
        met_all: Metabolite of each edge of S.
        rxn_all: Reaction of each edge of S.
        sto_sub: Coefficients inside the rate law, integers >= 1, ``(n_sub_edge,)``.
        sto_all: Signed coefficients of S, ``(n_all_edge,)``.
        log_k: First guess of log10 k, ``(n_rxn,)``; its common scale does not matter.
        msg_mlp: ``(*, 2) -> (*, n_message)``, features [c, |s|].
        rate_mlp: ``(*, n_message) -> (*, 1)``.
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        rng: Source of the sampling points.
        degree: Of the polynomial law in products of 1, 2, 3 substrates.
        max_frames: Frames used, evenly spread.
        n_step: Gauss-Newton steps on the data at most.
        tolerance: Median relative residual at which to stop.
        careful: Slower, for starts from which the plain way is lost: the networks approach the
            polynomial law in a metric that is sharpened little by little, and rate constants that
            the data hardly determine stay near their first guess (a Gaussian prior with a relative
            deviation of 1).
        log: Called with one line of text per step.

    Returns:
        The rate constants in the scale of the networks, and the residuals on all frames.

    Raises:
        DataError: arrays that do not fit together.

    Source:
        Golub & Pereyra (1973), variable projection; Levenberg (1944).
    """
    from neuralgraph.systems.metabolism.recovery_checks import checked_problem

    size = np.abs(np.asarray(sto_all)).astype(float)
    inside = np.asarray(sto_sub).astype(int)
    problem = checked_problem(
        concentration,
        dx_dt,
        met_sub,
        rxn_sub,
        met_all,
        rxn_all,
        np.sign(sto_all),
        n_met=n_met,
        n_rxn=n_rxn,
        max_coefficient=int(inside.max(initial=1)),
    )
    if np.shape(sto_sub) != np.shape(met_sub) or inside.min(initial=1) < 1:
        raise DataError(
            f"sto_sub must be integers >= 1 of shape {np.shape(met_sub)}, got shape "
            f"{np.shape(sto_sub)} with least value {inside.min(initial=1)}"
        )
    if np.shape(log_k) != (n_rxn,):
        raise DataError(f"log_k must have shape ({n_rxn},), got {np.shape(log_k)}")
    poly = PolynomialLaw(problem.max_substrates, problem.max_coefficient, degree)
    frames = problem.frames(max_frames)
    decoder = problem.decoder(poly, frames, tie_substrates=False)
    shape = np.zeros(n_rxn, dtype=int)
    for j, edges in enumerate(decoder.sub_edges):
        shape[j] = poly.shapes[len(edges)].index(tuple(int(s) for s in inside[edges]))
    kinds = [p.dtype for m in (msg_mlp, rate_mlp) for p in m.parameters()]
    points = collocation(poly, problem.center, problem.half_width, rng)
    net = SharedRateNetwork(msg_mlp, rate_mlp, points)
    k, _, accepted = fit_networks(
        decoder,
        problem.concentration[frames].T,
        net,
        size,
        shape,
        10.0 ** np.asarray(log_k, dtype=float),
        n_step,
        tolerance,
        log,
        careful=careful,
    )
    # least squares may drive a rate constant to 0 or below: it stays near the range it started in
    scale = np.median(np.log10(np.maximum(k, 1e-300)) - log_k)
    k = np.maximum(k, 0.1 * 10.0 ** (np.min(log_k) + scale))
    rate = net.rates(problem.concentration.T, decoder, shape)
    s = np.zeros((n_met, n_rxn))
    np.add.at(s, (decoder.met, decoder.rxn), decoder.sign * size)
    left = problem.dx_dt.T - s @ (k[:, None] * rate)
    rms = np.sqrt((problem.dx_dt**2).mean(0))
    relative = np.sqrt((left**2).mean(1)) / np.where(rms > 0, rms, 1.0)
    if kinds:
        msg_mlp.to(kinds[0])
        rate_mlp.to(kinds[-1])
    return RateFit(np.log10(k), relative, accepted)

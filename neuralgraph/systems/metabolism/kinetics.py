"""Rate laws and right-hand sides of the simulated networks, vectorised over runs (float64)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError, SolverError
from neuralgraph.systems.metabolism.network import ReactionNetwork

if TYPE_CHECKING:
    from neuralgraph.core.recording import Truth

Array = np.ndarray
DENSE_LIMIT = 60_000
"""Below this many entries a dense product beats a sparse one."""
CHUNK = 32
"""Runs evaluated together in the random rate law: few enough to stay in the cache."""


class RateLaw(Protocol):
    """Reaction velocities as a function of the concentrations."""

    def flux(self, concentration: Array) -> Array:
        """``(n_run, n_met)`` mM -> ``(n_run, n_rxn)`` mM min⁻¹."""
        ...


class MassAction:
    r"""Mass action: $v_j = k_j \prod_{i \in sub(j)} c_i^{o_{ij}}$; without substrates, $v_j = k_j$.

    Args:
        network: The reaction network.
        log_k: log10 of the rate constants, ``(n_rxn,)``.
        order_sub: Kinetic orders on the substrate edges, ``(n_sub_edge,)``, > 0.
    Source:
        Guldberg & Waage (1864).
    """

    def __init__(self, network: ReactionNetwork, log_k: Array, order_sub: Array) -> None:
        self.met = network.met_sub.numpy()
        self.rxn = network.rxn_sub.numpy()
        self.order = np.asarray(order_sub, dtype=np.float64)
        self.all_order_one = bool((self.order == 1).all())
        self.k = 10.0 ** np.asarray(log_k, dtype=np.float64)
        count = np.bincount(self.rxn, minlength=network.n_rxn)
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        self.fed = np.flatnonzero(count)
        self.starts = starts[self.fed]
        self.all_fed = len(self.fed) == network.n_rxn

    def flux(self, concentration: Array) -> Array:
        """Velocities; a negative concentration (rounding of a solver stage) counts as 0."""
        c = np.maximum(concentration, 0.0)
        edge = c.take(self.met, axis=1)
        if not self.all_order_one:
            edge = edge**self.order
        if not len(self.fed):
            return np.broadcast_to(self.k, (c.shape[0], len(self.k))).copy()
        product = np.multiply.reduceat(edge, self.starts, axis=1)
        if self.all_fed:
            return product * self.k
        v = np.empty((c.shape[0], len(self.k)))
        v[:] = self.k
        v[:, self.fed] *= product
        return v

    def flux_slope(self, concentration: Array) -> Array:
        r"""$\partial v_j / \partial c_i$ on the substrate edges, ``(n_run, n_sub_edge)``."""
        c = np.maximum(concentration, 1e-12)
        return self.flux(c)[:, self.rxn] * self.order / c[:, self.met]


class LearnedRate:
    r"""Random-network rate law: $v_j = k_j\,softplus(rate(\sum_{i} msg(c_i, |s_{ij}|)))$.

    ``msg`` and ``rate`` are two-layer tanh networks shared by all reactions. ``msg`` is evaluated
    once for each distinct (metabolite, |s|) pair, its last layer is folded into the first layer
    of ``rate``, and tanh is taken as $2\sigma(2x) - 1$, which is several times faster in float64.

    Args:
        network: The reaction network.
        log_k: log10 of the rate constants, ``(n_rxn,)``.
        weights: ``msg_mlp.{0,2}.{weight,bias}`` and ``rate_mlp.{0,2}.{weight,bias}``, float64,
            as ``nn.Sequential(Linear, Tanh, Linear)`` names them.
    Source:
        The rate law of the stoichiometry recovery study this project follows.
    """

    def __init__(
        self, network: ReactionNetwork, log_k: Array, weights: Mapping[str, Tensor]
    ) -> None:
        from scipy import sparse

        met, rxn = network.met_sub.numpy(), network.rxn_sub.numpy()
        size = network.sto_sub.numpy()
        pair, at = np.unique(np.stack([met.astype(np.float64), size]), axis=1, return_inverse=True)
        self.pair_met = torch.from_numpy(pair[0].astype(np.int64))
        self.n_rxn = network.n_rxn
        self.k = 10.0 ** np.asarray(log_k, dtype=np.float64)
        self.collect = sparse.csr_matrix(
            (np.ones(len(rxn)), (rxn, at.reshape(-1))), shape=(network.n_rxn, pair.shape[1])
        )
        w = {name: value.double() for name, value in weights.items()}
        self.slope = 2 * w["msg_mlp.0.weight"][:, 0]
        pair_size = torch.from_numpy(pair[1].copy())
        self.offset = 2 * (
            torch.outer(pair_size, w["msg_mlp.0.weight"][:, 1]) + w["msg_mlp.0.bias"]
        )
        fold = 2 * w["rate_mlp.0.weight"]
        self.inner = (fold @ (2 * w["msg_mlp.2.weight"])).T.contiguous()
        count = torch.from_numpy(np.bincount(rxn, minlength=network.n_rxn).astype(np.float64))
        constant = w["msg_mlp.2.bias"] - w["msg_mlp.2.weight"].sum(1)
        self.inner_offset = torch.outer(count, fold @ constant) + 2 * w["rate_mlp.0.bias"]
        self.outer = 2 * w["rate_mlp.2.weight"][0]
        self.outer_offset = w["rate_mlp.2.bias"][0] - w["rate_mlp.2.weight"][0].sum()

    def flux(self, concentration: Array) -> Array:
        """Velocities, all >= 0."""
        parts = [
            self._rate(concentration[first : first + CHUNK])
            for first in range(0, concentration.shape[0], CHUNK)
        ]
        return np.concatenate(parts) * self.k

    def _rate(self, concentration: Array) -> Array:
        n_run = concentration.shape[0]
        c = torch.from_numpy(np.ascontiguousarray(concentration.T))[self.pair_met]
        n_pair, n_hidden = self.offset.shape
        hidden = torch.addcmul(self.offset[:, None, :], c[:, :, None], self.slope).sigmoid_()
        folded = (hidden.view(-1, n_hidden) @ self.inner).view(n_pair, n_run * n_hidden)
        total = torch.from_numpy(self.collect @ folded.numpy())
        inner = total.view(self.n_rxn, n_run, n_hidden)
        inner.add_(self.inner_offset[:, None, :]).sigmoid_()
        rate = inner.view(-1, n_hidden) @ self.outer + self.outer_offset
        return torch.nn.functional.softplus(rate).view(self.n_rxn, n_run).numpy().T


def random_weights(generator: torch.Generator, width: int, n_message: int) -> dict[str, Tensor]:
    """Weights of ``msg_mlp`` and ``rate_mlp`` drawn as ``nn.Linear`` initialises them, float64.

    Every weight and bias is uniform in ±1/sqrt(fan in).
    """
    shapes = {
        "msg_mlp.0": (width, 2),
        "msg_mlp.2": (n_message, width),
        "rate_mlp.0": (width, n_message),
        "rate_mlp.2": (1, width),
    }
    weights: dict[str, Tensor] = {}
    for name, (n_out, n_in) in shapes.items():
        bound = n_in**-0.5
        for part, shape in (("weight", (n_out, n_in)), ("bias", (n_out,))):
            draw = torch.rand(shape, generator=generator, dtype=torch.float64)
            weights[f"{name}.{part}"] = bound * (2 * draw - 1)
    return weights


@dataclass
class ReactionSystem:
    r"""The right-hand side $dc/dt = S v(c) - \lambda (c - c_0(t)) + u(t)$.

    Args:
        network: The reaction network.
        law: Its rate law.
        flux_limit_step: Step (min) of the flux limiter, or ``None`` for none. Each reaction is
            slowed by the smallest, over its substrates, of min(1, c / (consumption * step)), so
            that no substrate is used up within one step.
        homeostasis_lambda: ``(n_met,)`` min⁻¹.
        homeostasis_baseline: ``(n_met,)`` mM.
        circadian_amplitude: Relative swing A of the baseline, $c_0 (1 + A \sin(2\pi t/T))$.
        circadian_period_min: Its period T.
        input_mode: ``none``, ``additive`` (mM min⁻¹ on each metabolite),
            ``multiplicative_substrate`` or ``multiplicative_product`` (each rate times the mean
            input of its substrates or products; a reaction that has none is left alone).
        inputs: Time (min) -> ``(n_run, n_met)``, or ``None``.
    """

    network: ReactionNetwork
    law: RateLaw
    flux_limit_step: float | None
    homeostasis_lambda: Array
    homeostasis_baseline: Array
    circadian_amplitude: float = 0.0
    circadian_period_min: float = 1440.0
    input_mode: str = "none"
    inputs: Callable[[float], Array] | None = None

    def __post_init__(self) -> None:
        from scipy import sparse

        net = self.network
        entries = (net.sto_all.numpy(), (net.met_all.numpy(), net.rxn_all.numpy()))
        self.csr = sparse.csr_matrix(entries, shape=(net.n_met, net.n_rxn))
        self.dense = self.csr.toarray().T.copy() if net.n_met * net.n_rxn <= DENSE_LIMIT else None
        self.homeostatic = bool(np.any(self.homeostasis_lambda != 0))
        self.weights = None
        if self.input_mode.startswith("multiplicative"):
            if self.input_mode.endswith("substrate"):
                met, rxn = net.met_sub.numpy(), net.rxn_sub.numpy()
            else:
                product = net.sto_all.numpy() > 0
                met, rxn = net.met_all.numpy()[product], net.rxn_all.numpy()[product]
            count = np.bincount(rxn, minlength=net.n_rxn)
            self.weights = sparse.csr_matrix(
                (1.0 / count[rxn], (rxn, met)), shape=(net.n_rxn, net.n_met)
            )
            self.unfed = count == 0
        sub = (net.sto_sub.numpy(), (net.met_sub.numpy(), net.rxn_sub.numpy()))
        self.consumption = sparse.csr_matrix(sub, shape=(net.n_met, net.n_rxn))
        count = np.bincount(net.rxn_sub.numpy(), minlength=net.n_rxn)
        self.fed = np.flatnonzero(count)
        self.starts = np.concatenate([[0], np.cumsum(count)[:-1]])[self.fed]

    def flux(self, time: float, c: Array) -> Array:
        """Velocities with inputs and limiter, ``(n_run, n_rxn)``."""
        v = self.law.flux(c)
        if self.weights is not None and self.inputs is not None:
            factor = (self.weights @ self.inputs(time).T).T
            factor[:, self.unfed] = 1.0
            v = v * factor
        if self.flux_limit_step is not None:
            used = (self.consumption @ v.T).T * self.flux_limit_step
            scale = np.minimum(1.0, np.maximum(c, 0.0) / np.maximum(used, 1e-300))
            slowest = np.minimum.reduceat(
                scale[:, self.network.met_sub.numpy()], self.starts, axis=1
            )
            v = v.copy()
            v[:, self.fed] *= slowest
        return v

    def limited_fraction(self, time: float, c: Array) -> float:
        """Fraction of (run, reaction) pairs that the limiter slows at this state."""
        if self.flux_limit_step is None:
            return 0.0
        free = ReactionSystem.flux(_unlimited(self), time, c)
        return float(np.mean(self.flux(time, c) < free * (1 - 1e-12)))

    def __call__(self, time: float, c: Array) -> Array:
        """dc/dt at ``time`` (min) and state ``c`` ``(n_run, n_met)``."""
        v = self.flux(time, c)
        dx_dt = v @ self.dense if self.dense is not None else (self.csr @ v.T).T
        if self.homeostatic:
            target = self.homeostasis_baseline
            if self.circadian_amplitude:
                phase = 2 * np.pi * time / self.circadian_period_min
                target = target * (1 + self.circadian_amplitude * np.sin(phase))
            dx_dt = dx_dt - self.homeostasis_lambda * (c - target)
        if self.input_mode == "additive" and self.inputs is not None:
            dx_dt = dx_dt + self.inputs(time)
        return dx_dt


def _unlimited(system: ReactionSystem) -> ReactionSystem:
    from dataclasses import replace

    return replace(system, flux_limit_step=None)


def integrate_frames(
    system: ReactionSystem,
    initial: Array,
    n_frame: int,
    dt: float,
    *,
    integrator: str,
    n_substep: int,
    process_noise: Callable[[], Array] | None,
) -> tuple[Array, Array]:
    """States and exact derivatives at ``n_frame`` equally spaced times.

    Args:
        system: Right-hand side.
        initial: ``(n_run, n_met)`` mM.
        n_frame: Number of frames, the initial state included.
        dt: Frame interval, min.
        integrator: ``euler``, ``rk4`` or ``adams`` (Adams-Bashforth of order 4, one evaluation
            a step, started by RK4; ``n_substep`` equal steps in each frame interval in all three),
            ``adaptive`` (Dormand-Prince 5(4)) or ``stiff`` (BDF with the exact sparse Jacobian,
            mass action only); the last two are SciPy's, with all runs in one system.
        n_substep: Steps for each frame interval of ``euler``, ``rk4`` and ``adams``.
        process_noise: Draws ``(n_run, n_met)`` to add after each frame, or ``None``.
    Returns:
        ``(n_run, n_frame, n_met)`` states and derivatives; the derivative is the right-hand side
        at the stored state, whatever the integrator.
    Raises:
        SolverError: a state that is no longer finite, or a step that underflows.
    """
    n_run, n_met = initial.shape
    state = np.empty((n_run, n_frame, n_met))
    if integrator in ("euler", "rk4", "adams"):
        with np.errstate(over="ignore", invalid="ignore"):
            dx_dt = _fixed_steps(system, state, initial, dt, integrator, n_substep, process_noise)
        return state, dx_dt

    from scipy.integrate import solve_ivp

    time = np.arange(n_frame) * dt

    def flat(t: float, y: Array) -> Array:
        return system(t, y.reshape(n_run, n_met)).reshape(-1)

    options: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-9}
    if integrator == "stiff":
        options["jac"] = _block_jacobian(system, n_run)
    with np.errstate(over="ignore", invalid="ignore"):
        solution = solve_ivp(
            flat,
            (0.0, float(time[-1])),
            initial.reshape(-1).astype(np.float64),
            method="BDF" if integrator == "stiff" else "RK45",
            t_eval=time,
            **options,
        )
    if not solution.success:
        reached = float(solution.t[-1]) if len(solution.t) else 0.0
        last = solution.y[:, -1].reshape(n_run, n_met) if solution.y.size else initial
        slope = np.abs(system(reached, last)) / (np.abs(last) + 1e-9)
        worst = int(np.unravel_index(np.argmax(np.nan_to_num(slope)), slope.shape)[1])
        raise SolverError(
            f"the {integrator} solver stopped after t = {reached:g} min ({solution.message}); "
            f"fastest metabolite there: {system.network.metabolite_names[worst]}, fastest "
            f"reaction: {_fastest(system, reached, last)}. Use simulator.integrator=stiff, a "
            "shorter horizon, or a smaller log_k_max"
        )
    state[:] = solution.y.T.reshape(n_frame, n_run, n_met).transpose(1, 0, 2)
    dx_dt = np.stack([system(float(t), state[:, i]) for i, t in enumerate(time)], axis=1)
    if not np.isfinite(dx_dt).all():
        raise _not_finite(system, float(time[-1]), dx_dt.sum(1), "shorten the horizon")
    return state, dx_dt


def _fixed_steps(
    system: ReactionSystem,
    state: Array,
    initial: Array,
    dt: float,
    integrator: str,
    n_substep: int,
    process_noise: Callable[[], Array] | None,
) -> Array:
    """Fill ``state`` and return the derivatives, by steps of equal size.

    Source:
        Hairer, Norsett & Wanner (1993), Solving Ordinary Differential Equations I, II.1 and III.1.
    """
    n_frame = state.shape[1]
    dx_dt = np.empty_like(state)
    h = dt / n_substep
    c = initial.astype(np.float64)
    past: list[Array] = []
    for frame in range(n_frame):
        time = frame * dt
        state[:, frame] = c
        slope = system(time, c)
        dx_dt[:, frame] = slope
        if not np.isfinite(slope).all():
            raise _not_finite(
                system,
                time,
                slope,
                "raise simulator.n_substep, use integrator=adaptive (mass action: stiff)",
            )
        if frame == n_frame - 1:
            break
        for step in range(n_substep):
            t = time + step * h
            k1 = slope if step == 0 else system(t, c)
            if integrator == "euler":
                c = c + h * k1
                continue
            if integrator == "adams":
                past = [k1, *past[:3]]
                if len(past) == 4:
                    c = c + h / 24 * (55 * k1 - 59 * past[1] + 37 * past[2] - 9 * past[3])
                    continue
            k2 = system(t + h / 2, c + h / 2 * k1)
            k3 = system(t + h / 2, c + h / 2 * k2)
            k4 = system(t + h, c + h * k3)
            c = c + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if process_noise is not None:
            c = np.maximum(c + process_noise(), 0.0)
            past = []  # a kick breaks the history: start again
    return dx_dt


def _fastest(system: ReactionSystem, time: float, c: Array) -> str:
    v = np.nan_to_num(np.abs(system.flux(time, c)).max(0))
    worst = int(np.argmax(v))
    k = getattr(system.law, "k", None)
    value = "" if k is None else f" (log_k = {np.log10(k[worst]):.2f})"
    return system.network.reaction_names[worst] + value


def _not_finite(system: ReactionSystem, time: float, slope: Array, remedy: str) -> SolverError:
    run, met = np.argwhere(~np.isfinite(slope))[0]
    return SolverError(
        f"the concentration of {system.network.metabolite_names[met]} in run {run} is no longer "
        f"finite at t = {time:g} min: {remedy}, or narrow log_k_max and the initial range"
    )


def _block_jacobian(system: ReactionSystem, n_run: int) -> Callable[[float, Array], Any]:
    from scipy import sparse

    law = system.law
    plain = system.flux_limit_step is None and not system.input_mode.startswith("multiplicative")
    if not isinstance(law, MassAction) or not plain:
        raise ConfigError(
            "simulator.integrator=stiff knows the Jacobian of plain mass action only (no flux "
            "limit, no multiplicative input): use adaptive or rk4"
        )
    n_met, n_rxn = system.network.n_met, system.network.n_rxn
    decay = sparse.diags(-np.asarray(system.homeostasis_lambda))

    def jacobian(time: float, y: Array) -> Any:
        slopes = law.flux_slope(y.reshape(n_run, n_met))
        blocks = [
            system.csr @ sparse.csr_matrix((slope, (law.rxn, law.met)), shape=(n_rxn, n_met))
            + decay
            for slope in slopes
        ]
        return sparse.block_diag(blocks, format="csc")

    return jacobian


def activity_rank(state: Tensor, fraction: float = 0.99) -> int:
    r"""Number of singular values that carry ``fraction`` of the variance of all frames.

    The frames of all runs form one uncentred matrix ``(n_frame, n_var)``; the variance is
    $\sum \sigma^2$.

    Args:
        state: ``(..., n_var)``.
        fraction: Share of the variance, in (0, 1].

    >>> activity_rank(torch.outer(torch.arange(5.0), torch.ones(3)))
    1
    """
    flat = state.reshape(-1, state.shape[-1]).double()
    # the smaller of the two Gram matrices has the same non-zero spectrum
    gram = flat @ flat.T if flat.shape[0] < flat.shape[1] else flat.T @ flat
    power = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    total = power.cumsum(0) / power.sum()
    return int((total < fraction).sum()) + 1


def true_flux(
    truth: Truth, network: ReactionNetwork, concentration: Tensor, *, is_limited: bool = False
) -> Tensor:
    """Velocities of the true rate law at given concentrations, without inputs.

    Args:
        truth: Truth of a simulator with rate law ``learned_rate`` or ``mass_action``.
        network: Its network (:func:`network_of_truth`).
        concentration: ``(n_frame, n_met)`` mM.
        is_limited: Slow the reactions as the simulator did (``truth.facts["flux_limit"]``).
    Returns:
        ``(n_frame, n_rxn)`` float64, mM min⁻¹.
    Raises:
        DataError: the rate law is known to another program only (SBML); the fluxes at the
            recorded frames are then in ``truth.parameters["flux"]``.
    """
    law = law_of_truth(truth, network)
    c = concentration.double().numpy()
    if not (is_limited and truth.facts.get("flux_limit")):
        return torch.from_numpy(np.ascontiguousarray(law.flux(c)))
    none = np.zeros(network.n_met)
    system = ReactionSystem(network, law, float(truth.facts["dt"]), none, none)
    return torch.from_numpy(np.ascontiguousarray(system.flux(0.0, c)))


def law_of_truth(truth: Truth, network: ReactionNetwork) -> RateLaw:
    """The true rate law; see :func:`true_flux`."""
    family = truth.facts["rate_law"]
    log_k = truth.parameters["log_k"].numpy() if "log_k" in truth.parameters else None
    if family == "mass_action" and log_k is not None:
        return MassAction(network, log_k, truth.parameters["order_sub"].numpy())
    if family == "learned_rate" and log_k is not None:
        return LearnedRate(network, log_k, truth.parameters)
    raise DataError(
        f"the rate law '{family}' cannot be evaluated here; the true fluxes at the recorded "
        "frames are in truth.parameters['flux']"
    )


def network_of_truth(truth: Truth) -> ReactionNetwork:
    """The true network, from the edges stored in a metabolism Truth."""
    p, facts = truth.parameters, truth.facts
    return ReactionNetwork(
        n_met=len(facts["metabolite_names"]),
        n_rxn=len(facts["reaction_names"]),
        met_sub=p["met_sub"],
        rxn_sub=p["rxn_sub"],
        sto_sub=p["sto_sub"],
        met_all=p["met_all"],
        rxn_all=p["rxn_all"],
        sto_all=p["sto_all"],
        metabolite_names=tuple(facts["metabolite_names"]),
        reaction_names=tuple(facts["reaction_names"]),
        warnings=tuple(facts["warnings"]),
    )

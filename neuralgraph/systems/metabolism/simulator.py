r"""Simulated metabolic networks: random rate law, autocatalytic cycles, and their common part.

Every simulator integrates $dc/dt = S v(c) - \lambda (c - c_0(t)) + u(t)$ for all runs at once,
stores the exact right-hand side at each stored state, and derives every random number from
``seed`` through named streams: the network, the rate constants, the rate law, the initial states
and the noise never share one, so that a change in one leaves the others alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, SolverError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import torch_generator
from neuralgraph.numerics.differentiate import differentiate
from neuralgraph.systems.metabolism.conditions import (
    Circadian,
    Derivative,
    ExternalInput,
    Homeostasis,
    Noise,
    above,
    at_least,
    one_of,
    whole,
)
from neuralgraph.systems.metabolism.kinetics import (
    LearnedRate,
    MassAction,
    RateLaw,
    ReactionSystem,
    activity_rank,
    integrate_frames,
    random_weights,
)
from neuralgraph.systems.metabolism.network import (
    ReactionNetwork,
    autocatalytic_cycles,
    edge_signs,
    integer_columns,
    is_mass_balanced,
    random_network,
)
from neuralgraph.systems.metabolism.prior import RevealsPrior

INTEGRATORS = ("rk4", "adams", "euler", "adaptive", "stiff")
DEPLETION = ("cut", "error")
UNITS = {"time": "min", "state": "mM", "dx_dt": "mM/min", "flux": "mM/min"}


@dataclass
class Built:
    """A network, its rate law, the hidden parameters, and facts for the truth."""

    network: ReactionNetwork
    law: RateLaw
    parameters: dict[str, Tensor]
    facts: dict[str, Any]


class NetworkSimulator(RevealsPrior, ABC):
    """What the simulators with drawn kinetics share; see the module's text.

    Args:
        n_run: Initial conditions to learn from.
        n_test_run: Further initial conditions, held out (``Recording.is_test``).
        n_frame: Frames of each run, the initial state included.
        dt_min: Frame interval, min.
        integrator: ``rk4``, ``adams``, ``euler``, ``adaptive`` or ``stiff``; see
            :func:`~neuralgraph.systems.metabolism.kinetics.integrate_frames`.
        n_substep: Integration steps in each frame interval (``rk4``, ``adams``, ``euler``).
        initial_low_mM: Lower end of the uniform initial concentrations.
        initial_high_mM: Upper end.
        log_k_min: Lower end of the uniform log10 rate constants.
        log_k_max: Upper end.
        flux_limit: Whether reactions slow down before they use up a substrate in one frame.
        depletion: What to do when a metabolite would reach 0: ``cut`` keeps the frames before
            (and warns), ``error`` stops.
        homeostasis: Return to a baseline.
        circadian: Swing of the baseline.
        external_input: Known inputs.
        noise: Process and measurement noise.
        derivative: Estimation of derivatives, used with measurement noise only.
    """

    def __init__(
        self,
        *,
        n_run: int,
        n_test_run: int,
        n_frame: int,
        dt_min: float,
        integrator: str,
        n_substep: int,
        initial_low_mM: float,
        initial_high_mM: float,
        log_k_min: float,
        log_k_max: float,
        flux_limit: bool,
        depletion: str,
        homeostasis: Homeostasis,
        circadian: Circadian,
        external_input: ExternalInput,
        noise: Noise,
        derivative: Derivative,
    ) -> None:
        whole("n_run", n_run, 1)
        whole("n_test_run", n_test_run, 0)
        whole("n_frame", n_frame, 2)
        whole("n_substep", n_substep, 1)
        above("dt_min", dt_min, 0)
        at_least("initial_low_mM", initial_low_mM, 0)
        one_of("integrator", integrator, INTEGRATORS)
        one_of("depletion", depletion, DEPLETION)
        if initial_high_mM < initial_low_mM:
            raise ConfigError(
                "simulator.initial_high_mM must not be below initial_low_mM, got "
                f"{initial_high_mM} < {initial_low_mM}"
            )
        if log_k_max < log_k_min:
            raise ConfigError(
                f"simulator.log_k_max must not be below log_k_min, got {log_k_max} < {log_k_min}"
            )
        if noise.process_mM > 0 and integrator not in ("rk4", "adams", "euler"):
            raise ConfigError(
                "simulator.noise.process_mM > 0 needs simulator.integrator=rk4, adams or euler, "
                f"got {integrator}"
            )
        if noise.is_measured and n_frame < derivative.degree + 2:
            raise ConfigError(
                "measurement noise leaves derivatives to be estimated, which takes at least "
                f"{derivative.degree + 2} frames of each run: raise simulator.n_frame ({n_frame})"
            )
        self.n_run, self.n_test_run, self.n_frame = int(n_run), int(n_test_run), int(n_frame)
        self.dt_min, self.integrator, self.n_substep = float(dt_min), integrator, int(n_substep)
        self.initial_low_mM, self.initial_high_mM = float(initial_low_mM), float(initial_high_mM)
        self.log_k_min, self.log_k_max = float(log_k_min), float(log_k_max)
        self.flux_limit, self.depletion = bool(flux_limit), depletion
        self.homeostasis, self.circadian = homeostasis, circadian
        self.external_input, self.noise, self.derivative = external_input, noise, derivative

    # -- what each simulator defines ----------------------------------------------------------

    @abstractmethod
    def _build(self, seed: int) -> Built:
        """The network, its rate law, and the hidden parameters."""

    # -- shared draws -------------------------------------------------------------------------

    def _draw_log_k(self, seed: int, n_rxn: int) -> Tensor:
        draw = torch.rand(
            n_rxn, generator=torch_generator(seed, "rate_constants"), dtype=torch.float64
        )
        return self.log_k_min + (self.log_k_max - self.log_k_min) * draw

    def _initial(self, seed: int, n_met: int) -> np.ndarray:
        """``(n_run + n_test_run, n_met)``; the held-out runs have a stream of their own."""
        parts = [
            torch.rand(n, n_met, generator=torch_generator(seed, name), dtype=torch.float64)
            for n, name in ((self.n_run, "initial_state"), (self.n_test_run, "test_state"))
        ]
        span = self.initial_high_mM - self.initial_low_mM
        return (self.initial_low_mM + span * torch.cat(parts)).numpy()

    def _inputs(self, seed: int, n_met: int) -> Callable[[float], np.ndarray] | None:
        setting = self.external_input
        if setting.mode == "none":
            return None
        if setting.n_met > n_met:
            raise ConfigError(
                f"simulator.external_input.n_met must be at most n_met ({n_met}), got "
                f"{setting.n_met}"
            )
        generator = torch_generator(seed, "external_input")
        chosen = torch.randperm(n_met, generator=generator)[: setting.n_met].numpy()
        n_run = self.n_run + self.n_test_run
        phase = torch.rand(n_run, setting.n_met, generator=generator, dtype=torch.float64).numpy()
        additive = setting.mode == "additive"

        def signal(time: float) -> np.ndarray:
            swing = np.sin(2 * np.pi * (time / setting.period_min + phase))
            u = np.zeros((n_run, n_met)) if additive else np.ones((n_run, n_met))
            u[:, chosen] += setting.amplitude * ((1 + swing) / 2 if additive else swing)
            return u

        return signal

    # -- the experiment -----------------------------------------------------------------------

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Run the experiment; same seed, same bytes.

        Raises:
            SolverError: a trajectory that diverges, or (``depletion=error``) runs dry.
        """
        built = self._build(seed)
        network = built.network
        types = self.homeostasis.types(network.n_met)
        strength = torch.tensor(list(self.homeostasis.lambda_per_min), dtype=torch.float64)[types]
        baseline = torch.tensor(list(self.homeostasis.baseline_mM), dtype=torch.float64)[types]
        system = ReactionSystem(
            network,
            built.law,
            flux_limit_step=self.dt_min if self.flux_limit else None,
            homeostasis_lambda=strength.numpy(),
            homeostasis_baseline=baseline.numpy(),
            circadian_amplitude=self.circadian.amplitude,
            circadian_period_min=self.circadian.period_min,
            input_mode=self.external_input.mode,
            inputs=self._inputs(seed, network.n_met),
        )
        initial = self._initial(seed, network.n_met)
        process = torch_generator(seed, "process_noise")

        def kick() -> np.ndarray:
            draw = torch.randn(initial.shape, generator=process, dtype=torch.float64)
            return self.noise.process_mM * draw.numpy()

        state, dx_dt = integrate_frames(
            system,
            initial,
            self.n_frame,
            self.dt_min,
            integrator=self.integrator,
            n_substep=self.n_substep,
            process_noise=kick if self.noise.process_mM > 0 else None,
        )
        warnings = list(network.warnings)
        state, dx_dt = self._without_depletion(state, dx_dt, built, warnings)
        n_run, n_frame = state.shape[:2]
        time = torch.arange(n_frame, dtype=torch.float64) * self.dt_min

        inputs: dict[str, Tensor] = {}
        if system.inputs is not None:
            signal = [system.inputs(float(t)) for t in time]
            inputs["external_input"] = torch.from_numpy(np.stack(signal, axis=1))

        parameters = {
            "met_sub": network.met_sub,
            "rxn_sub": network.rxn_sub,
            "sto_sub": network.sto_sub,
            "met_all": network.met_all,
            "rxn_all": network.rxn_all,
            "sto_all": network.sto_all,
            "sign_all": edge_signs(network),
            "is_integer_column": integer_columns(network),
            **built.parameters,
        }
        if system.homeostatic:
            parameters["metabolite_type"] = types
            parameters["homeostasis_lambda"] = strength
            parameters["homeostasis_baseline"] = baseline
        clean = torch.from_numpy(state)
        measured, derivative, source = clean, torch.from_numpy(dx_dt), "exact"
        if self.noise.is_measured:
            parameters["clean_state"], parameters["clean_dx_dt"] = clean, derivative
            measured = self._measure(seed, clean)
            _, derivative = differentiate(
                time,
                measured,
                method=self.derivative.method,
                window=self.derivative.window,
                degree=self.derivative.degree,
            )
            source = "estimated"
        elif self.noise.derivative_relative > 0:
            parameters["clean_dx_dt"] = derivative
            derivative = self._measure_derivative(seed, derivative)
            source = "measured"

        balanced = is_mass_balanced(network)
        provenance = {
            "simulator": type(self).__name__,
            "seed": int(seed),
            "n_met": network.n_met,
            "n_rxn": network.n_rxn,
            "reaction_names": list(network.reaction_names),
            "design": (
                f"{self.n_run} initial conditions uniform in [{self.initial_low_mM:g}, "
                f"{self.initial_high_mM:g}] mM, {n_frame} frames each at dt {self.dt_min:g} min "
                f"({self.n_run * n_frame} frames), {self.n_test_run} held-out initial conditions "
                "over the same horizon"
            ),
            "n_initial_condition": self.n_run,
            "n_test_initial_condition": self.n_test_run,
            "initial_range_mM": [self.initial_low_mM, self.initial_high_mM],
            "n_frame": n_frame,
            "dt_min": self.dt_min,
            "integrator": self.integrator,
            "lowest_concentration_mM": float(measured.min()),
            "depletion_margin": depletion_margin(
                measured, time, network, "min", is_noisy=self.noise.is_measured
            ),
            "dx_dt_source": source,
            "activity_rank": activity_rank(measured[: self.n_run]),
            "mass_balanced": balanced,
            "flux_limit": self.flux_limit,
            "external_input_mode": self.external_input.mode,
            "n_non_integer_column": int((~parameters["is_integer_column"]).sum()),
            "warnings": warnings,
        }
        if self.flux_limit:
            late = float(time[n_frame // 2])
            provenance["flux_limited_fraction"] = system.limited_fraction(
                late, state[:, n_frame // 2]
            )
        facts = {
            "flux_limit": self.flux_limit,
            "dt": self.dt_min,
            "metabolite_names": list(network.metabolite_names),
            "reaction_names": list(network.reaction_names),
            "mass_balanced": balanced,
            "external_input_mode": self.external_input.mode,
            "circadian_amplitude": self.circadian.amplitude,
            "circadian_period_min": self.circadian.period_min,
            "warnings": warnings,
            "log_k_range": [self.log_k_min, self.log_k_max],
            **built.facts,
        }
        for name in ("model", "split"):
            if name in built.facts:
                provenance[name] = built.facts[name]
        is_test = torch.arange(n_run) >= self.n_run if self.n_test_run else None
        recording = Recording(
            time=time.expand(n_run, n_frame).clone(),
            state=measured,
            names=network.metabolite_names,
            dx_dt=derivative,
            dx_dt_source=source,
            inputs=inputs,
            units=UNITS,
            provenance=provenance,
            is_test=is_test,
        )
        return recording, Truth(parameters, facts)

    def _without_depletion(
        self,
        state: np.ndarray,
        dx_dt: np.ndarray,
        built: Built,
        warnings: list[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The frames before any metabolite runs out."""
        network = built.network
        may_touch = self.flux_limit or self.noise.process_mM > 0 or self.initial_low_mM == 0
        dry = state < -1e-9 if may_touch else state <= 0
        state = np.maximum(state, 0.0) if may_touch else state
        if not dry.any():
            return state, dx_dt
        frame = int(np.argmax(dry.any(axis=(0, 2))))
        run, met = (int(i) for i in np.argwhere(dry[:, frame])[0])
        said = (
            f"{network.metabolite_names[met]} reaches 0 in run {run} at frame {frame} "
            f"(t = {frame * self.dt_min:g} min)"
        )
        if isinstance(built.law, MassAction):
            raise SolverError(
                f"{said}, which mass action never does: the integration steps are too large. Raise "
                "simulator.n_substep, use simulator.integrator=stiff, or lower log_k_max"
            )
        remedy = (
            "lower simulator.dt_min, n_frame or log_k_max, raise initial_low_mM, or set "
            "simulator.flux_limit=true"
        )
        if self.depletion == "error" or frame < 2:
            raise SolverError(f"{said}, before the {self.n_frame} frames asked for: {remedy}")
        warnings.append(
            f"{said}: {frame} of {self.n_frame} frames are kept, for every run; to keep all, "
            + remedy
        )
        return state[:, :frame], dx_dt[:, :frame]

    def _measure(self, seed: int, clean: Tensor) -> Tensor:
        generator = torch_generator(seed, "measurement_noise")
        relative, absolute = (
            torch.randn(clean.shape, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        noisy = clean * (1 + self.noise.measurement_relative * relative)
        return (noisy + self.noise.measurement_mM * absolute).clamp(min=0)

    def _measure_derivative(self, seed: int, clean: Tensor) -> Tensor:
        generator = torch_generator(seed, "derivative_noise")
        draw = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        size = clean.square().mean((0, 1)).sqrt()
        return clean + self.noise.derivative_relative * size * draw


class MetabolismRateNetwork(NetworkSimulator):
    r"""Random network with a rate law drawn as a random neural network.

    $v_j = k_j\,softplus(rate\_mlp(\sum_{i \in sub(j)} msg\_mlp(c_i, |s_{ij}|)))$ with k
    log-uniform, msg_mlp and rate_mlp two-layer tanh networks at their default initialisation.

    Args:
        n_met: Metabolites.
        n_rxn: Reactions.
        n_substrate_max: Largest number of substrates of a reaction.
        n_product_max: Largest number of products.
        coefficient_max: Largest stoichiometric coefficient.
        mass_balanced: Whether every column of S sums to 0.
        hidden_dim: Width of both networks.
        message_dim: Length of a message.
        **design: Everything :class:`NetworkSimulator` takes.
    """

    def __init__(
        self,
        *,
        n_met: int,
        n_rxn: int,
        n_substrate_max: int,
        n_product_max: int,
        coefficient_max: int,
        mass_balanced: bool,
        hidden_dim: int,
        message_dim: int,
        n_run: int,
        n_test_run: int,
        n_frame: int,
        dt_min: float,
        integrator: str,
        n_substep: int,
        initial_low_mM: float,
        initial_high_mM: float,
        log_k_min: float,
        log_k_max: float,
        flux_limit: bool,
        depletion: str,
        homeostasis: Homeostasis,
        circadian: Circadian,
        external_input: ExternalInput,
        noise: Noise,
        derivative: Derivative,
    ) -> None:
        super().__init__(
            n_run=n_run,
            n_test_run=n_test_run,
            n_frame=n_frame,
            dt_min=dt_min,
            integrator=integrator,
            n_substep=n_substep,
            initial_low_mM=initial_low_mM,
            initial_high_mM=initial_high_mM,
            log_k_min=log_k_min,
            log_k_max=log_k_max,
            flux_limit=flux_limit,
            depletion=depletion,
            homeostasis=homeostasis,
            circadian=circadian,
            external_input=external_input,
            noise=noise,
            derivative=derivative,
        )
        whole("hidden_dim", hidden_dim, 1)
        whole("message_dim", message_dim, 1)
        _no_stiff(integrator)
        self.n_met, self.n_rxn = n_met, n_rxn
        self.n_substrate_max, self.n_product_max = n_substrate_max, n_product_max
        self.coefficient_max, self.mass_balanced = coefficient_max, mass_balanced
        self.hidden_dim, self.message_dim = int(hidden_dim), int(message_dim)

    def _build(self, seed: int) -> Built:
        network = random_network(
            self.n_met,
            self.n_rxn,
            n_substrate_max=self.n_substrate_max,
            n_product_max=self.n_product_max,
            coefficient_max=self.coefficient_max,
            mass_balanced=self.mass_balanced,
            generator=torch_generator(seed, "network"),
        )
        log_k = self._draw_log_k(seed, network.n_rxn)
        weights = random_weights(
            torch_generator(seed, "rate_law"), self.hidden_dim, self.message_dim
        )
        law = LearnedRate(network, log_k.numpy(), weights)
        return Built(network, law, {"log_k": log_k, **weights}, {"rate_law": "learned_rate"})


class MetabolismOscillatory(NetworkSimulator):
    r"""Autocatalytic cycles under mass action, with homeostasis by metabolite type.

    $m_i + m_{i+1} \to 2 m_{i+1}$ at rate $k_j c_{food} c_{catalyst}$: sustained oscillations of
    high rank.

    Args:
        n_met: Metabolites.
        n_rxn: Reactions.
        cycle_length: Metabolites of a cycle.
        avoid_shared_pairs: Whether no two reactions share their substrate pair and none is
            empty, so that every rate constant can be known.
        **design: Everything :class:`NetworkSimulator` takes.
    """

    def __init__(
        self,
        *,
        n_met: int,
        n_rxn: int,
        cycle_length: int,
        avoid_shared_pairs: bool,
        n_run: int,
        n_test_run: int,
        n_frame: int,
        dt_min: float,
        integrator: str,
        n_substep: int,
        initial_low_mM: float,
        initial_high_mM: float,
        log_k_min: float,
        log_k_max: float,
        flux_limit: bool,
        depletion: str,
        homeostasis: Homeostasis,
        circadian: Circadian,
        external_input: ExternalInput,
        noise: Noise,
        derivative: Derivative,
    ) -> None:
        super().__init__(
            n_run=n_run,
            n_test_run=n_test_run,
            n_frame=n_frame,
            dt_min=dt_min,
            integrator=integrator,
            n_substep=n_substep,
            initial_low_mM=initial_low_mM,
            initial_high_mM=initial_high_mM,
            log_k_min=log_k_min,
            log_k_max=log_k_max,
            flux_limit=flux_limit,
            depletion=depletion,
            homeostasis=homeostasis,
            circadian=circadian,
            external_input=external_input,
            noise=noise,
            derivative=derivative,
        )
        self.n_met, self.n_rxn = n_met, n_rxn
        self.cycle_length, self.avoid_shared_pairs = cycle_length, avoid_shared_pairs

    def _build(self, seed: int) -> Built:
        network = autocatalytic_cycles(
            self.n_met,
            self.n_rxn,
            cycle_length=self.cycle_length,
            avoid_shared_pairs=self.avoid_shared_pairs,
            generator=torch_generator(seed, "network"),
        )
        log_k = self._draw_log_k(seed, network.n_rxn)
        order = network.sto_sub.clone()
        law = MassAction(network, log_k.numpy(), order.numpy())
        facts = {"rate_law": "mass_action", "order_rule": "coefficient"}
        return Built(network, law, {"log_k": log_k, "order_sub": order}, facts)


def depletion_margin(
    state: Tensor, time: Tensor, network: ReactionNetwork, unit: str, *, is_noisy: bool
) -> str:
    """How far the recorded concentrations stay from 0, in words.

    Args:
        state: As recorded, with its noise, ``(n_run, n_time, n_met)`` mM.
        time: ``(n_time,)``.
        network: For the names.
        unit: Of the time.
        is_noisy: Whether the state carries measurement noise.
    """
    at = int(state.argmin())
    run, frame, met = (int(i) for i in np.unravel_index(at, state.shape))
    where = f"({network.metabolite_names[met]}, run {run}, t = {float(time[frame]):g} {unit})"
    lowest = f"{float(state.min()):.4g} mM {where}"
    if is_noisy:
        return f"the lowest measured concentration is {lowest}, noise included"
    if float(state.min()) <= 0:
        return f"none: the lowest concentration is {lowest}"
    return f"ended before any metabolite reaches 0: the lowest concentration is {lowest}"


def _no_stiff(integrator: str) -> None:
    if integrator == "stiff":
        raise ConfigError(
            "simulator.integrator=stiff needs the Jacobian of a mass-action law; the random rate "
            "law has none: use rk4 or adaptive"
        )


__all__ = ["MetabolismOscillatory", "MetabolismRateNetwork", "NetworkSimulator"]

"""Conditions of a simulated experiment: noise, homeostasis, inputs, estimated derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.numerics.differentiate import METHODS

INPUT_MODES = ("none", "additive", "multiplicative_substrate", "multiplicative_product")


@dataclass(frozen=True)
class Noise:
    """Noise of the process and of the measurement.

    Args:
        process_mM: Standard deviation of the normal draw added to the state after each frame
            (then clipped at 0); the derivative stays the right-hand side at the stored state.
        measurement_mM: Standard deviation of additive measurement noise (clipped at 0).
        measurement_relative: Standard deviation of noise proportional to the concentration.
        derivative_relative: Standard deviation of the noise on dx/dt, in units of the root mean
            square of each metabolite's derivative over all frames; the state stays exact. Not with
            measurement noise, where derivatives are estimated.
    """

    process_mM: float
    measurement_mM: float
    measurement_relative: float
    derivative_relative: float

    def __post_init__(self) -> None:
        for name in (
            "process_mM",
            "measurement_mM",
            "measurement_relative",
            "derivative_relative",
        ):
            at_least(f"noise.{name}", getattr(self, name), 0)
        if self.is_measured and self.derivative_relative > 0:
            raise ConfigError(
                "simulator.noise.derivative_relative acts on exact derivatives, and with "
                "measurement noise they are estimated from the state: set one of the two to 0"
            )

    @property
    def is_measured(self) -> bool:
        """Whether the recorded state differs from the true one."""
        return self.measurement_mM > 0 or self.measurement_relative > 0


@dataclass(frozen=True)
class Homeostasis:
    """First-order return to a baseline, by metabolite type.

    The metabolites form contiguous blocks of equal size, one for each type.

    Args:
        lambda_per_min: Rate of return of each type; one entry 0 switches homeostasis off.
        baseline_mM: Baseline of each type.
    """

    lambda_per_min: Sequence[float]
    baseline_mM: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.lambda_per_min) != len(self.baseline_mM) or not len(self.baseline_mM):
            raise ConfigError(
                "simulator.homeostasis.lambda_per_min and .baseline_mM need one entry for each "
                f"metabolite type, got {len(self.lambda_per_min)} and {len(self.baseline_mM)}"
            )
        for name in ("lambda_per_min", "baseline_mM"):
            for value in getattr(self, name):
                at_least(f"homeostasis.{name}", value, 0)

    def types(self, n_met: int) -> Tensor:
        """Type of each metabolite, ``(n_met,)`` long."""
        n_type = len(self.baseline_mM)
        return (torch.arange(n_met) * n_type) // n_met


@dataclass(frozen=True)
class Circadian:
    r"""Daily swing of the homeostatic baseline, $c_0 (1 + A \sin(2\pi t/T))$.

    Args:
        amplitude: A, relative, in [0, 1].
        period_min: T.
    """

    amplitude: float
    period_min: float

    def __post_init__(self) -> None:
        if not 0 <= self.amplitude <= 1:
            raise ConfigError(
                f"simulator.circadian.amplitude must lie in [0, 1], got {self.amplitude}"
            )
        above("circadian.period_min", self.period_min, 0)


@dataclass(frozen=True)
class ExternalInput:
    """Known sinusoidal inputs, with a random phase for each run and metabolite.

    Args:
        mode: ``none``; ``additive``: amplitude * (1 + sin) / 2 in mM/min flows into the chosen
            metabolites; ``multiplicative_substrate`` / ``multiplicative_product``: each rate is
            multiplied by the mean of 1 + amplitude * sin over its substrates / products.
        n_met: How many metabolites (drawn at random) receive an input.
        amplitude: See ``mode``; below 1 for the multiplicative modes.
        period_min: Period.
    """

    mode: str
    n_met: int
    amplitude: float
    period_min: float

    def __post_init__(self) -> None:
        one_of("external_input.mode", self.mode, INPUT_MODES)
        at_least("external_input.n_met", self.n_met, 0)
        at_least("external_input.amplitude", self.amplitude, 0)
        above("external_input.period_min", self.period_min, 0)
        if self.mode.startswith("multiplicative") and self.amplitude >= 1:
            raise ConfigError(
                "simulator.external_input.amplitude must stay below 1 in a multiplicative mode "
                f"(a rate must not turn negative), got {self.amplitude}"
            )


@dataclass(frozen=True)
class Derivative:
    """How derivatives are estimated where they are not exact.

    Args:
        method: One of ``local_polynomial``, ``smoothing_spline``, ``finite_difference``.
        window: Frames of a local polynomial, odd.
        degree: Its degree.
    """

    method: str
    window: int
    degree: int

    def __post_init__(self) -> None:
        one_of("derivative.method", self.method, METHODS)
        at_least("derivative.degree", self.degree, 1)
        if self.window % 2 != 1 or self.window <= self.degree:
            raise ConfigError(
                "simulator.derivative.window must be odd and larger than degree "
                f"({self.degree}), got {self.window}"
            )


def at_least(name: str, value: float, low: float) -> None:
    """Refuse a key of the simulator below ``low``, or no number at all."""
    if isinstance(value, (bool, str)) or not math.isfinite(value) or value < low:
        raise ConfigError(f"simulator.{name} must be a number >= {low}, got {value!r}")


def above(name: str, value: float, low: float) -> None:
    """Refuse a key that is not above ``low``."""
    if isinstance(value, (bool, str)) or not math.isfinite(value) or value <= low:
        raise ConfigError(f"simulator.{name} must be a number > {low}, got {value!r}")


def whole(name: str, value: int, low: int) -> None:
    """Refuse a key that is no whole number, or below ``low``."""
    at_least(name, value, low)
    if int(value) != value:
        raise ConfigError(f"simulator.{name} must be a whole number, got {value!r}")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a key that is none of the ``known`` words."""
    if value not in known:
        raise ConfigError(f"simulator.{name} must be one of {', '.join(known)}; got {value!r}")

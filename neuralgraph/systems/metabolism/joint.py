"""Rate constants, rate law, homeostasis and metabolite types together, S given.

:mod:`~neuralgraph.systems.metabolism.joint_fit` solves from derivatives,
:mod:`~neuralgraph.systems.metabolism.joint_noise` from noisy concentrations alone. Types are the
components of a Gaussian mixture of the lines of homeostasis, each with its own measurement
covariance; their number is the one with the lowest information criterion
(:mod:`~neuralgraph.systems.metabolism.joint_types`).

Nothing here is drawn at random, and no step is bounded by the clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.metabolism.joint_data import KineticData, kinetic_data
from neuralgraph.systems.metabolism.joint_fit import JointFit, fit_joint
from neuralgraph.systems.metabolism.joint_networks import set_homeostasis, set_law
from neuralgraph.systems.metabolism.joint_noise import fit_concentrations
from neuralgraph.systems.metabolism.joint_solver import Solver
from neuralgraph.systems.metabolism.joint_split import positive_rate_constants
from neuralgraph.systems.metabolism.joint_trajectory import runs_of
from neuralgraph.systems.metabolism.joint_types import Types, metabolite_types

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismBatch, MetabolismSpec
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

FIT_TO = ("derivative", "concentration")
TYPE_TOLERANCE = 1e-3
"""Lines closer than this, relative to the size of all lines, are not told apart."""


def type_tolerance(data: KineticData, fit: JointFit) -> Tensor:
    """Differences in (value, slope) that no data could tell apart in earnest, ``(2,)``."""
    value = fit.line[:, 0] + fit.line[:, 1] * fit.at
    size = torch.stack([value.square().median(), fit.line[:, 1].square().median()]).sqrt()
    motion = float(data.target.square().mean().sqrt())
    floor = 1e-9 * motion * torch.tensor([1.0, 1 / max(fit.at, 1e-12)], dtype=torch.float64)
    return torch.maximum(TYPE_TOLERANCE * size, floor).clamp_min(1e-30)


@dataclass(frozen=True)
class Solution:
    """What :func:`set_model` did.

    Args:
        said: Numbers for the log: ``residual`` (relative root mean square of dc/dt) or ``noise``
            (standard deviation of the errors of log c), ``power`` where the law is one,
            ``n_types``, and ``error_MLP_sub`` and ``error_MLP_node``, relative errors of fit.
        errors: See :func:`standard_errors`.
        warnings: What a reader must know before trusting it, as sentences.
    """

    said: dict[str, float]
    errors: dict[str, Tensor]
    warnings: tuple[str, ...]


def standard_errors(
    fit: JointFit, types: Types | None, type_covariance: Tensor | None
) -> dict[str, Tensor]:
    """Standard errors of a solution, as ``session.store["standard_errors"]`` holds them.

    Args:
        fit: The solution.
        types: Types of the metabolites, or ``None``.
        type_covariance: Of (value at ``fit.at``, slope) of each type, ``(n_type, 2, 2)``; by
            default that of the mean of independent lines.

    Returns:
        ``log_k`` of log10 k ``(n_rxn,)``, infinite where only a combination is determined; with
        homeostasis also ``type_slope`` and ``type_offset`` (value at c = 0) with their standard
        errors ``type_slope_error`` and ``type_offset_error``, ``(n_type,)``, and ``type_of``, the
        likeliest type of each metabolite ``(n_met,)``.
    """
    result = {"log_k": fit.deviation}
    if types is None:
        return result
    spread = type_covariance
    if spread is None:
        precision = torch.linalg.pinv(fit.covariance, hermitian=True)
        total = torch.einsum("nt,nij->tij", types.posterior, precision)
        spread = torch.linalg.pinv(total, hermitian=True)
    at_zero = torch.tensor([1.0, -fit.at], dtype=torch.float64)
    variance = torch.einsum("i,tij,j->t", at_zero, spread, at_zero)
    return {
        **result,
        "type_slope": types.mean[:, 1],
        "type_slope_error": spread[:, 1, 1].clamp_min(0).sqrt(),
        "type_offset": types.mean @ at_zero,
        "type_offset_error": variance.clamp_min(0).sqrt(),
        "type_of": types.posterior.argmax(1),
    }


@torch.no_grad()
def set_model(
    model: Metabolism_Propagation,
    spec: MetabolismSpec,
    batch: MetabolismBatch,
    *,
    max_types: int,
    fit_to: str = "derivative",
    n_iteration: int = 8,
) -> Solution:
    """Solve jointly and leave the result in ``log_k``, ``MLP_sub``, ``MLP_node`` and ``a``.

    The rate constants are adjusted to what the two networks have become, so that their small
    errors of fit are compensated as far as k can.

    Args:
        model: A mass-action model whose S is given; changed in place.
        spec: What is given.
        batch: Every training frame.
        max_types: Largest number of metabolite types considered.
        fit_to: ``derivative``: explain dc/dt; ``concentration``: follow the concentrations, whose
            errors are proportional to them, and read no derivative.
        n_iteration: Bound on the steps of the likelihood of concentrations.

    Raises:
        ConfigError: an unknown ``fit_to``.
    """
    if fit_to not in FIT_TO:
        raise ConfigError(f"loop.fit_to must be one of {', '.join(FIT_TO)}; got '{fit_to}'")
    data = kinetic_data(model, spec, batch)
    types, spread = None, None
    warnings: tuple[str, ...] = ()
    if fit_to == "derivative":
        fit = fit_joint(data)
        said = {"residual": math.sqrt(fit.score)}
        if model.has_homeostasis:
            value = fit.line[:, 0] + fit.line[:, 1] * fit.at
            types = metabolite_types(
                torch.stack([value, fit.line[:, 1]], dim=1),
                fit.covariance,
                smallest=type_tolerance(data, fit),
                max_types=max_types,
            )
    else:
        known = None
        if model.input_mode == "additive" and batch.inputs is not None:
            known = batch.inputs.detach().double().cpu()
        time, run, frame = (x.detach().cpu() for x in (batch.time, batch.run, batch.frame))
        runs = runs_of(run, frame)
        noisy = fit_concentrations(
            data, time.double(), runs, known, max_types=max_types, n_iteration=n_iteration
        )
        fit, types, spread = noisy.joint, noisy.types, noisy.type_covariance
        warnings = noisy.warnings
        said = {"noise": math.sqrt(fit.score), "n_iterations": float(noisy.n_iteration)}
        data = replace(data, concentration=noisy.u.exp())
        batch = replace(batch, concentration=data.concentration.to(batch.concentration))
    if fit.law.power is not None:
        said["power"] = fit.law.power
    said["error_MLP_sub"] = set_law(model, data, fit.law)
    if types is not None:
        said["n_types"] = float(types.mean.shape[0])
        said["error_MLP_node"] = set_homeostasis(model, data, types, at=fit.at)
    v, h = _parts_at_unit_k(model, batch)
    if fit_to == "derivative":
        log_k = rate_constants(data, v, h)
    else:  # the amplitude of each rate, in place of a second fit
        exact = Solver(data, torch.ones(data.n_met)).rates(fit.law.theta, fit.law.features(data))
        ratio = (exact * v).sum(0) / v.square().sum(0).clamp_min(1e-300)
        log_k = fit.log_k + ratio.clamp_min(1e-300).log10()
    model.log_k.copy_(log_k)
    return Solution(said, standard_errors(fit, types, spread), warnings)


def rate_constants(data: KineticData, v: Tensor, homeostasis: Tensor) -> Tensor:
    """log10 k for rates at k = 1 ``(n_frame, n_rxn)`` and a homeostasis ``(n_frame, n_met)``."""
    rest = replace(data, target=data.target - homeostasis, has_homeostasis=False)
    solver = Solver(rest, torch.ones(data.n_met, dtype=torch.float64))
    return positive_rate_constants(solver.solve(v)).log10()


def _parts_at_unit_k(
    model: Metabolism_Propagation, batch: MetabolismBatch
) -> tuple[Tensor, Tensor]:
    model.log_k.zero_()
    v, h = [], []
    for start in range(0, len(batch), 512):
        c = batch.concentration[start : start + 512]
        inputs = None if batch.inputs is None else batch.inputs[start : start + 512]
        v.append(model.flux(c, inputs).double().cpu())
        h.append(model.homeostasis(c).double().cpu())
    return torch.cat(v), torch.cat(h)

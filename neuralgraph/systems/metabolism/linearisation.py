"""Around what the sensitivities of a metabolic network are taken: the model, or the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Truth
from neuralgraph.systems.metabolism import metrics
from neuralgraph.systems.metabolism.dataset import MetabolismData, MetabolismSpec
from neuralgraph.systems.metabolism.estimate import (
    gauged_stoichiometry,
    homeostasis_lines,
    substrate_amplitude,
)
from neuralgraph.systems.metabolism.kinetics import (
    ReactionSystem,
    law_of_truth,
    network_of_truth,
)

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

SMALLEST_CONCENTRATION = 1e-8
"""Floor under the concentration where its logarithm is taken, mM."""
N_FRAME_AT_ONCE = 512
"""Frames a model evaluates together."""

Rates = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """Values and rates around which everything is linear.

    Attributes:
        rates: ``(n_frame, n_met)`` and inputs -> rates at k = 1, ``(n_frame, n_rxn)``.
        exponent: Sum of order * log c over a reaction's substrates, ``(n_frame, n_rxn)``.
        k: ``(n_rxn,)``.
        sto_all: On the edges of the spec, ``(n_all_edge,)``.
        slope, offset: Homeostatic lines ``(n_met,)``, or ``None`` where there is no such term.
        law: The rate law in words.
        additive: Mean external input added to dc/dt, or ``None``.
        assumed: Sentences.
        network: The model whose networks the law is, or ``None`` where it is a formula.
    """

    rates: Callable[[Tensor, Tensor | None], Tensor]
    exponent: Rates
    k: Tensor
    sto_all: Tensor
    slope: Tensor | None
    offset: Tensor | None
    law: str
    additive: Tensor | None
    assumed: tuple[str, ...]
    network: Metabolism_Propagation | None = None


def _mean_inputs(data: MetabolismData) -> Tensor | None:
    inputs = data.train.inputs
    return None if inputs is None else inputs.detach().cpu().double().mean(0)


def at_model(
    model: Metabolism_Propagation, data: MetabolismData, max_coefficient: int, *, is_drawn: bool
) -> Point:
    """Where the model is: its own rates, or mass action for a start that was drawn."""
    spec = data.spec
    gauged = gauged_stoichiometry(model, data, max_coefficient=max_coefficient)
    log_k = model.log_k.detach().cpu().double()
    order = _orders(model, spec)
    exponent = _exponent(spec, order)
    is_power = is_drawn and model.kinetics == "mass_action" and spec.has_roles
    mean = _mean_inputs(data)
    if is_power:
        law = "mass action with the kinetic orders given"
        value = 10**log_k

        def rates(c: Tensor, inputs: Tensor | None) -> Tensor:
            return exponent(c).exp() * _factor(model, c, inputs, mean)

    else:
        law = "the model as drawn" if is_drawn else "the fitted model"
        shift = torch.zeros_like(log_k)
        if model.kinetics == "mass_action" and spec.has_roles:
            alpha = substrate_amplitude(model)
            if alpha > 0:
                shift = metrics.log_k_shift_mass_action(alpha, spec.rxn_sub.cpu(), spec.n_rxn)
        scale = gauged.scale if spec.sto_all is None else torch.ones_like(log_k)
        value = 10 ** (log_k + shift) / scale
        rescale = 1 / value

        def rates(c: Tensor, inputs: Tensor | None) -> Tensor:
            u = mean.expand(c.shape[0], -1) if inputs is None and mean is not None else inputs
            return _model_flux(model, c, u) * rescale

    sto_all = gauged.value
    slope = offset = None
    if model.has_homeostasis:
        slope, offset = homeostasis_lines(model, data)
    return Point(
        rates=rates,
        exponent=exponent,
        k=10 ** spec.log_k.cpu().double() if spec.log_k is not None else value,
        sto_all=sto_all,
        slope=slope,
        offset=offset,
        law=law,
        additive=mean if spec.input_mode == "additive" else None,
        assumed=(),
        network=None if is_power else model,
    )


def at_truth(model: Metabolism_Propagation, data: MetabolismData, truth: Truth) -> Point:
    """Where the simulator was.

    Raises:
        ConfigError: a true rate law without rate constants.
    """
    spec = data.spec
    family = truth.facts["rate_law"]
    if "log_k" not in truth.parameters or family not in ("mass_action", "learned_rate"):
        raise ConfigError(
            f"identify.at=truth: the true rate law ('{family}') has no rate constants that could "
            "serve as the point of linearisation; use identify.at=prior"
        )
    network = network_of_truth(truth)
    k = 10 ** truth.parameters["log_k"].double()
    zero = torch.zeros(network.n_met, dtype=torch.float64).numpy()
    system = ReactionSystem(
        network,
        law_of_truth(truth, network),
        flux_limit_step=truth.facts["dt"] if truth.facts["flux_limit"] else None,
        homeostasis_lambda=zero,
        homeostasis_baseline=zero,
    )
    mean = _mean_inputs(data)

    def rates(c: Tensor, inputs: Tensor | None) -> Tensor:
        v = torch.from_numpy(system.flux(0.0, c.contiguous().numpy()).copy())
        return v / k * _factor(model, c, inputs, mean)

    order = truth.parameters.get("order_sub", network.sto_sub).double()
    dense = network.matrix()
    slope = offset = None
    assumed: list[str] = []
    if model.has_homeostasis:
        slope = offset = torch.zeros(spec.n_met, dtype=torch.float64)
        if "homeostasis_lambda" in truth.parameters:
            slope = -truth.parameters["homeostasis_lambda"].double()
            offset = -slope * truth.parameters["homeostasis_baseline"].double()
    if truth.facts.get("circadian_amplitude"):
        assumed.append("the circadian swing of the baseline is left out")
    return Point(
        rates=rates,
        exponent=_power_exponent(network.met_sub, network.rxn_sub, order, network.n_rxn),
        k=k,
        sto_all=dense[spec.met_all.cpu(), spec.rxn_all.cpu()],
        slope=slope,
        offset=offset,
        law="the simulator",
        additive=mean if spec.input_mode == "additive" else None,
        assumed=tuple(assumed),
        network=_with_true_weights(model, truth),
    )


def _with_true_weights(
    model: Metabolism_Propagation, truth: Truth
) -> Metabolism_Propagation | None:
    """The model with the networks of the truth, where theirs have the same shapes."""
    if model.kinetics != "learned_rate" or truth.facts["rate_law"] != "learned_rate":
        return None
    result = copy.deepcopy(model)
    for name in ("msg_mlp", "rate_mlp"):
        net = getattr(result, name)
        for key, value in net.named_parameters():
            true = truth.parameters.get(f"{name}.{key}")
            if true is None or true.shape != value.shape:
                return None
            value.copy_(true)
        net[0].weight.div_(net.input_scale.to(net[0].weight))
    network = network_of_truth(truth)
    for part in ("sub", "all"):
        moved = result._parameters.get(f"sto_{part}")
        if moved is not None:
            dense = torch.zeros(result.n_met, result.n_rxn, dtype=moved.dtype)
            at = getattr(network, f"met_{part}"), getattr(network, f"rxn_{part}")
            dense[at] = getattr(network, f"sto_{part}").to(moved.dtype)
            edges = getattr(result, f"met_{part}").cpu(), getattr(result, f"rxn_{part}").cpu()
            moved.copy_(dense[edges])
    return result


def _orders(model: Metabolism_Propagation, spec: MetabolismSpec) -> Tensor:
    for known in (spec.order_sub, spec.sto_sub):
        if known is not None:
            return known.detach().cpu().double().abs()
    return model.sto_sub.detach().cpu().double().abs()


def _exponent(spec: MetabolismSpec, order: Tensor) -> Rates:
    return _power_exponent(spec.met_sub.cpu(), spec.rxn_sub.cpu(), order, spec.n_rxn)


def _power_exponent(met: Tensor, rxn: Tensor, order: Tensor, n_rxn: int) -> Rates:
    """Logarithm of the product of c^order over the substrates of each reaction."""

    def exponent(c: Tensor) -> Tensor:
        log_c = c.clamp_min(SMALLEST_CONCENTRATION).log()
        total = c.new_zeros(n_rxn, c.shape[0])
        return total.index_add_(0, rxn, (log_c.T[met] * order[:, None])).T

    return exponent


def _model_flux(model: Metabolism_Propagation, c: Tensor, inputs: Tensor | None) -> Tensor:
    dtype, device = model.log_k.dtype, model.log_k.device
    parts = []
    for first in range(0, c.shape[0], N_FRAME_AT_ONCE):
        chosen = slice(first, first + N_FRAME_AT_ONCE)
        u = None if inputs is None else inputs[chosen].to(device, dtype)
        parts.append(model.flux(c[chosen].to(device, dtype), u).detach().cpu().double())
    return torch.cat(parts)


def _factor(
    model: Metabolism_Propagation, c: Tensor, inputs: Tensor | None, mean: Tensor | None
) -> Tensor | float:
    """Known factor of the rates from multiplicative inputs: the same in every model."""
    if not model.input_mode.startswith("multiplicative"):
        return 1.0
    assert mean is not None
    u = mean.expand(c.shape[0], -1) if inputs is None else inputs
    dtype, device = model.log_k.dtype, model.log_k.device
    factor = model._mean_input(u.to(device, dtype).t().contiguous())
    return factor.t().cpu().double()


def chunks(data: MetabolismData) -> list[tuple[Tensor, Tensor | None]]:
    """Training concentrations and inputs, ``N_FRAME_AT_ONCE`` frames at once."""
    train = data.train
    inputs = train.inputs
    return [
        (
            train.concentration[first : first + N_FRAME_AT_ONCE],
            None if inputs is None else inputs[first : first + N_FRAME_AT_ONCE],
        )
        for first in range(0, len(train), N_FRAME_AT_ONCE)
    ]

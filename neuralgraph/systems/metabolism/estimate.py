"""What a fitted model says of the network, in the gauge of the scores; shared with the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Truth
from neuralgraph.systems.metabolism import metrics
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.kinetics import true_flux
from neuralgraph.systems.metabolism.network import ReactionNetwork

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation


def is_stoichiometry_given(data: MetabolismData) -> bool:
    """Whether S is part of the prior."""
    return data.spec.sto_all is not None


def gauged_stoichiometry(
    model: Metabolism_Propagation, data: MetabolismData, *, max_coefficient: int
) -> metrics.GaugedStoichiometry:
    """The model's ``sto_all`` in the fixed gauge; as it is where the stoichiometry is given.

    Args:
        model: The fitted model.
        data: Its data, for the prior.
        max_coefficient: Largest coefficient considered.
    """
    spec = data.spec
    value = model.sto_all.detach()
    if is_stoichiometry_given(data):
        raw = value.cpu().double()
        one = torch.ones(spec.n_rxn, dtype=torch.float64)
        return metrics.GaugedStoichiometry(
            model.met_all.cpu(), model.rxn_all.cpu(), raw, raw.round(), one, raw, spec.n_met
        )
    substrate = None
    if spec.has_roles:
        substrate = (model.met_sub, model.rxn_sub, model.sto_sub)
    elif model.kinetics == "learned_rate":
        # every edge is a candidate: those that the estimate itself takes for substrates
        drives = model.sto_sub.detach().abs() > 0.5
        substrate = (model.met_sub[drives], model.rxn_sub[drives], model.sto_sub[drives])
    return metrics.fix_gauge(
        model.met_all,
        model.rxn_all,
        value,
        n_met=spec.n_met,
        n_rxn=spec.n_rxn,
        substrate=substrate,
        max_coefficient=max_coefficient,
        is_support_given=spec.has_support,
    )


@torch.no_grad()
def gauged_log_k(
    model: Metabolism_Propagation,
    data: MetabolismData,
    truth: Truth,
    network: ReactionNetwork,
    gauged: metrics.GaugedStoichiometry,
) -> tuple[Tensor, Tensor] | str:
    """Estimated and true log10 k, each in its fixed gauge; or why they cannot be compared.

    Args:
        model: The fitted model.
        data: Its data: the reference state is the median training state.
        truth: The truth.
        network: Its network.
        gauged: Scales of the columns.
    Returns:
        Two tensors ``(n_rxn,)`` float64, or a reason.
    """
    if data.spec.log_k is not None:
        return "the rate constants are given"
    if "log_k" not in truth.parameters:
        return "the true rate law has no rate constants k"
    if truth.facts["rate_law"] != model.kinetics:
        return (
            f"the truth obeys {truth.facts['rate_law']}, the model {model.kinetics}: their rate "
            "constants do not mean the same"
        )
    log_k = model.log_k.detach().cpu().double() - gauged.scale.log10()
    true_log_k = truth.parameters["log_k"].double()
    if model.kinetics == "mass_action" and data.spec.has_roles:
        alpha = substrate_amplitude(model)
        if alpha <= 0:
            return "MLP_sub(1, 1) is 0: the amplitude of the rate law is not defined"
        shift = metrics.log_k_shift_mass_action(alpha, data.spec.rxn_sub, data.spec.n_rxn)
        return log_k + shift, true_log_k
    train = data.train
    state = train.concentration.double().median(0).values[None]
    inputs = None if train.inputs is None else train.inputs.double().mean(0)[None]
    dtype, device = model.log_k.dtype, model.log_k.device
    is_limited = model.flux_limit
    model.flux_limit = False  # the amplitude of the law itself, in the estimate and in the truth
    try:
        flux = model.flux(
            state.to(device, dtype), None if inputs is None else inputs.to(device, dtype)
        )[0]
    finally:
        model.flux_limit = is_limited
    shift = metrics.log_k_shift_learned_rate(flux, model.log_k)
    reference = true_flux(truth, network, state.cpu())[0]
    return log_k + shift, true_log_k + metrics.log_k_shift_learned_rate(reference, true_log_k)


def substrate_amplitude(model: Metabolism_Propagation) -> float:
    """``alpha`` = |MLP_sub(c = 1, |s| = 1)|, 1 in the ideal case."""
    at_one = torch.ones(1, 2, dtype=model.log_k.dtype, device=model.log_k.device)
    return float(model.MLP_sub(at_one).detach().abs().flatten()[0])


@torch.no_grad()
def homeostasis_lines(model: Metabolism_Propagation, data: MetabolismData) -> tuple[Tensor, Tensor]:
    """Least-squares line through the learned homeostasis of each metabolite.

    Args:
        model: A model with homeostasis.
        data: Its data: 50 points spread evenly between the 1 and 99 % quantiles of the training
            concentrations.
    Returns:
        Slopes (1 / unit of time) and offsets (units of dc/dt), each ``(n_met,)`` float64.
    """
    values = data.train.concentration.double().flatten()
    values = values[:: max(1, values.numel() // 1_000_000)]
    low, high = values.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64).to(values))
    grid = low + (high - low) * torch.linspace(0, 1, 50, dtype=torch.float64).to(values)
    c = grid[:, None].expand(-1, data.spec.n_met).to(model.log_k.dtype)
    h = model.homeostasis(c.contiguous()).detach().cpu().double()
    x = grid.cpu() - grid.mean().cpu()
    slope = x @ (h - h.mean(0)) / (x @ x)
    return slope, h.mean(0) - slope * grid.mean().cpu()


def design_flux(data: MetabolismData, truth: Truth, network: ReactionNetwork) -> Tensor | None:
    """True velocities at the training frames, without measurement noise, ``(n_frame, n_rxn)``.

    With the limiter where the data have one.


    Returns:
        ``None`` where the truth does not hold its rate law.
    """
    train = data.train
    run, frame = train.run.cpu(), train.frame.cpu()
    if "flux" in truth.parameters:
        return truth.parameters["flux"][run, frame].double()
    state = train.concentration.cpu().double()
    if "clean_state" in truth.parameters:
        state = truth.parameters["clean_state"][run, frame].double()
    try:
        return true_flux(truth, network, state, is_limited=True)
    except DataError:
        return None

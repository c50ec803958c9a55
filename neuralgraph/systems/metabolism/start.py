"""Closed-form starts: the one that fits kinetics and prior, and its result put into the model."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.nn.mlp import MLP, PowerLawMLP
from neuralgraph.systems.metabolism.closed_form import (
    MISFIT,
    MassActionStart,
    start_from_support,
)
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.training.session import Session

LOG_K_RANGE = (-2.6, 1.6)
"""Range of log10 k the integer decoding considers; document 001 states [-2, 1]."""


def closed_form_start(
    session: Session, *, max_coefficient: int, max_types: int, fit_to: str
) -> tuple[str, ...]:
    """Set the model's parameters without a gradient.

    - ``learned_rate``, S unknown, support and roles given: integer decoding of S, then the shared
      rate networks by Gauss-Newton (:mod:`neuralgraph.systems.metabolism.recovery`);
    - ``learned_rate``, S unknown, either support or roles given: the other one is found first
      (:mod:`neuralgraph.systems.metabolism.start_open`);
    - the same with ``flux_limit``: shares, a fit through the limiter, and integers in turn
      (:mod:`neuralgraph.systems.metabolism.recovery_limited`);
    - ``mass_action``, S unknown, support and roles given: non-negative least squares metabolite by
      metabolite (:func:`start_from_support`);
    - ``mass_action``, S given: rate constants, rate law, homeostasis and metabolite types jointly
      (:mod:`neuralgraph.systems.metabolism.joint`).

    ``fit_to`` chooses what the last of these explains: derivatives or concentrations.

    Returns:
        Names of the parameters that are settled: integers the gradient phase must not blur.

    Raises:
        ConfigError: a case without a closed form; the message says what to use instead.
    """
    model, data = session.model, session.data
    assert isinstance(model, Metabolism_Propagation) and isinstance(data, MetabolismData)
    spec = data.spec
    has_graph = spec.has_roles and (spec.sign_all is not None or spec.sto_all is not None)
    is_open = model.kinetics == "learned_rate" and spec.has_roles != spec.has_support
    if not has_graph and not is_open:
        raise ConfigError(
            "loop.start=closed_form needs prior.support=true and prior.roles=true (or "
            "prior.stoichiometry=true; with kinetics=learned_rate one of the two is enough): use "
            "loop=metabolism_adam, or loop.start=random"
        )
    if spec.sto_all is None and (model.has_homeostasis or model.input_mode != "none"):
        raise ConfigError(
            "loop.start=closed_form with unknown S explains the derivatives by reactions alone; "
            f"here homeostasis is {'on' if model.has_homeostasis else 'off'} and external input is "
            f"'{model.input_mode}': use loop=metabolism_adam or loop.start=random"
        )
    if spec.log_k is not None:
        raise ConfigError(
            "loop.start=closed_form solves for the rate constants, and prior.rate_constants gives "
            "them: use loop.start=random or loop=metabolism_adam"
        )
    if model.kinetics == "learned_rate":
        if spec.sto_all is not None:
            raise ConfigError(
                "kinetics=learned_rate with given S has no closed-form start: use "
                "loop.start=random or loop=metabolism_adam"
            )
        if model.flux_limit:
            if is_open:
                raise ConfigError(
                    "model.flux_limit=true needs prior.support=true and prior.roles=true for "
                    "loop.start=closed_form: use loop.start=random or loop=metabolism_adam"
                )
            _decode_behind_limiter(session, model, data, max_coefficient)
        elif is_open:
            from neuralgraph.systems.metabolism.start_open import decode_open

            decode_open(session, model, data, max_coefficient, LOG_K_RANGE)
        else:
            _decode_integers(session, model, data, max_coefficient)
        return ("sto_sub", "sto_all")
    if model.aggregation != "multiply" or model.is_softplus:
        raise ConfigError(
            "loop.start=closed_form needs model.aggregation=multiply and model.softplus=false"
        )
    if spec.sto_all is not None:
        _solve_jointly(session, model, data, max_types, fit_to)
        return ()
    _solve_mass_action(session, model, data, max_coefficient)
    return ("sto_sub", "sto_all")


def _decode_integers(
    session: Session, model: Metabolism_Propagation, data: MetabolismData, max_coefficient: int
) -> None:
    from neuralgraph.systems.metabolism.recovery import recover_stoichiometry
    from neuralgraph.systems.metabolism.recovery_gaps import sentences
    from neuralgraph.systems.metabolism.recovery_mlp import fit_rate_mlp
    from neuralgraph.systems.metabolism.recovery_noise import derivative_noise, is_noisy

    spec, batch = data.spec, data.train
    assert batch.dx_dt is not None and spec.sign_all is not None
    sign_all = spec.sign_all.cpu().numpy()
    c = batch.concentration.double().cpu().numpy()
    dx_dt = batch.dx_dt.double().cpu().numpy()
    met_sub, rxn_sub = model.met_sub.cpu().numpy(), model.rxn_sub.cpu().numpy()
    met_all, rxn_all = model.met_all.cpu().numpy(), model.rxn_all.cpu().numpy()
    noise = None
    if data.dx_dt_source != "exact":
        noise = derivative_noise(dx_dt, batch.run.cpu().numpy(), batch.frame.cpu().numpy())
    noisy = noise is not None and is_noisy(dx_dt, noise)
    with session.phase("integer decoding", train={}) as phase:
        for _ in phase.epochs(1):
            found = recover_stoichiometry(
                c,
                dx_dt,
                met_sub,
                rxn_sub,
                met_all,
                rxn_all,
                sign_all,
                n_met=spec.n_met,
                n_rxn=spec.n_rxn,
                rng=numpy_generator(session.seed, "integer decoding"),
                max_coefficient=max_coefficient,
                log_k_range=LOG_K_RANGE,
                n_scan=session.budget.rounds(24),
                n_anneal=session.budget.rounds(20),
                n_sharpen=int(10 * session.budget.search),
                noise=noise if noisy else None,
                noisy_rounds=session.budget.rounds(2),
            )
            assign(model, sto_sub=found.sto_sub, sto_all=found.sto_all, log_k=found.log_k)
            low, high = LOG_K_RANGE
            session.note(
                f"assumed by the integer decoding: coefficients 1 to {max_coefficient}, log10 k "
                f"in [{low:g}, {high:g}], |s| of a substrate equal to its |S|, a rate law like "
                "that of untrained networks of the model's family"
            )
            for sentence in sentences(found.open, spec.reaction_names, spec.metabolite_names):
                session.note(sentence)
            if noise is not None and noisy:
                size = float(np.median(noise / np.maximum(np.sqrt((dx_dt**2).mean(0)), 1e-300)))
                session.note(
                    f"the derivatives carry white noise of {size:.2g} of their rms (median "
                    "metabolite), estimated from their fourth differences along each run; the "
                    "decoding uses every frame"
                )
                if data.dx_dt_source == "estimated":
                    session.note(
                        "that counts the noise as white; errors of derivatives estimated from "
                        "noisy concentrations are smooth, so that it is too small, and the "
                        "confidence of the coefficients too large"
                    )
            session.store["sto_sub"] = torch.as_tensor(found.sto_sub)
            session.store["sto_all"] = torch.as_tensor(found.sto_all)
            session.store["confidence"] = torch.as_tensor(found.confidence)
            session.log(median_residual=float(torch.as_tensor(found.relative_residual).median()))
    with session.phase("rate law", train={}) as phase:
        for _ in phase.epochs(1):
            msg_mlp, rate_mlp = stock_layers(model.msg_mlp), stock_layers(model.rate_mlp)
            fit = fit_rate_mlp(
                c,
                dx_dt,
                met_sub,
                rxn_sub,
                met_all,
                rxn_all,
                sto_sub=session.store["sto_sub"].numpy(),
                sto_all=session.store["sto_all"].numpy(),
                log_k=model.log_k.detach().double().cpu().numpy(),
                msg_mlp=msg_mlp,
                rate_mlp=rate_mlp,
                n_met=spec.n_met,
                n_rxn=spec.n_rxn,
                rng=numpy_generator(session.seed, "rate law"),
                n_step=session.budget.rounds(40),
                max_frames=len(c) if noisy else 576,
                degree=(6, 5, 4) if noisy else (10, 7, 6),
            )
            take_back(model.msg_mlp, msg_mlp)
            take_back(model.rate_mlp, rate_mlp)
            assign(model, log_k=fit.log_k)
            session.log(median_residual=float(torch.as_tensor(fit.relative_residual).median()))


def _decode_behind_limiter(
    session: Session, model: Metabolism_Propagation, data: MetabolismData, max_coefficient: int
) -> None:
    from neuralgraph.systems.metabolism.recovery_checks import checked_problem
    from neuralgraph.systems.metabolism.recovery_limited import recover_limited

    spec, batch = data.spec, data.train
    assert batch.dx_dt is not None and spec.sign_all is not None
    problem = checked_problem(
        batch.concentration.double().cpu().numpy(),
        batch.dx_dt.double().cpu().numpy(),
        model.met_sub.cpu().numpy(),
        model.rxn_sub.cpu().numpy(),
        model.met_all.cpu().numpy(),
        model.rxn_all.cpu().numpy(),
        spec.sign_all.cpu().numpy(),
        n_met=spec.n_met,
        n_rxn=spec.n_rxn,
        max_coefficient=max_coefficient,
    )
    with session.phase("shares, fit and integers", train={}) as phase:
        for _ in phase.epochs(1):
            found = recover_limited(
                model,
                problem,
                batch.frame.cpu().numpy(),
                layers=stock_layers,
                rng=numpy_generator(session.seed, "integer decoding"),
                n_share=session.budget.rounds(8),
                n_round=session.budget.rounds(4),
                n_step=session.budget.rounds(80),
            )
            session.note(
                f"assumed behind the limiter: coefficients 1 to {max_coefficient}, |s| of a "
                "substrate equal to its |S|; the integers are the nearest to a local fit, not a "
                "search of all"
            )
            session.store["sto_sub"] = torch.as_tensor(found.sto_sub)
            session.store["sto_all"] = torch.as_tensor(found.sto_all)
            session.store["confidence"] = torch.as_tensor(found.confidence)
            session.log(median_residual=found.median_residual)


def stock_layers(mlp: MLP) -> nn.Sequential:
    """The same function of unscaled inputs as stock layers, which function transforms accept."""
    layers: list[nn.Module] = []
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            size = layer.in_features, layer.out_features
            has_bias = layer.bias is not None
            copy = nn.utils.skip_init(nn.Linear, *size, bias=has_bias).double()
            copy.load_state_dict(layer.state_dict())
            layers.append(copy)
        else:
            layers.append(layer)
    first = layers[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.mul_(mlp.input_scale)
    return nn.Sequential(*layers)


def take_back(mlp: MLP, plain: nn.Sequential) -> None:
    """Copy the weights of :func:`stock_layers` back."""
    with torch.no_grad():
        for own, other in zip(mlp, plain, strict=True):
            own.load_state_dict(other.state_dict())
        first = mlp[0]
        assert isinstance(first, nn.Linear)
        first.weight.div_(mlp.input_scale)


def _solve_jointly(
    session: Session,
    model: Metabolism_Propagation,
    data: MetabolismData,
    max_types: int,
    fit_to: str,
) -> None:
    from neuralgraph.systems.metabolism.joint import set_model

    with session.phase("joint solution", train={}) as phase:
        for _ in phase.epochs(1):
            solution = set_model(model, data.spec, data.train, max_types=max_types, fit_to=fit_to)
            session.store["standard_errors"] = solution.errors
            for sentence in solution.warnings:
                session.note(sentence)
            # as words: these are no terms of the loss
            session.log(**{name: f"{value:.6g}" for name, value in solution.said.items()})


def _solve_mass_action(
    session: Session, model: Metabolism_Propagation, data: MetabolismData, max_coefficient: int
) -> None:
    spec, batch = data.spec, data.train
    assert batch.dx_dt is not None and spec.sign_all is not None
    order = spec.sto_sub if spec.sto_sub is not None else spec.order_sub
    if order is None:
        order = torch.ones(model.met_sub.shape)
    frames = (batch.concentration.cpu(), batch.dx_dt.cpu())
    substrates = (model.met_sub.cpu(), model.rxn_sub.cpu(), order.cpu())
    net = (model.met_all.cpu(), model.rxn_all.cpu())
    with session.phase("least squares", train={}) as phase:
        for _ in phase.epochs(1):
            start = start_from_support(
                *frames, *substrates, *net, spec.sign_all.cpu(),
                n_rxn=spec.n_rxn, max_coefficient=max_coefficient,
                misfit=MISFIT if data.dx_dt_source == "exact" else float("inf"),
            )  # fmt: skip
            _assign_mass_action(model, start, order)
            session.log(power=float(start.power), median_residual=float(start.residual.median()))


def _assign_mass_action(
    model: Metabolism_Propagation, start: MassActionStart, order: torch.Tensor
) -> None:
    assign(model, sto_sub=order, sto_all=start.sto_all, log_k=start.log_k)
    if isinstance(model.MLP_sub, PowerLawMLP):
        with torch.no_grad():
            model.MLP_sub.power.fill_(start.power)
            model.MLP_sub.net.last.weight.zero_()


def assign(model: Metabolism_Propagation, **values: object) -> None:
    """Copy values into the model; what is given (a buffer) stays as it is."""
    tensors = {name: torch.as_tensor(value) for name, value in values.items()}
    log_k = tensors.pop("log_k", None)
    trained = {name for name, _ in model.named_parameters()}
    model.set_stoichiometry(**{name: value for name, value in tensors.items() if name in trained})
    if log_k is not None:
        with torch.no_grad():
            model.log_k.copy_(log_k)

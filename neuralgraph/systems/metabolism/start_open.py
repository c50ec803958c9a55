"""Closed-form start where the roles or the support are not given, and its result in the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.recovery_columns import RecoveredNetwork
from neuralgraph.systems.metabolism.recovery_mlp import RateFit, fit_rate_mlp
from neuralgraph.systems.metabolism.start import assign, stock_layers, take_back
from neuralgraph.training.session import Session

MAX_SUBSTRATES = 3
MAX_PRODUCTS = 3
"""Sizes of a reaction that are considered where roles or support are open (document 001)."""

Law = tuple[RateFit, nn.Sequential, nn.Sequential]
LOST = float(np.log(2.0))
"""Log residual that a fit of the law may lose against the decoding before it is tried otherwise."""


class Difference(nn.Module):
    """Message measured from |s| = 0, as the model has it where the roles are not given.

    Args:
        inner: ``(*, 2) -> (*, n_message)``, features [c, |s|].
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """``(*, 2) -> (*, n_message)``."""
        absent = torch.stack([x[..., 0], torch.zeros_like(x[..., 1])], dim=-1)
        return self.inner(x) - self.inner(absent)


def decode_open(
    session: Session,
    model: Metabolism_Propagation,
    data: MetabolismData,
    max_coefficient: int,
    log_k_range: tuple[float, float],
) -> None:
    """Find the network from its support alone, or from its substrates alone; fit the rate law.

    - ``prior.roles=false``: who takes part is known, not on which side
      (:func:`~neuralgraph.systems.metabolism.recovery_roles.recover_roles`);
    - ``prior.support=false``: what drives each reaction is known, not what it produces
      (:func:`~neuralgraph.systems.metabolism.recovery_support.recover_support`).

    Args:
        session: The session.
        model: Receives the result; candidate edges that take no part get 0.
        data: Training frames.
        max_coefficient: Largest integer considered.
        log_k_range: log10 k considered.
    """
    from neuralgraph.systems.metabolism.recovery_noise import derivative_noise, is_noisy
    from neuralgraph.systems.metabolism.recovery_roles import recover_roles
    from neuralgraph.systems.metabolism.recovery_support import recover_support

    spec, batch, budget = data.spec, data.train, session.budget
    assert batch.dx_dt is not None
    c = batch.concentration.double().cpu().numpy()
    dx_dt = batch.dx_dt.double().cpu().numpy()
    edge = {
        name: getattr(model, name).cpu().numpy()
        for name in ("met_sub", "rxn_sub", "met_all", "rxn_all")
    }
    noise = None
    if data.dx_dt_source != "exact":
        noise = derivative_noise(dx_dt, batch.run.cpu().numpy(), batch.frame.cpu().numpy())
    noisy = noise is not None and is_noisy(dx_dt, noise)
    rng = numpy_generator(session.seed, "integer decoding")
    with session.phase("integer decoding", train={}) as phase:
        for _ in phase.epochs(1):
            if spec.has_support:
                found = recover_roles(
                    c,
                    dx_dt,
                    edge["met_all"],
                    edge["rxn_all"],
                    n_met=spec.n_met,
                    n_rxn=spec.n_rxn,
                    rng=rng,
                    max_coefficient=max_coefficient,
                    max_substrates=MAX_SUBSTRATES,
                    max_products=MAX_PRODUCTS,
                    log_k_range=log_k_range,
                    n_pass=budget.rounds(3),
                    n_step=budget.rounds(6),
                    n_frame_roles=max(256, budget.rounds(1440)),
                    n_scan=budget.rounds(24),
                    n_anneal=budget.rounds(20),
                    n_sharpen=int(10 * budget.search),
                )
                sizes = f"1 to {MAX_SUBSTRATES} substrates and 1 to {MAX_PRODUCTS} products"
            else:
                found = recover_support(
                    c,
                    dx_dt,
                    edge["met_sub"],
                    edge["rxn_sub"],
                    n_met=spec.n_met,
                    n_rxn=spec.n_rxn,
                    rng=rng,
                    max_coefficient=max_coefficient,
                    max_products=MAX_PRODUCTS,
                    log_k_range=log_k_range,
                    n_pass=budget.rounds(2),
                    n_frame_pursuit=max(256, budget.rounds(1440)),
                    n_scan=budget.rounds(6),
                    n_anneal=budget.rounds(10),
                    n_turn=budget.rounds(4),
                    # a quick look does with a rougher law
                    degree=(10, 6, 5) if budget.search >= 1 else (6, 4, 4),
                    sharp_degree=(12, 8, 7) if budget.search >= 1 else (6, 4, 4),
                    n_sharpen=int(5 * budget.search),
                )
                sizes = f"substrates consumed, 1 to {MAX_PRODUCTS} products"
            store(session, model, found)
            low, high = log_k_range
            session.note(
                f"assumed by the integer decoding: {sizes}, coefficients 1 to {max_coefficient}, "
                f"log10 k in [{low:g}, {high:g}], |s| of a substrate equal to its |S|, a rate law "
                "like that of untrained networks of the model's family"
            )
            if data.dx_dt_source != "exact":
                session.note(
                    "this search of the integers was made for exact derivatives: errors of "
                    "estimated or measured ones are not modelled in it (the fit of the law after "
                    "it uses every frame where they are noisy)"
                )
            session.log(median_residual=float(np.median(found.relative_residual)))
    kept = {name: session.store[name].numpy() for name in ("sto_sub", "sto_all")}
    in_rate, net = kept["sto_sub"] != 0, kept["sto_all"] != 0
    log_k = model.log_k.detach().double().cpu().numpy()

    def law(careful: bool) -> Law:
        msg_mlp, rate_mlp = stock_layers(model.msg_mlp), stock_layers(model.rate_mlp)
        fit = fit_rate_mlp(
            c,
            dx_dt,
            edge["met_sub"][in_rate],
            edge["rxn_sub"][in_rate],
            edge["met_all"][net],
            edge["rxn_all"][net],
            sto_sub=kept["sto_sub"][in_rate],
            sto_all=kept["sto_all"][net],
            log_k=log_k,
            msg_mlp=msg_mlp if spec.has_roles else Difference(msg_mlp),
            rate_mlp=rate_mlp,
            n_met=spec.n_met,
            n_rxn=spec.n_rxn,
            rng=numpy_generator(session.seed, "rate law"),
            n_step=budget.rounds(40),
            # noise averages out over every frame, and a law of low degree is enough
            max_frames=len(c) if noisy else 576,
            degree=(6, 5, 4) if noisy else (10, 7, 6),
            careful=careful,
        )
        return fit, msg_mlp, rate_mlp

    with session.phase("rate law", train={}) as phase:
        for _ in phase.epochs(1):
            fit, msg_mlp, rate_mlp = better_law(law, found.relative_residual)
            take_back(model.msg_mlp, msg_mlp)
            take_back(model.rate_mlp, rate_mlp)
            assign(model, log_k=fit.log_k)
            session.log(median_residual=float(np.median(fit.relative_residual)))


def better_law(law: Callable[[bool], Law], decoded: np.ndarray) -> Law:
    """Fit the law; once more, carefully, where the fit lost what the decoding explained.

    It does where the networks miss the polynomial law, or where some integers are wrong: rate
    constants then leave for negative values.

    Args:
        law: Fits, carefully or not, from the same start.
        decoded: Relative residual of the decoding, ``(n_met,)``.
    """
    plain = law(False)
    if _misfit(plain[0].relative_residual) <= _misfit(decoded) + LOST:
        return plain
    careful = law(True)
    is_better = _misfit(careful[0].relative_residual) < _misfit(plain[0].relative_residual)
    return careful if is_better else plain


def _misfit(relative_residual: np.ndarray) -> float:
    """Mean log residual of the rows, those without any left out."""
    some = relative_residual[relative_residual > 0]
    return float(np.log(some).mean()) if len(some) else -np.inf


def store(session: Session, model: Metabolism_Propagation, found: RecoveredNetwork) -> None:
    """Put a recovered network onto the candidate edges of the model, and into the session."""

    def on_edges(part: str, met: np.ndarray, rxn: np.ndarray, value: np.ndarray) -> Tensor:
        dense = torch.zeros(model.n_met, model.n_rxn, dtype=torch.float64)
        dense[torch.from_numpy(met), torch.from_numpy(rxn)] = torch.as_tensor(value).double()
        return dense[getattr(model, f"met_{part}").cpu(), getattr(model, f"rxn_{part}").cpu()]

    sto_sub = on_edges("sub", found.met_sub, found.rxn_sub, found.sto_sub)
    sto_all = on_edges("all", found.met_all, found.rxn_all, found.sto_all)
    assign(model, sto_sub=sto_sub, sto_all=sto_all, log_k=found.log_k)
    session.store["sto_sub"], session.store["sto_all"] = sto_sub.long(), sto_all.long()
    session.store["confidence"] = on_edges("all", found.met_all, found.rxn_all, found.confidence)

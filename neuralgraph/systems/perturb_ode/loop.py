"""Training of an ensemble of arms, with predictions kept along the way."""

from __future__ import annotations

import logging
from typing import Any

import torch

from neuralgraph.core.bounds import Count, Natural, NotNegative, Positive
from neuralgraph.systems.perturb_ode.loss import settled_conditions
from neuralgraph.training.session import Session


def train_arms(
    session: Session,
    *,
    n_epochs: Natural,
    learning_rate: NotNegative,
    clip_norm: Positive | None,
    curve_every: Count,
) -> None:
    """Every condition in each step; held-out predictions kept every ``curve_every`` epochs.

    The predictions of held-out conditions start from what is known of them (their first
    measurement, or the common state of rest) and are only stored: the judge compares them.

    Args:
        session: The session to train; its model is a ``FieldEnsemble``.
        n_epochs: Steps.
        learning_rate: Step size of Adam.
        clip_norm: Largest gradient norm of each parameter tensor of each single model, ``None`` for
            no clipping.
        curve_every: Epochs between two kept predictions.
    """
    model: Any = session.model
    data = session.data
    if clip_norm is not None:
        clip_each_model(model, clip_norm)
    if bool(model.weight_of("steady_gated").any()):
        note_gate(session)
    curve = session.store.setdefault("curve", {"epoch": [], "state": []})
    with session.phase("arms", train={"": learning_rate}) as phase:
        for epoch in phase.epochs(n_epochs):
            if epoch % curve_every == 0 and epoch not in curve["epoch"]:
                keep(curve, session, epoch)
            batch = data.batch(data.starts(1))
            terms = session.step(batch)
            session.log(loss_mean=float(terms.loss.detach()) / model.n_model)
            session.store["epochs_done"] = epoch + 1
    last = session.store.get("epochs_done", 0)
    if last not in curve["epoch"]:
        keep(curve, session, last)


def note_gate(session: Session) -> None:
    """Say on how many conditions ``steady_gated`` acts; warn of folds where there are none."""
    batch: Any = session.data.batch(session.data.starts(1))
    number = settled_conditions(batch).tolist()
    every = (batch.is_train & ~batch.is_control).sum(1).tolist()
    words = ", ".join(f"{n} of {m}" for n, m in zip(number, every, strict=True))
    sentence = f"steady_gated acts on the perturbed training conditions that are settled: {words}"
    if len(number) > 1:
        sentence += " (by fold)"
    if 0 in number:
        sentence += (
            f"; in {number.count(0)} of {len(number)} folds on none, where the arm is a copy of "
            "standard"
        )
        logging.getLogger("neuralgraph").warning(sentence)
    session.note(sentence)


def keep(curve: dict, session: Session, epoch: int) -> None:
    """Store where every model leads its held-out conditions, in the coordinates of the field.

    Each entry is ``(n_model, n_held, n_day, n_state)``, in single precision.
    """
    model: Any = session.model
    data: Any = session.data
    with torch.no_grad():
        states = model.flow(data.everything())
        rows = data.held_rows[model.get_buffer("fold")]
        which = torch.arange(len(rows), device=rows.device)[:, None]
        kept = states[which, rows].float().cpu()
    curve["epoch"].append(epoch)
    curve["state"].append(kept)


def clip_each_model(model: torch.nn.Module, largest: float) -> None:
    """Bound the gradient norm of each model of the ensemble, parameter tensor by tensor."""

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
        factor = (largest / norm).clamp_max(1.0)
        return gradient * factor.reshape(-1, *[1] * (gradient.ndim - 1))

    for parameter in model.parameters():
        parameter.register_hook(hook)

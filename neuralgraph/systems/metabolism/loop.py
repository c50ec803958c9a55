"""How a metabolic network is trained: a closed-form start and a gradient phase, or Adam alone."""

from __future__ import annotations

import math
from typing import Any

import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.start import closed_form_start
from neuralgraph.training.session import Session

STARTS = ("closed_form", "random")


def data_train_metabolism(
    session: Session,
    *,
    start: str,
    max_coefficient: int,
    max_types: int,
    n_epochs: int,
    batch_size: int,
    n_batches: int,
    learning_rate_start: float,
    learning_rate_k: float,
    learning_rate_node: float,
    learning_rate_sub: float,
    learning_rate_embedding: float,
    learning_rate_S_start: float,
    clip_S: float | None,
) -> None:
    """Solve in closed form what the data determine that way, then descend on all of it together.

    The closed-form part depends on the kinetics and on what is given (see
    :func:`neuralgraph.systems.metabolism.start.closed_form_start`); it leaves its result in the
    model's parameters. The gradient phase trains every parameter that is not given, ends at
    learning rates of zero (cosine), and is undone when it has not lowered the loss.

    Args:
        session: The session to train.
        start: ``closed_form``, or ``random`` to descend from the model's own start.
        max_coefficient: Largest stoichiometric coefficient the integer search considers.
        max_types: Largest number of metabolite types considered (S given, with homeostasis).
        n_epochs: Epochs of the gradient phase; 0 leaves it out.
        batch_size: Frames of a batch.
        n_batches: Batches of an epoch.
        learning_rate_start: Rate of parameters without a rate of their own. **0 elsewhere means
            this one.**
        learning_rate_k: Of ``log_k``.
        learning_rate_node: Of ``MLP_node``.
        learning_rate_sub: Of ``MLP_sub``, ``msg_mlp`` and ``rate_mlp``.
        learning_rate_embedding: Of the embeddings ``a``.
        learning_rate_S_start: Of ``sto_sub`` and ``sto_all``.
        clip_S: Largest gradient norm of the stoichiometry, ``None`` for no clipping.
    """
    if start not in STARTS:
        raise ConfigError(f"loop.start must be one of {', '.join(STARTS)}; got '{start}'")
    prepare = getattr(session.objective, "prepare", None)
    if prepare is not None:
        prepare(session.data)
    settled: tuple[str, ...] = ()
    if start == "closed_form":
        settled = closed_form_start(session, max_coefficient=max_coefficient, max_types=max_types)
    if not n_epochs:
        return
    rates = learning_rates(
        session.model,  # type: ignore[arg-type]
        default=learning_rate_start,
        log_k=learning_rate_k,
        node=learning_rate_node,
        sub=learning_rate_sub,
        embedding=learning_rate_embedding,
        stoichiometry=learning_rate_S_start,
    )
    rates = {prefix: rate for prefix, rate in rates.items() if prefix not in settled}
    _descend(session, rates, clip_S, n_epochs=n_epochs, n_batches=n_batches, batch_size=batch_size)


def _descend(
    session: Session,
    rates: dict[str, float],
    clip_S: float | None,
    *,
    n_epochs: int,
    n_batches: int,
    batch_size: int,
) -> None:
    """Gradient phase with a cosine decay; the parameters with the lowest loss are kept."""
    session.store.setdefault("best", _snapshot(session, _loss(session)))
    clip = _clip(session.model, clip_S)
    with session.phase("gradient", train=rates, clip=clip) as phase:
        for epoch in phase.epochs(n_epochs):
            assert phase.optimizer is not None
            progress = epoch / session.budget.epochs(n_epochs)
            for group, rate in zip(phase.optimizer.param_groups, phase.rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
            for batch in session.batches(batch_size, n_batches=n_batches):
                session.step(batch)
            loss = _loss(session)
            session.log(loss_all_frames=loss)
            if loss < session.store["best"]["loss"]:
                session.store["best"] = _snapshot(session, loss)
    session.model.load_state_dict(session.store["best"]["model"])


def data_train_metabolism_adam(
    session: Session,
    *,
    n_epochs: int,
    n_epochs_init: int,
    batch_size: int,
    data_augmentation_loop: int,
    learning_rate_start: float,
    learning_rate_k: float,
    learning_rate_node: float,
    learning_rate_sub: float,
    learning_rate_embedding: float,
    learning_rate_S_start: float,
    recurrent_training: bool,
    time_step: int,
    clip_S: float | None,
    soft_threshold_S: float,
) -> None:
    """The documents' plain training: Adam at constant rates on randomly drawn frames.

    An epoch has ``n_frame * data_augmentation_loop // batch_size * 0.2`` batches, as in the
    documents. While ``epoch < n_epochs_init`` the L1 weight is the loss's ``first_coeff_L1``.

    Args:
        session: The session to train.
        n_epochs: Epochs.
        n_epochs_init: Epochs of the first phase.
        batch_size: Frames of a batch.
        data_augmentation_loop: Multiplies the batches of an epoch.
        learning_rate_start: Rate of parameters without a rate of their own. **0 elsewhere means
            this one.**
        learning_rate_k: Of ``log_k``.
        learning_rate_node: Of ``MLP_node``.
        learning_rate_sub: Of ``MLP_sub``, ``msg_mlp`` and ``rate_mlp``.
        learning_rate_embedding: Of the embeddings ``a``.
        learning_rate_S_start: Of ``sto_sub`` and ``sto_all``.
        recurrent_training: Train on Euler rollouts of ``time_step`` steps.
        time_step: Steps of a rollout; 1 compares derivatives.
        clip_S: Largest gradient norm of the stoichiometry, ``None`` for no clipping.
        soft_threshold_S: After each epoch every |S| is lowered by this and cut at 0 (document 001,
            proximal step of L1); 0 for none.
    """
    objective = session.objective
    prepare = getattr(objective, "prepare", None)
    if prepare is not None:
        prepare(session.data)
    model = session.model
    rates = learning_rates(
        model,  # type: ignore[arg-type]
        default=learning_rate_start,
        log_k=learning_rate_k,
        node=learning_rate_node,
        sub=learning_rate_sub,
        embedding=learning_rate_embedding,
        stoichiometry=learning_rate_S_start,
    )
    horizon = time_step if recurrent_training else 1
    n_frame = int(session.data.starts(1).numel())
    n_batches = max(1, int(n_frame * data_augmentation_loop // batch_size * 0.2))
    with session.phase("adam", train=rates, clip=_clip(model, clip_S)) as phase:
        for epoch in phase.epochs(n_epochs):
            objective.set_first_phase(epoch < n_epochs_init)  # type: ignore[attr-defined]
            for batch in session.batches(batch_size, n_batches=n_batches, horizon=horizon):
                session.step(batch)
            if soft_threshold_S:
                _shrink(model, soft_threshold_S)  # type: ignore[arg-type]


def learning_rates(
    model: Metabolism_Propagation,
    *,
    default: float,
    log_k: float,
    node: float,
    sub: float,
    embedding: float,
    stoichiometry: float,
) -> dict[str, float]:
    """Rate by parameter name of what the model trains; 0 stands for ``default``."""
    wanted = {
        "log_k": log_k,
        "MLP_node": node,
        "a": embedding,
        "MLP_sub": sub,
        "msg_mlp": sub,
        "rate_mlp": sub,
        "sto_sub": stoichiometry,
        "sto_all": stoichiometry,
    }
    present = {name.split(".")[0] for name, _ in model.named_parameters()}
    return {name: rate or default for name, rate in wanted.items() if name in present}


def _clip(model: torch.nn.Module, largest: float | None) -> dict[str, float]:
    names = {name for name, _ in model.named_parameters()}
    if largest is None:
        return {}
    return {name: largest for name in ("sto_sub", "sto_all") if name in names}


def _loss(session: Session) -> float:
    with torch.no_grad():
        batch = session.data.batch(session.data.starts(1), 1)
        return float(session.objective(session.model, batch).total)


def _snapshot(session: Session, loss: float) -> dict[str, Any]:
    state = {name: value.detach().clone() for name, value in session.model.state_dict().items()}
    return {"loss": loss, "model": state}


def _shrink(model: Metabolism_Propagation, threshold: float) -> None:
    if model.is_stoichiometry_given:
        return
    with torch.no_grad():
        value = model.sto_all
        shrunk = torch.sign(value) * (value.abs() - threshold).clamp_min(0.0)
    model.set_stoichiometry(sto_all=shrunk)

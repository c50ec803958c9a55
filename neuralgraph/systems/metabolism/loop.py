"""How a metabolic network is trained: a closed-form start and a gradient phase, or Adam alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from neuralgraph.core.bounds import Count, Natural, NotNegative, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.metabolism.loss import MetabolismObjective
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.start import closed_form_start
from neuralgraph.training.session import Session

STARTS = ("closed_form", "random")
FIT_TO = ("derivative", "concentration")
S_KNOBS_LOOP = ("learning_rate_S_start", "clip_S")
S_KNOBS_LOSS = ("coeff_S_L1", "coeff_S_L2", "coeff_S_integer", "coeff_mass_conservation")
"""Keys that act on the gradient of S only."""


def data_train_metabolism(
    session: Session,
    *,
    start: str,
    max_coefficient: Count,
    max_types: Count,
    fit_to: str,
    n_epochs: Natural,
    batch_size: Count,
    n_batches: Count,
    learning_rate_start: NotNegative,
    learning_rate_k: NotNegative,
    learning_rate_node: NotNegative,
    learning_rate_sub: NotNegative,
    learning_rate_embedding: NotNegative,
    learning_rate_S_start: NotNegative,
    clip_S: Positive | None,
) -> None:
    """Solve in closed form what the data determine that way, then descend on all of it together.

    The closed-form part depends on the kinetics and on what is given (see
    :func:`neuralgraph.systems.metabolism.start.closed_form_start`); it leaves its result in the
    model's parameters. The gradient phase trains every parameter that is not given, decays
    its learning rates along half a cosine, and is undone when it has not lowered the loss.

    Args:
        session: The session to train.
        start: ``closed_form``, or ``random`` to descend from the model's own start.
        max_coefficient: Largest stoichiometric coefficient the integer search considers.
        max_types: Largest number of metabolite types considered (S given, with homeostasis).
        fit_to: What the closed-form solution with given S explains: ``derivative`` (exact, or good
            estimates), or ``concentration`` (noisy; no derivative is read then).
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
    settled: tuple[str, ...] = ()
    if start == "closed_form":
        settled = closed_form_start(
            session, max_coefficient=max_coefficient, max_types=max_types, fit_to=fit_to
        )
    if not n_epochs:
        return
    rates = learning_rates(
        _model(session),
        default=learning_rate_start,
        log_k=learning_rate_k,
        node=learning_rate_node,
        sub=learning_rate_sub,
        embedding=learning_rate_embedding,
        stoichiometry=learning_rate_S_start,
    )
    rates = {prefix: rate for prefix, rate in rates.items() if prefix not in settled}
    _descend(session, rates, clip_S, n_epochs=n_epochs, n_batches=n_batches, batch_size=batch_size)


def refuse(config: Mapping[str, Any]) -> None:
    """Combinations of prior, model and knobs that ``data_train_metabolism`` cannot work with.

    Raises:
        ConfigError: says what to change.
    """
    loop, prior, model = config["loop"], config["prior"], config["model"]
    if loop["start"] not in STARTS:
        raise ConfigError(f"loop.start must be one of {', '.join(STARTS)}; got '{loop['start']}'")
    if loop["fit_to"] not in FIT_TO:
        raise ConfigError(f"loop.fit_to must be one of {', '.join(FIT_TO)}; got '{loop['fit_to']}'")
    _refuse_dead_knobs(config)
    is_solved = loop["start"] == "closed_form" and prior.get("stoichiometry", False)
    if loop["fit_to"] == "concentration" and not is_solved:
        raise ConfigError(
            "loop.fit_to=concentration acts on the joint solution only: set "
            "loop.start=closed_form and prior.stoichiometry=true, or loop.fit_to=derivative"
        )
    if loop["start"] == "random":
        return
    instead = "use loop.start=random or loop=metabolism_adam"
    is_given = prior.get("stoichiometry", False)
    n_known = bool(prior.get("support", False)) + bool(prior.get("roles", False))
    if not is_given and n_known < (1 if model.get("kinetics") == "learned_rate" else 2):
        raise ConfigError(
            "loop.start=closed_form needs prior.support=true and prior.roles=true (or "
            "prior.stoichiometry=true; with kinetics=learned_rate one of the two is enough): "
            f"{instead}"
        )
    if not is_given and model.get("homeostasis"):
        raise ConfigError(
            "loop.start=closed_form with unknown S explains the derivatives by reactions alone, "
            f"and the model has homeostasis: set model.homeostasis=false, or {instead}"
        )
    if prior.get("rate_constants", False):
        raise ConfigError(
            "loop.start=closed_form solves for the rate constants, and prior.rate_constants gives "
            f"them: {instead}"
        )
    if model.get("kinetics") == "learned_rate" and is_given:
        raise ConfigError(f"kinetics=learned_rate with given S has no closed-form start: {instead}")
    if model.get("kinetics") == "mass_action" and (
        model["aggregation"] != "multiply" or model["softplus"]
    ):
        raise ConfigError(
            "loop.start=closed_form needs model.aggregation=multiply and model.softplus=false: "
            f"{instead}"
        )


setattr(data_train_metabolism, "refuse", refuse)  # noqa: B010  # a function has no such field


def _refuse_dead_knobs(config: Mapping[str, Any]) -> None:
    """Refuse keys that this loop would leave without effect."""
    loop, loss, prior = config["loop"], config["loss"], config["prior"]
    if loss.get("first_coeff_L1"):
        raise ConfigError(
            f"loss.first_coeff_L1={loss['first_coeff_L1']:g} has no effect here: it acts in the "
            "first of two phases, which loop=metabolism does not have; use loop=metabolism_adam, "
            "or set it to 0"
        )
    if loop["start"] == "random" or prior.get("stoichiometry", False):
        return
    dead = [f"loop.{key}" for key in S_KNOBS_LOOP if loop[key]]
    dead += [f"loss.{key}" for key in S_KNOBS_LOSS if loss.get(key)]
    if dead:
        raise ConfigError(
            f"{', '.join(dead)} would have no effect: loop.start=closed_form solves for S on the "
            "integers and leaves it there. Use loop.start=random or loop=metabolism_adam, which "
            f"train S by gradient, or set {'it' if len(dead) == 1 else 'them'} to 0 (clip_S: null)"
        )


def _descend(
    session: Session,
    rates: dict[str, float],
    clip_S: float | None,
    *,
    n_epochs: Natural,
    n_batches: Count,
    batch_size: Count,
) -> None:
    """Gradient phase with a cosine decay; the parameters with the lowest loss are kept."""
    session.store.setdefault("best", _snapshot(session, _loss(session)))
    before = session.store.setdefault("loss_before_gradient", session.store["best"]["loss"])
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
    after = session.store["best"]["loss"]
    session.note(
        f"the gradient phase lowered the loss from {before:.3g} to {after:.3g}"
        if after < before
        else f"the gradient phase did not lower the loss of {before:.3g} and was undone"
    )


def data_train_metabolism_adam(
    session: Session,
    *,
    n_epochs: Natural,
    n_epochs_init: Natural,
    batch_size: Count,
    data_augmentation_loop: Count,
    learning_rate_start: NotNegative,
    learning_rate_k: NotNegative,
    learning_rate_node: NotNegative,
    learning_rate_sub: NotNegative,
    learning_rate_embedding: NotNegative,
    learning_rate_S_start: NotNegative,
    recurrent_training: bool,
    time_step: Count,
    clip_S: Positive | None,
    soft_threshold_S: NotNegative,
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
    if not isinstance(objective, MetabolismObjective):
        raise ConfigError(
            f"loop=metabolism_adam trains loss=metabolism, got {type(objective).__name__}"
        )
    model = _model(session)
    rates = learning_rates(
        model,
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
            objective.set_first_phase(epoch < n_epochs_init)
            for batch in session.batches(batch_size, n_batches=n_batches, horizon=horizon):
                session.step(batch)
            if soft_threshold_S:
                _shrink(model, soft_threshold_S)


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


def _model(session: Session) -> Metabolism_Propagation:
    if not isinstance(session.model, Metabolism_Propagation):
        raise ConfigError(
            f"this loop trains Metabolism_Propagation, got {type(session.model).__name__}: "
            "use loop=fit"
        )
    return session.model


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

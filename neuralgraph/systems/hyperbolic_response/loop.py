"""Training of the residual, then the choice of how much of it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuralgraph.core.bounds import Count, Natural, NotNegative, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.hyperbolic_response.tasks import DIRECTION_SETS
from neuralgraph.training.session import Session


def train_residual(
    session: Session,
    *,
    n_epochs: Natural,
    learning_rate: NotNegative,
    final_rate: NotNegative,
    clip_norm: Positive | None,
    consider_every: Count,
    penalties: list[float],
) -> None:
    """Directions in closed form, the rest by descent on every question, then gate and noise.

    The directions of the residual are weighted by theory (reliability shrinkage), then by ridge
    regressions of one set of directions after another on what is left; each step is taken where
    held-out questions gain, and descent goes on from there.
    Gate and noise are closed form, from questions held out from each member of the ensemble.

    Args:
        session: The session to train; its model is a ``ResponseModel``.
        n_epochs: Steps.
        learning_rate: Step size of Adam at the start.
        final_rate: Step size at the end; it falls along a line.
        clip_norm: Largest gradient norm of each parameter of each single model, ``None`` for none.
        consider_every: Steps between two looks at held-out questions; the weights that serve them
            best are kept, for each form and fold.
        penalties: Of the ridge regressions, in units of the squared length of a direction.
    """
    model: Any = session.model
    objective: Any = session.objective
    tasks = objective.tasks(model)
    if clip_norm is not None:
        clip_each_model(model, clip_norm)
    with session.phase("directions", train={}) as phase:
        for _ in phase.epochs(1):
            model.set_directions(model.trusted())
            model.consider(tasks, is_theory=True)
            for free in DIRECTION_SETS:
                for penalty in penalties:
                    model.solve_directions(tasks, penalty=penalty, free=free)
                    model.consider(tasks)
            model.go_on_from_kept(tasks)
    with session.phase("residual", train={"weight": learning_rate}) as phase:
        for epoch in phase.epochs(n_epochs):
            share = epoch / max(n_epochs - 1, 1)
            assert phase.optimizer is not None
            for group in phase.optimizer.param_groups:
                group["lr"] = learning_rate + share * (final_rate - learning_rate)
            terms = session.step(tasks)
            session.log(relative_error=float(terms.loss.detach()) / model.n_model)
            if (epoch + 1) % consider_every == 0 or epoch == n_epochs - 1:
                session.log(held_out_error=float(model.consider(tasks).mean()))
    with session.phase("gate", train={}) as phase:
        for _ in phase.epochs(1):
            model.eval()
            model.choose(tasks)
            session.log(residual_gate=float(model.gate[..., 0].mean()))


def clip_each_model(model: Any, largest: float) -> None:
    """Bound the gradient norm of each model of the batch, parameter by parameter."""
    for parameter in model.weight.values():

        def hook(gradient: Any) -> Any:
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
            factor = (largest / norm).clamp_max(1.0)
            return gradient * factor.reshape(-1, *[1] * (gradient.ndim - 1))

        parameter.register_hook(hook)


def refuse(config: Mapping[str, Any]) -> None:
    """Combinations this loop cannot work with.

    Raises:
        ConfigError: another objective or model, or cuts of the controls that disagree.
    """
    loss = config["loss"]["_target_"].rpartition(".")[2]
    if loss != "ResidualObjective":
        raise ConfigError(
            f"this loop asks questions of training conditions, which loss={loss} does not make: "
            "set loss=hyperbolic_response, or another loop"
        )
    model, data = config["model"], config["dataset"]
    if model.get("n_control_split") != data.get("n_control_split"):
        raise ConfigError(
            f"model.n_control_split ({model.get('n_control_split')}) must be "
            f"dataset.n_control_split ({data.get('n_control_split')}): leave the model's out"
        )


train_residual.refuse = refuse  # type: ignore[attr-defined]  # the pipeline asks for it

"""The curriculum of the document, and a single stage, as loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuralgraph.core.bounds import Count, Natural, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.boolean_grn.dataset import GRNData
from neuralgraph.systems.boolean_grn.exploration import check_exploration, explore
from neuralgraph.systems.boolean_grn.loss import GRNObjective
from neuralgraph.systems.boolean_grn.model import GRNRows
from neuralgraph.training.session import Phase, Session

N_SMOKE_SHARE = 8
STAGE_KEYS = {"name", "n_gene", "n_epochs", "tau", "factors", "rate"}


def curriculum(
    session: Session,
    *,
    stages: list[dict[str, Any]],
    learning_rate: Positive,
    batch_size: Count,
    clip_norm: Positive,
    n_warmup: Natural,
    weight_of_epochs: dict[str, float],
    exploration: dict[str, Any] | None,
) -> None:
    """Stage after stage, one row of the model after the other, with warm-up and cosine decay.

    The document's stages: 1 circuits of two genes; 2 up to three; 3 every size, with the
    contrastive loss; 4 with the loss on dynamics, at the final temperature; 5 exploration with the
    oracle's reward, which trains the policy that writes circuits
    (:func:`~neuralgraph.systems.boolean_grn.exploration.explore`).

    Features that hold no parameters are computed once for each temperature, not in each epoch.

    Args:
        session: The session to train, with the model, data and loss of this system.
        stages: For each: ``name``; ``n_gene``, the largest circuits; ``n_epochs``; ``tau``, the
            inverse temperature; ``factors`` on the loss terms; ``rate``, a factor on the learning
            rate.
        learning_rate: Highest rate.
        batch_size: Circuits in a batch.
        clip_norm: Largest norm of a row's gradient.
        n_warmup: Steps of the linear warm-up of each stage.
        weight_of_epochs: Factor on ``n_epochs`` by row.
        exploration: Arguments of stage 5, or ``null`` to leave it out. A model without a policy
            leaves it out too.

    Raises:
        ConfigError: stages, or a model, that cannot work.
    """
    check_stages(stages)
    model, everything, objective = session.model, session.data, session.objective
    if not (
        isinstance(model, GRNRows)
        and isinstance(everything, GRNData)
        and isinstance(objective, GRNObjective)
    ):
        raise ConfigError(
            "the curriculum trains GRNRows on GRNData with GRNObjective: use loop=fit for another "
            "model, dataset or loss"
        )
    if session.budget.max_steps is not None:  # a smoke run: describing circuits takes time too
        everything = everything.thinned(session.budget.max_steps * batch_size // N_SMOKE_SHARE)
    described: tuple[tuple[float, int], GRNData] | None = None
    for stage in stages:
        tau, n_gene = float(stage["tau"]), int(stage["n_gene"])
        model.set_tau(tau)
        if described is None or described[0] != (tau, n_gene):
            part = everything.up_to(n_gene)
            described = (tau, n_gene), part.described(model.describe, model.key)
        data = described[1]
        session.data = data
        session.objective = objective.scaled(stage["factors"])
        rate = learning_rate * float(stage["rate"])
        for row in model.rows:
            n_epochs = session.budget.epochs(
                math.ceil(stage["n_epochs"] * weight_of_epochs.get(row, 1.0))
            )
            n_batch = session.budget.steps(math.ceil(data.train.numel() / batch_size))
            prefix = f"rows.{row}"
            with session.phase(
                f"{stage['name']} {row}", train={prefix: rate}, clip={prefix: clip_norm}
            ) as phase:
                for epoch in phase.epochs(n_epochs):
                    for at, batch in enumerate(session.batches(batch_size)):
                        done = epoch * n_batch + at
                        set_rate(phase, schedule(done, n_epochs * n_batch, n_warmup))
                        session.step(batch)
    session.objective = objective
    if exploration is not None and model.explorer is not None:
        session.data = everything.without_validation()
        explore(session, clip_norm=clip_norm, **exploration)
        session.data, session.objective = everything, objective


def schedule(step: int, n_step: int, n_warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to 0.

    >>> [round(schedule(k, 8, 2), 3) for k in (0, 1, 2, 5, 7)]
    [0.5, 1.0, 1.0, 0.5, 0.067]
    """
    n_warmup = min(n_warmup, n_step // 2)
    if step < n_warmup:
        return (step + 1) / n_warmup
    part = (step - n_warmup) / max(1, n_step - n_warmup)
    return 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def set_rate(phase: Phase, factor: float) -> None:
    """Set each group's rate to a factor of its rate at the start."""
    assert phase.optimizer is not None
    for group, rate in zip(phase.optimizer.param_groups, phase.rates, strict=True):
        group["lr"] = rate * factor


def check_stages(stages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse stages with missing or unknown keys.

    Raises:
        ConfigError: no stage, or one that cannot work.
    """
    if not stages:
        raise ConfigError("loop.stages is empty: give at least one stage")
    for at, stage in enumerate(stages):
        if set(stage) != STAGE_KEYS:
            wrong = sorted(STAGE_KEYS ^ set(stage))
            raise ConfigError(
                f"loop.stages[{at}] must have the keys {sorted(STAGE_KEYS)}; these are missing or "
                f"too many: {', '.join(wrong)}"
            )
        if not float(stage["tau"]) > 0 or int(stage["n_gene"]) < 1 or int(stage["n_epochs"]) < 0:
            raise ConfigError(
                f"loop.stages[{at}] needs tau > 0, n_gene >= 1 and n_epochs >= 0, got {dict(stage)}"
            )


def refuse(config: Mapping[str, Any]) -> None:
    """Refuse stages that cannot work, before anything is simulated."""
    check_stages(config["loop"]["stages"])
    exploration, explorer = config["loop"]["exploration"], config["model"].get("explorer")
    if exploration is not None:
        check_exploration(exploration, None if explorer is None else explorer["n_gene_max"])


curriculum.refuse = refuse  # type: ignore[attr-defined]  # the pipeline asks for it

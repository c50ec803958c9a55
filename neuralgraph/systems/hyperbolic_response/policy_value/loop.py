"""Training with the schedule and the curriculum of document 003."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuralgraph.core.bounds import Count, Natural, Positive, Share
from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.hyperbolic_response.policy_value.dataset import PolicyValueData
from neuralgraph.systems.hyperbolic_response.policy_value.environment import (
    PerturbationEnv,
    complexity_at,
)
from neuralgraph.training.schedules import exponential_cosine, set_rate
from neuralgraph.training.session import Session


def policy_value(
    session: Session,
    *,
    n_epochs: Natural,
    learning_rate: Positive,
    batch_size: Count,
    clip_norm: Positive | None,
    period: Count | None,
    floor: Share,
    complexity_start: Share,
    complexity_factor: Positive,
    complexity_every: Count,
) -> None:
    """Whole-graph steps; the rate decays and restarts, and perturbations open with the epochs.

    Args:
        session: The session to train.
        n_epochs: Passes over the cell types.
        learning_rate: Highest rate.
        batch_size: Cell types in a batch.
        clip_norm: Largest norm of the gradient, ``None`` for no clipping.
        period: Epochs between restarts of the rate, ``None`` for all epochs: no restart.
        floor: Lowest rate as a share of the highest.
        complexity_start: Share of the perturbations open at the start, the easy ones first; 1 for
            no curriculum.
        complexity_factor: Growth of that share, above 1.
        complexity_every: Epochs between two growths.

    Raises:
        ConfigError: other data than :class:`PolicyValueData`.
    """
    data = session.data
    if not isinstance(data, PolicyValueData):
        raise ConfigError(
            "loop=policy_value opens perturbations of PolicyValueData: use loop=fit for another "
            "dataset"
        )
    env = PerturbationEnv(data.train.reward.mean(0), data.order, complexity=complexity_start)
    clip = {} if clip_norm is None else {"": clip_norm}
    n_epochs_run = session.budget.epochs(n_epochs)
    with session.phase("policy and value", train={"": learning_rate}, clip=clip) as phase:
        for epoch in phase.epochs(n_epochs):
            env.complexity = complexity_at(
                epoch, start=complexity_start, factor=complexity_factor, every=complexity_every
            )
            step = period or n_epochs_run
            set_rate(phase, exponential_cosine(epoch, period=step, floor=floor))
            for batch in session.batches(batch_size):
                session.step(batch.restricted(env.is_open()))
            session.log(n_open=env.n_open)
    if env.n_open < env.n_perturbation and n_epochs_run == n_epochs:
        session.note(
            f"the curriculum ended with {env.n_open} of {env.n_perturbation} perturbations open: "
            "train longer, or raise complexity_factor"
        )


def refuse(config: Mapping[str, Any]) -> None:
    """Refuse a curriculum that never opens everything."""
    loop = config["loop"]
    if loop["complexity_start"] < 1 and not loop["complexity_factor"] > 1:
        raise ConfigError(
            f"loop.complexity_factor must be above 1 to open what complexity_start="
            f"{loop['complexity_start']} closes, got {loop['complexity_factor']}"
        )


policy_value.refuse = refuse  # type: ignore[attr-defined]  # the pipeline asks for it

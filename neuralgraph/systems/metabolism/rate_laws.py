"""Recovered rates against the true ones of a kinetic model, reaction by reaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismData
    from neuralgraph.systems.metabolism.metrics import GaugedStoichiometry

RECOVERED = 0.95
"""R² of the change of a rate above which its law counts as recovered."""
CONSTANT = 1e-6
"""Spread, relative to the rate, below which a rate is constant: there is no law to find."""


@torch.no_grad()
def rate_changes(
    model: Any, data: MetabolismData, truth: Truth, gauged: GaugedStoichiometry
) -> tuple[Tensor, Tensor] | None:
    """Change of each rate against its mean, recovered and true, at the held-out frames.

    The level of a rate is left out: where each reaction has a law of its own, constant rates around
    a cycle of the network change no derivative.

    Args:
        model: The fitted model.
        data: Its data.
        truth: Truth with ``flux``, ``(n_run, n_time, n_rxn)``.
        gauged: Scales of the columns; rates are divided by them.

    Returns:
        Two tensors ``(n_frame, n_rxn)``; ``None`` where the truth has no rates, or no whole run was
        held out.
    """
    flux = truth.parameters.get("flux")
    if flux is None or not data.test or flux.shape[0] < len(data.test):
        return None
    if any(len(held.time) != flux.shape[1] for held in data.test):
        return None
    found = []
    for held in data.test:
        inputs = None if held.inputs is None else held.inputs.to(model.log_k)
        found.append(model.flux(held.state.to(model.log_k), inputs).double().cpu())
    estimate = torch.cat(found) / gauged.scale
    true = flux[-len(data.test) :].flatten(0, 1).double()
    return estimate - estimate.mean(0), true - true.mean(0)


def law_scores(estimate: Tensor, true: Tensor, level: Tensor) -> Tensor:
    """R² of the change of each rate, ``(n_rxn,)``; ``nan`` for rates that are constant.

    Args:
        estimate: Recovered changes, ``(n_frame, n_rxn)``.
        true: True changes.
        level: Root mean square of the true rates, ``(n_rxn,)``.
    """
    total = true.square().sum(0)
    score = 1 - (estimate - true).square().sum(0) / total.clamp_min(1e-300)
    varies = (total / true.shape[0]).sqrt() > CONSTANT * level
    return torch.where(varies, score, torch.nan)


def add_law_scores(
    card: Scorecard,
    model: Any,
    data: MetabolismData,
    truth: Truth,
    gauged: GaugedStoichiometry,
) -> None:
    """Scores of the rate laws, and which are recovered, into the card."""
    if "flux" not in truth.parameters:
        return
    names = ("rate_law_R2_median", "rate_laws_recovered")
    pair = rate_changes(model, data, truth, gauged)
    if pair is None:
        for name in names:
            card.skip(name, "no whole trajectory was held out")
        return
    flux = truth.parameters["flux"].double()
    score = law_scores(*pair, flux.square().mean((0, 1)).sqrt())
    varies = torch.isfinite(score)
    if not bool(varies.any()):
        for name in names:
            card.skip(name, "every rate is constant")
        return
    good = score > RECOVERED
    card.add("rate_law_R2_median", float(score[varies].median()))
    card.add("rate_laws_recovered", float(good[varies].double().mean()))
    reactions = truth.facts["reaction_names"]
    right = [reactions[j] for j in good.nonzero().flatten().tolist()]
    card.facts["rate_laws"] = (
        f"R² of the change of the rate on held-out frames above {RECOVERED:g} for {len(right)} of "
        f"{int(varies.sum())} rates that vary: {', '.join(right) or 'none'}"
    )


__all__ = ["add_law_scores", "law_scores", "rate_changes"]

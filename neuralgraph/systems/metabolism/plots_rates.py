"""Figure of rate laws that differ from reaction to reaction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neuralgraph.core.recording import Truth
from neuralgraph.systems.metabolism.rate_laws import law_scores, rate_changes
from neuralgraph.viz import style
from neuralgraph.viz.figure import Figure

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismData
    from neuralgraph.systems.metabolism.metrics import GaugedStoichiometry

N_SHOWN = 9


def own_rate_laws(
    model: Any,
    data: MetabolismData,
    truth: Truth | None,
    gauged: GaugedStoichiometry | None,
    out: Path,
    units: Mapping[str, str],
) -> Figure:
    """Recovered against true change of the rates that vary most; without truth, their courses.

    Args:
        model: A model whose reactions have laws of their own.
        data: Its data.
        truth: The truth, or ``None``.
        gauged: Scales of the columns, or ``None``.
        out: Folder of the figures.
        units: Of ``time`` and ``state``.
    """
    pair = None
    if truth is not None and gauged is not None:
        pair = rate_changes(model, data, truth, gauged)
    names = data.spec.reaction_names
    unit = f"{units['state']}/{units['time']}"
    if pair is None:
        batch = data.train
        change = model.flux(batch.concentration.to(model.log_k), batch.inputs).double().cpu()
        chosen = torch.argsort(change.square().mean(0), descending=True)[:N_SHOWN].tolist()
        figure = style.canvas(style.WIDTH * 1.15, 3.6)
        ax = figure.add_subplot()
        first = (batch.run == batch.run[0]).cpu()
        for j in chosen:
            ax.plot(batch.time[first].cpu(), change[first][:, j], label=names[j], lw=1.4)
        ax.legend(loc="best", fontsize=7)
        ax.set(xlabel=f"time ({units['time']})", ylabel=f"change of the rate ({unit})")
        caption = "Change against the mean over the training frames, in the first run."
        return style.save(figure, out / "rate_law.png", "The rates that vary most", caption)
    estimate, true = pair
    assert truth is not None
    score = law_scores(estimate, true, truth.parameters["flux"].square().mean((0, 1)).sqrt())
    chosen = torch.argsort(true.square().mean(0), descending=True)[:N_SHOWN].tolist()
    figure = style.canvas(style.WIDTH * 1.15, 6.2)
    axes = figure.subplots(3, 3).flatten()
    for ax, j in zip(axes, chosen, strict=False):
        x, y = true[:, j], estimate[:, j]
        low, high = float(x.min()), float(x.max())
        ax.plot([low, high], [low, high], color=style.INK, lw=0.8)
        ax.plot(x, y, ".", ms=2.5, color=style.BLUE, alpha=0.5)
        ax.set_title(f"{names[j]}   R² {float(score[j]):.3f}", fontsize=8)
        ax.locator_params(nbins=4)
    for ax in axes[len(chosen) :]:
        ax.set_visible(False)
    figure.supxlabel(f"true change of the rate ({unit})", fontsize=9)
    figure.supylabel("recovered", fontsize=9)
    return style.save(
        figure,
        out / "rate_law.png",
        "Recovered against true rates",
        "The nine rates that vary most, at frames the training never saw. Each dot is a frame, the "
        "line is perfect recovery. Only the change of a rate can be found: constant rates around a "
        "cycle of the network change no concentration.",
    )

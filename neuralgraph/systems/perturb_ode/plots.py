"""Figures of a simulated screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.viz.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"no_change": "no change", "additive": "additive"}


class ScreenReporter:
    """Error of the arms on unseen knock-outs, and the loss of each arm."""

    def figures(
        self,
        model: FieldEnsemble,
        data: ScreenData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        import matplotlib.pyplot as plt

        from neuralgraph.viz import panels, style

        out = folder / "figures"
        out.mkdir(exist_ok=True)
        with style.house():
            for what, title in (
                ("test_mse", "Unseen knock-outs on the measured days"),
                ("attractor_mse", "Unseen knock-outs at rest"),
            ):
                kinds = [
                    k for k in ("double", "single") if f"{what}_{k}_standard" in scorecard.metrics
                ]
                if not kinds:
                    continue
                figure, axes = plt.subplots(
                    1, len(kinds), figsize=(4.4 * len(kinds), 3.4), squeeze=False
                )
                for ax, kind in zip(axes[0], kinds, strict=True):
                    self._dots(ax, model, scorecard, f"{what}_{kind}")
                    ax.set_title(f"{kind} knock-outs")
                yield style.save(
                    figure, out / f"{what}.png", title,
                    "Mean squared error of each arm against the clean truth (mean over its starts; "
                    "knocked-out genes left out); lines: what needs no model.",
                )  # fmt: skip
            figure, ax = plt.subplots(figsize=(5.4, 3.2))
            panels.loss_curves(ax, folder / "metrics.jsonl")
            yield style.save(
                figure, out / "loss.png", "Training",
                "Sum over all models of the data loss and of the weighted terms of the arms.",
            )  # fmt: skip

    @staticmethod
    def _dots(ax: Axes, model: FieldEnsemble, scorecard: Scorecard, name: str) -> None:
        """One dot an arm on a logarithmic axis; lines for what needs no model."""
        arms = [arm for arm in model.arms if f"{name}_{arm}" in scorecard.metrics]
        position = list(range(len(arms)))
        ax.plot([scorecard.metrics[f"{name}_{arm}"] for arm in arms], position, "o")
        for (key, text), dashes in zip(NAMES.items(), ("--", ":"), strict=True):
            value = scorecard.metrics.get(f"{name}_{key}")
            if value:
                ax.axvline(value, color="0.35", linestyle=dashes, linewidth=1.2, label=text)
        ax.set_yticks(position, arms)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlabel("mean squared error")
        ax.grid(axis="y", linewidth=0.4)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)

"""Figures of a measured time series: error along training, and perturbation by perturbation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.perturb_ode.folds import FoldedSeries
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.viz.figure import Figure

LINES = {
    "no_change": "no change",
    "drift": "drift",
    "baseline": "baseline",
    "local_field": "local field",
}


class SeriesReporter:
    """Test error of every arm along training, errors by perturbation, and the loss."""

    def figures(
        self,
        model: FieldEnsemble,
        data: FoldedSeries,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        import matplotlib.pyplot as plt

        from neuralgraph.viz import panels, style

        out = folder / "figures"
        out.mkdir(exist_ok=True)
        curves = scorecard.facts["curves"]
        errors = scorecard.facts["errors"]
        with style.house():
            figure, ax = plt.subplots(figsize=(7.4, 4.2))
            for arm, curve in curves.items():
                (line,) = ax.plot(curve["epoch"], curve["mean"], label=f"{arm} ({curve['n_seed']})")
                if curve["n_seed"] > 1:
                    ax.fill_between(
                        curve["epoch"], curve["low"], curve["high"], alpha=0.18, lw=0,
                        color=line.get_color(),
                    )  # fmt: skip
            levels = {t: scorecard.metrics[f"test_mse_{n}"] for n, t in LINES.items()}
            for value in levels.values():
                ax.axhline(value, color=style.SOFT, lw=1, ls="--")
            levels["noise of the target"] = scorecard.metrics["target_noise"]
            ax.axhspan(0, levels["noise of the target"], color=style.LINE, alpha=0.6, lw=0)
            gap, below = 0.045 * ax.get_ylim()[1], float("-inf")
            for text, value in sorted(levels.items(), key=lambda item: item[1]):
                below = max(value, below + gap)  # labels of close lines do not overlap
                ax.text(
                    1.01, below, text, transform=ax.get_yaxis_transform(), va="center",
                    fontsize=8, color=style.SOFT,
                )  # fmt: skip
            ax.set(xlabel="epoch", ylabel="test mean squared error", ylim=(0, None))
            ax.legend(
                title="arm (starts)", fontsize=8, title_fontsize=8, ncols=5,
                loc="upper center", bbox_to_anchor=(0.5, -0.14),
            )  # fmt: skip
            yield style.save(
                figure, out / "test_mse.png", "Test error along training",
                "Mean over held-out perturbations; line: mean over seeds, band: 2.5 to 97.5 % of "
                "the seeds (spread of the optimiser, not of the biology). Dashed: what needs no "
                "trained field. Grey: sampling variance of the target, below which no predictor "
                "can be told apart.",
            )  # fmt: skip

            names = list(errors["baseline"])
            figure, ax = plt.subplots(figsize=(7.4, 3.8))
            shown = [n for n in ("standard", "ssP", "baseline", "selected") if n in errors]
            width = 0.8 / len(shown)
            for i, name in enumerate(shown):
                position = [k + (i - (len(shown) - 1) / 2) * width for k in range(len(names))]
                ax.bar(position, [errors[name][k] for k in names], width=width, label=name)
            ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
            ax.set_ylabel("test mean squared error")
            ax.legend(fontsize=8)
            yield style.save(
                figure, out / "by_perturbation.png", "Error by held-out perturbation",
                "Perturbations are the unit of inference. Arms at their last epoch, mean over "
                "seeds; selected: chosen on inner held-out perturbations.",
            )  # fmt: skip

            figure, ax = plt.subplots(figsize=(5.4, 3.2))
            panels.loss_curves(ax, folder / "metrics.jsonl")
            yield style.save(
                figure, out / "loss.png", "Training",
                "Sum over all models of the data loss and of the weighted terms of the arms.",
            )  # fmt: skip

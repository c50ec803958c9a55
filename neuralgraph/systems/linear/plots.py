"""Figures of the linear system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.linear.dataset import LinearData
from neuralgraph.systems.linear.model import LinearDynamics
from neuralgraph.viz.figure import Figure


class LinearReporter:
    """Matrix scatter, held-out trajectories and loss curves."""

    def figures(
        self,
        model: LinearDynamics,
        data: LinearData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        import matplotlib.pyplot as plt

        from neuralgraph.viz import panels, style

        estimate = model.matrix.detach().double().cpu()
        out = folder / "figures"
        out.mkdir(exist_ok=True)
        with style.house():
            if truth is not None:
                figure, ax = plt.subplots(figsize=(4.2, 4.0))
                panels.identity_scatter(
                    ax, truth.parameters["matrix"].flatten(), estimate.flatten()
                )
                ax.set(xlabel="true entry of A", ylabel="recovered entry of A")
                yield style.save(
                    figure, out / "matrix.png", "Recovered matrix",
                    "Each point is one entry of A; the line is perfect recovery.",
                )  # fmt: skip
            if data.test_state.shape[0]:
                time = (data.test_time[0] - data.test_time[0, 0]).double().cpu()
                flow = torch.linalg.matrix_exp(time[:, None, None] * estimate)
                seen = data.test_state[0].double().cpu()
                rollout = torch.einsum("tij,j->ti", flow, seen[0])
                figure, ax = plt.subplots(figsize=(6.2, 3.4))
                panels.trajectories(ax, time, seen, rollout, names=data.spec.names, n_shown=5)
                ax.set(xlabel="time", ylabel="state")
                yield style.save(
                    figure, out / "rollout.png", "A held-out trajectory",
                    "Lines: the recovered network from the first frame alone; dots: the data.",
                )  # fmt: skip
            figure, ax = plt.subplots(figsize=(5.4, 3.2))
            panels.loss_curves(ax, folder / "metrics.jsonl")
            yield style.save(
                figure, out / "loss.png", "Training",
                "The data term loss (thick blue), each weighted regulariser coeff_… that is on, "
                "their sum regul_total (cyan) and validation_loss (dashed), as far as they are "
                "above 0, at the end of each epoch.",
            )  # fmt: skip

"""Figures of the two-headed model: the disk of genes, rankings, sensitivities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.hyperbolic_response.policy_value.dataset import PolicyValueData
from neuralgraph.systems.hyperbolic_response.policy_value.model import HyperPerturbModel
from neuralgraph.viz.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_GENE_SHOWN = 25
N_RANKED = 8
N_LABELLED = 18


class PolicyValueReporter:
    """Disk of gene points, perturbations by gene, sensitivity of genes, and the loss."""

    def figures(
        self,
        model: HyperPerturbModel,
        data: PolicyValueData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        from neuralgraph.viz import panels, style

        out = folder / "figures"
        spec = data.spec
        with torch.no_grad():
            said = model(data.train.context)
            points = model.encode(data.train.context)[0].double()
            disk = in_disk(model, points).cpu()
        policy = said.policy(data.train.is_open)[0].double().cpu()
        value = said.value[0].double().cpu()
        held_out = data.held_out.value[0].double().cpu()
        with style.house():
            figure = style.canvas(5.6, 5.2)
            self._disk(figure.subplots(), model, data, disk, value)
            flat = model.space.name == "euclidean"
            yield style.save(
                figure, out / "disk.png",
                "Genes in the plane" if flat else "Genes in the Poincaré disk",
                "Encoded genes, seen from their midpoint along its two widest directions; colour: "
                "predicted sensitivity; rings: perturbed genes.",
            )  # fmt: skip

            order = held_out.argsort(descending=True)[:N_GENE_SHOWN]
            figure = style.canvas(6.2, 4.6)
            ax = figure.subplots()
            at = list(range(len(order)))
            ax.barh(at, value[order].tolist(), color=style.BLUE, label="predicted")
            ax.plot(held_out[order].tolist(), at, "D", color=style.INK, ms=4, label="other cells")
            ax.set_yticks(at, [spec.gene_names[i] for i in order.tolist()])
            ax.invert_yaxis()
            ax.set_xlabel("sensitivity: mean |log fold change| over perturbations")
            ax.legend(loc="lower right")
            yield style.save(
                figure, out / "sensitivity.png", "Most sensitive genes",
                "Value head (bars) and the same quantity in held-out cells (diamonds), for the "
                "genes that are most sensitive there.",
            )  # fmt: skip

            figure = style.canvas(7.2, 4.6)
            self._ranking(figure.subplots(2, 3), data, policy, order[:6])
            yield style.save(
                figure, out / "ranking.png", "Which perturbations move a gene",
                f"The {N_RANKED} perturbations the policy ranks first for six sensitive genes "
                "(bars), their share in held-out cells (diamonds), and equal shares (line); "
                "red: the gene goes up in the training cells, blue: down.",
            )  # fmt: skip

            figure = style.canvas(5.4, 3.2)
            panels.loss_curves(figure.subplots(), folder / "metrics.jsonl")
            yield style.save(
                figure, out / "loss.png", "Training",
                "KL divergence of the policy and the weighted other terms. Steps come from the "
                "curriculum, where more perturbations open.",
            )  # fmt: skip

    @staticmethod
    def _disk(
        ax: Axes, model: HyperPerturbModel, data: PolicyValueData, disk: Tensor, value: Tensor
    ) -> None:
        from neuralgraph.viz import style

        spec = data.spec
        genes = disk[: spec.n_gene]
        shown = ax.scatter(
            genes[:, 0], genes[:, 1], c=value.tolist(), s=12, cmap=style.SEQUENTIAL, lw=0
        )
        is_target = spec.targets.sum(0).cpu() > 0
        ringed = disk[is_target]
        ax.scatter(
            ringed[:, 0], ringed[:, 1], s=34, facecolors="none", edgecolors=style.VERMILION, lw=1
        )
        weight = spec.targets.sum(0).cpu() * is_target
        for i in weight.argsort(descending=True)[: min(N_LABELLED, int(is_target.sum()))].tolist():
            ax.annotate(
                spec.node_names[i], (float(disk[i, 0]), float(disk[i, 1])), fontsize=6.5,
                xytext=(3, 3), textcoords="offset points",
            )  # fmt: skip
        if model.space.name != "euclidean":
            angle = torch.linspace(0, 2 * torch.pi, 200)
            ax.plot(angle.cos(), angle.sin(), color=style.SOFT, lw=0.9)
            ax.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02))
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[["left", "bottom"]].set_visible(False)
        bar = ax.figure.colorbar(shown, ax=ax, pad=0.02, aspect=30, fraction=0.04)
        bar.set_label("predicted sensitivity")

    @staticmethod
    def _ranking(axes: Any, data: PolicyValueData, policy: Tensor, genes: Tensor) -> None:
        from neuralgraph.viz import style

        spec = data.spec
        held_out = data.held_out.policy[0].double().cpu()
        signed = data.train.signed[0].cpu()
        for ax, gene in zip(axes.flat, genes.tolist(), strict=False):
            top = policy[gene].argsort(descending=True)[:N_RANKED]
            at = list(range(len(top)))
            colours = [style.VERMILION if signed[p, gene] > 0 else style.BLUE for p in top.tolist()]
            ax.barh(at, policy[gene, top].tolist(), color=colours)
            ax.plot(held_out[gene, top].tolist(), at, "D", color=style.INK, ms=3)
            ax.axvline(1 / int(data.train.is_open[0].sum()), color=style.SOFT, lw=0.8, ls="--")
            ax.set_yticks(at, [spec.perturbations[p] for p in top.tolist()], fontsize=6.5)
            ax.invert_yaxis()
            ax.set_title(spec.gene_names[gene])


def in_disk(model: HyperPerturbModel, points: Tensor) -> Tensor:
    """Two coordinates in the unit disk for points of any dimension, ``(n, 2)``.

    The space is moved so that the midpoint of the points lies at the origin (an isometry). Tangent
    vectors there are turned onto their two widest directions, and the exponential map of those two
    brings them back: radii are those of the space, seen from the midpoint.
    """
    space = model.space
    middle = space.midpoint(points, torch.ones(1, len(points), dtype=points.dtype))
    tangent = space.logmap0(space.add(space.negate(middle).expand_as(points), points))
    _, _, axes = torch.linalg.svd(tangent - tangent.mean(0), full_matrices=False)
    return space.disk(space.expmap0(tangent @ axes[:2].T))

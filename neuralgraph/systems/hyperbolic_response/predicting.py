"""Predict any perturbation of the vocabulary with a trained model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError, nearest
from neuralgraph.systems.hyperbolic_response.dataset import ResponseData
from neuralgraph.systems.hyperbolic_response.model import ResponseModel
from neuralgraph.systems.hyperbolic_response.tasks import Builder


@dataclass(frozen=True)
class Answer:
    """Predicted response of every gene.

    Args:
        perturbation: Its genes, joined by ``+``.
        cell_type: Where.
        genes: Names of the genes, ``G`` of them.
        delta: Predicted response against control, ``(G,)``.
        std: Standard deviation of a measured response around it, ``(G,)``.
        baseline: The closed-form baseline, ``(G,)``.
        measured: The measured response where the screen has it and the folds that answer held it
            out, ``(G,)``, else ``None``.
        folds: Folds that answer.
        note: What the answer rests on, in a sentence.
    """

    perturbation: str
    cell_type: str
    genes: tuple[str, ...]
    delta: Tensor
    std: Tensor
    baseline: Tensor
    measured: Tensor | None
    folds: tuple[int, ...]
    note: str

    def rows(self) -> list[dict[str, float | str | None]]:
        """One row a gene, largest response first."""
        order = self.delta.argsort(descending=True).tolist()
        half = 1.645 * self.std
        return [
            {
                "gene": self.genes[g],
                "predicted": float(self.delta[g]),
                "std": float(self.std[g]),
                "low_90": float(self.delta[g] - half[g]),
                "high_90": float(self.delta[g] + half[g]),
                "baseline": float(self.baseline[g]),
                "measured": None if self.measured is None else float(self.measured[g]),
            }
            for g in order
        ]


def predict(
    model: ResponseModel, data: ResponseData, perturbation: str, *, cell_type: str | None
) -> Answer:
    """Response to one perturbation, against all controls.

    Folds that held this very perturbation out answer, where there are any; else the folds whose
    training has most of its genes alone, together.

    Args:
        model: Trained.
        data: The data it was trained on.
        perturbation: Genes of the vocabulary, joined by ``+``, in any order.
        cell_type: One of the screen; ``None`` where there is one.

    Raises:
        DataError: a gene that is not perturbed in the screen, or a cell type it does not have;
            names the nearest.
    """
    hot = (data.spec.multi_hot(perturbation).cpu() > 0).double()
    name = "+".join(data.perturbations[p] for p in hot[0].nonzero()[:, 0].tolist())
    if cell_type is None and len(data.contexts) > 1:
        raise DataError(f"say in which cell type: cell_type=NAME, {', '.join(data.contexts)}")
    if cell_type is not None and cell_type not in data.contexts:
        raise DataError(
            f"the screen has no cell type '{cell_type}': {nearest(cell_type, data.contexts)}"
        )
    place = 0 if cell_type is None else data.contexts.index(cell_type)
    context = torch.tensor([place])
    builder = Builder(data, model.settings)
    held, seen = [], []
    for f, fold in enumerate(data.folds):
        test = fold.test
        same = ((test.multi_hot.cpu() > 0).double() == hot).all(1) & (test.context.cpu() == place)
        held.append(same.nonzero()[:, 0].tolist())
        known = builder.known[0][f]
        alone = known.hot[known.hot.sum(1) == 1].sum(0) > 0
        seen.append(int((alone & (hot[0] > 0)).sum()))
    chosen = [f for f, rows in enumerate(held) if rows]
    is_held_out = bool(chosen)
    if not chosen:
        chosen = [f for f, n in enumerate(seen) if n == max(seen)]
    weight = model.weight["embed"]
    tasks = builder.asked([hot] * len(data.folds), [context] * len(data.folds))
    with torch.no_grad():
        said = model(tasks.to(weight.device, weight.dtype))
    common = [g for g in data.folds[chosen[0]].gene_names
              if all(g in data.folds[f].gene_names for f in chosen)]  # fmt: skip

    def of(table: Tensor, fold: int) -> Tensor:
        column = [data.folds[fold].gene_names.index(g) for g in common]
        return table[0, fold, 0].double().cpu()[column]

    delta = torch.stack([of(said.delta, f) for f in chosen])
    variance = torch.stack([of(said.std, f).square() for f in chosen]).mean(0)
    if len(chosen) > 1:
        variance = variance + delta.var(0)
    measured = None
    if is_held_out:
        f = chosen[0]
        column = [data.folds[f].gene_names.index(g) for g in common]
        measured = data.folds[f].test.delta_shared[held[f][0]].double().cpu()[column]
    n_gene = int(hot.sum())
    note = (
        "this perturbation is in the screen; the fold that held it out answers"
        if is_held_out
        else f"mean of {len(chosen)} fold(s) whose training has {max(seen)} of its {n_gene} "
        "gene(s) alone"
    )
    if not is_held_out and max(seen) < n_gene:
        note += "; for the others the mean of all perturbations stands in"
    return Answer(
        perturbation=name,
        cell_type=data.contexts[place],
        genes=tuple(common),
        delta=delta.mean(0),
        std=variance.sqrt(),
        baseline=torch.stack([of(said.base, f) for f in chosen]).mean(0),
        measured=measured,
        folds=tuple(chosen),
        note=note,
    )

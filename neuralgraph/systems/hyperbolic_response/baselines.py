"""What can be said of a perturbation in closed form; every score stands beside these.

All are fitted on training conditions only. A response (delta) is expression minus control, in the
units of the data (log1p of normalised counts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Known:
    """Training conditions as a predictor may know them; K conditions, G genes, P perturbations.

    Args:
        delta: Mean response against the controls of prediction, ``(K, G)``.
        variance: Sampling variance of the condition means, ``(K, G)``.
        hot: Which genes are perturbed, ``(K, P)``, 0 or 1.
        context: Cell type of each condition, ``(K,)`` long.
        control: Mean expression of the controls of prediction, ``(n_context, G)``.
        control_variance: Sampling variance of it, ``(n_context, G)``.
        gene_of: Column of each perturbed gene among the G, -1 where it is not measured, ``(P,)``.
    """

    delta: Tensor
    variance: Tensor
    hot: Tensor
    context: Tensor
    control: Tensor
    control_variance: Tensor
    gene_of: Tensor

    def without(self, row: int, *, also_related: bool) -> Known:
        """The same without one condition; ``also_related``: without its genes anywhere."""
        keep = torch.ones(len(self.delta), dtype=torch.bool)
        keep[row] = False
        if also_related:
            keep &= (self.hot @ self.hot[row]) == 0
        return self.rows(keep)

    def rows(self, keep: Tensor) -> Known:
        """Some of the conditions, by mask or index."""
        return replace(
            self,
            delta=self.delta[keep],
            variance=self.variance[keep],
            hot=self.hot[keep],
            context=self.context[keep],
        )

    def same_context(self, context: int) -> Known:
        """Conditions of a cell type; all of them where it has none."""
        mine = self.context == context
        return self.rows(mine) if bool(mine.any()) else self


Predictor = Callable[[Known, Tensor, Tensor], Tensor]
"""``(known, hot (n, P), context (n,)) -> predicted delta (n, G)``."""


def no_change(known: Known, hot: Tensor, context: Tensor) -> Tensor:
    """Zero."""
    return known.delta.new_zeros(len(hot), known.delta.shape[1])


def perturbed_mean(known: Known, hot: Tensor, context: Tensor) -> Tensor:
    """Mean response of the single perturbations of training (of all, where none is single)."""
    found = []
    for place in context.tolist():
        near = known.same_context(place)
        single = near.hot.sum(1) == 1
        found.append(near.delta[single if bool(single.any()) else slice(None)].mean(0))
    return torch.stack(found)


def parts(known: Known, hot: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Response of each perturbed gene alone, where training has it.

    The same cell type is preferred; a gene measured alone only in other cell types is taken from
    their mean.

    Returns:
        Responses ``(n, P, G)``, zero where not known; whether known, ``(n, P)``.
    """
    n, n_pert = hot.shape
    alone = known.hot.sum(1) == 1
    value = known.delta.new_zeros(n, n_pert, known.delta.shape[1])
    is_known = torch.zeros(n, n_pert, dtype=torch.bool)
    for i in range(n):
        for p in hot[i].nonzero()[:, 0].tolist():
            rows = alone & (known.hot[:, p] > 0)
            here = rows & (known.context == context[i])
            rows = here if bool(here.any()) else rows
            if bool(rows.any()):
                value[i, p] = known.delta[rows].mean(0)
                is_known[i, p] = True
    return value, is_known


def matching_mean(known: Known, hot: Tensor, context: Tensor) -> Tensor:
    """Mean of the responses of the perturbed genes; the perturbed mean stands in for missing ones.

    Source:
        Viñas Torné et al., Systema (2025).
    """
    return _filled(known, hot, context).sum(1) / hot.sum(1, keepdim=True).clamp_min(1)


def additive(known: Known, hot: Tensor, context: Tensor) -> Tensor:
    r"""Sum of the responses of the perturbed genes, :math:`\delta_A + \delta_B`.

    The perturbed mean stands in for a gene that was never perturbed alone.

    Source:
        Ahlmann-Eltze, Huber & Anders, Nat Methods 22:1657 (2025).
    """
    return _filled(known, hot, context).sum(1)


def _filled(known: Known, hot: Tensor, context: Tensor) -> Tensor:
    value, is_known = parts(known, hot, context)
    missing = ((hot > 0) & ~is_known)[..., None]
    return torch.where(missing, perturbed_mean(known, hot, context)[:, None], value)


def ridge(
    known: Known, hot: Tensor, context: Tensor, *, n_component: int = 10, penalty: float = 0.1
) -> Tensor:
    r"""Bilinear ridge regression, :math:`Y \approx G W P^\top + b`.

    G: loadings of genes on the principal components of the training conditions; P: the rows of G
    of the perturbed genes (summed over a combination); b: mean response. A perturbation of a gene
    that is not measured has no row, and is predicted by b.

    Args:
        known: Training conditions.
        hot: Perturbed genes of what is to be predicted, ``(n, P)``.
        context: Cell types, ``(n,)``.
        n_component: Components K.
        penalty: λ on both sides.
    Source:
        Ahlmann-Eltze, Huber & Anders, Nat Methods 22:1657 (2025).
    """
    level = perturbed_mean(known, hot, context)
    has_row = (known.gene_of >= 0).to(known.delta.dtype)
    usable = (known.hot @ has_row) == known.hot.sum(1)
    asked = (hot @ has_row) == hot.sum(1)
    if int(usable.sum()) < 2 or not bool(asked.any()):
        return level
    own = perturbed_mean(known, known.hot, known.context)
    centred = known.delta - known.delta.mean(0)
    _, _, vectors = torch.linalg.svd(centred, full_matrices=False)
    genes = vectors[:n_component].T  # (G, K)
    table = genes[known.gene_of.clamp_min(0)] * has_row[:, None]  # (P, K)
    design = known.hot[usable] @ table
    eye = penalty * torch.eye(genes.shape[1], dtype=genes.dtype, device=genes.device)
    left = torch.linalg.solve(genes.T @ genes + eye, genes.T @ (known.delta - own)[usable].T)
    weight = torch.linalg.solve(design.T @ design + eye, (left @ design).T).T
    predicted = level + (hot @ table) @ weight.T @ genes.T
    return torch.where(asked[:, None], predicted, level)


PREDICTORS: dict[str, Predictor] = {
    "no_change": no_change,
    "perturbed_mean": perturbed_mean,
    "matching_mean": matching_mean,
    "additive": additive,
    "ridge": ridge,
}


def population_control(known: Known) -> tuple[Tensor, Tensor]:
    r"""Controls shrunk towards the median perturbation, by empirical Bayes.

    Most genes answer to few perturbations, so the median over perturbed conditions tells of
    unperturbed cells too, and holds many more cells. With :math:`\tau^2` the variance between the
    two beyond sampling (mean over genes), the control moves to the median by
    :math:`v / (v + \tau^2)`. Useful where the truth is measured against *other* control cells;
    where it is measured against the same ones, their noise is in it and must stay.

    Returns:
        Shift of the control ``(n_context, G)`` and the sampling variance that is left.
    """
    shift = torch.zeros_like(known.control)
    left = known.control_variance.clone()
    for place in known.context.unique().tolist():
        mine = known.context == place
        if int(mine.sum()) < 3:
            continue
        middle = known.delta[mine].median(0).values
        noise = known.variance[mine].mean(0) * 1.57 / int(mine.sum())  # of a median
        own = known.control_variance[place]
        between = float((middle.square() - own - noise).mean().clamp_min(0))
        share = own / (own + noise + between).clamp_min(1e-12)
        shift[place] = share * middle
        left[place] = own * (1 - share)
    return shift, left


def shrunk(known: Known, *, control_is_exact: bool) -> Known:
    r"""Responses shrunk gene by gene by their reliability, :math:`\tau_g^2 / (\tau_g^2 + v)`.

    :math:`\tau_g^2` is the mean squared response of a gene beyond sampling, over training
    conditions; v the sampling variance of one response.

    Args:
        known: Training conditions.
        control_is_exact: Whether responses are judged against the very same controls, whose
            sampling noise is then part of them; else it is noise, and the controls are shrunk
            first (:func:`population_control`).
    Source:
        James & Stein (1961), by the method of moments.
    """
    delta, noise = known.delta, known.variance
    if not control_is_exact:
        shift, left = population_control(known)
        delta = delta - shift[known.context]
        noise = noise + left[known.context]
    between = (delta.square() - noise).mean(0).clamp_min(0)
    return replace(known, delta=delta * between / (between + noise).clamp_min(1e-12))

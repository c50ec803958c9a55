"""What can be said of a perturbation in closed form; every score stands beside these.

All are fitted on training conditions only. A response (delta) is expression minus control, in the
units of the data (log1p of normalised counts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    found = known.delta.new_zeros(len(context), known.delta.shape[1])
    for place in context.unique().tolist():
        near = known.same_context(place)
        single = near.hot.sum(1) == 1
        mean = near.delta[single if bool(single.any()) else slice(None)].mean(0)
        found[context == place] = mean
    return found


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


RIDGE_PUBLISHED = (10, 0.1)
"""Components and penalty of the bilinear ridge as published."""
RIDGE_GRID = tuple(
    (n_component, penalty)
    for n_component in (5, 10, 20, 40, 80, 160)
    for penalty in (1e-3, 1e-2, 1e-1, 1.0)
)
"""Components and penalties :func:`ridge` chooses from."""
N_INNER = 5
"""Inner folds of training conditions it chooses on."""


def bilinear(
    known: Known, hot: Tensor, context: Tensor, settings: Sequence[tuple[int, float]]
) -> Tensor:
    r"""Bilinear ridge regression, :math:`Y \approx G W P^\top + b`, for several settings at once.

    G: loadings of genes on the principal components of the training conditions; P: the rows of G
    of the perturbed genes (summed over a combination); b: mean response. A perturbation of a gene
    that is not measured has no row, and is predicted by b.

    Args:
        known: Training conditions.
        hot: Perturbed genes of what is to be predicted, ``(n, P)``.
        context: Cell types, ``(n,)``.
        settings: Components K (as many as there are, where fewer) and penalty λ on both sides.

    Returns:
        ``(n_setting, n, G)``.

    Source:
        Ahlmann-Eltze, Huber & Anders, Nat Methods 22:1657 (2025).
    """
    level = perturbed_mean(known, hot, context)
    usable, asked = _has_row(known, known.hot), _has_row(known, hot)
    if int(usable.sum()) < 2 or not bool(asked.any()):
        return level.expand(len(settings), *level.shape)
    own = perturbed_mean(known, known.hot, known.context)
    centred = known.delta - known.delta.mean(0)
    vectors = torch.linalg.svd(centred, full_matrices=False).Vh
    is_measured = (known.gene_of >= 0).to(known.delta.dtype)
    table = vectors.T[known.gene_of.clamp_min(0)] * is_measured[:, None]  # (P, rank)
    design, query = known.hot[usable] @ table, hot @ table
    loading = (known.delta - own)[usable] @ vectors.T  # (n_usable, rank)
    found = []
    for n_component, penalty in settings:
        x = design[:, :n_component]
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        # G is orthonormal: its side of the penalty divides by 1 + λ
        left = loading[:, :n_component] / (1 + penalty)
        weight = torch.linalg.solve(x.T @ x + penalty * eye, x.T @ left)  # (K, K)
        predicted = level + query[:, :n_component] @ weight @ vectors[:n_component]
        found.append(torch.where(asked[:, None], predicted, level))
    return torch.stack(found)


def _has_row(known: Known, hot: Tensor) -> Tensor:
    """Whether every perturbed gene is measured, ``(n,)`` bool."""
    return (hot @ (known.gene_of >= 0).to(hot.dtype)) == hot.sum(1)


def ridge_published(known: Known, hot: Tensor, context: Tensor) -> Tensor:
    """The bilinear ridge with the published setting, :data:`RIDGE_PUBLISHED`."""
    return bilinear(known, hot, context, [RIDGE_PUBLISHED])[0]


def ridge_choice(known: Known, hot: Tensor) -> tuple[int, float]:
    """Components and penalty that predict left-out training conditions best, by squared error.

    Training conditions of as many genes as those asked for are left out in turn, a fifth at a
    time; where no gene that is asked for is known, together with all that share a gene with them.
    Of what is asked for only the names of its genes are looked at.

    Args:
        known: Training conditions.
        hot: Perturbed genes of what is to be predicted, ``(n, P)``.

    Returns:
        One of :data:`RIDGE_GRID`; :data:`RIDGE_PUBLISHED` where there is nothing to choose on.
    """
    order = known.hot.sum(1)
    wanted = torch.isin(order, hot.sum(1)) & _has_row(known, known.hot)
    rows = wanted.nonzero()[:, 0]
    if len(rows) < N_INNER or not bool(_has_row(known, hot).any()):
        return RIDGE_PUBLISHED
    is_new = float((hot @ known.hot.sum(0)).sum()) == 0
    error = known.delta.new_zeros(len(RIDGE_GRID))
    for k in range(N_INNER):
        held = rows[k::N_INNER]
        keep = torch.ones(len(order), dtype=torch.bool, device=order.device)
        keep[held] = False
        if is_new:
            keep &= (known.hot @ known.hot[held].sum(0)) == 0
        if int(keep.sum()) < 2:
            continue
        said = bilinear(known.rows(keep), known.hot[held], known.context[held], RIDGE_GRID)
        error += (said - known.delta[held]).square().mean(-1).sum(-1)
    if not bool((error > 0).any()):
        return RIDGE_PUBLISHED
    return RIDGE_GRID[int(error.argmin())]


def ridge(known: Known, hot: Tensor, context: Tensor) -> Tensor:
    """The bilinear ridge, components and penalty chosen on training conditions.

    See :func:`bilinear` and :func:`ridge_choice`.
    """
    return bilinear(known, hot, context, [ridge_choice(known, hot)])[0]


PREDICTORS: dict[str, Predictor] = {
    "no_change": no_change,
    "perturbed_mean": perturbed_mean,
    "matching_mean": matching_mean,
    "additive": additive,
    "ridge": ridge,
    "ridge_published": ridge_published,
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


def additive_shrunk(
    known: Known, hot: Tensor, context: Tensor, *, control_is_exact: bool
) -> Tensor:
    """The sum of the single responses, each shrunk first: what denoising alone makes of additive.

    Controls are shrunk, too, where they are not exact and every gene asked for was perturbed
    alone; else the part that all perturbations share stays (see :func:`shrunk`).

    Args:
        known: Training conditions.
        hot: Perturbed genes of what is to be predicted, ``(n, P)``.
        context: Cell types, ``(n,)``.
        control_is_exact: As in :func:`shrunk`.

    Returns:
        ``(n, G)``.
    """
    said = additive(shrunk(known, control_is_exact=True), hot, context)
    if control_is_exact:
        return said
    is_full = (parts(known, hot, context)[1] == (hot > 0)).all(1, keepdim=True)
    clean = additive(shrunk(known, control_is_exact=False), hot, context)
    return torch.where(is_full, clean, said)

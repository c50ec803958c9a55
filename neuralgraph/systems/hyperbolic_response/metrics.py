"""How far a predicted response is from the measured one; pure functions of tensors.

A response (delta) is expression minus a reference. The reference of the prediction and that of the
truth may be the same control cells (*shared*) or two disjoint halves of them (*disjoint*): with
shared controls the sampling noise of the control mean is in both, and every predictor is praised
for it. All functions return one value for each perturbation, NaN where it is undefined, so that
perturbations, the unit of inference, can be resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralgraph.core.seeding import torch_generator

METRICS = (
    "pearson_delta",
    "mse",
    "mse_top20_de",
    "direction_match",
    "pds",
    "de_overlap",
    "energy_distance",
)
LOWER_IS_BETTER = ("mse", "mse_top20_de", "energy_distance")
BASELINES = (
    "no_change",
    "perturbed_mean",
    "matching_mean",
    "additive",
    "additive_shrunk",
    "ridge",
    "ridge_published",
    "ceiling",
)
N_TOP = 20


def pearson(prediction: Tensor, truth: Tensor) -> Tensor:
    """Correlation over genes; NaN where one side does not vary.

    Args:
        prediction: ``(n_pert, n_gene)``.
        truth: The same shape.
    Returns:
        ``(n_pert,)`` in [-1, 1].
    """
    a = prediction - prediction.mean(-1, keepdim=True)
    b = truth - truth.mean(-1, keepdim=True)
    size = a.norm(dim=-1) * b.norm(dim=-1)
    tiny = 1e-12 * (1 + prediction.abs().amax(-1)) * (1 + truth.abs().amax(-1))
    value = ((a * b).sum(-1) / size.clamp_min(1e-300)).clamp(-1, 1)
    return torch.where(size > tiny, value, torch.nan)


def mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error over genes, ``(n_pert,)``."""
    return (prediction - truth).square().mean(-1)


def mse_top(prediction: Tensor, truth: Tensor, response: Tensor, n_top: int = N_TOP) -> Tensor:
    """Mean squared error on the genes that respond most.

    Args:
        prediction: ``(n_pert, n_gene)``.
        truth: The same shape.
        response: What genes are ranked by, largest magnitude first: the true response against
            control.
        n_top: Genes of each perturbation (all, where there are fewer).
    """
    top = response.abs().topk(min(n_top, response.shape[-1]), dim=-1).indices
    return (prediction - truth).square().gather(-1, top).mean(-1)


def direction_match(prediction: Tensor, truth: Tensor, is_de: Tensor) -> Tensor:
    """Share of the differentially expressed genes whose predicted sign is right.

    A prediction of 0 has no sign and counts one half, what a coin would score.

    Args:
        prediction: ``(n_pert, n_gene)``.
        truth: The same shape.
        is_de: Bool of the same shape; NaN is returned where none is.
    """
    right = (1 + prediction.sign() * truth.sign()) / 2
    n = is_de.sum(-1)
    value = (right * is_de).sum(-1) / n.clamp_min(1)
    return torch.where(n > 0, value, torch.nan)


def pds(prediction: Tensor, truth: Tensor, is_target: Tensor) -> Tensor:
    r"""Perturbation discrimination score: does a prediction lie nearest to its own truth?

    :math:`1 - r / (n - 1)` with r the rank (from 0) of the own truth among all n by L1 distance,
    the target genes of the perturbation left out. Ties share their expected rank, so a predictor
    that says the same of every perturbation scores .5 on average.

    Args:
        prediction: ``(n_pert, n_gene)``.
        truth: The same shape; the candidates.
        is_target: ``(n_pert, n_gene)`` bool, genes the perturbation itself acts on.
    Returns:
        ``(n_pert,)`` in [0, 1], higher is better; NaN for a single perturbation.
    """
    n = len(truth)
    if n < 2:
        return truth.new_full((n,), math.nan)
    kept = (~is_target).to(truth.dtype)
    distance = torch.stack(
        [((prediction[i] - truth).abs() * kept[i]).sum(-1) for i in range(n)]
    )  # (n, n)
    own = distance.diagonal()[:, None]
    slack = 1e-9 * (own.abs() + 1e-12)
    closer = (distance < own - slack).sum(1)
    tied = ((distance - own).abs() <= slack).sum(1) - 1
    return 1 - (closer + tied / 2).to(truth.dtype) / (n - 1)


def de_overlap(prediction: Tensor, is_de: Tensor) -> Tensor:
    """Share of the truly differentially expressed genes among as many top predicted ones.

    The prediction is a mean without cells, so its genes are ranked by the size of the predicted
    response. Ties are given their expected share: a prediction of no change scores k / n_gene.

    Args:
        prediction: Predicted response against control, ``(n_pert, n_gene)``.
        is_de: Bool of the same shape; NaN is returned where none is.
    """
    found = []
    for size, wanted in zip(prediction.abs(), is_de, strict=True):
        k = int(wanted.sum())
        if k == 0:
            found.append(math.nan)
            continue
        threshold = size.topk(k).values[-1]
        above = size > threshold
        level = size == threshold
        share = (k - int(above.sum())) / int(level.sum())
        found.append((float((above & wanted).sum()) + share * float((level & wanted).sum())) / k)
    return torch.tensor(found, dtype=prediction.dtype)


def rank_sum(cells: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
    """Wilcoxon rank-sum test of every gene, normal approximation with ties corrected.

    Args:
        cells: ``(n_cell, n_gene)``.
        control: ``(n_control, n_gene)``.
    Returns:
        z and two-sided p, each ``(n_gene,)``; a gene that does not vary has z 0 and p 1.
    """
    n, m = len(cells), len(control)
    both = torch.cat([cells, control]).T.contiguous().double()
    ordered = both.sort(-1).values
    left = torch.searchsorted(ordered, both)
    right = torch.searchsorted(ordered, both, right=True)
    rank = (left + right + 1).double() / 2
    tied = (right - left).double()
    total = n + m
    ties = (tied.square() - 1).sum(-1) / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - ties)
    centred = rank[:, :n].sum(-1) - n * (total + 1) / 2
    z = torch.where(variance > 1e-9, centred / variance.clamp_min(1e-9).sqrt(), 0.0)
    return z, torch.special.erfc(z.abs() / math.sqrt(2))


def benjamini_hochberg(p: Tensor) -> Tensor:
    """False discovery rates ``(n_gene,)`` of p values.

    >>> benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.5]))
    tensor([0.0400, 0.0533, 0.0533, 0.5000])
    """
    n = len(p)
    order = p.argsort(descending=True)
    scaled = p[order] * n / torch.arange(n, 0, -1, device=p.device)
    return torch.empty_like(p).scatter(0, order, scaled.cummin(0).values.clamp_max(1))


def differential_genes(cells: Tensor, control: Tensor, *, fdr: float) -> Tensor:
    """Genes whose expression differs: Wilcoxon rank-sum, Benjamini-Hochberg, ``(n_gene,)`` bool."""
    _, p = rank_sum(cells, control)
    return benjamini_hochberg(p) < fdr


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance of two sets of cells, without self pairs (its mean is 0 for equal laws).

    2 E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean distances over genes.

    Args:
        x: ``(n_cell, n_gene)``.
        y: ``(m_cell, n_gene)``.
    """
    if len(x) < 2 or len(y) < 2:
        return math.nan
    return float(2 * torch.cdist(x, y).mean()) - mean_distance(x) - mean_distance(y)


def mean_distance(x: Tensor) -> float:
    """Mean distance of two different cells."""
    return float(torch.cdist(x, x).sum()) / (len(x) * (len(x) - 1))


def interval(values: Tensor, n_draw: int, *, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over perturbations; NaN values are left out.

    Args:
        values: One value for each perturbation, ``(n_pert,)``; a paired difference for a gain.
        n_draw: Draws.
        level: Coverage.
    Returns:
        Low and high; NaN below two values.
    """
    kept = values[torch.isfinite(values)].double()
    if len(kept) < 2:
        return math.nan, math.nan
    generator = torch_generator(0, "bootstrap over perturbations")
    index = torch.randint(len(kept), (n_draw, len(kept)), generator=generator)
    means = kept.cpu()[index].mean(1)
    tail = (1 - level) / 2
    return float(means.quantile(tail)), float(means.quantile(1 - tail))


def mean_of(values: Tensor) -> float:
    """Mean of the defined values; NaN where there is none."""
    kept = values[torch.isfinite(values)]
    return float(kept.mean()) if len(kept) else math.nan


def detectable(difference: Tensor, *, power: float = 0.8) -> float:
    """Smallest true mean difference a paired t-test at 5 % would find with this power.

    Args:
        difference: Paired differences over perturbations, ``(n_pert,)``.
        power: Chance of finding it.
    Returns:
        (t + z) · sd / √n, in the unit of the metric; NaN below three values, and where the two
        predictors are the same.
    """
    from scipy import stats

    kept = difference[torch.isfinite(difference)].double()
    n = len(kept)
    if n < 3 or float(kept.abs().max()) < 1e-6:
        return math.nan
    factor = stats.t.ppf(0.975, n - 1) + stats.t.ppf(power, n - 1)
    return float(factor * kept.std() / math.sqrt(n))


def gain(ours: Tensor, other: Tensor, metric: str) -> Tensor:
    """Paired improvement of each perturbation, positive where ours is better."""
    return other - ours if metric in LOWER_IS_BETTER else ours - other


def name_of(
    metric: str, *, vs_mean: bool, disjoint: bool, baseline: str = "", bound: str = ""
) -> str:
    """Name in the scorecard: ``{metric}[_vs_mean][_disjoint][_{baseline}][_lo|_hi]``.

    >>> name_of("pearson_delta", vs_mean=True, disjoint=True, baseline="additive", bound="lo")
    'pearson_delta_vs_mean_disjoint_additive_lo'
    """
    parts = [metric]
    parts += ["vs_mean"] * vs_mean + ["disjoint"] * disjoint
    parts += [baseline] if baseline else []
    parts += [bound] if bound else []
    return "_".join(parts)


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Mean over repeats of per-perturbation values, undefined ones left out, ``(n_pert,)``."""
    return torch.stack(list(values)).nanmean(0)

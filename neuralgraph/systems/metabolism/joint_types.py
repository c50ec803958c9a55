"""Metabolite types from the lines of homeostasis, their number included."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TAUS = tuple(4.0**n for n in range(12))
"""Factors by which the covariances of the lines may be too small."""
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Types:
    """Components of a Gaussian mixture with known measurement covariances.

    Args:
        mean: Value at the reference concentration and slope of each type, ``(n_type, 2)``.
        posterior: Probability of each type for each metabolite, ``(n_met, n_type)``.
        criterion: Bayesian information criterion for 1, 2, … types.
    """

    mean: Tensor
    posterior: Tensor
    criterion: tuple[float, ...]


def metabolite_types(
    value: Tensor, covariance: Tensor, *, smallest: Tensor, max_types: int
) -> Types:
    r"""Types of metabolites from what was measured of each, their number included.

    $z_i \sim \sum_t w_t\, N(\mu_t, \tau C_i + \sigma_0^2)$: metabolites of one type share
    one line, $C_i$ is what the fit says of its error, $\tau \ge 1$ (fitted) allows for its being
    too small, $\sigma_0$ is a tolerance; a flat background takes metabolites of no type.
    Components are added where the likelihood gains most, and their number has the lowest criterion.

    Args:
        value: ``(n_met, 2)``.
        covariance: $C_i$, ``(n_met, 2, 2)``.
        smallest: $\sigma_0$ of both coordinates, ``(2,)``, > 0.
        max_types: Largest number of types considered.

    Source:
        own; expectation-maximisation after Dempster, Laird & Rubin (1977), criterion after
        Schwarz (1978).
    """
    n = value.shape[0]
    z = value / smallest
    size, axis = torch.linalg.eigh(covariance / (smallest[:, None] * smallest))
    noise = _Spread(size.clamp_min(0), axis)
    best: tuple[Tensor, Tensor] | None = None
    lowest = float("inf")
    centres = z[:0]
    criterion: list[float] = []
    for n_type in range(1, max_types + 1):
        if n_type > n:
            break
        centres = _one_more(z, noise, centres)
        centres, posterior, log_likelihood = _expectation_maximisation(z, noise, centres)
        n_free = 3 * n_type + 1  # two coordinates and a share each; tau
        criterion.append(n_free * math.log(n) - 2 * log_likelihood)
        is_shared = n_type == 1 or float(posterior.sum(0).min()) > 1.5  # one metabolite is no type
        if criterion[-1] < lowest and is_shared:
            lowest, best = criterion[-1], (centres, posterior)
        elif n_type > 2 and criterion[-1] > criterion[-2] > lowest:
            break
    assert best is not None
    mean, posterior = best
    order = torch.argsort(mean[:, 1], descending=True)
    return Types(mean[order] * smallest, posterior[:, order], tuple(criterion))


@dataclass(frozen=True)
class _Spread:
    """Eigenvalues ``(n, 2)`` and eigenvectors ``(n, 2, 2)`` of measurement covariances."""

    size: Tensor
    axis: Tensor

    def along(self, x: Tensor) -> Tensor:
        """Coordinates of ``x`` ``(n, m, 2)`` along the eigenvectors."""
        return x @ self.axis

    def mean(self, z: Tensor, posterior: Tensor, tau: float) -> Tensor:
        """Precision-weighted means, ``(n_type, 2)``."""
        precision = (self.axis / (tau * self.size + 1)[:, None, :]) @ self.axis.transpose(1, 2)
        total = torch.einsum("nt,nij->tij", posterior, precision)
        total = total + 1e-12 * torch.eye(2, dtype=z.dtype)
        moment = torch.einsum("nt,nij,nj->ti", posterior, precision, z)
        return torch.linalg.solve(total, moment)

    def log_density(self, z: Tensor, centres: Tensor, tau: float) -> Tensor:
        """``(n, n_type)``."""
        variance = tau * self.size + 1
        square = self.along(z[:, None] - centres).square() / variance[:, None]
        return -0.5 * (square.sum(2) + variance.log().sum(1, keepdim=True)) - LOG_2PI


def _expectation_maximisation(
    z: Tensor, noise: _Spread, centres: Tensor, n_iteration: int = 200
) -> tuple[Tensor, Tensor, float]:
    """Centres, posterior (types alone) and log likelihood; a flat background takes stray points."""
    n_type = centres.shape[0]
    share = torch.full((n_type + 1,), 1 / (n_type + 1), dtype=z.dtype)
    area = float((z.amax(0) - z.amin(0) + 1).prod())
    background = torch.full((z.shape[0], 1), -math.log(area), dtype=z.dtype)
    log_likelihood, posterior = -float("inf"), torch.ones(z.shape[0], n_type, dtype=z.dtype)
    taus = list(range(len(TAUS)))
    for _ in range(n_iteration):
        each = {}
        for t in taus:
            density = torch.cat([noise.log_density(z, centres, TAUS[t]), background], 1)
            each[t] = density + share.log()
        total = {t: float(joint.logsumexp(1).sum()) for t, joint in each.items()}
        best = max(total, key=total.__getitem__)
        posterior = each[best].softmax(1)
        gain = total[best] - log_likelihood
        log_likelihood = total[best]
        if gain < 1e-8 * (1 + abs(log_likelihood)):
            break
        share = posterior.mean(0).clamp_min(1e-12)
        centres = noise.mean(z, posterior[:, :-1], TAUS[best])
        taus = [t for t in (best - 1, best, best + 1) if 0 <= t < len(TAUS)]
    kept = posterior[:, :-1] + 1e-300 * share[:-1]
    return centres, kept / kept.sum(1, keepdim=True), log_likelihood


def _one_more(z: Tensor, noise: _Spread, centres: Tensor, n_try: int = 12) -> Tensor:
    """One centre more, at the metabolite where the likelihood gains most."""
    if len(centres):
        candidates = torch.argsort(noise.log_density(z, centres, 1.0).amax(1))
    else:
        candidates = torch.argsort(z[:, 1], stable=True)
    spaced = torch.linspace(0, len(z) - 1, min(n_try, len(z))).round().long()
    starts = [z[i : i + 1] for i in candidates[spaced].tolist()]
    if not len(centres):
        starts.append(noise.mean(z, torch.ones(len(z), 1, dtype=z.dtype), 1.0))
    best, best_gain = None, -float("inf")
    for start in starts:
        trial = torch.cat([centres, start])
        trial, _, gain = _expectation_maximisation(z, noise, trial, n_iteration=15)
        if gain > best_gain:
            best, best_gain = trial, gain
    assert best is not None
    return best


def places_of_types(types: Types, n_dim: int) -> Tensor:
    """Where each type lies in the space of embeddings, ``(n_type, n_dim)``.

    Types lie at their (slope, value), each in units of its spread over types, scaled so that the
    nearest two are 1 apart; further coordinates are 0.
    """
    place = types.mean.flip(1)
    place = place - place.mean(0)
    place = place / place.square().mean(0).sqrt().clamp_min(1e-30)
    n_type = place.shape[0]
    if n_type == 1:
        place = torch.zeros_like(place)
    place = place[:, :n_dim]
    if n_type > 1:
        apart = torch.pdist(place)
        if float(apart.min()) < 0.05 * float(apart.max()):  # a crowd: evenly along one line
            place = torch.zeros_like(place)
            place[:, 0] = torch.arange(n_type, dtype=place.dtype) - 0.5 * (n_type - 1)
        else:
            place = place / apart.min()
    return nn.functional.pad(place, (0, n_dim - place.shape[1]))

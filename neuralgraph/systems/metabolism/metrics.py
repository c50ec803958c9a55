r"""Every score of a metabolic network, defined in one place.

**Gauge of the stoichiometry.** $\dot c_i = \sum_j S_{ij} k_j g_j(c)$ is unchanged by
$(S_{\cdot j}, k_j) \to (\alpha_j S_{\cdot j}, k_j / \alpha_j)$ with $\alpha_j > 0$, one scale for
each reaction (a global scale of S is the special case of equal $\alpha_j$). :func:`fix_gauge`
chooses $\alpha_j$ from the estimate and the given prior alone:

1. the scale that brings $|\hat S_j|$ closest to the integers 1, 2, …, ``max_coefficient`` (0 as
   well where the support is not given); the smallest integers where several fit alike;
2. a column of integers with a free common factor ($1, 1, 1$ or $2, 2, 2$) is multiplied by the
   factor that brings it closest to the coefficients $|\hat s|$ with which its substrates enter
   the model's own rate law (``sto_sub``), where the roles are given, or where the estimate says
   itself which they are; else by 1.

**Gauge of the rate constants.** After the step above, $k_j \to k_j / \alpha_j$ and
$\log_{10} k_j$ is moved by the amplitude of the learned rate law: ``mass_action`` by
$n_{sub,j} \log_{10} \alpha$ with $\alpha = |\mathrm{MLP\_sub}(1, 1)|$; ``learned_rate`` by the mean
over reactions of $\log_{10} g_j$ at the median training state, in the estimate and in the truth
alike, each from its own rate law.

**R²** means $1 - SSE/SST$ on the identity line, unless the name says ``refit``.

==============================  ====================================================================
``stoichiometry_R2``            over the edges of the true support, gauge fixed, not rounded
``stoichiometry_R2_full``       over the whole matrix, zeros included, gauge fixed
``stoichiometry_R2_refit``      R² of the refitted line over the true support, gauge as trained
``sign_accuracy``               share of true edges whose sign is right; not where roles are given
``support_f1``                  F1 of the non-zero integers; not where the support is given
``…_renamed``                   the same after reactions with equal substrates have exchanged their
                                names so as to fit the truth best; only where the support is not
                                given: nothing then says which of them is which
``exact_edges``                 share of true edges whose integer is right
``exact_columns``               share of reactions all of whose entries are right
``…_identifiable``              the same, over what prior and noise-free data determine
``exact_edges…_oracle``         ceiling: the same of least squares of each row with the true rates,
                                rounded to the integers the prior allows; only a method that uses
                                ties between rows can exceed it
``…_trivial``                   1.5 times the known sign (0 where no sign is known); its integer is
                                1 or 2 times that sign, whichever is the more frequent truth
``identifiable_fraction_…``     share of edges, columns, k that prior and noise-free data determine
``rate_constants_R2``           of log10 k after the gauge, over all reactions
``n_outliers``                  reactions with an error of log10 k above 0.3
``trimmed_R2``                  R² without the outliers
``slope``                       least-squares slope of estimated against true log10 k
``rate_constants_group_error``  largest relative error of the determined combinations (k1 ± k2, …)
``rate_constants_R2_ceiling``   expected ``rate_constants_R2`` of the best predictor there is: the
                                posterior mean under the prior of k and the determined combinations
``alpha``                       amplitude of the learned rate law, ``|MLP_sub(1, 1)|``
``MLP_sub_curve_error_s``       root mean square of MLP_sub(c, s) / alpha - c^s over the range of
                                training concentrations, relative to that of c^s
``MLP_node_slope_ratio_t``      learned over true slope of homeostasis, median over type t
``MLP_node_offset_ratio_t``     the same of its value at c = 0
``avg_slope_ratio``             mean of the slope ratios; opposite errors cancel in it
``embedding_cluster_acc``       share of metabolites in the cluster of their type (noise is none)
==============================  ====================================================================

What is identifiable does not depend on whether roles or support are given: with noise-free data
the rates settle the roles (a rate does not depend on products) and the support (an absent edge is a
coefficient 0 like any other), up to columns with one and the same set {(substrate, |s|)}. Where the
support is not given, ``exact_edges`` counts true edges only, and ``support_f1`` and
``exact_columns`` the spurious ones as well.

Exactness and gauge-fixed R² count columns of integers only: the biomass reaction of an SBML model
has no integer scale, and its coefficients of 60 would decide every R². Such columns are left out.
Where S is not given, the rate constant of such a column has a free scale as well, so that it is not
identifiable (``no integer scale``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.metrics.recovery import nearest_integer_scale, sign_accuracy, support_f1
from neuralgraph.metrics.regression import least_squares_slope, r2_identity, r2_refit
from neuralgraph.numerics.identifiability import Group
from neuralgraph.systems.metabolism.closed_form import log_k_of_combination
from neuralgraph.systems.metabolism.network import ReactionNetwork, integer_columns

OUTLIER = 0.3
"""Error of log10 k from which a reaction is an outlier (document 002)."""


# -- gauge ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaugedStoichiometry:
    """Stoichiometry on the edges of the estimate, in the fixed gauge.

    Args:
        met, rxn: Edges, ``(n_edge,)`` long; every pair may be one where no support is given.
        value: Coefficients after the gauge, not rounded, ``(n_edge,)`` float64.
        integer: The integers they stand for.
        scale: Factor of each reaction, ``(n_rxn,)``: ``value = scale[rxn] * raw``.
        raw: Coefficients as trained.
        n_met: Number of metabolites.
    """

    met: Tensor
    rxn: Tensor
    value: Tensor
    integer: Tensor
    scale: Tensor
    raw: Tensor
    n_met: int

    @property
    def n_rxn(self) -> int:
        """Number of reactions."""
        return self.scale.shape[0]

    def dense(self, values: Tensor) -> Tensor:
        """Edge values as a matrix, ``(n_met, n_rxn)`` float64."""
        matrix = torch.zeros(self.n_met, self.n_rxn, dtype=torch.float64)
        matrix[self.met, self.rxn] = values.double()
        return matrix


def fix_gauge(
    met: Tensor,
    rxn: Tensor,
    value: Tensor,
    *,
    n_met: int,
    n_rxn: int,
    substrate: tuple[Tensor, Tensor, Tensor] | None,
    max_coefficient: int,
    is_support_given: bool,
) -> GaugedStoichiometry:
    r"""Bring each column of an estimated stoichiometry to its integer scale.

    Laws: multiplying column j by $\alpha > 0$ divides ``scale[j]`` by $\alpha$ and changes
    nothing else; the order of edges, reactions and metabolites does not matter. The truth is not
    among the arguments.

    Args:
        met: Metabolite of each edge of the estimate, ``(n_edge,)`` long.
        rxn: Reaction of each edge.
        value: Estimated net coefficients, ``(n_edge,)``.
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        substrate: ``(met_sub, rxn_sub, sto_sub)`` of the estimate where the roles are given:
            the coefficients in the model's rate law, which settle the common factor of a column.
        max_coefficient: Largest coefficient considered (a public fact of the model family).
        is_support_given: Whether an edge is known to be non-zero.
    Returns:
        Scales, scaled coefficients and integers.
    Source:
        Own.
    """
    met, rxn = met.detach().cpu().long(), rxn.detach().cpu().long()
    raw = value.detach().cpu().double()
    scale = torch.ones(n_rxn, dtype=torch.float64)
    integer = torch.zeros_like(raw)
    in_rate: dict[tuple[int, int], float] = {}
    if substrate is not None:
        m, r, s = (t.detach().cpu() for t in substrate)
        in_rate = dict(zip(zip(m.tolist(), r.tolist(), strict=True), s.abs().tolist(), strict=True))
    order = torch.argsort(rxn, stable=True)
    for edges in order.split(torch.bincount(rxn, minlength=n_rxn).tolist()):
        if not edges.numel():
            continue
        found = nearest_integer_scale(
            raw[edges], largest=max_coefficient, allow_zero=not is_support_given
        )
        peak = int(found.integer.abs().max())
        if peak == 0:
            continue
        j = int(rxn[edges[0]])
        ratio = [
            in_rate[pair] / abs(n)
            for i, n in zip(met[edges].tolist(), found.integer.tolist(), strict=True)
            if n < 0 and (pair := (i, j)) in in_rate
        ]
        factor = round(sorted(ratio)[len(ratio) // 2]) if ratio else 1
        factor = max(1, min(factor, max_coefficient // peak))
        scale[j] = factor * found.scale
        integer[edges] = factor * found.integer
    return GaugedStoichiometry(met, rxn, raw * scale[rxn], integer, scale, raw, n_met)


# -- stoichiometry ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StoichiometryErrors:
    """What is wrong with the integers of an estimate, edge by edge and in words.

    Args:
        n_edge: True edges in integer columns.
        n_missing: True edges that the estimate sets to 0 (or does not have).
        n_spurious: Edges that the truth does not have.
        n_sign: Edges of the wrong sign.
        n_scale: Edges wrong by a common factor of their whole column only.
        n_magnitude: Edges of the right sign and the wrong magnitude otherwise.
    """

    n_edge: int
    n_missing: int
    n_spurious: int
    n_sign: int
    n_scale: int
    n_magnitude: int

    def __str__(self) -> str:
        wrong = self.n_missing + self.n_sign + self.n_scale + self.n_magnitude
        if wrong + self.n_spurious == 0:
            return f"nothing: all {self.n_edge} edges are exact"
        parts = {
            "support": self.n_missing,
            "sign": self.n_sign,
            "magnitude": self.n_magnitude,
            "scale of a whole column": self.n_scale,
        }
        shown = ", ".join(f"{n} by {name}" for name, n in parts.items() if n)
        text = f"{wrong} of {self.n_edge} edges are wrong" + (f": {shown}" if shown else "")
        if self.n_spurious:
            text += f"; {self.n_spurious} edges are spurious"
        worst = max(parts, key=lambda name: parts[name])
        if wrong and parts[worst] > 0.5 * wrong:
            text += f"; mostly {worst}"
        return text


def stoichiometry_scores(
    estimate: GaugedStoichiometry,
    network: ReactionNetwork,
    *,
    is_identifiable: Tensor,
) -> dict[str, float]:
    """The scores of the table in the module's docstring that compare S with the truth.

    Args:
        estimate: Gauge-fixed estimate.
        network: The true network.
        is_identifiable: ``(n_rxn,)`` bool, from :func:`.structure.identifiability`.
    Returns:
        Score by name, ``nan`` where a score has no entries; ``sign_accuracy`` and ``support_f1``
        and the renamed scores included, which the evaluator drops where the prior makes them void.
    """
    truth = network.matrix()
    value, integer = estimate.dense(estimate.value), estimate.dense(estimate.integer)
    met, rxn = network.met_all, network.rxn_all
    true = truth[met, rxn]
    on_support = value[met, rxn]
    is_right = integer == truth
    counted = counted_columns(network)
    on = counted[rxn]
    has_integers = counted | (torch.bincount(rxn, minlength=network.n_rxn) == 0)
    scores = {
        "stoichiometry_R2": r2_identity(on_support[on], true[on], per_variable=False),
        "stoichiometry_R2_full": r2_identity(
            value[:, has_integers], truth[:, has_integers], per_variable=False
        ),
        "stoichiometry_R2_refit": r2_refit(estimate.dense(estimate.raw)[met, rxn], true),
        "sign_accuracy": sign_accuracy(on_support, true),
        "support_f1": support_f1(integer, truth),
    }
    for suffix, columns in (("", counted), ("_identifiable", counted & is_identifiable)):
        scores[f"exact_edges{suffix}"] = _mean(is_right[met, rxn][columns[rxn]])
        scores[f"exact_columns{suffix}"] = _mean(is_right.all(0)[columns])
    renamed = with_names_exchanged(integer, network)
    is_right = (renamed == truth)[met, rxn]
    scores["support_f1_renamed"] = support_f1(renamed, truth)
    scores["exact_edges_renamed"] = _mean(is_right[counted[rxn]])
    on = (counted & is_identifiable)[rxn]
    scores["exact_edges_identifiable_renamed"] = _mean(is_right[on])
    scores["stoichiometry_R2_identifiable"] = r2_identity(
        on_support[on], true[on], per_variable=False
    )
    return scores


def with_names_exchanged(integer: Tensor, network: ReactionNetwork) -> Tensor:
    """Columns of reactions with equal substrates, exchanged so as to fit the truth best.

    Args:
        integer: Recovered S, ``(n_met, n_rxn)``.
        network: The truth.
    """
    from scipy.optimize import linear_sum_assignment

    truth, out = network.matrix(), integer.clone()
    groups: dict[tuple[int, ...], list[int]] = {}
    for j in range(network.n_rxn):
        substrates = sorted(set(network.met_sub[network.rxn_sub == j].tolist()))
        groups.setdefault(tuple(substrates), []).append(j)
    for group in groups.values():
        if len(group) > 1:
            own, true = integer[:, group], truth[:, group]
            used = (own[:, :, None] != 0) | (true[:, None, :] != 0)
            wrong = ((own[:, :, None] != true[:, None, :]) & used).sum(0)
            source, target = linear_sum_assignment(wrong.numpy())
            out[:, [group[t] for t in target]] = own[:, source]
    return out


def trivial_stoichiometry_scores(
    network: ReactionNetwork, known_sign: Tensor, *, is_identifiable: Tensor
) -> dict[str, float]:
    """Scores of an estimate that has learned nothing: 1.5 times the known sign.

    Not gauge fixed (1.5 is already the best guess between 1 and 2). Its integers are 1 or 2 times
    the sign, whichever of the two is the more frequent magnitude in the truth: a choice in favour
    of the baseline.

    Args:
        network: The true network.
        known_sign: Sign that the prior tells for each true edge, 0 where it does not,
            ``(n_all_edge,)``.
        is_identifiable: ``(n_rxn,)`` bool.
    Returns:
        ``stoichiometry_R2``, ``exact_edges``, ``exact_columns`` and their ``_identifiable`` forms,
        ``stoichiometry_R2_full`` and ``stoichiometry_R2_refit``, each of the trivial estimate.
    """
    true, rxn = network.sto_all.double(), network.rxn_all
    guess = 1.5 * known_sign.double()
    counted = counted_columns(network)
    hits = [(magnitude * known_sign.double()) == true for magnitude in (1, 2)]
    is_right = max(hits, key=lambda hit: int(hit.sum()))
    wrong = torch.zeros(network.n_rxn, dtype=torch.long).index_add_(0, rxn, (~is_right).long())
    every, on = counted[rxn], (counted & is_identifiable)[rxn]
    dense = torch.zeros(network.n_met, network.n_rxn, dtype=torch.float64)
    dense[network.met_all, rxn] = guess
    has_integers = integer_columns(network)
    scores = {
        "stoichiometry_R2": r2_identity(guess[every], true[every], per_variable=False),
        "stoichiometry_R2_identifiable": r2_identity(guess[on], true[on], per_variable=False),
        "stoichiometry_R2_full": r2_identity(
            dense[:, has_integers], network.matrix()[:, has_integers], per_variable=False
        ),
        "stoichiometry_R2_refit": r2_refit(guess, true),
    }
    for suffix, columns in (("", counted), ("_identifiable", counted & is_identifiable)):
        scores[f"exact_edges{suffix}"] = _mean(is_right[columns[rxn]])
        scores[f"exact_columns{suffix}"] = _mean((wrong == 0)[columns])
    return scores


def stoichiometry_errors(
    estimate: GaugedStoichiometry, network: ReactionNetwork
) -> StoichiometryErrors:
    """Count the wrong integers by kind: support, sign, magnitude, scale of a whole column.

    Args:
        estimate: Gauge-fixed estimate.
        network: The true network.
    Returns:
        Counts over the true edges of integer columns, and spurious edges.
    """
    truth, integer = network.matrix(), estimate.dense(estimate.integer)
    counted = counted_columns(network)
    truth, integer = truth[:, counted], integer[:, counted]
    present = truth != 0
    dot = (truth * integer).sum(0)
    parallel = (dot > 0) & (
        (dot.square() - truth.square().sum(0) * integer.square().sum(0)).abs() < 0.5
    )
    is_wrong = present & (integer != truth)
    missing = is_wrong & (integer == 0)
    sign = is_wrong & (integer * truth < 0)
    scale = is_wrong & parallel & ~missing & ~sign
    return StoichiometryErrors(
        n_edge=int(present.sum()),
        n_missing=int(missing.sum()),
        n_spurious=int(((integer != 0) & ~present).sum()),
        n_sign=int(sign.sum()),
        n_scale=int(scale.sum()),
        n_magnitude=int((is_wrong & ~missing & ~sign & ~scale).sum()),
    )


def counted_columns(network: ReactionNetwork) -> Tensor:
    """Reactions that count: whole coefficients, and a net edge at all; ``(n_rxn,)`` bool."""
    n_edge = torch.bincount(network.rxn_all, minlength=network.n_rxn)
    return (n_edge > 0) & integer_columns(network)


# -- rate constants ---------------------------------------------------------------------------


def rate_constant_scores(
    log_k: Tensor,
    true_log_k: Tensor,
    *,
    is_identifiable: Tensor,
    group: Sequence[Group] = (),
) -> dict[str, float]:
    """Scores of log10 k, both sides in their fixed gauge.

    Args:
        log_k: Estimated, ``(n_rxn,)``.
        true_log_k: True, ``(n_rxn,)``.
        is_identifiable: ``(n_rxn,)`` bool.
        group: Reactions that the data determine only together.
    Returns:
        ``rate_constants_R2``, ``n_outliers``, ``trimmed_R2``, ``slope``, the first two with
        ``_identifiable``, ``max_abs_dlog10_k_identifiable`` and ``rate_constants_group_error``.
    """
    x, y = log_k.detach().cpu().double(), true_log_k.detach().cpu().double()
    error = (x - y).abs()
    inside = error <= OUTLIER
    on = is_identifiable
    scores = {
        "rate_constants_R2": r2_identity(x, y, per_variable=False),
        "rate_constants_R2_identifiable": r2_identity(x[on], y[on], per_variable=False),
        "trimmed_R2": r2_identity(x[inside], y[inside], per_variable=False),
        "n_outliers": float((~inside).sum()),
        "n_outliers_identifiable": float((~inside & on).sum()),
        "max_abs_dlog10_k_identifiable": float(error[on].max()) if bool(on.any()) else float("nan"),
        "slope": least_squares_slope(x, y),
    }
    relative = []
    for one in group:
        if one.combination is None:
            continue
        k, k_true = 10 ** x[list(one.members)], 10 ** y[list(one.members)]
        size = (one.combination.abs() * k_true).sum()
        relative.append(float((one.combination @ (k - k_true)).abs() / size))
    scores["rate_constants_group_error"] = max(relative) if relative else float("nan")
    return scores


def log_k_shift_mass_action(alpha: float, rxn_sub: Tensor, n_rxn: int) -> Tensor:
    r"""What the amplitude of ``MLP_sub`` adds to log10 k: $n_{sub,j} \log_{10}\alpha$.

    Args:
        alpha: $|\\mathrm{MLP\\_sub}(1, 1)|$, > 0.
        rxn_sub: Substrate edges, ``(n_sub_edge,)`` long.
        n_rxn: Number of reactions.
    Returns:
        ``(n_rxn,)`` float64.
    """
    count = torch.bincount(rxn_sub.detach().cpu(), minlength=n_rxn).double()
    return count * torch.log10(torch.tensor(alpha, dtype=torch.float64))


def log_k_shift_learned_rate(flux: Tensor, log_k: Tensor) -> Tensor:
    r"""Mean over reactions of $\log_{10} g_j = \log_{10} v_j - \log_{10} k_j$ at one state.

    Law: multiplying the rate law by a and every k by 1/a changes no sum ``log_k + shift``.

    Args:
        flux: Velocities at the reference state, ``(n_rxn,)``, > 0.
        log_k: log10 k of the same rate law, ``(n_rxn,)``.
    Returns:
        Scalar float64.
    """
    flux, log_k = flux.detach().cpu().double(), log_k.detach().cpu().double()
    positive = flux > 0
    return (flux[positive].log10() - log_k[positive]).mean()


def substrate_curve_error(learned: Tensor, concentration: Tensor, order: float) -> float:
    """Root mean square of ``learned - c^order`` relative to that of ``c^order``."""
    true = concentration.double() ** order
    error = learned.double() - true
    return float((error.square().mean() / true.square().mean()).sqrt())


def rate_constants_ceiling(
    true_log_k: Tensor,
    *,
    is_determined: Tensor,
    group: Sequence[Group],
    prior: tuple[float, float],
    n_draw: int = 1 << 14,
) -> float | None:
    r"""Expected ``rate_constants_R2`` of the posterior mean, $1 - \sum_j \mathrm{Var}_j / SST$.

    log10 k is uniform a priori; the data add the exact value of each determined rate constant and
    of each determined combination.

    Args:
        true_log_k: True log10 k, ``(n_rxn,)``.
        is_determined: ``(n_rxn,)`` bool.
        group: Undetermined reactions, with what is determined of them.
        prior: Range of log10 k.
        n_draw: Points of the integrals.
    Returns:
        The expectation, or ``None`` where a group has several determined combinations.
    Source:
        own.
    """
    y = true_log_k.detach().cpu().double()
    low, high = prior
    total = 0.0
    in_group = torch.zeros_like(is_determined)
    for one in group:
        index = torch.tensor(one.members)
        in_group[index] = True
        n = len(index)
        if one.n_null == n:
            total += n * (high - low) ** 2 / 12
            continue
        if one.combination is None:
            return None
        value = float(one.combination.double() @ 10 ** y[index])
        _, variance = log_k_of_combination(one.combination, value, prior, n_draw=n_draw)
        total += float(variance.sum())
    if bool((~is_determined & ~in_group).any()):
        return None
    spread = float((y - y.mean()).square().sum())
    return 1 - total / spread if spread > 0 else None


def known_signs(
    network: ReactionNetwork,
    *,
    sign: tuple[Tensor, Tensor, Tensor] | None,
    substrate: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Sign that the prior tells for each true edge, 0 where it tells none.

    Args:
        network: The true network.
        sign: ``(met_all, rxn_all, sign)`` where support and roles are given.
        substrate: ``(met_sub, rxn_sub)`` where roles alone are given: substrates are consumed.
    Returns:
        ``(n_all_edge,)`` float64.
    """
    dense = torch.zeros(network.n_met, network.n_rxn, dtype=torch.float64)
    if substrate is not None:
        dense[substrate[0].cpu(), substrate[1].cpu()] = -1
    if sign is not None:
        dense[sign[0].cpu(), sign[1].cpu()] = sign[2].cpu().double()
    return dense[network.met_all, network.rxn_all]


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if mask.numel() else float("nan")

"""What a recovery leaves open, in words: never a number that only looks determined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem

Array = np.ndarray
UNDECIDED = 3.0
"""Log evidence below which a coefficient counts as undecided."""
SAME_SUBSTRATES = "same substrates"
UNDECIDED_COLUMNS = "undecided"
AT_LOWER_BOUND = "lower bound"
AT_UPPER_BOUND = "upper bound"
BARE = "no reaction"
TOO_MANY = "too many unknowns"
SHOWN = 8
"""Names of a sentence; the rest is counted."""


def open_parts(
    problem: RecoveryProblem,
    confidence: Array,
    k: Array,
    k_range: tuple[float, float],
) -> dict[str, Array]:
    """Indices of what prior and data do not determine, by reason; empty reasons are left out.

    Args:
        problem: Data and graph.
        confidence: Log evidence of every edge, ``(n_all_edge,)``.
        k: Rate constants found, ``(n_rxn,)``.
        k_range: Smallest and largest rate constant considered.

    Returns:
        Reactions (``same substrates``, ``undecided``, ``lower bound``, ``upper bound``) and
        metabolites (``no reaction``, ``too many unknowns``).
    """
    sets: dict[tuple[int, ...], list[int]] = {}
    for j in range(problem.n_rxn):
        sets.setdefault(tuple(sorted(problem.met_sub[problem.rxn_sub == j])), []).append(j)
    shared = [j for members in sets.values() if len(members) > 1 for j in members]
    most = np.full(problem.n_rxn, -np.inf)
    np.maximum.at(most, problem.rxn_all, confidence)
    per_row = np.bincount(problem.met_all, minlength=problem.n_met)
    found = {
        SAME_SUBSTRATES: np.array(sorted(shared), dtype=int),
        UNDECIDED_COLUMNS: np.flatnonzero(most < UNDECIDED),
        AT_LOWER_BOUND: np.flatnonzero(k <= 1.001 * k_range[0]),
        AT_UPPER_BOUND: np.flatnonzero(k >= 0.999 * k_range[1]),
        BARE: np.flatnonzero(per_row == 0),
        TOO_MANY: np.flatnonzero(per_row > len(problem.concentration)),
    }
    return {reason: index for reason, index in found.items() if len(index)}


def sentences(
    parts: Mapping[str, Array], reaction_names: Sequence[str], metabolite_names: Sequence[str]
) -> list[str]:
    """One sentence for each reason.

    >>> sentences({"undecided": np.array([1])}, ["R1", "R2"], ["A"])
    ['nothing in the data decides the coefficients of R2: they are guesses']
    """
    text = {
        SAME_SUBSTRATES: "{} share their substrates with another reaction: where |s| agrees as "
        "well, their rates are proportional, and only integers tell them apart",
        UNDECIDED_COLUMNS: "nothing in the data decides the coefficients of {}: they are guesses",
        AT_LOWER_BOUND: "the rate constants of {} lie at the lower bound considered: they hardly "
        "act on these data, and their coefficients are not determined",
        AT_UPPER_BOUND: "the rate constants of {} lie at the upper bound considered: they may be "
        "larger",
        BARE: "{} take part in no reaction: the data of these metabolites determine nothing",
        TOO_MANY: "{} take part in more reactions than there are frames: their coefficients are "
        "not determined by their own data",
    }
    out = []
    for reason, index in parts.items():
        names = metabolite_names if reason in (BARE, TOO_MANY) else reaction_names
        shown = ", ".join(str(names[i]) for i in index[:SHOWN])
        if len(index) > SHOWN:
            shown += f" and {len(index) - SHOWN} more"
        out.append(text[reason].format(shown))
    return out

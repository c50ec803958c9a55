"""What scores mean, in words: the classes and diagnoses of documents 001 and 002."""

from __future__ import annotations

from collections.abc import Sequence


def classify(
    score: float,
    *,
    converged_above: float,
    failed_below: float,
    trivial: float | None,
    trivial_margin: float,
) -> str:
    """``converged``, ``partial`` or ``failed``.

    Converged also asks for ``trivial_margin`` above the trivial score, where there is one.

    >>> classify(0.93, converged_above=0.9, failed_below=0.1, trivial=0.9, trivial_margin=0.05)
    'partial'
    """
    if score < failed_below:
        return "failed"
    beats = trivial is None or score >= trivial + trivial_margin
    return "converged" if score > converged_above and beats else "partial"


def classify_joint(
    score: float,
    slope_ratios: Sequence[float],
    cluster_acc: float | None,
    *,
    converged_above: float,
    failed_below: float,
) -> str:
    """Class of document 002: ``converged``, ``partial-k``, ``partial-homeo`` or ``failed``.

    Converged asks for rate constants, for every slope ratio in [0.5, 2] and for clusters without
    error. Partial-k has the rate constants alone. Of the rest, failed lies below ``failed_below``
    or has a slope ratio below 0.1. Where the homeostasis is wrong but the rate constants are
    right, the document's definitions of partial-k and failed overlap: partial-k is meant.

    Args:
        score: ``rate_constants_R2``.
        slope_ratios: Learned over true slope of each type, or their mean alone (the document's).
        cluster_acc: ``embedding_cluster_acc``, ``None`` where there is none.
        converged_above: Bound on the score.
        failed_below: Bound on the score.

    >>> classify_joint(0.95, [0.4, 1.6], 1.0, converged_above=0.9, failed_below=0.5)
    'partial-k'
    """
    if score > converged_above:
        is_right = bool(slope_ratios) and all(0.5 <= r <= 2 for r in slope_ratios)
        return "converged" if is_right and cluster_acc == 1 else "partial-k"
    if score < failed_below or not slope_ratios or min(slope_ratios) < 0.1:
        return "failed"
    return "partial-homeo"


def homeostasis_diagnosis(slope_ratio: float) -> str:
    """What the ratio of a learned to a true homeostatic slope means (document 002).

    >>> homeostasis_diagnosis(1.1), homeostasis_diagnosis(0.0)
    ('correct', 'inactive: MLP_node stuck at zero')
    """
    if abs(slope_ratio) < 0.05:
        return "inactive: MLP_node stuck at zero"
    if 0.8 <= slope_ratio <= 1.2:
        return "correct"
    if 0.3 <= slope_ratio <= 3:
        return "partial: direction correct, magnitude off"
    if slope_ratio < 0:
        return "wrong: MLP_node drives away from the baseline"
    return "wrong: MLP_node " + ("overshoots" if slope_ratio > 3 else "undershoots")


def degeneracy_diagnosis(prediction: float, recovery: float) -> str:
    """What a gap between prediction and recovery means (documents 001 and 002).

    Args:
        prediction: Usually ``test_pearson``.
        recovery: Usually ``stoichiometry_R2`` or ``rate_constants_R2``.
    Returns:
        The diagnosis in words, for every pair of values.
    """
    gap = prediction - recovery
    if prediction > 0.95 and recovery > 0.9:
        text = "healthy: good dynamics from the right parameters"
    elif prediction > 0.95 and recovery >= 0.3:
        text = "degenerate: the networks compensate for wrong parameters"
    elif prediction > 0.95:
        text = "severely degenerate: good dynamics, parameters not recovered"
    elif prediction < 0.5 and recovery < 0.5:
        text = "failed: neither dynamics nor parameters; not degeneracy"
    elif recovery > 0.9:
        text = "parameters recovered better than the dynamics they give"
    else:
        text = "between the cases: dynamics and parameters are both partial"
    if gap > 0.3:
        text += "; do not trust the dynamics scores as evidence of recovery"
    return text

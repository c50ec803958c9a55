"""From products k·S, of which the data speak, to S and k: integers fix the scale of a column."""

from __future__ import annotations

import math
from dataclasses import replace

from neuralgraph.numerics.information import (
    COMBINATION,
    DETERMINED,
    UNDETERMINED,
    Analysis,
    Row,
    relative,
    several,
)
from neuralgraph.systems.metabolism.dataset import MetabolismSpec
from neuralgraph.systems.metabolism.sensitivity import Columns, K, S


def integer_confidence(standard_error: float) -> float:
    r"""Probability that rounding a coefficient with this normal error gives the right integer.

    $P(|e| < 1/2) = \mathrm{erf}(1 / (2 \sqrt 2 \sigma))$.

    >>> integer_confidence(0.0), round(integer_confidence(0.5), 3)
    (1.0, 0.683)
    """
    if standard_error <= 0:
        return 1.0
    return math.erf(0.5 / (math.sqrt(2.0) * standard_error))


def through_products(
    analysis: Analysis, columns: Columns, spec: MetabolismSpec, *, integer: bool
) -> list[Row]:
    """Rows for S and k where the data speak of their products only.

    With ``integer`` a column whose products are all determined gives S up to an integer scale, the
    smallest one, and k from all of its edges: their errors are independent, since different
    metabolites have different noise.
    """
    p, of = analysis.problem.parameters, analysis.combinations_of()
    mets, rxns = spec.metabolite_names, spec.reaction_names
    sto = columns.point.sto_all
    k = columns.point.k
    edges_of_rxn: list[list[int]] = [[] for _ in range(spec.n_rxn)]
    for e, j in enumerate(columns.rxn.tolist()):
        edges_of_rxn[j].append(e)
    law = analysis.learned
    rows: list[Row] = []
    rate_rows: list[Row] = []
    for j, edges in enumerate(edges_of_rxn):
        acting = [e for e in edges if analysis.status[e] != UNDETERMINED]
        all_known = bool(edges) and all(analysis.status[e] == DETERMINED for e in edges)
        nonzero = [e for e in edges if float(sto[e]) != 0]
        scale_known = integer and all_known and bool(nonzero)
        # k from each non-zero edge: variance (k * relative error)^2
        weight = 0.0
        if scale_known:
            for e in nonzero:
                error = float(analysis.held_error[e])
                weight += (float(sto[e]) / error) ** 2 if error > 0 else math.inf
        k_error = math.sqrt(1 / weight) if weight > 0 else None
        if k_error is not None and law is not None:
            own = min(k_error, float(law.free_error[j]))
            k_error = math.hypot(own, float(law.free_root[j].norm()))
        texts = [p.name[e] for e in nonzero if analysis.status[e] == DETERMINED]
        texts += [c.text for e in nonzero for c in of.get(e, [])]
        for e in edges:
            status = analysis.status[e]
            name = f"S({mets[int(columns.met[e])]},{rxns[j]})"
            value = float(sto[e])
            if status == UNDETERMINED:
                rows.append(_nothing(name, S, "its rate does not act on the data"))
            elif status == COMBINATION:
                rows.append(
                    Row(name, S, COMBINATION, several([c.text for c in of[e]]), value, None, None,
                        "its rate is a combination of other rates here"
                        + ("; integers may still tell them apart" if integer else ""))
                )  # fmt: skip
            elif scale_known:
                error = float(analysis.held_error[e])
                if law is not None:  # what the law does to k is in every edge of the column
                    moved = law.root[e] - value * law.free_root[j]
                    error = math.hypot(error, float(moved.norm()))
                error = error / float(k[j])
                sure = integer_confidence(error)
                note = f"up to the integer scale of its column; right integer with {sure:.4f}"
                rows.append(
                    Row(name, S, DETERMINED, "", value, error, relative(error, value), note)
                )
            elif integer and not all_known:
                rows.append(
                    Row(name, S, COMBINATION, p.name[e], value, None, None,
                        "other entries of its column are open, and with them its scale")
                )  # fmt: skip
            else:
                rows.append(
                    Row(name, S, COMBINATION, p.name[e], value, None, None,
                        "scale of its column: S·a, k/a")
                )  # fmt: skip
        name = f"k({rxns[j]})"
        if scale_known:
            value = float(k[j])
            rate_rows.append(
                Row(name, K, DETERMINED, "", value, k_error, relative(k_error, value),
                    f"given the integers of {'its column' if law is None else 'all columns'}")
            )  # fmt: skip
        elif acting and nonzero:
            note = "scale of its column: S·a, k/a" if all_known else "its column of S is open"
            rate_rows.append(
                Row(name, K, COMBINATION, several(list(dict.fromkeys(texts))), float(k[j]), None,
                    None, note)
            )  # fmt: skip
        else:
            rate_rows.append(_nothing(name, K, "does not act on the data"))
    rest = _without_interpretation(analysis).rows()[columns.first_line :]
    return rate_rows + rows + rest


def _without_interpretation(analysis: Analysis) -> Analysis:
    return replace(analysis, problem=replace(analysis.problem, interpret=None))


def _nothing(name: str, group: str, note: str) -> Row:
    return Row(name, group, UNDETERMINED, "", None, None, None, note)

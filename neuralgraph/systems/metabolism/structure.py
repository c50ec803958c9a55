"""What a prior and noise-free data of a design determine, from the true network alone.

No estimate enters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.files import write_text
from neuralgraph.numerics.identifiability import Group, determined, groups, null_space_of_gram
from neuralgraph.numerics.information import triangular
from neuralgraph.systems.metabolism.network import ReactionNetwork, integer_columns

LARGE_S = 1_000_000
"""Entries from which S is kept sparse."""
NO_SCALE = "no integer scale"
"""Why k is open where S is not given and its column holds fractions: its scale is free."""


@dataclass(frozen=True)
class Identifiability:
    """What a prior and noise-free data of a design determine; no estimate enters.

    Args:
        column: ``(n_rxn,)`` bool, reactions whose column of S is determined.
        k: ``(n_rxn,)`` bool, rate constants that are determined; ``None`` where it was not
            computed.
        group: Rate constants determined only together, given the true S.
        reason: For each reaction a word on its column.
        reason_k: For each reaction a word on its rate constant.
    """

    column: Tensor
    k: Tensor | None
    group: tuple[Group, ...]
    reason: tuple[str, ...]
    reason_k: tuple[str, ...]


def column_identifiability(
    network: ReactionNetwork, order_sub: Tensor | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Columns of S that noise-free data determine: those whose {(substrate, |s|)} set is unique.

    Reactions with the same set run at proportional rates whatever the state, so that only
    weighted sums of their columns enter the data; more data do not help.

    Args:
        network: The true network.
        order_sub: Kinetic orders on the substrate edges, where these and not |s| enter the rate
            law (mass action of order 1), ``(n_sub_edge,)``.
    Returns:
        ``(n_rxn,)`` bool and a reason for each reaction. A reaction without edges counts as not
        determined.
    """
    sets: list[list[tuple[int, float]]] = [[] for _ in range(network.n_rxn)]
    order = network.sto_sub if order_sub is None else order_sub
    rows = zip(network.met_sub.tolist(), network.rxn_sub.tolist(), order.tolist(), strict=True)
    for met, rxn, s in rows:
        sets[rxn].append((met, abs(s)))
    n_net = torch.bincount(network.rxn_all, minlength=network.n_rxn).tolist()
    sharing: dict[tuple[tuple[int, float], ...], list[int]] = {}
    for j, members in enumerate(sets):
        if n_net[j]:
            sharing.setdefault(tuple(sorted(members)), []).append(j)
    is_determined = torch.zeros(network.n_rxn, dtype=torch.bool)
    reason: list[str] = []
    for j, members in enumerate(sets):
        if not n_net[j]:
            reason.append("no metabolite changes")
            continue
        others = [o for o in sharing[tuple(sorted(members))] if o != j]
        is_determined[j] = not others
        names = ", ".join(network.reaction_names[o] for o in others)
        reason.append(f"same substrates as {names}" if others else "")
    return is_determined, tuple(reason)


def identifiability(
    network: ReactionNetwork,
    flux: Tensor | None,
    *,
    log_k: Tensor | None,
    is_stoichiometry_given: bool,
    rtol: float,
    order_sub: Tensor | None = None,
    is_law_shared: bool = True,
) -> Identifiability:
    r"""Structural identifiability of S and k from the true network and the design alone.

    For k: $\partial \dot c / \partial k_j = S_{\cdot j}\, v_j(c) / k_j$, stacked over the frames
    of the design; k enters linearly. The Gram matrix of these columns is
    $(S^\top S) \circ (V^\top V)$, whatever the number of frames. Where S is not given, a rate
    constant also needs its column to be determined, and an integer scale of that column.

    Args:
        network: The true network.
        flux: True velocities at the frames of the design, ``(n_frame, n_rxn)``; ``None`` where
            the true rate law is not known here.
        log_k: True log10 k, ``(n_rxn,)``; ``None`` where the law has none (k is then the factor
            of the velocity).
        is_stoichiometry_given: Whether S is part of the prior.
        rtol: Relative tolerance on the singular values of the column-scaled sensitivity.
        order_sub: See :func:`column_identifiability`.
        is_law_shared: Whether all reactions obey one law of their substrates. ``False`` (a kinetic
            model with its own laws): a column is determined when its rate on the frames of the
            design is in no combination of the rates of the other reactions.
    Returns:
        Masks, groups and reasons.
    """
    column, reason = column_identifiability(network, order_sub)
    if not is_law_shared and flux is not None:
        column, reason = _column_by_rates(network, flux, rtol)
    if is_stoichiometry_given:
        column, reason = torch.ones_like(column), ("given",) * network.n_rxn
    if flux is None:
        unknown = ("not computed: the true rate law is not known here",) * network.n_rxn
        return Identifiability(column, None, (), reason, unknown)
    velocity = flux.detach().cpu().double()
    if log_k is not None:
        velocity = velocity / 10 ** log_k.detach().cpu().double()
    matrix = network.matrix()
    gram = (matrix.T @ matrix) * (velocity.T @ velocity)
    # A matrix with few rows and the same Gram matrix: a triangular factor of V stands in for V
    # (and one of S for a small S), their face-splitting product for the stacked frames.
    small_s = triangular(matrix)
    small_v = triangular(velocity)
    if matrix.numel() > LARGE_S:  # mostly zeros
        small_s = matrix.to_sparse_csr()

    def apply(x: Tensor) -> Tensor:
        factor = x.new_zeros(0, x.shape[1])
        for some in small_v.split(64):
            blocks = [small_s @ (row[:, None] * x) for row in some]
            factor = triangular(torch.cat([factor, *blocks]))
        return factor

    space = null_space_of_gram(gram, rtol=rtol, apply=apply)
    k = determined(space)
    found = groups(space)
    reason_k = [""] * network.n_rxn
    for group in found:
        names = [network.reaction_names[j] for j in group.members]
        for j in group.members:
            if len(names) == 1:
                text = "does not act on the data"
            elif group.combination is not None:
                text = f"only {combination_text(names, group.combination)}"
            else:
                text = f"{len(names) - group.n_null} combinations of {', '.join(names)}"
            reason_k[j] = text
    if not is_stoichiometry_given:
        for j in (k & ~column).nonzero().flatten().tolist():
            reason_k[j] = f"its column is not determined: {reason[j]}"
        has_scale = integer_columns(network)
        for j in (k & column & ~has_scale).nonzero().flatten().tolist():
            reason_k[j] = NO_SCALE
        k = k & column & has_scale
    return Identifiability(column, k, tuple(found), reason, tuple(reason_k))


def _column_by_rates(
    network: ReactionNetwork, flux: Tensor, rtol: float
) -> tuple[Tensor, tuple[str, ...]]:
    velocity = triangular(flux.detach().cpu().double())
    space = null_space_of_gram(velocity.T @ velocity, rtol=rtol, apply=lambda x: velocity @ x)
    is_determined = determined(space)
    n_net = torch.bincount(network.rxn_all, minlength=network.n_rxn)
    reason = ["" if ok else "its rate is a combination of other rates" for ok in is_determined]
    for j in (n_net == 0).nonzero().flatten().tolist():
        reason[j] = "no metabolite changes"
    return is_determined & (n_net > 0), tuple(reason)


def determined_edges(
    network: ReactionNetwork, flux: Tensor, *, is_support_given: bool, rtol: float
) -> Tensor:
    r"""Entries of S that the frames of a design determine when the true rates are known.

    Row i obeys $\dot c_i = \sum_j S_{ij} v_j$ over its candidate reactions: those of the support
    where it is given, else all. An entry is determined when its coordinate lies outside the null
    space of these columns of V. Unlike :func:`column_identifiability` this sees a design that
    moves too little (a single trajectory).

    Args:
        network: The true network.
        flux: True velocities at the frames of the design, ``(n_frame, n_rxn)``.
        is_support_given: Whether the support is part of the prior.
        rtol: Relative tolerance on the singular values of the column-scaled V.
    Returns:
        ``(n_all_edge,)`` bool.
    """
    velocity = triangular(flux.detach().cpu().double())
    gram = velocity.T @ velocity
    if not is_support_given:
        space = null_space_of_gram(gram, rtol=rtol, apply=lambda x: velocity @ x)
        return determined(space)[network.rxn_all]
    result = torch.zeros(network.met_all.numel(), dtype=torch.bool)
    order = torch.argsort(network.met_all, stable=True)
    for edges in order.split(torch.bincount(network.met_all, minlength=network.n_met).tolist()):
        columns = network.rxn_all[edges]
        part = velocity[:, columns]
        space = null_space_of_gram(
            gram[columns][:, columns], rtol=rtol, apply=lambda x, part=part: part @ x
        )
        result[edges] = determined(space)
    return result


def combination_text(names: Sequence[str], weight: Tensor) -> str:
    """A combination of rate constants in words.

    >>> combination_text(["R1", "R7"], torch.tensor([1.0, -1.0]))
    'k(R1) - k(R7)'
    """
    text = ""
    for place, (name, w) in enumerate(zip(names, weight.tolist(), strict=True)):
        size = "" if abs(abs(w) - 1) < 1e-6 else f"{abs(w):.4g} "
        sign = ("-" if w < 0 else "") if place == 0 else (" - " if w < 0 else " + ")
        text += f"{sign}{size}k({name})"
    return text


def identifiability_table(found: Identifiability, network: ReactionNetwork) -> list[dict[str, Any]]:
    """One row per reaction: name, what is determined, why not, group number."""
    number = {j: n + 1 for n, group in enumerate(found.group) for j in group.members}
    return [
        {
            "reaction": network.reaction_names[j],
            "column_determined": bool(found.column[j]),
            "column_reason": found.reason[j],
            "k_determined": None if found.k is None else bool(found.k[j]),
            "k_reason": found.reason_k[j],
            "group": number.get(j),
        }
        for j in range(network.n_rxn)
    ]


def write_identifiability(rows: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Write the rows of :func:`identifiability_table` as CSV, whole or not at all."""
    import csv
    import io

    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: _cell(v) for k, v in row.items()})
    write_text(path, buffer.getvalue())


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)

"""ReactionNetwork: the bipartite graph of metabolites and reactions, and its random generators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError


@dataclass(frozen=True)
class ReactionNetwork:
    """Stoichiometry on edges. Two edge lists, because a catalyst is a substrate without net change.

    Edges are sorted by reaction, then metabolite, and each (metabolite, reaction) pair occurs once
    in each list.

    Args:
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        met_sub, rxn_sub: Substrate edges (metabolite -> reaction), ``(n_sub_edge,)`` long.
        sto_sub: Coefficient |s| with which the substrate enters the rate, ``(n_sub_edge,)``, > 0.
        met_all, rxn_all: Edges with net change, ``(n_all_edge,)`` long.
        sto_all: Signed net stoichiometric coefficient, ``(n_all_edge,)``.
        metabolite_names: ``n_met`` unique names.
        reaction_names: ``n_rxn`` unique names.
        warnings: Sentences about empty or duplicated reactions and the like, for the report.
    """

    n_met: int
    n_rxn: int
    met_sub: Tensor
    rxn_sub: Tensor
    sto_sub: Tensor
    met_all: Tensor
    rxn_all: Tensor
    sto_all: Tensor
    metabolite_names: tuple[str, ...]
    reaction_names: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())

    def matrix(self) -> Tensor:
        """Dense stoichiometric matrix S, ``(n_met, n_rxn)`` float64."""
        dense = torch.zeros(self.n_met, self.n_rxn, dtype=torch.float64)
        dense[self.met_all, self.rxn_all] = self.sto_all.double()
        return dense


def network_from_edges(
    substrate: tuple[Tensor, Tensor, Tensor],
    net: tuple[Tensor, Tensor, Tensor],
    metabolite_names: Sequence[str],
    reaction_names: Sequence[str],
    warnings: Sequence[str] = (),
) -> ReactionNetwork:
    """Sort two edge lists ``(met, rxn, value)`` into a :class:`ReactionNetwork`.

    Raises:
        DataError: an index out of range, or a pair that occurs twice.
    """
    n_met, n_rxn = len(metabolite_names), len(reaction_names)
    lists = []
    for what, (met, rxn, value) in (("substrate", substrate), ("net", net)):
        met, rxn = met.long(), rxn.long()
        if met.numel() and (int(met.max()) >= n_met or int(rxn.max()) >= n_rxn):
            raise DataError(
                f"{what} edges reach metabolite {int(met.max())} and reaction {int(rxn.max())}, "
                f"the network has {n_met} and {n_rxn}"
            )
        key = rxn * n_met + met
        order = torch.argsort(key, stable=True)
        key = key[order]
        if key.numel() > 1 and bool((key.diff() == 0).any()):
            raise DataError(f"a {what} edge (metabolite, reaction) occurs twice: merge it first")
        lists.append((met[order], rxn[order], value.double()[order]))
    (met_sub, rxn_sub, sto_sub), (met_all, rxn_all, sto_all) = lists
    return ReactionNetwork(
        n_met=n_met,
        n_rxn=n_rxn,
        met_sub=met_sub,
        rxn_sub=rxn_sub,
        sto_sub=sto_sub,
        met_all=met_all,
        rxn_all=rxn_all,
        sto_all=sto_all,
        metabolite_names=tuple(metabolite_names),
        reaction_names=tuple(reaction_names),
        warnings=tuple(warnings),
    )

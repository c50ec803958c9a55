"""ReactionNetwork: the bipartite graph of metabolites and reactions, and its random generators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError


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


def random_network(
    n_met: int,
    n_rxn: int,
    *,
    n_substrate_max: int,
    n_product_max: int,
    coefficient_max: int,
    mass_balanced: bool,
    generator: torch.Generator,
) -> ReactionNetwork:
    """Random reactions with small integer coefficients.

    Each reaction draws its number of substrates in 1..``n_substrate_max`` and of products in
    1..``n_product_max``, all distinct metabolites, with coefficients in 1..``coefficient_max``,
    all uniform. With ``mass_balanced`` the draw is repeated until the column sums to 0, so that
    the coefficients stay in the same range (a reaction of 3 substrates and 1 product then
    cannot occur with coefficients up to 2).

    Args:
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        n_substrate_max: Largest number of substrates.
        n_product_max: Largest number of products.
        coefficient_max: Largest coefficient.
        mass_balanced: Whether every column of S sums to 0.
        generator: Source of randomness.
    Raises:
        ConfigError: sizes that leave no reaction possible.
    """
    for name, value in {
        "n_met": n_met,
        "n_rxn": n_rxn,
        "n_substrate_max": n_substrate_max,
        "n_product_max": n_product_max,
        "coefficient_max": coefficient_max,
    }.items():
        if int(value) != value or value < 1:
            raise ConfigError(f"simulator.{name} must be a whole number >= 1, got {value}")
    if n_substrate_max + n_product_max > n_met:
        raise ConfigError(
            f"a reaction of {n_substrate_max} substrates and {n_product_max} products needs as "
            f"many metabolites, n_met is {n_met}: raise simulator.n_met"
        )

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(1, high + 1, shape, generator=generator)

    n_slot = n_substrate_max + n_product_max
    slot = torch.arange(n_slot)
    size = torch.zeros(n_rxn, n_slot, dtype=torch.long)
    open_rows = torch.arange(n_rxn)
    while len(open_rows):
        n = len(open_rows)
        n_sub, n_prod = integers(n_substrate_max, n, 1), integers(n_product_max, n, 1)
        draw = integers(coefficient_max, n, n_slot)
        substrate = slot < n_sub
        product = (slot >= n_substrate_max) & (slot < n_substrate_max + n_prod)
        signed = draw * (product.long() - substrate.long())
        size[open_rows] = signed
        if not mass_balanced:
            break
        open_rows = open_rows[signed.sum(1) != 0]
    # distinct metabolites: the first n_slot of a random order, for all reactions at once
    chunk = max(1, 4_000_000 // n_met)
    parts = []
    for first in range(0, n_rxn, chunk):
        n = min(chunk, n_rxn - first)
        parts.append(torch.rand(n, n_met, generator=generator).topk(n_slot, dim=1).indices)
    met = torch.cat(parts)
    rxn = torch.arange(n_rxn).expand(n_slot, n_rxn).T
    net, sub = size != 0, size < 0
    names = _numbered("M", n_met), _numbered("R", n_rxn)
    network = network_from_edges(
        (met[sub], rxn[sub], -size[sub].double()), (met[net], rxn[net], size[net].double()), *names
    )
    return with_warnings(network)


def autocatalytic_cycles(
    n_met: int,
    n_rxn: int,
    *,
    cycle_length: int,
    avoid_shared_pairs: bool,
    generator: torch.Generator,
) -> ReactionNetwork:
    r"""Cycles of autocatalytic reactions $m_i + m_{i+1} \to 2 m_{i+1}$.

    Each reaction has two substrate edges of |s| = 1, food and catalyst; the net change is -1 for
    the food and +1 for the catalyst. Cycles draw metabolites that no cycle uses yet while there
    are enough of them, from all afterwards. Reactions beyond the last whole cycle stay empty.

    Two reactions on the same pair have proportional rates and net changes, so that only the sum
    or difference of their rate constants can be known. ``avoid_shared_pairs`` draws cycles
    without such pairs and lengthens the last cycles by one, so that no reaction is empty.

    Args:
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        cycle_length: Metabolites in a cycle, >= 3 (a 2-cycle shares its pair with itself).
        avoid_shared_pairs: Whether every pair occurs once and no reaction is empty.
        generator: Source of randomness.
    Raises:
        ConfigError: sizes that do not fit.
    Source:
        Autocatalytic cycles of the rate-constant recovery study this project follows.
    """
    if cycle_length < 3 or cycle_length + int(avoid_shared_pairs) > n_met:
        raise ConfigError(
            f"simulator.cycle_length must lie in 3..n_met ({n_met}), got {cycle_length}"
        )
    if n_rxn < cycle_length:
        raise ConfigError(
            f"simulator.n_rxn must hold one cycle of {cycle_length} reactions, got {n_rxn}"
        )
    n_cycle, rest = divmod(n_rxn, cycle_length)
    lengths = [cycle_length] * n_cycle
    if avoid_shared_pairs:
        n_pair = n_met * (n_met - 1) // 2
        if n_rxn > n_pair // 2:
            raise ConfigError(
                f"simulator.avoid_shared_pairs leaves {n_pair} pairs of {n_met} metabolites, too "
                f"few to place {n_rxn} reactions at random: raise n_met or lower n_rxn"
            )
        for extra in range(rest):
            lengths[-1 - extra % n_cycle] += 1
    used_pair: set[tuple[int, int]] = set()
    unused = torch.ones(n_met, dtype=torch.bool)
    food: list[int] = []
    catalyst: list[int] = []
    for length in lengths:
        while True:
            pool = torch.nonzero(unused).flatten()
            if len(pool) < length:
                pool = torch.arange(n_met)
            cycle = pool[torch.randperm(len(pool), generator=generator)[:length]].tolist()
            following = cycle[1:] + cycle[:1]
            pairs = {(min(p), max(p)) for p in zip(cycle, following, strict=True)}
            if not (avoid_shared_pairs and pairs & used_pair):
                break
        used_pair |= pairs
        unused[cycle] = False
        food += cycle
        catalyst += following
    a, b = torch.tensor(food), torch.tensor(catalyst)
    rxn = torch.arange(len(a))
    one = torch.ones(len(a), dtype=torch.float64)
    both, twice = torch.cat([a, b]), torch.cat([rxn, rxn])
    network = network_from_edges(
        (both, twice, torch.cat([one, one])),
        (both, twice, torch.cat([-one, one])),
        _numbered("M", n_met),
        _numbered("R", n_rxn),
    )
    return with_warnings(network)


def with_warnings(network: ReactionNetwork) -> ReactionNetwork:
    """The same network, with sentences about empty, duplicated and unused parts appended."""
    sentences = list(network.warnings)
    empty = empty_reactions(network)
    if empty:
        sentences.append(
            f"{_count(empty, 'reaction')} without any net change: "
            f"{_some([network.reaction_names[j] for j in empty])}"
        )
    groups = duplicate_reactions(network)
    if groups:
        shown = [" = ".join(network.reaction_names[j] for j in group) for group in groups]
        sentences.append(f"{_count(groups, 'group')} of duplicated reactions: {_some(shown)}")
    touched = torch.zeros(network.n_met, dtype=torch.bool)
    touched[network.met_all] = True
    idle = torch.nonzero(~touched).flatten().tolist()
    if idle:
        sentences.append(
            f"{_count(idle, 'metabolite')} that no reaction changes: "
            f"{_some([network.metabolite_names[i] for i in idle])}"
        )
    return replace(network, warnings=tuple(sentences))


def empty_reactions(network: ReactionNetwork) -> list[int]:
    """Indices of the reactions without net change."""
    live = torch.zeros(network.n_rxn, dtype=torch.bool)
    live[network.rxn_all] = True
    return torch.nonzero(~live).flatten().tolist()


def duplicate_reactions(network: ReactionNetwork) -> list[list[int]]:
    """Groups of reactions with the same substrates, |s| and net change, in order of index."""
    content: dict[int, list[tuple[float, ...]]] = {}
    for tag, met, rxn, value in (
        (0.0, network.met_sub, network.rxn_sub, network.sto_sub),
        (1.0, network.met_all, network.rxn_all, network.sto_all),
    ):
        for m, r, s in zip(met.tolist(), rxn.tolist(), value.tolist(), strict=True):
            content.setdefault(r, []).append((tag, float(m), s))
    groups: dict[tuple[tuple[float, ...], ...], list[int]] = {}
    for r in sorted(content):
        groups.setdefault(tuple(content[r]), []).append(r)
    return [group for group in groups.values() if len(group) > 1]


def is_mass_balanced(network: ReactionNetwork, tolerance: float = 1e-9) -> bool:
    """Whether every column of S sums to 0."""
    total = torch.zeros(network.n_rxn, dtype=torch.float64)
    total.index_add_(0, network.rxn_all, network.sto_all.double())
    return bool((total.abs() <= tolerance).all())


def integer_columns(network: ReactionNetwork, tolerance: float = 1e-9) -> Tensor:
    """``(n_rxn,)`` bool: whether every coefficient of the reaction is a whole number."""
    whole = torch.ones(network.n_rxn, dtype=torch.bool)
    for rxn, value in ((network.rxn_all, network.sto_all), (network.rxn_sub, network.sto_sub)):
        whole[rxn[(value - value.round()).abs() > tolerance]] = False
    return whole


def edge_signs(network: ReactionNetwork) -> Tensor:
    """What the roles say about the sign of each ``all`` edge, ``(n_all_edge,)`` in {-1, 0, +1}.

    -1 for a metabolite on the substrate side only, +1 on the product side only, 0 on both sides
    (a catalyst, whose net change may have either sign).
    """
    n_met = network.n_met
    used = dict(
        zip(
            (network.rxn_sub * n_met + network.met_sub).tolist(),
            network.sto_sub.tolist(),
            strict=True,
        )
    )
    key = (network.rxn_all * n_met + network.met_all).tolist()
    signs = [
        1.0 if k not in used else (-1.0 if abs(s + used[k]) < 1e-12 else 0.0)
        for k, s in zip(key, network.sto_all.tolist(), strict=True)
    ]
    return torch.tensor(signs, dtype=torch.float64)


def _numbered(letter: str, n: int) -> tuple[str, ...]:
    width = len(str(n))
    return tuple(f"{letter}{i + 1:0{width}d}" for i in range(n))


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _some(names: Sequence[str], n: int = 8) -> str:
    return ", ".join(names[:n]) + (" …" if len(names) > n else "")

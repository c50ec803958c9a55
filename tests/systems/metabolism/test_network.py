"""Random networks: sizes, coefficients, balance, cycles, warnings."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.metabolism.network import (
    autocatalytic_cycles,
    duplicate_reactions,
    edge_signs,
    empty_reactions,
    integer_columns,
    is_mass_balanced,
    network_from_edges,
    random_network,
    with_warnings,
)


def draw(seed: int = 1, *, mass_balanced: bool = False, n_met: int = 100, n_rxn: int = 256):
    return random_network(
        n_met,
        n_rxn,
        n_substrate_max=3,
        n_product_max=3,
        coefficient_max=2,
        mass_balanced=mass_balanced,
        generator=torch_generator(seed, "network"),
    )


def cycles(seed: int = 1, *, avoid: bool = False, n_rxn: int = 256):
    return autocatalytic_cycles(
        100,
        n_rxn,
        cycle_length=3,
        avoid_shared_pairs=avoid,
        generator=torch_generator(seed, "network"),
    )


def test_random_network_has_one_to_three_substrates_and_products():
    S = draw().matrix()
    assert S.shape == (100, 256)
    for side in ((S < 0).sum(0), (S > 0).sum(0)):
        assert set(side.tolist()) == {1, 2, 3}
    assert set(S.unique().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_substrate_edges_agree_with_the_matrix():
    network = draw()
    S = network.matrix()
    assert torch.equal(-S[network.met_sub, network.rxn_sub], network.sto_sub)
    assert int((S < 0).sum()) == len(network.met_sub)


@pytest.mark.parametrize("seed", [1, 2, 42])
def test_mass_balance_is_a_switch(seed):
    balanced = draw(seed, mass_balanced=True)
    assert is_mass_balanced(balanced)
    assert float(balanced.sto_all.abs().max()) <= 2
    assert not is_mass_balanced(draw(seed))


def test_same_seed_same_network_and_other_seed_another():
    assert torch.equal(draw(5).matrix(), draw(5).matrix())
    assert not torch.equal(draw(5).matrix(), draw(6).matrix())


def test_trivial_guess_explains_nine_tenths():
    """1.5 x sign scores about 0.90 on a network of ones and twos."""
    s = draw().sto_all
    assert 1 - float(((1.5 * s.sign() - s) ** 2).sum() / ((s - s.mean()) ** 2).sum()) == (
        pytest.approx(0.90, abs=0.01)
    )


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"raise simulator\.n_met"):
        draw(n_met=5)
    with pytest.raises(ConfigError, match=r"simulator\.n_rxn must be a whole number"):
        draw(n_rxn=0)


def test_cycle_columns_hold_one_food_and_one_catalyst():
    network = cycles()
    S = network.matrix()
    assert empty_reactions(network) == [255]
    assert (S[:, :255] == 1).sum() == 255
    assert (S[:, :255] == -1).sum() == 255
    assert len(network.met_sub) == 510
    assert bool((network.sto_sub == 1).all())
    assert any("R256" in w for w in network.warnings)


def test_cycle_roles_leave_the_catalyst_sign_unknown():
    network = cycles()
    assert set(edge_signs(network)[network.sto_all > 0].tolist()) == {0.0}
    assert set(edge_signs(network)[network.sto_all < 0].tolist()) == {-1.0}


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("n_rxn", [256, 255, 257])
def test_avoiding_shared_pairs_leaves_no_pair_twice_and_no_reaction_empty(seed, n_rxn):
    network = cycles(seed, avoid=True, n_rxn=n_rxn)
    pairs = network.met_sub.view(n_rxn, 2).tolist()
    assert len({tuple(sorted(p)) for p in pairs}) == n_rxn
    assert empty_reactions(network) == []
    assert not duplicate_reactions(network)


def test_shared_pairs_occur_by_default():
    network = cycles(42)
    pairs = network.met_sub.view(255, 2).tolist()
    assert len({tuple(sorted(p)) for p in pairs}) < 255


def test_too_many_reactions_for_distinct_pairs_are_refused():
    with pytest.raises(ConfigError, match="raise n_met"):
        autocatalytic_cycles(
            8,
            30,
            cycle_length=3,
            avoid_shared_pairs=True,
            generator=torch_generator(1, "network"),
        )


def small(net_b: float = 1.0):
    one = torch.ones(2, dtype=torch.float64)
    return network_from_edges(
        (torch.tensor([0, 0]), torch.tensor([0, 1]), one),
        (
            torch.tensor([0, 1, 0, 1]),
            torch.tensor([0, 0, 1, 1]),
            torch.tensor([-1.0, 1.0, -1.0, net_b]),
        ),
        ("A", "B"),
        ("first", "second", "nothing"),
    )


def test_duplicated_and_empty_reactions_are_named():
    warnings = with_warnings(small()).warnings
    assert any("first = second" in w for w in warnings)
    assert any("nothing" in w for w in warnings)
    assert duplicate_reactions(small(2.0)) == []


def test_integer_columns_are_told_apart():
    assert integer_columns(small(1.5)).tolist() == [True, False, True]


def test_a_pair_that_occurs_twice_is_refused():
    one = torch.ones(2, dtype=torch.float64)
    edges = (torch.tensor([0, 0]), torch.tensor([0, 0]), one)
    with pytest.raises(DataError, match="twice"):
        network_from_edges(edges, edges, ("A",), ("R",))

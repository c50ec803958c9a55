from __future__ import annotations

import math

import pytest
import torch

from neuralgraph.systems.metabolism import metrics, structure, verdicts
from neuralgraph.systems.metabolism.network import network_from_edges


def network(columns, catalysts=()):
    """Columns as {metabolite: net coefficient}; catalysts as (metabolite, reaction)."""
    net = [(m, j, s) for j, column in enumerate(columns) for m, s in column.items()]
    sub = [(m, j, -s) for m, j, s in net if s < 0] + [(m, j, 1) for m, j in catalysts]
    n_met = 1 + max(m for m, _, _ in net)

    def edges(rows):
        met, rxn, value = zip(*rows, strict=True)
        return torch.tensor(met), torch.tensor(rxn), torch.tensor(value)

    return network_from_edges(
        edges(sub),
        edges(net),
        [f"M{i}" for i in range(n_met)],
        [f"R{j + 1}" for j in range(len(columns))],
    )


SMALL = [{0: -1, 1: 2}, {1: -2, 2: 1, 3: 1}, {2: -2, 3: 2}, {0: -1, 3: -1, 1: 1}]


def random_network(n_met=100, n_rxn=256, seed=0):
    g = torch.Generator().manual_seed(seed)
    columns = []
    for _ in range(n_rxn):
        n_sub, n_prod = torch.randint(1, 4, (2,), generator=g).tolist()
        met = torch.randperm(n_met, generator=g)[: n_sub + n_prod].tolist()
        size = torch.randint(1, 3, (n_sub + n_prod,), generator=g).tolist()
        columns.append(
            {m: (-s if i < n_sub else s) for i, (m, s) in enumerate(zip(met, size, strict=True))}
        )
    return network(columns)


def gauge(net, value, *, sto_sub="true", support=True, largest=2):
    substrate = None
    if sto_sub is not None:
        size = net.sto_sub if isinstance(sto_sub, str) else sto_sub
        substrate = (net.met_sub, net.rxn_sub, size)
    return metrics.fix_gauge(
        net.met_all,
        net.rxn_all,
        value,
        n_met=net.n_met,
        n_rxn=net.n_rxn,
        substrate=substrate,
        max_coefficient=largest,
        is_support_given=support,
    )


ALL = torch.ones(4, dtype=torch.bool)


# -- gauge ------------------------------------------------------------------------------------


def test_gauge_recovers_scale_and_integers_of_a_noisy_estimate():
    net = network(SMALL)
    alpha = torch.tensor([0.1, 3.0, 0.7, 20.0], dtype=torch.float64)
    noise = 1 + 0.05 * torch.randn(10, generator=torch.Generator().manual_seed(1))
    fixed = gauge(net, net.sto_all / alpha[net.rxn_all] * noise)
    assert torch.equal(fixed.integer, net.sto_all)
    assert torch.allclose(fixed.scale, alpha, rtol=0.08)


def test_scaling_a_column_and_its_rate_constant_changes_no_gauge_fixed_score():
    net = random_network()
    g = torch.Generator().manual_seed(3)
    value = net.sto_all * (1 + 0.3 * torch.randn(net.sto_all.shape, generator=g))
    log_k = torch.randn(net.n_rxn, generator=g, dtype=torch.float64)
    alpha = 10 ** torch.empty(net.n_rxn, dtype=torch.float64).uniform_(-2, 2, generator=g)
    column, _ = structure.column_identifiability(net)
    found = []
    for a in (torch.ones_like(alpha), alpha):
        fixed = gauge(net, value * a[net.rxn_all])
        scores = metrics.stoichiometry_scores(fixed, net, is_identifiable=column)
        scores.pop("stoichiometry_R2_refit")  # as trained, by definition
        k = log_k - a.log10() - fixed.scale.log10()
        scores["k"] = float(k.sum())
        found.append(scores)
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert 0 < found[0]["exact_edges"] < 1


def test_permuting_reactions_metabolites_and_edges_changes_no_score():
    net = random_network(30, 60)
    value = net.sto_all * (
        1 + 0.3 * torch.randn(net.sto_all.shape, generator=torch.Generator().manual_seed(4))
    )
    p = torch.randperm(net.n_met, generator=torch.Generator().manual_seed(5))
    q = torch.randperm(net.n_rxn, generator=torch.Generator().manual_seed(6))
    other = network_from_edges(
        (p[net.met_sub], q[net.rxn_sub], net.sto_sub),
        (p[net.met_all], q[net.rxn_all], net.sto_all),
        net.metabolite_names,
        net.reaction_names,
    )
    dense = torch.zeros(net.n_met, net.n_rxn, dtype=torch.float64)
    dense[p[net.met_all], q[net.rxn_all]] = value
    scores = []
    for one, v in ((net, value), (other, dense[other.met_all, other.rxn_all])):
        column, _ = structure.column_identifiability(one)
        scores.append(metrics.stoichiometry_scores(gauge(one, v), one, is_identifiable=column))
    assert scores[0] == pytest.approx(scores[1])


def test_common_factor_of_a_column_comes_from_its_own_rate_law_not_from_the_truth():
    net = network(SMALL)  # column 3 is -2, +2
    edges = net.rxn_all == 2
    value = net.sto_all * torch.where(edges, 0.37, 1.0)
    assert gauge(net, value).integer[edges].tolist() == [-2, 2]
    one = torch.where(net.rxn_sub == 2, 1.1, net.sto_sub)
    assert gauge(net, value, sto_sub=one).integer[edges].tolist() == [-1, 1]
    assert gauge(net, value, sto_sub=None).integer[edges].tolist() == [-1, 1]


def test_gauge_keeps_wrong_signs_wrong():
    net = network(SMALL)
    fixed = gauge(net, -net.sto_all, sto_sub=None)
    scores = metrics.stoichiometry_scores(fixed, net, is_identifiable=ALL)
    assert scores["sign_accuracy"] == 0 and scores["exact_edges"] == 0
    assert scores["stoichiometry_R2"] < -1 and scores["stoichiometry_R2_refit"] > 0.9


# -- scores of S --------------------------------------------------------------------------------


def test_scores_of_a_hand_computed_estimate():
    net = network(SMALL)
    integer = net.sto_all.clone()
    at = {
        (m, j): e
        for e, (m, j) in enumerate(zip(net.met_all.tolist(), net.rxn_all.tolist(), strict=True))
    }
    integer[at[(3, 1)]] = 2  # magnitude
    integer[at[(2, 2)]], integer[at[(3, 2)]] = -1, 1  # scale of a whole column
    integer[at[(0, 3)]] = 1  # sign
    one = torch.ones(4, dtype=torch.float64)
    estimate = metrics.GaugedStoichiometry(
        net.met_all, net.rxn_all, integer, integer, one, 3 * integer, net.n_met
    )
    known = torch.tensor([True, True, False, False])
    scores = metrics.stoichiometry_scores(estimate, net, is_identifiable=known)
    true = net.sto_all
    sse = 1 + 1 + 1 + 4
    sst = float((true - true.mean()).square().sum())
    assert scores["stoichiometry_R2"] == pytest.approx(1 - sse / sst)
    assert scores["exact_edges"] == pytest.approx(6 / 10)
    assert scores["exact_columns"] == pytest.approx(1 / 4)
    assert scores["exact_edges_identifiable"] == pytest.approx(4 / 5)
    assert scores["exact_columns_identifiable"] == pytest.approx(1 / 2)
    assert scores["sign_accuracy"] == pytest.approx(9 / 10)
    errors = metrics.stoichiometry_errors(estimate, net)
    assert (errors.n_magnitude, errors.n_scale, errors.n_sign) == (1, 2, 1)
    assert str(errors).startswith("4 of 10 edges are wrong: 1 by sign, 1 by magnitude, 2 by scale")


def test_unknown_support_counts_missing_and_spurious_edges():
    net = network(SMALL)
    rxn = torch.arange(4).repeat_interleave(4)
    met = torch.arange(4).repeat(4)
    dense = net.matrix()
    dense[0, 0] = 0.02  # missing
    dense[0, 2] = 1.9  # spurious
    fixed = metrics.fix_gauge(
        met,
        rxn,
        dense[met, rxn],
        n_met=4,
        n_rxn=4,
        substrate=None,
        max_coefficient=2,
        is_support_given=False,
    )
    errors = metrics.stoichiometry_errors(fixed, net)
    assert errors.n_spurious == 1
    scores = metrics.stoichiometry_scores(fixed, net, is_identifiable=ALL)
    assert scores["support_f1"] == pytest.approx(2 * 9 / (10 + 10))
    assert scores["exact_columns"] == pytest.approx(0.5)
    assert "1 by support" in str(errors) and "1 edges are spurious" in str(errors)


def test_reactions_with_equal_substrates_may_exchange_their_names():
    net = network([{0: -1, 1: 1}, {0: -1, 2: 2}, {3: -1, 1: 1}])
    dense = net.matrix()[:, [1, 0, 2]]
    met, rxn = dense.nonzero(as_tuple=True)
    fixed = metrics.fix_gauge(
        met,
        rxn,
        dense[met, rxn],
        n_met=net.n_met,
        n_rxn=3,
        substrate=None,
        max_coefficient=2,
        is_support_given=False,
    )
    scores = metrics.stoichiometry_scores(
        fixed, net, is_identifiable=torch.tensor([False, False, True])
    )
    assert scores["support_f1"] == pytest.approx(4 / 6)
    assert scores["support_f1_renamed"] == scores["exact_edges_renamed"] == 1
    assert scores["exact_edges_identifiable_renamed"] == 1


def test_non_integer_columns_and_empty_reactions_are_not_counted_as_exact():
    net = network([{0: -1, 1: 0.5}, {1: -1, 2: 2}])
    assert metrics.counted_columns(net).tolist() == [False, True]
    fixed = gauge(net, net.sto_all)
    scores = metrics.stoichiometry_scores(
        fixed, net, is_identifiable=torch.ones(2, dtype=torch.bool)
    )
    assert scores["exact_edges"] == scores["exact_columns"] == 1
    assert scores["stoichiometry_R2"] == scores["stoichiometry_R2_full"] == 1


def test_a_rate_constant_without_an_integer_scale_of_its_column_is_not_determined():
    net = network([{0: -1, 1: 2.5}, {1: -1, 2: 1}, {2: -1, 0: 1}])
    g = torch.Generator().manual_seed(0)
    flux = torch.rand(30, 3, generator=g, dtype=torch.float64)
    options = {"log_k": None, "rtol": 1e-8}
    found = structure.identifiability(net, flux, is_stoichiometry_given=False, **options)
    assert found.k.tolist() == [False, True, True]
    assert found.reason_k == ("no integer scale", "", "")
    given = structure.identifiability(net, flux, is_stoichiometry_given=True, **options)
    assert given.k.all(), "a given column has its scale"


def test_one_definition_says_which_columns_are_integer():
    from neuralgraph.systems.metabolism import closed_form
    from neuralgraph.systems.metabolism import network as networks

    assert metrics.integer_columns is networks.integer_columns
    assert not hasattr(closed_form, "integer_columns")


def test_trivial_row_scores_about_090_with_about_half_of_the_edges_exact():
    net = random_network()
    column, _ = structure.column_identifiability(net)
    trivial = metrics.trivial_stoichiometry_scores(net, net.sto_all.sign(), is_identifiable=column)
    assert trivial["stoichiometry_R2"] == pytest.approx(0.90, abs=0.01)
    assert 0.5 <= trivial["exact_edges"] < 0.56
    by_hand = 1 - 0.25 * net.sto_all.numel() / float(
        (net.sto_all - net.sto_all.mean()).square().sum()
    )
    assert trivial["stoichiometry_R2"] == pytest.approx(by_hand)


def test_trivial_row_knows_only_the_signs_of_the_prior():
    net = network(SMALL)
    substrate = (net.met_sub, net.rxn_sub)
    known = metrics.known_signs(net, sign=None, substrate=substrate)
    assert torch.equal(known == -1, net.sto_all < 0) and bool((known <= 0).all())
    nothing = metrics.known_signs(net, sign=None, substrate=None)
    trivial = metrics.trivial_stoichiometry_scores(net, nothing, is_identifiable=ALL)
    assert trivial["exact_edges"] == 0 and trivial["stoichiometry_R2"] <= 0


# -- rate constants ---------------------------------------------------------------------------


def test_rate_constant_scores_of_a_hand_computed_example():
    true = torch.tensor([-2.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    estimate = true + torch.tensor([0.0, 0.1, 0.4, 0.0], dtype=torch.float64)
    known = torch.tensor([True, True, False, True])
    scores = metrics.rate_constant_scores(estimate, true, is_identifiable=known)
    assert scores["rate_constants_R2"] == pytest.approx(1 - 0.17 / 5)
    assert scores["n_outliers"] == 1 and scores["n_outliers_identifiable"] == 0
    assert scores["max_abs_dlog10_k_identifiable"] == pytest.approx(0.1)
    assert scores["trimmed_R2"] == pytest.approx(1 - 0.01 / (14 / 3))
    assert math.isnan(scores["rate_constants_group_error"])


def test_undetermined_splits_are_scored_by_their_determined_sum():
    net = network([{0: -1, 1: 1}, {0: -1, 1: 1}, {1: -1, 0: 1}], catalysts=[(1, 0), (1, 1), (0, 2)])
    c = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    k = torch.tensor([0.02, 0.05, 0.03], dtype=torch.float64)
    flux = (c[:, :1] * c[:, 1:]) * k
    found = structure.identifiability(
        net, flux, log_k=k.log10(), is_stoichiometry_given=True, rtol=1e-8
    )
    assert not bool(found.k.any())
    (group,) = found.group
    assert group.members == (0, 1, 2) and group.n_null == 2
    assert found.reason_k[0] == "only k(R1) + k(R2) - k(R3)"
    shifted = torch.tensor([0.03, 0.05, 0.04], dtype=torch.float64)
    scores = metrics.rate_constant_scores(
        shifted.log10(), k.log10(), is_identifiable=found.k, group=found.group
    )
    assert scores["rate_constants_group_error"] == pytest.approx(0, abs=1e-9)
    scores = metrics.rate_constant_scores(
        (2 * k).log10(), k.log10(), is_identifiable=found.k, group=found.group
    )
    assert scores["rate_constants_group_error"] == pytest.approx(0.04 / 0.10)


def test_amplitude_of_the_rate_law_is_no_error_of_k():
    shift = metrics.log_k_shift_mass_action(2.0, torch.tensor([0, 0, 1]), 3)
    assert shift.tolist() == pytest.approx([2 * math.log10(2), math.log10(2), 0])
    g = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    log_k = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    flux = 10**log_k * g
    once = log_k + metrics.log_k_shift_learned_rate(flux, log_k)
    other = log_k - math.log10(7)
    again = other + metrics.log_k_shift_learned_rate(flux, other)
    assert torch.allclose(once, again)


# -- identifiability ----------------------------------------------------------------------------


def test_columns_with_one_set_of_substrates_and_coefficients_are_not_determined():
    net = network([{0: -1, 1: 1}, {0: -1, 2: 1}, {0: -2, 1: 1}, {1: -1, 2: 1}])
    column, reason = structure.column_identifiability(net)
    assert column.tolist() == [False, False, True, True]
    assert reason[0] == "same substrates as R2" and reason[2] == ""
    # of kinetic order 1, the third runs in proportion to the first two as well
    order = torch.ones_like(net.sto_sub)
    assert structure.column_identifiability(net, order)[0].tolist() == [False, False, False, True]


def test_empty_reactions_are_not_determined_and_say_so():
    net = network([{0: -1, 1: 1}, {}, {1: -1, 0: 2}])
    flux = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    found = structure.identifiability(
        net, flux, log_k=None, is_stoichiometry_given=False, rtol=1e-8
    )
    assert found.column.tolist() == [True, False, True]
    assert found.reason[1] == "no metabolite changes"
    assert found.reason_k[1] == "does not act on the data"
    rows = structure.identifiability_table(found, net)
    assert [r["reaction"] for r in rows] == ["R1", "R2", "R3"]
    assert rows[0]["k_determined"] is True and rows[1]["k_determined"] is False


def test_identifiability_of_k_equals_the_null_space_of_the_stacked_sensitivity():
    from neuralgraph.numerics.identifiability import determined, null_space

    net = random_network(12, 40, seed=2)
    g = torch.Generator().manual_seed(1)
    c = torch.rand(30, 12, generator=g, dtype=torch.float64) + 0.5
    flux = torch.ones(30, 40, dtype=torch.float64)
    for m, j, s in zip(net.met_sub, net.rxn_sub, net.sto_sub, strict=True):
        flux[:, j] *= c[:, m] ** s
    found = structure.identifiability(net, flux, log_k=None, is_stoichiometry_given=True, rtol=1e-8)
    stacked = (net.matrix()[None] * flux[:, None]).reshape(-1, 40)
    assert torch.equal(found.k, determined(null_space(stacked, rtol=1e-8)))


def test_too_few_frames_leave_entries_of_s_undetermined():
    net = random_network(12, 40, seed=2)
    flux = torch.rand(100, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kwargs = {"is_support_given": True, "rtol": 1e-8}
    assert bool(structure.determined_edges(net, flux, **kwargs).all())
    few = structure.determined_edges(net, flux[:4], **kwargs)
    n_per_metabolite = torch.bincount(net.met_all, minlength=12)
    assert torch.equal(few, n_per_metabolite[net.met_all] <= 4)
    assert not bool(
        structure.determined_edges(net, flux[:39], is_support_given=False, rtol=1e-8).any()
    )


def test_the_table_is_written_whole(tmp_path):
    net = network([{0: -1, 1: 1}, {0: -1, 2: 1}])
    found = structure.identifiability(
        net, None, log_k=None, is_stoichiometry_given=False, rtol=1e-8
    )
    structure.write_identifiability(structure.identifiability_table(found, net), tmp_path / "i.csv")
    lines = (tmp_path / "i.csv").read_text().splitlines()
    assert lines[0] == "reaction,column_determined,column_reason,k_determined,k_reason,group"
    assert lines[1].startswith("R1,no,same substrates as R2,,not computed")


# -- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "trivial", "verdict"),
    [
        (0.96, 0.9, "converged"),
        (0.94, 0.9, "partial"),
        (0.94, None, "converged"),
        (0.05, None, "failed"),
    ],
)
def test_converged_must_also_beat_the_trivial_row(score, trivial, verdict):
    kwargs = {"converged_above": 0.9, "failed_below": 0.1, "trivial_margin": 0.05}
    assert verdicts.classify(score, trivial=trivial, **kwargs) == verdict


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        ((0.99, 0.95), "healthy"),
        ((0.99, 0.5), "degenerate"),
        ((0.99, 0.1), "severely"),
        ((0.2, 0.1), "failed"),
        ((0.8, 0.6), "between"),
        ((0.7, 0.95), "recovered better"),
    ],
)
def test_degeneracy_has_a_diagnosis_for_every_pair(pair, word):
    text = verdicts.degeneracy_diagnosis(*pair)
    assert text.startswith(word) or word in text
    assert ("do not trust" in text) == (pair[0] - pair[1] > 0.3)

"""Recovery with unknown roles or unknown support, on small networks with known answers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.metabolism import recovery_amounts
from neuralgraph.systems.metabolism.kinetics import LearnedRate, random_weights
from neuralgraph.systems.metabolism.loop import data_train_metabolism
from neuralgraph.systems.metabolism.metrics import with_names_exchanged
from neuralgraph.systems.metabolism.network import (
    ReactionNetwork,
    network_from_edges,
    random_network,
)
from neuralgraph.systems.metabolism.recovery_amounts import RatePursuit
from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem, checked_problem
from neuralgraph.systems.metabolism.recovery_columns import (
    Column,
    ColumnDecoder,
    ReactionAnswer,
    _with_at_most,
    column_of,
)
from neuralgraph.systems.metabolism.recovery_law import PolynomialLaw
from neuralgraph.systems.metabolism.recovery_mlp import RateFit, fit_rate_mlp
from neuralgraph.systems.metabolism.recovery_pursuit import LEAST_CLEARNESS, Pursuit
from neuralgraph.systems.metabolism.recovery_roles import RoleSearch, recover_roles
from neuralgraph.systems.metabolism.recovery_support import recover_support
from neuralgraph.systems.metabolism.recovery_twins import (
    MOST_CANDIDATES,
    Groups,
    _n_column,
    merged_columns,
)
from neuralgraph.systems.metabolism.start_open import Difference, better_law

N_MET, N_RXN = 12, 12


@dataclass
class Small:
    """Data and answer of a small network."""

    network: ReactionNetwork
    c: np.ndarray
    dx_dt: np.ndarray
    s: np.ndarray
    sub: tuple[np.ndarray, np.ndarray, np.ndarray]
    all: tuple[np.ndarray, np.ndarray, np.ndarray]

    def same_substrates(self, one: int, two: int) -> bool:
        met, rxn, _ = self.sub
        return set(met[rxn == one]) == set(met[rxn == two])

    def problem(self) -> RecoveryProblem:
        met, rxn, value = self.all
        return checked_problem(
            self.c,
            self.dx_dt,
            *self.sub[:2],
            met,
            rxn,
            np.sign(value),
            n_met=N_MET,
            n_rxn=N_RXN,
            max_coefficient=2,
        )


def make(seed: int, n_frame: int = 240) -> Small:
    network = random_network(
        N_MET,
        N_RXN,
        n_substrate_max=3,
        n_product_max=3,
        coefficient_max=2,
        mass_balanced=False,
        generator=torch_generator(seed, "network"),
    )
    r = np.random.default_rng(seed)
    weights = random_weights(torch_generator(seed, "law"), 32, 16)
    law = LearnedRate(network, r.uniform(-1, 1, N_RXN), weights)
    c = r.uniform(2.5, 7.5, (n_frame, N_MET))
    s = network.matrix().numpy()
    sub = (network.met_sub.numpy(), network.rxn_sub.numpy(), network.sto_sub.numpy().astype(int))
    net = (network.met_all.numpy(), network.rxn_all.numpy(), network.sto_all.numpy().astype(int))
    return Small(network, c, law.flux(c) @ s.T, s, sub, net)


def answers(small: Small) -> list[ReactionAnswer]:
    out = []
    for j in range(N_RXN):
        on, net = small.sub[1] == j, small.all[1] == j
        order = np.argsort(small.sub[0][on])
        subs, sizes = small.sub[0][on][order], small.sub[2][on][order]
        out.append(
            ReactionAnswer(
                small.all[0][net], small.all[2][net], tuple(subs.tolist()), tuple(sizes.tolist())
            )
        )
    return out


def known_columns(small: Small) -> list[Column]:
    """Signs known: the case of the decoder that this one generalises."""
    columns = []
    for answer in answers(small):
        made = answer.met[answer.value > 0]
        alternatives = [(answer.substrates, made, np.zeros(len(made), dtype=bool))]
        columns.append(column_of(answer, alternatives, 2))
    return columns


def test_known_signs_are_a_special_case_of_lists_of_candidates() -> None:
    small = make(3)
    problem, poly = small.problem(), PolynomialLaw(3, 2, (4, 3, 3))
    frames = problem.frames(120)
    old = problem.decoder(poly, frames, tie_substrates=True)
    z = (problem.concentration[frames] - problem.center) / problem.half_width
    new = ColumnDecoder(z.T, problem.dx_dt[frames].T, known_columns(small), poly, 2)
    theta = np.random.default_rng(0).normal(size=poly.n_theta) * 0.01
    theta[poly.constant] = 1.0
    misfit = []
    for decoder in (old, new):
        decoder.set_rates(decoder.polynomial_rates(theta))
        belief = decoder.start(2.0, 3.0)
        for level in (1e-1, 3e-2):
            belief = decoder.sweep(belief, level, k_range=(1e-3, 40.0))
        misfit.append(decoder.misfit(belief))
    # the other one keeps a little more doubt about each edge
    np.testing.assert_allclose(misfit[0], misfit[1], rtol=0.02, atol=0.02)


def test_first_candidate_is_the_present_answer_and_substrates_are_tied() -> None:
    answer = ReactionAnswer(np.array([4, 1, 7]), np.array([-2, 1, 2]), (4,), (2,))
    column = column_of(answer, [((1,), np.array([4, 7]), np.array([False, True]))], 2)
    assert dict(zip(column.met.tolist(), column.table[0].tolist(), strict=True)) == {
        4: -2,
        1: 1,
        7: 2,
    }
    assert column.rate[column.code[0]] == ((4,), (2,))
    for row, code in zip(column.table[1:], column.code[1:], strict=True):
        subs, sizes = column.rate[code]
        assert subs == (1,) and -row[column.met == 1][0] == sizes[0]
        assert row[column.met == 4][0] in (1, 2) and row[column.met == 7][0] in (0, 1, 2)
    assert len(column.table) == 1 + 2 * 2 * 3


def test_most_products_limits_the_candidates() -> None:
    answer = ReactionAnswer(np.array([0, 1]), np.array([-1, 1]), (0,), (1,))
    made, free = np.arange(1, 5), np.ones(4, dtype=bool)
    column = column_of(answer, [((0,), made, free)], 2, max_products=1)
    assert ((column.table > 0).sum(1) == 1).all()
    assert len(column.table) == 2 * 4 * 2


def test_candidates_with_too_many_products_are_never_formed() -> None:
    """Of twenty products two at most: 3^20 combinations would not fit into any memory."""
    choice = [(0, 1, 2), (1, 2), (0, 1, 2), (0, 1, 2)]
    few = [made for made in itertools.product(*choice) if np.count_nonzero(made) <= 2]
    assert list(_with_at_most(2, choice)) == few
    answer = ReactionAnswer(np.array([0]), np.array([-1]), (0,), (1,))
    column = column_of(answer, [((0,), np.arange(1, 21), np.ones(20, dtype=bool))], 2, 2)
    assert len(column.table) == 1 + 2 * (20 * 2 + 190 * 4)  # the first: nothing produced yet


def test_pairs_of_columns_stay_within_memory_whatever_the_coefficients() -> None:
    answer = ReactionAnswer(np.array([0]), np.array([-1]), (0,), (1,))
    column = column_of(answer, [((0,), np.arange(1, 6), np.ones(5, dtype=bool))], 3, 3)
    assert _n_column(3, 5, 3, 3) == len(column.table) + 2  # nothing produced: the answer alone
    for n_rate, n_product in ((8, 9), (4, 9), (2, 9)):  # three substrates with coefficients to 2
        assert _n_column(n_rate, n_product, 2, 3) <= MOST_CANDIDATES
    assert _n_column(27, 9, 3, 3) > MOST_CANDIDATES >= _n_column(27, 1, 3, 3)


@pytest.mark.parametrize("seed", [5])
def test_roles_are_read_off_what_the_derivatives_depend_on(seed: int) -> None:
    small = make(seed)
    member = [np.flatnonzero(small.s[:, j]) for j in range(N_RXN)]
    splits = [[s for s in _subsets(len(m)) if len(s) <= 3 and len(m) - len(s) <= 3] for m in member]
    search = RoleSearch(small.problem(), member, splits, np.random.default_rng(0), 240)
    for turn in range(2):
        search.regress(is_first=turn == 0, n_step=4)
        search.decide()
    right = [
        ranked[0][1] == tuple(np.flatnonzero(small.s[m, j] < 0))
        for j, (m, ranked) in enumerate(zip(member, search.ranked, strict=True))
    ]
    chance = np.mean([1 / len(s) for s in splits])
    assert chance < 0.4
    assert np.mean(right) >= 0.8


def _subsets(n: int) -> list[tuple[int, ...]]:
    return [s for k in range(1, n) for s in itertools.combinations(range(n), k)]


def test_a_small_network_is_recovered_from_its_support_alone() -> None:
    small = make(3)
    found = recover_roles(
        small.c,
        small.dx_dt,
        *small.all[:2],
        n_met=N_MET,
        n_rxn=N_RXN,
        rng=np.random.default_rng(0),
        max_coefficient=2,
        max_substrates=3,
        max_products=3,
        log_k_range=(-2.6, 1.6),
        n_pass=2,
        n_step=4,
        degree=(6, 4, 4),
        n_scan=8,
        n_start=2,
        n_anneal=12,
        n_sharpen=0,
    )
    s = found.matrix(N_MET)
    assert (np.sign(s) == np.sign(small.s)).mean() > 0.98
    assert (s == small.s)[small.s != 0].mean() >= 0.9
    drives = np.zeros((N_MET, N_RXN))
    drives[found.met_sub, found.rxn_sub] = found.sto_sub
    np.testing.assert_array_equal(drives, np.maximum(-s, 0))
    assert found.confidence.shape == found.sto_all.shape


@pytest.mark.parametrize("seed", [5])
def test_products_are_found_among_all_metabolites(seed: int) -> None:
    small = make(seed)
    substrates = [np.sort(small.sub[0][small.sub[1] == j]) for j in range(N_RXN)]
    pursuit = Pursuit(small.problem(), substrates, np.random.default_rng(0), 240)
    for _ in range(2):
        pursuit.run()
    found = pursuit.amounts() > 0
    true = small.s > 0
    f1 = 2 * (found & true).sum() / (found.sum() + true.sum())
    share = true.sum() / (N_MET * N_RXN - (small.s < 0).sum())
    assert share < 0.3  # what marking everything would get right
    assert f1 > 0.75


def test_reactions_whose_laws_differ_much_are_not_given_up() -> None:
    """Their amounts alone are uncertain then: the second pass once dropped most products so."""
    small = make(5)
    substrates = [np.sort(small.sub[0][small.sub[1] == j]) for j in range(N_RXN)]
    pursuit = Pursuit(small.problem(), substrates, np.random.default_rng(0), 240)
    pursuit.run()
    pursuit.deviation[0] = 1.0
    pursuit.run()
    alone, together = [], []
    for i, row in enumerate(pursuit.rows):
        size = dict(zip(row.active, np.abs(row.amount), strict=True))
        noise = 1e-6 * pursuit.total[i] / pursuit.n_frame
        w, cov, feature, _ = pursuit._fit(i, row.active, size, noise, 4)
        n = len(row.active)
        alone += list(np.abs(w[:n]) / np.sqrt(np.diag(cov)[:n]))
        together += list(pursuit._clearness(row.active, w, cov, feature))
    assert (np.array(together) >= np.array(alone) * (1 - 1e-6)).all()
    kept, were_kept = ((np.array(x) > LEAST_CLEARNESS).mean() for x in (together, alone))
    assert kept > 0.8 and were_kept < 0.6, (kept, were_kept)


def test_a_right_guess_of_the_coefficients_leaves_nothing_unexplained() -> None:
    """Rates in which the coefficients of two substrates do not act apart from each other."""
    r = np.random.default_rng(3)
    n_frame, sizes = 300, np.array([[1, 1], [1, 2], [2, 1], [2, 2]])
    rate = [r.uniform(0.5, 1.5, size=(4, n_frame)) for _ in range(5)]
    true = [0, 1, 2, 3, 1]
    s = np.zeros((2, 5))
    s[0, 0], s[0, 1], s[0, 2] = -1.0, 1.0, 2.0
    s[1, 3], s[1, 4] = -1.0, 3e-5
    y = np.stack([sum(s[i, j] * rate[j][true[j]] for j in range(5)) for i in range(2)])
    found = {}
    for guess in (true, [None] * 5):
        pursuit = RatePursuit(rate, [sizes] * 5, guess, y, s < 0, np.ones(5, dtype=bool))
        found[guess is true] = pursuit.run(np.where(s < 0, -1.0, 0.0))
    assert found[True].residual.max() < 1e-4 < 1e-2 < found[False].residual.max()
    np.testing.assert_array_equal(found[True].value > 0, s > 0)
    wrong = RatePursuit(rate, [sizes] * 5, [1, 1, 2, 3, 1], y, s < 0, np.ones(5, dtype=bool))
    assert wrong.run(np.where(s < 0, -1.0, 0.0)).residual.max() < 1e-4  # one |s| wrong: as good


@pytest.mark.parametrize(("consumed", "made"), [(3.0, 1.0), (1.0, 3.0)])
def test_bounds_of_the_amounts_allow_every_ratio_of_integers(consumed: float, made: float) -> None:
    """With integers to 3 a product may have three times, or a third of, what its substrate has."""
    r = np.random.default_rng(4)
    sizes = np.array([[1], [2], [3]])
    rate = list(r.uniform(0.5, 1.5, size=(3, 3, 300)))
    s = np.diag([-consumed, -1.0, -1.0])
    s[1, 0] = made
    y = s @ np.stack([f[int(consumed) - 1] for f in rate])
    guess = [int(consumed) - 1] * 3
    found = RatePursuit(rate, [sizes] * 3, guess, y, s < 0, np.ones(3, dtype=bool))
    np.testing.assert_allclose(found.run(np.minimum(s, 0.0)).value, s, atol=1e-3)


def test_learned_rates_show_slow_products_whatever_the_coefficients_of_substrates() -> None:
    r = np.random.default_rng(2)
    n_frame, sizes = 200, np.array([[1, 1], [1, 2], [2, 1], [2, 2]])
    base, first, second = r.normal(size=(3, 6, n_frame))
    rate = [
        base[j] + 0.3 * (s[:, :1] * first[j] + s[:, 1:] * second[j])
        for j, s in enumerate([sizes] * 6)
    ]
    s = np.zeros((4, 6))
    s[0, 0], s[0, 1], s[0, 2] = -2.0, 1.0, 2e-3  # the last is a thousand times slower
    s[1, 1], s[2, 2] = -1.0, -2e-3
    y = np.stack([sum(s[i, j] * rate[j][2] for j in range(6)) for i in range(4)])
    y[3] = -rate[3][0]
    is_sub = s < 0
    is_sub[3, 3:] = True
    noisy = y * (1 + 0 * y) + 1e-6 * r.normal(size=y.shape)
    pursuit = RatePursuit(rate, [sizes] * 6, [None] * 6, noisy, is_sub, np.ones(6, dtype=bool))
    found = pursuit.run(np.where(is_sub, -1.0, 0.0))
    np.testing.assert_array_equal(found.value[:3] > 0, s[:3] > 0)
    np.testing.assert_allclose(found.value[0, :3], s[0, :3], rtol=1e-2)
    assert found.residual.max() < 1e-2


def test_products_of_reactions_whose_substrates_are_held_constant() -> None:
    """A clamped metabolite has no derivative to explain, and says nothing about a rate constant."""
    small = make(5)
    held = 0
    assert (small.s[held] < 0).sum() > 2
    small.dx_dt[:, held] = 0.0
    substrates = [np.sort(small.sub[0][small.sub[1] == j]) for j in range(N_RXN)]
    pursuit = Pursuit(small.problem(), substrates, np.random.default_rng(0), 240)
    for _ in range(2):
        pursuit.run()
    amount = pursuit.amounts()
    assert not amount[held].any() and np.isfinite(amount).all()
    found, true = np.delete(amount > 0, held, 0), np.delete(small.s > 0, held, 0)
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.75

    rate = list(np.random.default_rng(6).uniform(0.5, 1.5, size=(2, 1, 100)))
    s = np.array([[0.0, 0.0], [2.0, -1.0]])
    is_sub = np.array([[True, False], [False, True]])
    y = s @ np.concatenate(rate)
    again = RatePursuit(rate, [np.ones((1, 1), int)] * 2, [0, 0], y, is_sub, np.ones(2, bool))
    np.testing.assert_allclose(again.run(np.zeros((2, 2))).value, s, atol=1e-3)


def test_a_pursuit_of_reactions_that_push_each_other_out_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nearly collinear rates, crude data: before the bound this example went round for ever."""
    r = np.random.default_rng(1)
    n_met, n_rxn, n_frame = 3, 12, 24
    shared = r.normal(size=(3, n_frame))
    base = [r.normal(size=3) @ shared + 0.3 * r.normal(size=n_frame) for _ in range(n_rxn)]
    rate = [np.stack([b, b * (1 + 0.2 * r.normal()) + 0.1 * r.normal(size=n_frame)]) for b in base]
    is_sub = np.zeros((n_met, n_rxn), dtype=bool)
    is_sub[r.integers(n_met, size=n_rxn), np.arange(n_rxn)] = True
    made = (r.random((n_met, n_rxn)) < 0.3) * r.choice([1, 2], size=(n_met, n_rxn))
    s = np.where(is_sub, -1.0, 1.0 * made)
    y = np.stack(
        [sum(s[i, j] * 10 ** r.uniform(-2, 0) * rate[j][0] for j in range(n_rxn)) for i in range(3)]
    )
    y += 0.05 * r.normal(size=y.shape)

    fits, fit = [0], recovery_amounts._Row._fit

    def counted(row: recovery_amounts._Row, n_step: int) -> None:
        fits[0] += 1
        assert fits[0] < 2_000, "the pursuit does not end"
        fit(row, n_step)

    monkeypatch.setattr(recovery_amounts._Row, "_fit", counted)
    sizes = np.array([[1], [2]])
    alone = np.ones(n_rxn, dtype=bool)
    pursuit = RatePursuit(rate, [sizes] * n_rxn, [None] * n_rxn, y, is_sub, alone)
    found = pursuit.run(np.where(is_sub, -1.0, 0.0))
    assert np.isfinite(found.value).all() and found.residual.max() < 1


def test_reactions_with_equal_substrates_become_free_columns() -> None:
    groups = Groups.of([np.array([2, 0]), np.array([1]), np.array([0, 2])])
    assert groups.member == ((0, 2), (1,))
    amount = np.zeros((5, 2))
    amount[[3, 4], [0, 1]] = 1.0
    columns, place = merged_columns(groups, amount, 2)
    assert place == [(0, 1, 2), (3,)]
    assert [c.met.tolist() for c in columns] == [[0], [2], [3], [1, 4]]
    assert [c.guess[0] for c in columns[:3]] == [-1.0, -1.0, 1.0]
    assert all(len(c.rate) == 4 for c in columns[:3])


def recovered(small: Small):
    return recover_support(
        small.c,
        small.dx_dt,
        *small.sub[:2],
        n_met=N_MET,
        n_rxn=N_RXN,
        rng=np.random.default_rng(0),
        max_coefficient=2,
        max_products=3,
        log_k_range=(-2.6, 1.6),
        degree=(6, 4, 4),
        sharp_degree=(6, 4, 4),
        n_sharpen=2,
    )


def test_a_small_network_is_recovered_from_its_substrates_alone() -> None:
    small = make(3)
    found = recovered(small)
    # nothing says which of two reactions with equal substrates is which
    s = with_names_exchanged(torch.from_numpy(found.matrix(N_MET)), small.network).numpy()
    consumed = {(m, j) for m, j, s in zip(found.met_all, found.rxn_all, found.sto_all) if s < 0}  # noqa: B905  # one length
    assert consumed == set(zip(*small.sub[:2], strict=True))
    assert (np.sign(s) == np.sign(small.s)).mean() > 0.98
    assert (s == small.s)[small.s != 0].mean() >= 0.8
    singles = [
        j for j in range(N_RXN) if sum(small.same_substrates(j, i) for i in range(N_RXN)) == 1
    ]
    assert (s == small.s)[:, singles].all()
    assert np.isfinite(found.log_k).all()


def test_two_reactions_with_the_same_substrates_are_told_apart() -> None:
    small = make(3)
    network_s, (met, rxn, size) = small.s, small.sub
    # reaction 1 gets the substrates of reaction 0 with other coefficients, and own products
    on, off = rxn == 0, rxn == 1
    r = np.random.default_rng(1)
    law = LearnedRate  # the law of make(3) is drawn again below, from the same seed
    s = network_s.copy()
    s[:, 1] = np.where(s[:, 1] > 0, s[:, 1], 0)
    s[met[on], 1] = -(3 - size[on])
    keep = ~off
    sub = (
        np.r_[met[keep], met[on]],
        np.r_[rxn[keep], np.ones(on.sum(), dtype=int)],
        np.r_[size[keep], 3 - size[on]],
    )
    m, j = np.nonzero(s)
    network = network_from_edges(
        tuple(map(torch.from_numpy, sub)),
        (torch.from_numpy(m), torch.from_numpy(j), torch.from_numpy(s[m, j])),
        [f"m{i}" for i in range(N_MET)],
        [f"r{i}" for i in range(N_RXN)],
    )
    c = r.uniform(2.5, 7.5, (240, N_MET))
    weights = random_weights(torch_generator(3, "law"), 32, 16)
    k = r.uniform(-0.5, 0.5, N_RXN)
    dx_dt = law(network, k, weights).flux(c) @ s.T
    small = Small(network, c, dx_dt, s, sub, (m, j, s[m, j].astype(int)))
    found = torch.from_numpy(recovered(small).matrix(N_MET))
    found = with_names_exchanged(found, network).numpy()
    np.testing.assert_array_equal(found[:, :2], s[:, :2])


def test_a_reaction_that_no_split_fits_is_refused() -> None:
    small = make(3)
    with pytest.raises(DataError, match="no split into 1 to 1 substrates and 1 to 1 products"):
        recover_roles(
            small.c,
            small.dx_dt,
            *small.all[:2],
            n_met=N_MET,
            n_rxn=N_RXN,
            rng=np.random.default_rng(0),
            max_coefficient=2,
            max_substrates=1,
            max_products=1,
            log_k_range=(-2.6, 1.6),
        )


@pytest.mark.parametrize(
    ("support", "roles", "kinetics", "is_refused"),
    [
        (True, False, "learned_rate", False),
        (False, True, "learned_rate", False),
        (False, False, "learned_rate", True),
        (True, False, "mass_action", True),
    ],
)
def test_what_the_closed_form_asks_to_be_given(support, roles, kinetics, is_refused) -> None:
    from neuralgraph.config import experiment

    config = experiment(
        "metabolism_s",
        f"prior.support={str(support).lower()}",
        f"prior.roles={str(roles).lower()}",
    )
    config["model"] |= {"kinetics": kinetics, "aggregation": "multiply", "softplus": False}
    refuse = data_train_metabolism.refuse
    if is_refused:
        with pytest.raises(ConfigError, match=r"prior\.support=true and prior\.roles=true"):
            refuse(config)
    else:
        refuse(config)


def test_a_message_from_absence_vanishes_at_zero() -> None:
    inner = torch.nn.Linear(2, 3)
    message = Difference(inner)
    c = torch.tensor([[0.3, 0.0], [2.0, 0.0]])
    assert torch.equal(message(c), torch.zeros(2, 3))
    assert message(c + torch.tensor([0.0, 1.0])).abs().sum() > 0


@pytest.mark.parametrize("careful", [False, True])
def test_the_residual_of_a_law_is_that_of_the_rate_constants_it_returns(careful: bool) -> None:
    """Wrong integers drive rate constants below 0, where they are held back: that is in it too."""
    small = make(5)
    met, rxn, value = small.all
    wrong = np.sign(value) * np.where(
        np.arange(len(value)) % 4 == 0, 3 - np.abs(value), np.abs(value)
    )
    layers = torch.nn.Linear, torch.nn.Tanh
    torch.manual_seed(0)
    msg = torch.nn.Sequential(layers[0](2, 16), layers[1](), layers[0](16, 8)).double()
    rate = torch.nn.Sequential(layers[0](8, 16), layers[1](), layers[0](16, 1)).double()
    guess = np.random.default_rng(5).uniform(-1, 1, N_RXN)
    fit = fit_rate_mlp(
        small.c,
        small.dx_dt,
        *small.sub[:2],
        met,
        rxn,
        sto_sub=small.sub[2],
        sto_all=wrong,
        log_k=guess,
        msg_mlp=msg,
        rate_mlp=rate,
        n_met=N_MET,
        n_rxn=N_RXN,
        rng=np.random.default_rng(0),
        degree=(6, 4, 4),
        n_step=4,
        careful=careful,
    )
    total = torch.zeros(len(small.c), N_RXN, 8, dtype=torch.float64)
    for i, j, size in zip(*small.sub, strict=True):
        c = torch.from_numpy(small.c[:, i])
        total[:, j] += msg(torch.stack([c, torch.full_like(c, float(size))], 1))
    v = 10.0**fit.log_k * torch.nn.functional.softplus(rate(total)[..., 0]).detach().numpy()
    s = np.zeros((N_MET, N_RXN))
    s[met, rxn] = wrong
    left = small.dx_dt - v @ s.T
    rms = np.sqrt((small.dx_dt**2).mean(0))
    expected = np.sqrt((left**2).mean(0)) / np.where(rms > 0, rms, 1.0)
    np.testing.assert_allclose(fit.relative_residual, expected, rtol=1e-6)
    is_low = fit.log_k - guess < np.median(fit.log_k - guess) - 1.5
    assert is_low.any()  # some were held back


def test_networks_that_miss_the_law_of_exact_data_reach_it_with_care() -> None:
    small = make(4)
    left = {}
    for careful in (False, True):
        torch.manual_seed(0)
        msg = torch.nn.Sequential(
            torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)
        ).double()
        rate = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        ).double()
        fit = fit_rate_mlp(
            small.c,
            small.dx_dt,
            *small.sub[:2],
            *small.all[:2],
            sto_sub=small.sub[2],
            sto_all=small.all[2],
            log_k=np.random.default_rng(4).uniform(-1, 1, N_RXN),  # as make draws them
            msg_mlp=Difference(msg),
            rate_mlp=rate,
            n_met=N_MET,
            n_rxn=N_RXN,
            rng=np.random.default_rng(0),
            degree=(6, 4, 4),
            n_step=3,
            careful=careful,
        )
        left[careful] = float(np.median(fit.relative_residual))
    assert left[True] < 2e-4 < 1e-3 < left[False]


def test_a_fit_that_lost_the_decoding_is_repeated_and_the_better_one_kept() -> None:
    decoded = np.array([1e-5, 1e-4, 0.0])
    net = torch.nn.Sequential()

    def chosen(plain: float, careful: float) -> tuple[float, list[bool]]:
        asked: list[bool] = []

        def law(is_careful: bool):
            asked.append(is_careful)
            left = decoded * (careful if is_careful else plain)
            return RateFit(np.zeros(2), left, 1), net, net

        return float(better_law(law, decoded)[0].relative_residual[0] / decoded[0]), asked

    assert chosen(1.5, 1.0) == (1.5, [False])  # as good as the decoding: left alone
    assert chosen(1e3, 4.0) == (pytest.approx(4.0), [False, True])
    assert chosen(4.0, 1e3) == (pytest.approx(4.0), [False, True])

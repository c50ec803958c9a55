"""Folds hold out what they say they do."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.hyperbolic_response.splits import halves, make_splits

SINGLES = [("A",), ("B",), ("C",), ("D",), ("E",), ("F",)]
PAIRS = [("A", "B"), ("A", "C"), ("B", "Z"), ("Y", "Z"), ("C", "D")]
TARGETS = SINGLES + PAIRS
CONTEXT = [0] * len(TARGETS)


def cut(rule, targets=TARGETS, context=None, n_fold=None, fraction=0.0, seed=0, unseen=0.0):
    context = [0] * len(targets) if context is None else context
    return make_splits(
        rule,
        targets,
        context,
        n_fold=n_fold,
        validation_fraction=fraction,
        unseen_single_fraction=unseen,
        seed=seed,
    )


RULES = st.sampled_from(["unseen_perturbation", "leave_one_out", "combination", "unseen_cell_type"])


@settings(max_examples=60, deadline=None)
@given(RULES, st.integers(2, 4), st.sampled_from([0.0, 0.2, 0.4]), st.integers(0, 50))
def test_parts_are_disjoint_complete_and_nothing_held_out_is_learned(rule, n_fold, fraction, seed):
    singles = [(f"G{i}",) for i in range(10)]
    pairs = [tuple(sorted(p)) for p in itertools.combinations([f"G{i}" for i in range(5)], 2)]
    targets = [t for t in [*singles, *pairs] for _ in range(3)]
    context = [0, 1, 2] * (len(targets) // 3)
    fixed = rule in ("leave_one_out", "unseen_cell_type")
    n_fold = None if fixed else n_fold
    folds = cut(rule, targets, context, n_fold, fraction, seed)
    assert folds == cut(rule, targets, context, n_fold, fraction, seed), "same seed, same folds"
    tested = [row for fold in folds for row in fold.test]
    assert len(tested) == len(set(tested)), "tests of the folds are disjoint"
    for fold in folds:
        parts = [*fold.train, *fold.validation, *fold.test, *fold.left_out]
        assert sorted(parts) == list(range(len(targets)))
        assert fold.test and fold.train and len(fold.subgroup) == len(fold.test)
        assert bool(fold.validation) == (fraction > 0)
        learned = {targets[row] for row in fold.train}
        assert not learned & {targets[row] for row in fold.validation}
        if rule == "unseen_cell_type":
            assert {context[r] for r in fold.test}.isdisjoint({context[r] for r in fold.train})
        else:
            assert not learned & {targets[row] for row in fold.test}
        if rule == "unseen_perturbation":
            seen = {gene for row in fold.train for gene in targets[row]}
            held = {gene for row in (*fold.test, *fold.validation) for gene in targets[row]}
            assert not seen & held, "not even in a combination"


def test_every_single_is_tested_once_when_genes_are_unseen():
    folds = cut("unseen_perturbation", n_fold=3)
    assert sorted(r for f in folds for r in f.test) == list(range(6))
    assert all(set(f.subgroup) == {"unseen"} for f in folds)


def test_combinations_train_on_singles_and_count_what_was_seen():
    (fold,) = cut("combination", n_fold=1)
    assert fold.train == tuple(range(6)) and fold.test == tuple(range(6, 11))
    assert fold.subgroup == ("seen2", "seen2", "seen1", "seen0", "seen2")
    folds = cut("combination", n_fold=5)
    assert [len(f.test) for f in folds] == [1] * 5
    assert all(len(f.train) == 10 for f in folds)


@pytest.mark.parametrize("n_fold", [1, 3])
def test_genes_kept_out_make_combinations_of_unseen_genes(n_fold):
    pairs = list(itertools.combinations("ABCDEF", 2))
    targets = [*SINGLES, *pairs]
    folds = cut("combination", targets, n_fold=n_fold, unseen=0.34)
    hidden = set("ABCDEF") - {targets[row][0] for row in folds[0].train if row < 6}
    assert len(hidden) == 2
    tested = []
    for fold in folds:
        assert all(not hidden & set(targets[row]) for row in fold.train)
        assert {row for row in range(6) if targets[row][0] in hidden} <= set(fold.left_out)
        for row, group in zip(fold.test, fold.subgroup, strict=True):
            assert group == f"seen{len(set(targets[row]) - hidden)}"
        tested += fold.test
    assert sorted(tested) == list(range(6, 21)), "every pair is tested once"
    with pytest.raises(ConfigError, match="unseen_single_fraction is for"):
        cut("leave_one_out", unseen=0.2)


def test_a_single_left_out_may_still_be_seen_in_combination():
    folds = cut("leave_one_out")
    groups = {TARGETS[f.test[0]]: f.subgroup[0] for f in folds}
    assert groups["A",] == "seen_in_combination" and groups["E",] == "unseen"
    assert groups["A", "B"] == "seen2" and groups["Y", "Z"] == "seen0"


def test_seeds_differ():
    assert cut("unseen_perturbation", n_fold=3, seed=0) != cut(
        "unseen_perturbation", n_fold=3, seed=1
    )


@pytest.mark.parametrize(
    ("rule", "n_fold"),
    [
        ("unseen_perturbation", None),
        ("unseen_perturbation", 1),
        ("unseen_perturbation", 7),
        ("combination", None),
        ("combination", 6),
        ("leave_one_out", 3),
        ("unseen_cell_type", 2),
    ],
)
def test_a_number_of_folds_that_cannot_be_is_refused(rule, n_fold):
    with pytest.raises(ConfigError, match=r"dataset\.n_fold"):
        cut(rule, n_fold=n_fold)


def test_screens_that_do_not_allow_a_rule_say_so():
    with pytest.raises(DataError, match="perturbations of two genes"):
        cut("combination", SINGLES, n_fold=1)
    with pytest.raises(DataError, match="at least 3 genes perturbed alone"):
        cut("unseen_perturbation", PAIRS, n_fold=2)
    with pytest.raises(DataError, match="two cell types"):
        cut("unseen_cell_type")
    with pytest.raises(DataError, match="3 perturbations or more"):
        cut("leave_one_out", SINGLES[:2])
    with pytest.raises(DataError, match="at least 2 are needed"):
        cut("unseen_perturbation", SINGLES[:3], n_fold=2, fraction=0.4)
    with pytest.raises(DataError, match="nothing left to validate"):
        cut("combination", n_fold=1, fraction=0.2)
    with pytest.raises(ConfigError, match=r"dataset\.split must be one of"):
        cut("at_random")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(0, 9))
def test_halves_split_every_stratum_evenly_and_by_the_seed(strata, seed):
    stratum = torch.tensor(strata)
    first = halves(stratum, seed=seed, name="x")
    assert torch.equal(first, halves(stratum, seed=seed, name="x"))
    for value in stratum.unique():
        n = int((stratum == value).sum())
        assert int(first[stratum == value].sum()) == (n + 1) // 2


def test_another_name_is_another_cut():
    stratum = torch.zeros(40, dtype=torch.long)
    assert not torch.equal(halves(stratum, seed=0, name="a"), halves(stratum, seed=0, name="b"))

"""What is held out: folds over conditions, halves of cells. Pure functions of names and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.seeding import numpy_generator, torch_generator

Rule: TypeAlias = Literal["unseen_perturbation", "leave_one_out", "combination", "unseen_cell_type"]
"""How conditions are held out."""


@dataclass(frozen=True)
class Split:
    """One fold: rows of conditions by what they are for.

    Args:
        train: Rows to learn from.
        validation: Rows set apart from ``train``, none of whose perturbations is in it, for a loop
            that chooses by them; response genes are not chosen on them. The loop of
            ``hyperbolic_response`` validates on shares of the training conditions instead, and
            learns from these rows too.
        test: Rows to be judged on; none of their cells is in the other two.
        left_out: Rows that serve nothing here, since they would tell of what is held out.
        subgroup: For each test row, what of it was seen in training: ``seen0``, ``seen1``,
            ``seen2`` … count the perturbed genes of a combination whose single perturbation is in
            ``train``; ``unseen`` and ``seen_in_combination`` are singles; ``unseen_cell_type``.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    left_out: tuple[int, ...]
    subgroup: tuple[str, ...]


def make_splits(
    rule: Rule,
    targets: Sequence[tuple[str, ...]],
    context: Sequence[int],
    *,
    n_fold: int | None,
    validation_fraction: float,
    unseen_single_fraction: float,
    seed: int,
) -> list[Split]:
    """The folds of a rule.

    Args:
        rule: ``unseen_perturbation``: k-fold over genes; a fold's genes are in no training
            condition, singly or combined, and their single perturbations are the test.
            ``leave_one_out``: each perturbation once, in all cell types. ``combination``: k-fold
            over combinations; singles always train. ``unseen_cell_type``: each cell type once.
        targets: Perturbed genes of each condition.
        context: Cell type of each condition.
        n_fold: Number of folds where the rule has a choice (``None`` where it has not);
            with 1 fold of combinations every combination is tested and none is learned from.
        validation_fraction: Share of the perturbations of the training set (genes,
            combinations …) that are taken out for validation; at least one where above 0.
        unseen_single_fraction: With ``combination``: share of the genes perturbed alone that are
            in no training condition at all, so that their combinations are ``seen0`` or ``seen1``;
            at least one where above 0.
        seed: Of the draw.

    Returns:
        Folds whose tests are disjoint.

    Raises:
        ConfigError: a number of folds that the conditions do not allow.
        DataError: too few perturbations or cell types for the rule.
    """
    if unseen_single_fraction > 0 and rule != "combination":
        raise ConfigError(
            "dataset.unseen_single_fraction is for dataset.split=combination: set it to 0, got "
            f"{unseen_single_fraction:g} with split={rule}"
        )
    if rule == "unseen_perturbation":
        folds = _unseen_perturbation(targets, n_fold, seed)
    elif rule == "combination":
        folds = _combination(targets, n_fold, unseen_single_fraction, seed)
    elif rule in ("leave_one_out", "unseen_cell_type"):
        if n_fold is not None:
            raise ConfigError(
                f"dataset.n_fold is fixed by dataset.split={rule}: set it to null, got {n_fold}"
            )
        if rule == "leave_one_out":
            folds = _leave_one_out(targets)
        else:
            folds = _unseen_cell_type(targets, context)
    else:
        known = "unseen_perturbation, leave_one_out, combination, unseen_cell_type"
        raise ConfigError(f"dataset.split must be one of {known}, got '{rule}'")
    result = []
    for number, (test, left_out) in enumerate(folds):
        gone = {*test, *left_out}
        train = [row for row in range(len(targets)) if row not in gone]
        validation: list[int] = []
        if validation_fraction > 0:
            name = f"validation of fold {number}"
            validation, more = _validation(rule, targets, train, validation_fraction, seed, name)
            train = [row for row in train if row not in {*validation, *more}]
            left_out = [*left_out, *more]
        if len({targets[row] for row in train}) < 2:
            raise DataError(
                f"fold {number} of split '{rule}' leaves {len(train)} perturbation(s) to learn "
                "from, at least 2 are needed: use more folds or a smaller validation_fraction"
            )
        result.append(
            Split(
                train=tuple(train),
                validation=tuple(sorted(validation)),
                test=tuple(sorted(test)),
                left_out=tuple(sorted(left_out)),
                subgroup=subgroups(rule, targets, train, sorted(test)),
            )
        )
    return result


def subgroups(
    rule: Rule, targets: Sequence[tuple[str, ...]], train: Sequence[int], test: Sequence[int]
) -> tuple[str, ...]:
    """What of each test row is in training: see :class:`Split`."""
    singles = {targets[row][0] for row in train if len(targets[row]) == 1}
    every = {gene for row in train for gene in targets[row]}
    found = []
    for row in test:
        genes = targets[row]
        if rule == "unseen_cell_type":
            found.append("unseen_cell_type")
        elif len(genes) == 1:
            found.append("seen_in_combination" if genes[0] in every else "unseen")
        else:
            found.append(f"seen{sum(gene in singles for gene in genes)}")
    return tuple(found)


def _chunks(items: Sequence[str], n_fold: int, seed: int, name: str) -> list[list[str]]:
    order = numpy_generator(seed, name).permutation(len(items))
    return [[items[int(i)] for i in order[k::n_fold]] for k in range(n_fold)]


def _unseen_perturbation(
    targets: Sequence[tuple[str, ...]], n_fold: int | None, seed: int
) -> list[tuple[list[int], list[int]]]:
    genes = sorted({genes[0] for genes in targets if len(genes) == 1})
    if len(genes) < 3:
        raise DataError(
            f"split 'unseen_perturbation' needs at least 3 genes perturbed alone, got "
            f"{len(genes)}: use dataset.split=combination or leave_one_out"
        )
    if n_fold is None or not 2 <= n_fold <= len(genes):
        raise ConfigError(
            f"dataset.n_fold must be between 2 and {len(genes)} (genes perturbed alone), got "
            f"{n_fold}"
        )
    folds = []
    for held in _chunks(genes, n_fold, seed, "folds of genes"):
        touched = [row for row, of in enumerate(targets) if set(of) & set(held)]
        test = [row for row in touched if len(targets[row]) == 1]
        folds.append((test, [row for row in touched if row not in test]))
    return folds


def _combination(
    targets: Sequence[tuple[str, ...]], n_fold: int | None, unseen: float, seed: int
) -> list[tuple[list[int], list[int]]]:
    names = sorted({"+".join(genes) for genes in targets if len(genes) > 1})
    if not names:
        raise DataError(
            "split 'combination' needs perturbations of two genes or more, and there is none: "
            "use dataset.split=unseen_perturbation or leave_one_out"
        )
    if n_fold is None or not 1 <= n_fold <= len(names):
        raise ConfigError(
            f"dataset.n_fold must be between 1 and {len(names)} (combinations), got {n_fold}"
        )
    hidden: set[str] = set()
    if unseen > 0:
        genes = sorted({of[0] for of in targets if len(of) == 1})
        order = numpy_generator(seed, "genes never seen").permutation(len(genes))
        hidden = {genes[i] for i in order[: max(1, round(unseen * len(genes)))]}
    folds: list[tuple[list[int], list[int]]] = []
    for held in _chunks(names, n_fold, seed, "folds of combinations"):
        test = [row for row, of in enumerate(targets) if "+".join(of) in held]
        touched = {row for row, of in enumerate(targets) if hidden & set(of)}
        folds.append((test, sorted(touched - set(test))))
    return folds


def _leave_one_out(targets: Sequence[tuple[str, ...]]) -> list[tuple[list[int], list[int]]]:
    every = list(dict.fromkeys(targets))
    if len(every) < 3:
        raise DataError(f"split 'leave_one_out' needs 3 perturbations or more, got {len(every)}")
    return [([row for row, of in enumerate(targets) if of == held], []) for held in every]


def _unseen_cell_type(
    targets: Sequence[tuple[str, ...]], context: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    every = sorted(set(context))
    if len(every) < 2:
        raise DataError(
            "split 'unseen_cell_type' needs two cell types or more, and there is one: name the "
            "column of obs with simulator.cell_type_column, or use another dataset.split"
        )
    return [([row for row, of in enumerate(context) if of == held], []) for held in every]


def _validation(
    rule: Rule,
    targets: Sequence[tuple[str, ...]],
    train: Sequence[int],
    fraction: float,
    seed: int,
    name: str,
) -> tuple[list[int], list[int]]:
    """Validation rows out of ``train``, and the rows that must leave with them."""
    if rule == "unseen_perturbation":
        units = sorted({targets[row][0] for row in train if len(targets[row]) == 1})
    elif rule == "combination":
        units = sorted({"+".join(targets[row]) for row in train if len(targets[row]) > 1})
    else:
        units = sorted({"+".join(targets[row]) for row in train})
    n = min(len(units), max(1, round(fraction * len(units))))
    if n == 0:
        raise DataError(
            f"split '{rule}' has nothing left to validate on: set dataset.validation_fraction=0"
        )
    chosen = {units[i] for i in numpy_generator(seed, name).permutation(len(units))[:n]}
    if rule == "unseen_perturbation":
        touched = [row for row in train if set(targets[row]) & chosen]
        held = [row for row in touched if len(targets[row]) == 1]
        return held, [row for row in touched if row not in held]
    return [row for row in train if "+".join(targets[row]) in chosen], []


def halves(stratum: Tensor, *, seed: int, name: str) -> Tensor:
    """Cells cut in two disjoint halves within each stratum, at random.

    An odd cell goes to the first half, so that each stratum of two cells or more has cells in
    both.

    Args:
        stratum: Stratum of each cell, ``(n_cell,)`` long.
        seed: Of the draw.
        name: Name of the draw; another name is another cut.

    Returns:
        Whether a cell is in the first half, ``(n_cell,)`` bool.
    """
    generator = torch_generator(seed, name)
    rank = torch.rand(stratum.numel(), dtype=torch.float64, generator=generator)
    is_first = torch.zeros(stratum.numel(), dtype=torch.bool)
    for value in stratum.unique():
        rows = (stratum == value).nonzero()[:, 0]
        order = rows[rank[rows].argsort()]
        is_first[order[: (len(rows) + 1) // 2]] = True
    return is_first

r"""Recovery where it is known what drives each reaction, but not what it produces.

The substrates of every reaction are known, and with them that $S_{ij} < 0$ there; every other
metabolite may be a product. Four steps:

1. *Products without a law* (:mod:`neuralgraph.systems.metabolism.recovery_pursuit`): what a common
   shape of the rate law can see, which is the faster reactions of each metabolite.
2. *Law and products in turn.* The integer decoding of
   :mod:`neuralgraph.systems.metabolism.recovery` on these products learns the law from the
   metabolites whose products are right; with its rate functions the products are looked for again,
   metabolite by metabolite (:mod:`neuralgraph.systems.metabolism.recovery_amounts`), until they
   stay. Each turn starts from the law found before and from new ones, and anneals the best two; a
   turn after which more is left unexplained is not kept. Reactions with equal substrates count as
   one, tied to no integers.
3. *Integers.* The search of the integer decoding, with networks as the law, on the products found.
4. *Reactions with equal substrates* are told apart
   (:mod:`neuralgraph.systems.metabolism.recovery_twins`); law and rate constants are solved again.
   The integers are not searched again after that: where such reactions were told apart wrongly,
   their neighbours would be bent to make up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neuralgraph.systems.metabolism.recovery import Decoded, decode
from neuralgraph.systems.metabolism.recovery_amounts import Amounts, RatePursuit
from neuralgraph.systems.metabolism.recovery_checks import open_problem
from neuralgraph.systems.metabolism.recovery_columns import (
    Column,
    ColumnDecoder,
    ColumnProblem,
    ReactionAnswer,
    RecoveredNetwork,
    answers_of,
    column_of,
    go_on,
    network_of,
)
from neuralgraph.systems.metabolism.recovery_pursuit import Pursuit
from neuralgraph.systems.metabolism.recovery_twins import (
    Groups,
    merged_columns,
    split,
)

Array = np.ndarray
Log = Callable[[str], None]
CLEAR = 10.0
"""Amount over its error above which a product is not in question."""
MOST_QUESTION = 6
"""Products of a reaction among which the alternatives to its answer are counted."""
TINY = 1e-12
"""Added to the residual of a metabolite that does not change, whose logarithm is taken."""


def recover_support(
    concentration: Any,
    dx_dt: Any,
    met_sub: Any,
    rxn_sub: Any,
    *,
    n_met: int,
    n_rxn: int,
    rng: np.random.Generator,
    max_coefficient: int,
    max_products: int,
    log_k_range: tuple[float, float],
    n_pass: int = 2,
    n_frame_pursuit: int = 1440,
    degree: Sequence[int] = (10, 6, 5),
    sharp_degree: Sequence[int] = (12, 8, 7),
    max_frames: int = 432,
    n_scan: int = 6,
    n_anneal: int = 10,
    n_turn: int = 4,
    n_sharpen: int = 5,
    log: Log | None = None,
) -> RecoveredNetwork:
    """Recover products, integer coefficients and rate constants from the substrate graph alone.

    Args:
        concentration: ``(n_frame, n_met)``, mM.
        dx_dt: Exact derivatives, ``(n_frame, n_met)``, mM min⁻¹.
        met_sub: Metabolite of each substrate edge, ``(n_sub_edge,)``.
        rxn_sub: Reaction of each substrate edge.
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        rng: Source of all randomness.
        max_coefficient: Largest integer considered.
        max_products: Largest number of products considered.
        log_k_range: log10 k considered, in units where the rate law is about 1.
        n_pass: Passes of the first step.
        n_frame_pursuit: Frames used by the first step.
        degree: As in :func:`~neuralgraph.systems.metabolism.recovery.recover_stoichiometry`.
        sharp_degree: As there.
        max_frames: As there.
        n_scan: Rate laws tried, those nearest to the shape that the first step learned.
        n_anneal: As there.
        n_turn: Turns of the second step at most.
        n_sharpen: Rounds of the third step at most, at least 1.
        log: Called with one line of text per stage.

    Returns:
        The recovered network.

    Raises:
        DataError: arrays that do not fit together.

    Source:
        own; matching pursuit after Pati et al. (1993).
    """
    say: Log = log if log is not None else lambda _: None
    problem = open_problem(
        concentration,
        dx_dt,
        met_sub,
        rxn_sub,
        n_met=n_met,
        n_rxn=n_rxn,
        max_coefficient=max_coefficient,
    )
    substrates = [np.sort(problem.met_sub[problem.rxn_sub == j]) for j in range(n_rxn)]
    groups = Groups.of(substrates)
    pursuit = Pursuit(problem, substrates, rng, n_frame_pursuit)
    for turn in range(n_pass):
        n_found, misfit = pursuit.run()
        say(f"products, pass {turn + 1}: {n_found}, residual {misfit:.1e} of the change")

    def decoded(
        amount: Array, law: Array | None, n_try: int, n_round: int
    ) -> tuple[Decoded, list[tuple[int, ...]]]:
        columns, place = merged_columns(groups, amount, max_coefficient)
        merged = replace(ColumnProblem.of(problem, columns), n_rxn=len(columns))
        found = decode(
            merged,
            rng=rng,
            tie_substrates=True,
            width=32,
            n_message=16,
            log_k_range=log_k_range,
            degree=degree,
            sharp_degree=sharp_degree,
            max_frames=max_frames,
            n_scan=n_scan if law is None or n_try > 1 else 0,
            n_start=n_try,
            n_try=n_try,
            first=law,
            n_anneal=n_anneal,
            n_sharpen=n_round,
            order=pursuit.order,
            needs_networks=n_round > 0,
            log=say,
        )
        return found, place

    amount = pursuit.amounts()[:, [m[0] for m in groups.member]]
    law, seen, least = None, None, np.inf
    for turn in range(n_turn):
        # the law found before, and a new one: either can be caught in a basin
        found, place = decoded(amount, law, 1 if law is None else 2, 0)
        new = _look_again(found, place, groups, amount, n_met)
        misfit = float(np.log(new.residual + TINY).mean())
        n_new = int(((new.value > 0) & (amount <= 0)).sum())
        n_gone = int(((new.value <= 0) & (amount > 0)).sum())
        say(
            f"law and products, turn {turn + 1}: {n_new} products more, {n_gone} less, residual "
            f"{np.exp(misfit):.1e} of the change" + ("" if misfit < least else ", not kept")
        )
        if misfit < least:
            amount, law, seen, least = new.value, found.theta, new, misfit
        if not n_new and not n_gone:
            break
    assert seen is not None
    found, place = decoded(amount, law, 1, max(1, n_sharpen))
    decoder = found.decoder
    assert isinstance(decoder, ColumnDecoder)
    apart = split(decoder, found, groups, place, max_coefficient, max_products)
    merged_answers = answers_of(problem, found)
    columns: list[Column] = [_EMPTY] * n_rxn
    k = np.ones(n_rxn)
    for g, member in enumerate(groups.member):
        made = np.flatnonzero(amount[:, g] > 0)
        for j in member:
            if len(member) == 1:
                answer, k[j] = merged_answers[place[g][0]], found.k[place[g][0]]
                question = made[amount[made, g] < CLEAR * seen.error[made, g]]
            else:
                answer, k[j] = apart[j]
                question = made
            columns[j] = _candidates(answer, question, max_coefficient, max_products)
    say(f"{n_rxn - int(groups.is_single.sum())} reactions share their substrates")
    found = go_on(
        problem,
        columns,
        replace(found, k=k),
        rng=rng,
        sharp_degree=sharp_degree,
        max_frames=max_frames,
        n_round=0,
        log=say,
    )
    return network_of(problem, found)


_EMPTY = Column(
    np.empty(0, dtype=int), np.empty((0, 0)), (), np.empty(0, dtype=int), np.empty(0), np.empty(0)
)


def _look_again(
    found: Decoded,
    place: Sequence[tuple[int, ...]],
    groups: Groups,
    amount: Array,
    n_met: int,
) -> Amounts:
    """Products by matching pursuit with the rate functions of a decoding."""
    decoder = found.decoder
    assert isinstance(decoder, ColumnDecoder)
    code = decoder.pattern_shape[np.arange(decoder.n_rxn), found.pattern]
    rate, sizes = [], []
    guess: list[int | None] = []
    for at, is_single in zip(place, groups.is_single, strict=True):
        rate.append(decoder.rate[at[0], decoder.valid[at[0]]])
        sizes.append(np.array([s for _, s in decoder.columns[at[0]].rate]))
        guess.append(int(code[at[0]]) if is_single else None)
    again = RatePursuit(rate, sizes, guess, decoder.y, groups.is_sub(n_met), groups.is_single)
    return again.run(amount)


def _candidates(
    answer: ReactionAnswer, question: Array, max_coefficient: int, max_products: int
) -> Column:
    """The present answer, and every other that the products in question allow."""
    made = answer.met[answer.value > 0]
    question = question[~np.isin(question, answer.substrates)]
    other = np.setdiff1d(question, made)[: max(0, MOST_QUESTION - len(made))]
    products = np.r_[made, other].astype(int)
    optional = np.isin(products, question) | (len(products) > max_products)
    return column_of(
        answer, [(answer.substrates, products, optional)], max_coefficient, max_products
    )

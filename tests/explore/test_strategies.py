"""Every strategy applies under the documents' condition, and not short of it."""

from __future__ import annotations

import numpy as np
import pytest

from neuralgraph.core.errors import ConfigError
from neuralgraph.explore import blocks, strategies, tree
from neuralgraph.explore.knowledge import Knowledge, Principle, importance
from neuralgraph.explore.space import Parameter, read_space
from neuralgraph.explore.view import View

PLAN = {
    "moves": {
        "homeo-kick": {"loop.rate": "up", "loss.penalty": "down"},
        "embedding-focus": {"loop.rate": "up"},
        "k-protect": {"loop.rate": "down"},
        "degeneracy-break": {"loss.penalty": "up"},
    },
    "signals": {"gap": "gap", "recovery": "R2", "slope": "slope", "cluster": "cluster"},
    "variants": {
        "other": {
            "group": "loop", "node": {"batch": 99}, "change": "another batch",
            "hypothesis": "why not",
        }
    },
}  # fmt: skip


@pytest.fixture
def see(kit):
    def view(*iterations, plan=PLAN, **settings):
        search = kit.toy(plan=plan, **settings)
        return View(
            history=kit.history(*iterations), block=1, space=search.space, plan=search.plan,
            settings=search.settings, focus=(), rng=np.random.default_rng(0),
            describe_code=search.describe_code,
        )  # fmt: skip

    return view


def test_exploit_takes_the_highest_ucb_and_changes_one_parameter(kit, see):
    view = see(kit.made(1, rewards=0.3), kit.made(2, 1, rewards=0.6, lr=1e-2), kit.made(3, 1))
    found = strategies.exploit(view, "highest UCB")
    assert found.parent == view.nodes[0].id == 2 and len(found.changes) == 1


def test_failure_probe_needs_three_converged_in_a_row_and_goes_to_an_end(kit, see):
    good = [kit.made(i, i - 1 or None, verdict="converged", rewards=0.9, lr=i * 1e-3)
            for i in range(1, 4)]  # fmt: skip
    assert strategies.three_converged(see(*good[:2])) is None
    view = see(*good)
    found = strategies.failure_probe(view, strategies.three_converged(view))
    (change,) = found.changes
    assert view.space[change.key].position(change.new) in (0.0, 1.0)
    assert strategies.three_converged(see(*good, kit.made(4, 3))) is None


def test_boundary_probe_halves_between_values_that_differ_by_more_than_seeds_explain(kit, see):
    runs = [
        kit.made(1, rewards=0.9, verdict="converged"),
        kit.made(2, 1, rewards=0.9, verdict="converged", seed=8),
        kit.made(3, 1, rewards=0.2, lr=1e-1),
    ]
    found = strategies.boundary_probe(see(*runs), "look")
    (change,) = found.changes
    assert change.key == "loop.rate" and change.new == pytest.approx(1e-2, rel=0.05)


def test_explore_after_a_quarter_of_successes_leaves_the_recent_chain(kit, see):
    runs = [kit.made(1), kit.made(2, 1, lr=1e-2),
            *(kit.made(i, i - 1 if i > 3 else 1, verdict="converged", batch=8 * i)
              for i in (3, 4))]  # fmt: skip
    view = see(*runs)
    assert strategies.quarter_of_successes(view) is not None
    assert strategies.explore(view, "why").parent == 2
    assert strategies.quarter_of_successes(see(*runs[:2])) is None


def test_explore_and_principle_test_combine_changes_that_helped_elsewhere(kit, see):
    """What one run found about lr and another about the penalty is merged, with one seed tested."""
    runs = [kit.made(1, rewards=0.5)]
    for n, (lr, penalty, batch) in enumerate(
        [(1e-2, 0.0, 16), (1e-2, 0.0, 8), (1e-3, 1.0, 16), (1e-4, 0.0, 16), (1e-3, 1.0, 32)]
    ):
        gain = 0.15 * ((lr == 1e-2) - (lr == 1e-4) + (penalty == 1.0))
        runs.append(kit.made(n + 2, 1, rewards=0.5 + gain, lr=lr, penalty=penalty, batch=batch))
    view = see(*runs)
    drawn = [view.changes_together(1, 3) for _ in range(20)]
    both = [d for d in drawn if d.get("loop.rate", 0) > 1e-3 and d.get("loss.penalty", 0) > 0]
    assert len(both) >= 14
    assert all(len(view.changes_together(1, 1)) <= 1 for _ in range(5))
    view.surrogate.draw = lambda old, news, rng: -np.ones(len(news))
    assert view.changes_together(1, 3) == {}  # what would make it worse is left out


def test_degeneracy_break_needs_a_gap_above_0_3_for_three_iterations(kit, see):
    runs = [kit.made(i, i - 1 or None, metrics={"gap": 0.4}, lr=i * 1e-3) for i in range(1, 4)]
    assert strategies.gap_persists(see(*runs[:2])) is None
    view = see(*runs)
    found = strategies.degeneracy_break(view, strategies.gap_persists(view))
    assert [(c.key, c.new) for c in found.changes] == [("loss.penalty", 0.1)]
    low = kit.made(3, 2, metrics={"gap": 0.3}, lr=3e-3)
    assert strategies.gap_persists(see(*runs[:2], low)) is None


def test_forced_branch_on_a_plateau_takes_the_second_ucb_and_another_parameter(kit, see):
    runs = [kit.made(i, i - 1 or None, rewards=0.5, lr=i * 1e-3) for i in range(1, 4)]
    view = see(*runs)
    found = strategies.forced_branch(view, strategies.on_plateau(view))
    assert found.parent == view.nodes[1].id and found.changes[0].key != "loop.rate"
    assert strategies.on_plateau(see(*runs[:2], kit.made(3, 2, rewards=0.7, lr=3e-3))) is None


def test_switch_dimension_after_four_mutations_of_one_parameter(kit, see):
    runs = [kit.made(i, i - 1 or None, lr=i * 1e-2, rewards=0.2 * i) for i in range(1, 5)]
    assert strategies.four_of_one_parameter(see(*runs[:3])) is None
    view = see(*runs)
    found = strategies.switch_dimension(view, strategies.four_of_one_parameter(view))
    assert found.changes[0].key != "loop.rate"


def test_recombine_merges_two_distant_converged_nodes(kit, see):
    runs = [
        kit.made(1),
        kit.made(2, 1, lr=1e-2),
        kit.made(3, 2, lr=1e-2, verdict="converged", rewards=0.9, batch=16),
        kit.made(4, 1, penalty=0.1, verdict="converged", rewards=0.8),
    ]
    view = see(*runs)
    assert tree.distance(view.nodes, 3, 4) == 3
    found = strategies.recombine(view, strategies.two_distant(view))
    assert found.parent == 3 and found.values["loop.rate"] == 1e-2
    assert found.values["loss.penalty"] == 0.1
    near = [*runs[:2], kit.made(3, 1, penalty=0.1, verdict="converged")]
    assert strategies.two_distant(see(*near)) is None


def test_the_strategies_of_document_002_have_its_conditions_and_moves(kit, see):
    asleep = kit.made(1, metrics={"R2": 0.95, "slope": 0.01}, penalty=1.0)
    view = see(asleep)
    kick = strategies.homeo_kick(view, strategies.homeostasis_asleep(view))
    assert {c.key: c.new > c.old for c in kick.changes} == {
        "loop.rate": True,
        "loss.penalty": False,
    }
    assert (
        strategies.homeostasis_asleep(see(kit.made(1, metrics={"R2": 0.8, "slope": 0.0}))) is None
    )

    stuck = [kit.made(i, i - 1 or None, metrics={"slope": 0.5, "cluster": 0.5}, lr=i * 1e-3)
             for i in range(1, 4)]  # fmt: skip
    view = see(*stuck)
    assert strategies.embeddings_stuck(view) and strategies.embedding_focus(view, "").changes
    assert strategies.embeddings_stuck(see(*stuck[:2])) is None

    partial = [kit.made(i, i - 1 or None, verdict="partial-k", lr=i * 1e-2) for i in range(1, 5)]
    assert strategies.all_partial_k(see(*partial[:3])) is None
    view = see(*partial)
    protect = strategies.k_protect(view, strategies.all_partial_k(view))
    assert protect.changes[0].new < protect.changes[0].old


def test_code_modification_is_off_by_default_late_in_a_block_and_never_combined(kit, see):
    flat = [kit.made(i, i - 1 or None, lr=i * 1e-3) for i in range(1, 6)]
    assert strategies.plateau_after_sweeps(see(*flat)) is None
    assert strategies.plateau_after_sweeps(see(*flat[:3], allow_code=True)) is None
    view = see(*flat, allow_code=True)
    found = strategies.code_modification(view, strategies.plateau_after_sweeps(view))
    assert [c.key for c in found.changes] == ["variant"] and found.code.hypothesis == "why not"
    assert found.code.file.endswith(".py") and found.code.function == "fit"
    assert found.parent == view.best.number


def test_seeds_are_replicated_before_anything_counts_as_an_effect(kit, see):
    runs = [kit.made(i, i - 1 or None, lr=i * 1e-3, rewards=0.1 * i) for i in range(1, 7)]
    view = see(*runs)
    found = strategies.principle_test(view, "why")
    assert found.is_replicate and found.values["training_seed"] == 8
    assert view.knowledge.principles == []  # no spread is known: nothing is supported


def test_a_principle_needs_three_runs_and_more_than_a_seed_effect(kit):
    space = kit.toy().space

    def known(gain, n):
        runs = [kit.made(1, rewards=0.5), kit.made(2, 1, rewards=0.51, seed=8)]
        for k in range(n):
            batch = (8, 32, 64)[k]
            runs += [kit.made(len(runs) + 1, 1, rewards=0.5, batch=batch)]
            runs += [kit.made(len(runs) + 1, 1, rewards=0.5 + gain, batch=batch, lr=1e-2)]
        return Knowledge(kit.history(*runs), space)

    established = [p for p in known(0.4, 3).principles if p.is_established]
    assert [p.key for p in established] == ["loop.rate"] and len(established[0].runs) == 3
    assert not [p for p in known(0.4, 2).principles if p.is_established]
    assert known(0.02, 3).principles == []


def test_a_principle_is_said_in_words():
    def said(direction, low, high):
        return Principle("loop.rate", direction, (1, 2, 3), (), low, high).sentence("lr", "R2")

    assert said(1, 1e-3, 1e-2) == "raising lr from 1E-3 to 0.01 improves R2"
    assert said(-1, 1e-3, 1e-2) == "raising lr from 1E-3 to 0.01 worsens R2"
    assert said(0, 1e-3, 1e-2) == "R2 is best with lr between 1E-3 and 0.01"
    assert said(0, 1e-3, 1e-3) == "R2 is best with lr near 1E-3"


def test_a_batch_uses_a_strategy_once_and_a_change_once(kit, see):
    """Two answers to one question, or one change from two parents, tell less than two changes."""
    gaps = [kit.made(i, i - 1 or None, metrics={"gap": 0.5}, lr=i * 1e-3, rewards=0.1 * i)
            for i in range(1, 4)]  # fmt: skip
    view = see(*gaps)
    first = strategies.choose(view)
    view = see(*gaps)
    view.drafts = [first]
    second = strategies.choose(view)
    assert (first.strategy, second.strategy) == ("degeneracy-break", "exploit")

    batch = []
    for parent in (1, 2, 3):
        view = see(*gaps)
        view.drafts = list(batch)
        batch.append(view.proposal(parent, view.best_change(parent), "exploit", "why"))
    changes = [(c.key, c.new) for proposal in batch for c in proposal.changes]
    assert len(changes) == len(set(changes)) == 3


def test_what_changed_nothing_to_the_last_bit_is_not_run_again(kit, see):
    """The batch size had no part in runs 1 and 2: 3 would be run 4 over again."""
    runs = [kit.made(1, rewards=0.5), kit.made(2, 1, rewards=0.5, batch=32),
            kit.made(3, 1, rewards=0.6, lr=1e-2)]  # fmt: skip
    view = see(*runs)
    assert view.knowledge.idle == {"loop.batch": (1 / 3, 2 / 3)}
    assert view.is_tried({**runs[2].values, "loop.batch": 32})
    assert not view.is_tried({**runs[2].values, "loop.batch": 64})  # it may act beyond
    for _ in range(4):
        change = view.best_change(3)
        assert "loop.batch" not in change
        view.drafts.append(view.proposal(3, change, "exploit", "why"))
    other = kit.made(4, 3, rewards=0.7, lr=1e-2, batch=64)
    assert see(*runs, other).knowledge.idle == {}
    noisy = kit.made(2, 1, rewards=0.5, batch=32, metrics={"final_loss": 0.1})
    assert see(runs[0], noisy).knowledge.idle == {}


def test_a_parameter_that_cannot_act_makes_no_new_run(kit, see):
    """A number of steps without the switch that lets it act, or the switch without the number."""
    space = {
        "loop.rate": kit.space["loop.rate"],
        "loop.batch": {"values": [8, 16, 32], "needs": {"loss.penalty": 1.0}},
        "loss.penalty": {"values": [0.0, 1.0]},
    }
    plan = {"moves": {"degeneracy-break": {"loss.penalty": 1.0, "loop.batch": "up"}}}
    view = see(kit.made(1, rewards=0.5), space=space, plan=plan)
    assert view.is_tried({**view.values_of(1), "loop.batch": 32})
    assert not view.is_tried({**view.values_of(1), "loop.batch": 32, "loss.penalty": 1.0})
    both = strategies.degeneracy_break(view, "gap")
    assert {c.key for c in both.changes} == {"loss.penalty", "loop.batch"}
    tried = see(
        kit.made(1, rewards=0.5), kit.made(2, 1, batch=32, penalty=1.0), space=space, plan=plan
    )
    found = strategies.degeneracy_break(tried, "gap")
    assert found is None or "loop.batch" in {c.key for c in found.changes}


def test_a_strategy_that_improved_nothing_twice_rests_for_the_block(kit, see):
    used = [kit.made(1, metrics={"gap": 0.5}),
            *(kit.made(i, 1, rewards=0.4, strategy="degeneracy-break", lr=i * 1e-3,
                       metrics={"gap": 0.5}) for i in (2, 3))]  # fmt: skip
    chosen = strategies.BY_NAME["degeneracy-break"]
    assert not strategies.is_resting(see(*used[:2]), chosen)
    assert strategies.is_resting(see(*used), chosen)
    assert strategies.choose(see(*used)).strategy != "degeneracy-break"
    earlier = see(*used, kit.made(4, block=2))
    earlier.block = 2
    assert not strategies.is_resting(earlier, chosen)  # a new block tries it once more


def test_rates_of_a_block_add_exploration_or_exploitation_and_can_be_undone(kit):
    chain = [kit.made(i, i - 1 or None, rewards=0.1 * i, lr=i * 1e-3) for i in range(1, 6)]
    history = kit.history(*chain)
    found = blocks.rates(history.block(1), history)
    assert (found.branching, found.improvement) == (0.0, 1.0)
    rules = blocks.adapted(history, 2)
    assert [r.rule for r in rules] == ["more exploration"]
    assert blocks.roles(rules) == (*blocks.ROLES, "under-visited")
    assert blocks.adapted(history, 1) == [] and blocks.roles([]) == blocks.ROLES


def test_importance_names_the_parameter_that_moved_the_metric(kit):
    runs = [kit.made(i, 1, rewards=0.2 if i % 2 else 0.8, lr=1e-4 if i % 2 else 1e-1,
                     batch=(8, 16, 32, 64)[i % 4]) for i in range(1, 13)]  # fmt: skip
    shares = importance(kit.history(*runs), kit.toy().space)
    assert next(iter(shares)) == "loop.rate" and shares["loop.rate"] > 0.9


def test_ucb_is_mean_reward_plus_c_root_log_n_over_visits_or_the_documents_form(kit):
    runs = [kit.made(1, rewards=0.5), kit.made(2, 1, rewards=1.0), kit.made(3, rewards=0.25)]
    nodes = {n.id: n for n in tree.grow(runs, c=2.0, form="mean")}
    assert nodes[1].visits == 2 and nodes[1].mean == 0.75
    assert nodes[1].ucb == pytest.approx(0.75 + 2.0 * (np.log(3) / 2) ** 0.5)
    document = {n.id: n for n in tree.grow(runs, c=2.0, form="document")}
    assert document[1].ucb == pytest.approx(0.5 + 2.0 * 3**0.5 / 3)
    for c in (0.49, 3.01):
        with pytest.raises(ConfigError, match=r"\[0\.5, 3\.0\]"):
            tree.check_c(c)


BAD_SPACES = {
    "empty": ({}, "declares no search_space"),
    "unknown key": ({"loop.rat": {"values": [1]}}, "did you mean 'rate'"),
    "frozen": ({"simulator.seed2": {"values": [1]}}, "seed2"),
    "no scale": ({"loop.rate": {"low": 1, "high": 2}}, "needs low, high and scale"),
    "log from 0": ({"loop.rate": {"low": 0, "high": 1, "scale": "log"}}, "starts above 0"),
    "upside down": ({"loop.rate": {"low": 2, "high": 1, "scale": "log"}}, "low must lie below"),
    "misspelt": ({"loop.rate": {"value": [1]}}, "did you mean 'values'"),
}


@pytest.mark.parametrize("case", BAD_SPACES)
def test_a_space_that_cannot_work_is_refused(kit, case):
    node, message = BAD_SPACES[case]
    with pytest.raises(ConfigError, match=message):
        read_space(node, kit.config)


def test_a_proposal_outside_the_space_or_touching_a_frozen_key_is_refused_with_the_reason(kit):
    space = kit.toy().space
    for key, value, why in (
        ("loop.rate", 1.0, "lies outside the space: 0.0001 to 0.1"),
        ("loop.batch", 17, "one of 8, 16, 32, 64"),
        ("simulator.n_var", 3, "frozen"),
        ("prior.support", True, "frozen"),
        ("loop.n_epochs", 3, "not in the search space"),
        ("training_seed", 1.5, "whole number"),
    ):
        with pytest.raises(ConfigError, match=why):
            space.check(key, value)


def test_a_seed_of_the_simulation_may_be_declared_and_nothing_else_of_it(kit):
    entry = {"values": [1, 2, 3], "group": "data"}
    assert "simulator.seed" in read_space({"simulator.seed": entry}, kit.config)
    config = {**kit.config, "simulator": {"seed": 1, "n_var": 3}}
    with pytest.raises(ConfigError, match="frozen"):
        read_space({"simulator.n_var": entry}, config)


def test_a_parameter_that_needs_another_brings_it_along():
    step = Parameter("loop.step", "step", "", values=(1, 2, 4), needs=(("loop.on", True),))
    assert step.missing({"loop.on": False}) == {"loop.on": True}
    assert step.missing({"loop.on": True}) == {}
    floor = Parameter("x", "x", "", low=0.0, high=1.0, needs=(("c", "positive"),))
    assert floor.missing({"c": 0.0}) is None and floor.missing({"c": 0.5}) == {}

"""The strategies of documents 001 and 002, under their names.

Each is two small pure functions of the view: *when* it applies, as a sentence that is logged, or
``None``; and what it *does*, a proposal, or ``None`` where nothing new is left to try.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neuralgraph.explore.history import Iteration, Proposal
from neuralgraph.explore.space import SEED, VARIANT, same_value
from neuralgraph.explore.tree import distance
from neuralgraph.explore.view import View
from neuralgraph.explore.words import word

N_CONVERGED = 3
"""Converged runs in a row that call for a probe."""
GAP, N_GAP = 0.3, 3
PLATEAU, N_PLATEAU = 0.05, 3
N_SAME_PARAMETER = 4
N_PARTIAL_K = 4
RECOVERED, INACTIVE, STUCK = 0.9, 0.1, 0.05
N_MERGED = 8
"""Best nodes among which pairs to merge are sought."""
DISTANT = 3
"""Edges between two nodes that count as distant."""
N_BEFORE_CODE = 4
CURIOUS = 3.0
"""Weight of the unknown when exploring; ``explore.ucb_c`` when exploiting."""
N_DRAWS = 5
"""Attempts to draw a combination that is new."""
N_FLOPS = 2
"""Uses of a strategy in a row without an improvement, after which it rests for the block."""


@dataclass(frozen=True)
class Strategy:
    """A strategy.

    Args:
        name: As in the documents.
        when: Why it applies now, or ``None``.
        act: What it proposes, given that reason.
        rests: Whether it rests after two uses that improved nothing.
    """

    name: str
    when: Callable[[View], str | None]
    act: Callable[[View, str], Proposal | None]
    rests: bool = False


# -- exploit ------------------------------------------------------------------------------------


def always(view: View) -> str | None:
    """The default."""
    return "highest UCB"


def exploit(view: View, why: str) -> Proposal | None:
    """A conservative mutation of the node with the highest UCB."""
    if not view.nodes:
        change = view.best_change(None)
        return (
            None if change is None else view.proposal(None, change, "exploit", "root of the block")
        )
    for node in view.nodes:
        change = view.best_change(node.id)
        if change is not None:
            return view.proposal(node.id, change, "exploit", f"{why} ({node.ucb:.3f})")
    return None


# -- explore ------------------------------------------------------------------------------------


def quarter_of_successes(view: View) -> str | None:
    """A quarter of the block converged in a row."""
    n = view.streak(lambda i: i.is_converged)
    if n >= max(view.settings.n_iter_block / 4, 1):
        return f"{n} successes in a row, a quarter of the block or more: outside the recent chain"
    return None


def explore(view: View, why: str) -> Proposal | None:
    """The least visited node outside the recent chain, and several changes little is known of."""
    outside = [n for n in view.nodes if n.id not in view.recent_chain] or view.nodes
    busy = {d.parent for d in view.drafts}
    for node in sorted(outside, key=lambda n: (n.id in busy, n.visits, -n.reward, n.id)):
        found = _together(view, node.id, "explore", why)
        if found is not None:
            return found
        change = view.best_change(node.id, curiosity=CURIOUS)
        if change is not None:
            return view.proposal(node.id, change, "explore", why)
    return None


def second_best(view: View, why: str) -> Proposal | None:
    """The best configuration of the block that no earlier slot starts from."""
    taken = {d.parent for d in view.drafts}
    reward = view.history.mean_reward
    for iteration in sorted(view.iterations, key=lambda i: (-reward[i.key], i.number)):
        if iteration.number in taken:
            continue
        change = view.best_change(iteration.number)
        if change is not None:
            return view.proposal(iteration.number, change, "exploit", why)
    return None


# -- probes -------------------------------------------------------------------------------------


def three_converged(view: View) -> str | None:
    """Three or more converged in a row (the class that also beats the trivial row)."""
    n = view.streak(lambda i: i.is_converged)
    return f"{n} converged in a row: look for the boundary" if n >= N_CONVERGED else None


def failure_probe(view: View, why: str) -> Proposal | None:
    """An extreme value of one parameter, to find where it fails."""
    return _probe(view, why, "failure-probe")


def boundary_probe(view: View, why: str) -> Proposal | None:
    """Halfway between two values that differ by more than seeds explain, else an extreme value.

    Extremes are left to the failure-probe where the plan has both.
    """
    node = view.best
    if node is None:
        return None
    for key, parameter in view.space.items():
        if parameter.values:
            continue
        for c in view.knowledge.comparisons(key):
            if c.high - c.low <= STUCK or not c.is_support:
                continue
            middle = parameter.at(0.5 * (c.low + c.high))
            found = view.proposal(node.number, {key: middle}, "boundary-probe", why)
            if found is not None:
                return found
    if "failure-probe" in view.plan.strategies:
        return None
    return _probe(view, why, "boundary-probe")


def _probe(view: View, why: str, name: str) -> Proposal | None:
    node = view.best
    if node is None:
        return None
    taken = {c.key for d in view.drafts for c in d.changes}
    for key in _ordered(view):
        parameter = view.space[key]
        needed = parameter.missing(node.values)
        if key in taken or needed is None or not parameter.is_ordered or view.space.is_switch(key):
            continue
        here = parameter.position(node.values[key])
        for direction in (1, -1) if here <= 0.5 else (-1, 1):
            change = {**needed, key: parameter.extreme(direction)}
            found = view.proposal(node.number, change, name, why)
            if found is not None:
                return found
    return None


# -- degeneracy ---------------------------------------------------------------------------------


def gap_persists(view: View) -> str | None:
    """The degeneracy gap is above 0.3 for three iterations."""
    n = view.streak(lambda i: (view.signal(i, "gap") or 0.0) > GAP)
    return f"degeneracy gap above {GAP} for {n} iterations" if n >= N_GAP else None


def degeneracy_break(view: View, why: str) -> Proposal | None:
    """The plan's moves: constrain the networks, more L1, less training, or rollouts."""
    return _moves(view, "degeneracy-break", why)


def _moves(view: View, name: str, why: str) -> Proposal | None:
    """The moves the plan has for a strategy: all of them together, else each alone."""
    moves = view.plan.moves.get(name, ())
    for node in view.nodes:
        values = view.values_of(node.id)
        changes: dict[str, Any] = {}
        for move in moves:
            new = move.to
            if move.to in ("up", "down"):
                new = view.space[move.key].moved(values[move.key], 1 if move.to == "up" else -1)
            if new is not None and not same_value(new, values[move.key]):
                changes[move.key] = new
        alone = [{k: v} for k, v in changes.items() if not view.space.is_switch(k)]
        for chosen in [changes, *alone]:
            found = view.proposal(node.id, chosen, name, why) if chosen else None
            if found is not None:
                return found
    return None


# -- stuck --------------------------------------------------------------------------------------


def on_plateau(view: View) -> str | None:
    """The primary metric stayed within 0.05 for three iterations."""
    last = [i.metric for i in view.iterations[-N_PLATEAU:]]
    if len(last) < N_PLATEAU or any(m is None for m in last):
        return None
    metrics = [m for m in last if m is not None]
    middle = 0.5 * (max(metrics) + min(metrics))
    if max(metrics) - middle > PLATEAU * view.settings.reward_scale:
        return None
    return (
        f"plateau at {statistics.fmean(metrics):.3g} for {N_PLATEAU} iterations: second-highest UCB"
    )


def forced_branch(view: View, why: str) -> Proposal | None:
    """The second-highest UCB, and another parameter than the last ones."""
    if len(view.nodes) < 2:
        return None
    recent = [c.key for i in view.iterations[-N_PLATEAU:] for c in i.proposal.changes]
    for avoid in (recent, recent[-1:]):
        change = view.best_change(view.nodes[1].id, avoid=avoid)
        if change is not None:
            return view.proposal(view.nodes[1].id, change, "forced-branch", why)
    return None


def four_of_one_parameter(view: View) -> str | None:
    """Four or more mutations of one parameter in a row."""
    last = view.iterations[-1].proposal.changes if view.iterations else ()
    if len(last) != 1 or last[0].key == SEED:
        return None
    n = view.streak(lambda i: [c.key for c in i.proposal.changes] == [last[0].key])
    if n >= N_SAME_PARAMETER:
        name = view.space[last[0].key].name if last[0].key in view.space else last[0].key
        return f"{n} mutations of {name} in a row: another parameter"
    return None


def switch_dimension(view: View, why: str) -> Proposal | None:
    """The highest UCB, and another parameter."""
    avoid = [c.key for c in view.iterations[-1].proposal.changes]
    for node in view.nodes:
        change = view.best_change(node.id, avoid=avoid)
        if change is not None:
            return view.proposal(node.id, change, "switch-dimension", why)
    return None


# -- recombine ----------------------------------------------------------------------------------


def two_distant(view: View) -> str | None:
    """Two or more distant converged nodes whose parameters have not been merged yet."""
    pair = _pair(view)
    if pair is None:
        return None
    return f"nodes {pair[0].number} and {pair[1].number} converged far apart: merge them"


def recombine(view: View, why: str) -> Proposal | None:
    """The better node, with what the other one changed from the root."""
    pair = _pair(view)
    if pair is None:
        return None
    return view.proposal(pair[0].number, _merged(view, *pair), "recombine", why)


def _pair(view: View) -> tuple[Iteration, Iteration] | None:
    good = sorted(
        (i for i in view.iterations if i.is_converged), key=lambda i: (-i.reward, i.number)
    )[:N_MERGED]
    for a_idx, a in enumerate(good):
        for b in good[a_idx + 1 :]:
            if distance(view.nodes, a.number, b.number) < DISTANT:
                continue
            merged = _merged(view, a, b)
            if merged and not view.is_tried({**a.values, **merged}):
                return a, b
    return None


def _merged(view: View, a: Iteration, b: Iteration) -> dict[str, Any]:
    root = view.values_of(None)
    return {
        key: value
        for key, value in b.values.items()
        if key not in (SEED, VARIANT)
        and not same_value(value, root[key])
        and same_value(a.values[key], root[key])
    }


# -- document 002 -------------------------------------------------------------------------------


def homeostasis_asleep(view: View) -> str | None:
    """Rate constants are recovered but the slopes of MLP_node are about 0."""
    node = view.best
    if node is None:
        return None
    recovery, slope = view.signal(node, "recovery"), view.signal(node, "slope")
    if recovery is None or slope is None or recovery <= RECOVERED or abs(slope) >= INACTIVE:
        return None
    return f"recovery {recovery:.3g} but slopes about 0 ({slope:.2g})"


def homeo_kick(view: View, why: str) -> Proposal | None:
    """Raise the rate of MLP_node and lower its L1."""
    return _moves(view, "homeo-kick", why)


def embeddings_stuck(view: View) -> str | None:
    """The slopes move but the embeddings do not separate."""
    node = view.best
    if node is None or len(view.iterations) < N_PLATEAU:
        return None
    slope, cluster = view.signal(node, "slope"), view.signal(node, "cluster")
    last = [view.signal(i, "cluster") for i in view.iterations[-N_PLATEAU:]]
    if slope is None or cluster is None or any(c is None for c in last):
        return None
    known = [c for c in last if c is not None]
    if abs(slope) < INACTIVE or cluster >= 1.0 or max(known) - min(known) > STUCK:
        return None
    return f"slopes move ({slope:.2g}) but the embeddings are stuck at {cluster:.2f}"


def embedding_focus(view: View, why: str) -> Proposal | None:
    """Raise the rate of the embeddings."""
    return _moves(view, "embedding-focus", why)


def all_partial_k(view: View) -> str | None:
    """Four or more partial-k in a row."""
    n = view.streak(lambda i: i.verdict == "partial-k")
    return f"partial-k for {n} iterations" if n >= N_PARTIAL_K else None


def k_protect(view: View, why: str) -> Proposal | None:
    """Lower the rates of MLP_node and the embeddings."""
    return _moves(view, "k-protect", why)


# -- principle test and code --------------------------------------------------------------------


def never(view: View) -> str | None:
    """Only by the role of a slot."""
    return None


def principle_test(view: View, why: str) -> Proposal | None:
    """A replicate where seeds may explain a difference, else a principle in another context."""
    return _replicate(view) or _test(view, why)


def _replicate(view: View) -> Proposal | None:
    best, history = view.history.best, view.history
    n_done = sum(i.proposal.is_replicate for i in history) + sum(
        d.is_replicate for d in view.drafts
    )
    allowed = math.floor(view.settings.replicate_share * view.number)
    if best is None or n_done >= allowed or len(history.runs_of[best.key]) >= N_CONVERGED:
        return None
    if history.spread is None:
        return view.replicate(best, "the spread between seeds is not known yet")
    others = [r for k, r in history.mean_reward.items() if k != best.key]
    lead = history.mean_reward[best.key] - max(others, default=0.0)
    if 0 < lead < 2 * history.spread:
        return view.replicate(best, f"it leads by {lead:.3g}, less than seeds may explain")
    return None


def _test(view: View, why: str) -> Proposal | None:
    """What the runs expect to help, brought together at the best node; else one change of it."""
    node = None if view.best is None else view.best.number
    changes = view.changes_together(node, view.settings.n_together, expected=True)
    found = _combined(view, node, changes, "principle-test", why)
    if found is not None:
        return found
    change = view.best_change(node)
    return None if change is None else view.proposal(node, change, "principle-test", why)


def _together(view: View, parent: int | None, name: str, why: str) -> Proposal | None:
    """Several changes at once, each drawn from what is known of it.

    A run that changes three parameters says something of all three, and merges what was found to
    help elsewhere with what is unknown.
    """
    for _ in range(N_DRAWS):
        changes = view.changes_together(parent, view.settings.n_together)
        found = _combined(view, parent, changes, name, why)
        if found is not None:
            return found
    return None


def _combined(
    view: View, parent: int | None, changes: dict[str, Any], name: str, why: str
) -> Proposal | None:
    values = view.values_of(parent)
    testing = ", ".join(
        f"{view.space[key].name} {word(value)} rather than {word(values[key])}"
        for key, value in changes.items()
    )
    return view.proposal(parent, changes, name, why, testing=f"together: {testing}")


def plateau_after_sweeps(view: View) -> str | None:
    """Code may be changed, the baseline stands, and parameters no longer help."""
    if not view.settings.allow_code or view.number_in_block <= N_BEFORE_CODE:
        return None
    if _next_variant(view) is None:
        return None
    plateau, gap = on_plateau(view), gap_persists(view)
    return plateau.split(":")[0] if plateau else gap


def code_modification(view: View, why: str) -> Proposal | None:
    """The best node under other code, and nothing else changed."""
    name = _next_variant(view)
    node = view.best
    if name is None or node is None or view.describe_code is None:
        return None
    return view.proposal(
        node.number, {VARIANT: name, SEED: node.values[SEED]}, "code-modification", why,
        testing=view.plan.variants[name].hypothesis, code=view.describe_code(name),
    )  # fmt: skip


def _next_variant(view: View) -> str | None:
    node = view.best
    if node is None or node.values[VARIANT] is not None:
        return None
    used = {i.values[VARIANT] for i in view.iterations} | {d.values[VARIANT] for d in view.drafts}
    return next((n for n in view.plan.variants if n not in used), None)


def _ordered(view: View) -> Sequence[str]:
    """Parameters: the block's focus, the plan's order, then the rest."""
    return list(dict.fromkeys([*view.focus, *view.plan.order, *view.space]))


# -- the table ----------------------------------------------------------------------------------

TABLE = (
    Strategy("code-modification", plateau_after_sweeps, code_modification, rests=True),
    Strategy("degeneracy-break", gap_persists, degeneracy_break, rests=True),
    Strategy("k-protect", all_partial_k, k_protect, rests=True),
    Strategy("homeo-kick", homeostasis_asleep, homeo_kick, rests=True),
    Strategy("embedding-focus", embeddings_stuck, embedding_focus, rests=True),
    Strategy("recombine", two_distant, recombine, rests=True),
    Strategy("boundary-probe", three_converged, boundary_probe),
    Strategy("failure-probe", three_converged, failure_probe),
    Strategy("switch-dimension", four_of_one_parameter, switch_dimension),
    Strategy("forced-branch", on_plateau, forced_branch),
    Strategy("explore", quarter_of_successes, explore),
    Strategy("principle-test", never, principle_test),
    Strategy("exploit", always, exploit),
)
"""In the order in which conditions are asked."""
BY_NAME = {strategy.name: strategy for strategy in TABLE}


def is_resting(view: View, strategy: Strategy) -> bool:
    """Whether the last two uses improved nothing; a new block tries once more."""
    if not strategy.rests:
        return False
    uses = [i for i in view.history if i.proposal.strategy == strategy.name][-N_FLOPS:]
    return (
        len(uses) == N_FLOPS
        and uses[-1].block == view.block
        and all((view.history.gain(i) or 0.0) <= 0 for i in uses)
    )


def choose(view: View) -> Proposal | None:
    """The first strategy of the table that applies and has something new to propose.

    A batch asks each but exploit once: its second answer would not know what came of the first.
    """
    used = {d.strategy for d in view.drafts} - {"exploit"}
    for strategy in TABLE:
        if strategy.name not in view.plan.strategies or is_resting(view, strategy):
            continue
        if strategy.name in used:
            continue
        why = strategy.when(view)
        if why is None:
            continue
        found = strategy.act(view, why)
        if found is not None:
            return replace(found, role="exploit")
    return None

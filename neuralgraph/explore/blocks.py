"""The end of a block: rates, adapted rules, the focus of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuralgraph.explore.history import History, Iteration
from neuralgraph.explore.knowledge import importance
from neuralgraph.explore.notebook import Summary
from neuralgraph.explore.plan import Focus, Plan
from neuralgraph.explore.space import Space
from neuralgraph.explore.words import rounded, word

BRANCHING, IMPROVEMENT = 0.2, 0.3
"""Under these rates the documents add exploration, or exploitation."""
ROLES = ("exploit", "second best", "under-visited", "principle test")
"""Roles of the slots of later batches."""
N_FOCUS = 4
NEXT_FOCUS = "Next focus"
MORE_EXPLORATION, MORE_EXPLOITATION = "more exploration", "more exploitation"


@dataclass(frozen=True)
class Rates:
    """How a block went.

    Args:
        branching: Share of iterations whose parent had another child before.
        improvement: Share of iterations that beat their parent.
        n: Iterations with a parent in the block.
    """

    branching: float
    improvement: float
    n: int


@dataclass(frozen=True)
class Rule:
    """An adapted rule, recorded as data: leaving it out undoes it.

    Args:
        block: The block whose rates called for it.
        rule: What is added.
        because: The rate.
        role: The role the cycle of slots gains.
    """

    block: int
    rule: str
    because: str
    role: str


def rates(block: Sequence[Iteration], history: History) -> Rates:
    """Branching and improvement of a block."""
    children: dict[int, int] = {}
    branched = improved = n = 0
    for iteration in block:
        if iteration.parent is None:
            continue
        n += 1
        branched += iteration.parent in children
        children[iteration.parent] = children.get(iteration.parent, 0) + 1
        improved += (history.gain(iteration) or 0.0) > 0
    return Rates(branched / n if n else 0.0, improved / n if n else 0.0, n)


def adapted(history: History, until: int) -> list[Rule]:
    """Rules that the finished blocks before ``until`` call for.

    A rule stands for the block that follows the one whose rates called for it, and goes when the
    next block's rates do not: every block is asked anew.
    """
    last = until - 1
    block = history.block(last)
    if last < 1 or not block:
        return []
    found = rates(block, history)
    if not found.n:
        return []
    rules = []
    if found.branching < BRANCHING:
        rules.append(
            Rule(last, MORE_EXPLORATION, f"branching rate {found.branching:.0%} under 20%",
                 "under-visited")
        )  # fmt: skip
    if found.improvement < IMPROVEMENT:
        rules.append(
            Rule(last, MORE_EXPLOITATION, f"improvement rate {found.improvement:.0%} under 30%",
                 "exploit")
        )  # fmt: skip
    return rules


def roles(rules: Sequence[Rule]) -> tuple[str, ...]:
    """Cycle of the roles of a block's slots, under the adapted rules."""
    return (*ROLES, *(rule.role for rule in rules))


def focus(history: History, block: int, plan: Plan, space: Space) -> Focus:
    """What a block looks at: the plan's blocks first, then what moved the metric so far."""
    if block <= len(plan.blocks) and plan.blocks[block - 1].keys:
        return plan.blocks[block - 1]
    finished = History([i for i in history if i.block < block], history.root)
    moved = [k for k, share in importance(finished, space).items() if share > 0][:N_FOCUS]
    if moved:
        names = ", ".join(space[k].name for k in moved)
        return Focus(f"what moved the metric so far: {names}", tuple(moved))
    keys = tuple((plan.order or tuple(space))[:N_FOCUS])
    names = ", ".join(space[k].name for k in keys)
    return Focus(f"the first parameters of the order: {names}", keys)


def summary(
    history: History, block: int, *, metric: str, following: Focus | None, space: Space
) -> Summary:
    """The block in a few lines."""
    iterations = history.block(block)
    found = rates(iterations, history)
    best = History(iterations, history.root).best
    failed = [i.number for i in iterations if i.status == "failed"]
    lines = [("Iterations", f"{iterations[0].number}-{iterations[-1].number}")]
    if best is None or best.metric is None:
        lines.append(("Best", "no run has the primary metric"))
    else:
        changed = [
            f"{space[k].name}={word(v)}"
            for k, v in best.values.items()
            if k in space and v != history.root[k]
        ]
        where = ", ".join(changed) or "the root's settings"
        lines.append(
            ("Best", f"iteration {best.number}, {metric}={word(rounded(best.metric))} ({where})")
        )
    lines += [
        ("Branching rate", f"{found.branching:.0%}"),
        ("Improvement rate", f"{found.improvement:.0%}"),
    ]
    if failed:
        lines.append(("Failed", ", ".join(map(str, failed))))
    rules = adapted(history, block + 1)
    text = "; ".join(f"{r.rule} ({r.because})" for r in rules) or "none"
    lines.append(("Adapted rules", text))
    if following is not None:
        lines.append((NEXT_FOCUS, following.words))
    return Summary(block, tuple(lines))

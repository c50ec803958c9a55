"""The UCB tree of a block, and its file ``ucb_scores.txt``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from neuralgraph.core.errors import ConfigError
from neuralgraph.explore.history import Iteration

UCB_LIMITS = (0.5, 3.0)
FORMS = ("mean", "document")
LINE = re.compile(
    r"Node (?P<id>\d+): UCB=(?P<ucb>\S+), parent=(?P<parent>root|\d+), visits=(?P<visits>\d+), "
    r"(?P<name>\w+)=(?P<metric>\S+)$"
)


@dataclass(frozen=True)
class Node:
    """One node of the tree.

    Args:
        id: Iteration.
        parent: Its parent within the block, ``None`` for the root.
        ucb: Upper confidence bound.
        visits: Runs in its subtree, itself included.
        mean: Mean reward of its subtree.
        reward: Its own reward.
        metric: Its own primary metric.
        depth: Edges from the root.
    """

    id: int
    parent: int | None
    ucb: float
    visits: int
    mean: float
    reward: float
    metric: float | None
    depth: int


def check_c(c: float) -> None:
    """Refuse an exploration constant outside the documents' range."""
    low, high = UCB_LIMITS
    if not low <= c <= high:
        raise ConfigError(f"explore.ucb_c must lie in [{low}, {high}], got {c:g}")


def grow(iterations: Sequence[Iteration], *, c: float, form: str) -> list[Node]:
    r"""Nodes of one block with their scores, highest first (then the newest).

    ``mean`` is $\bar r + c \sqrt{\ln N / n}$ with $\bar r$ the mean reward of a node's subtree,
    $n$ the runs in it and $N$ those in the block. ``document`` is what the documents' own program
    computes, $r + c \sqrt{N} / (1 + n)$, with $r$ the node's own reward.

    Args:
        iterations: Of one block, in order; a parent outside counts as the root.
        c: Exploration constant.
        form: ``mean`` or ``document``.
    """
    parent: dict[int, int | None] = {}
    depth: dict[int, int] = {}
    visits: dict[int, int] = {}
    total: dict[int, float] = {}
    for iteration in iterations:
        above = iteration.parent if iteration.parent in parent else None
        parent[iteration.number] = above
        depth[iteration.number] = 1 if above is None else depth[above] + 1
        visits[iteration.number], total[iteration.number] = 0, 0.0
        at: int | None = iteration.number
        while at is not None:
            visits[at] += 1
            total[at] += iteration.reward
            at = parent[at]
    n = len(iterations)
    nodes = []
    for iteration in iterations:
        i = iteration.number
        mean = total[i] / visits[i]
        if form == "mean":
            ucb = mean + c * math.sqrt(math.log(n) / visits[i]) if n > 1 else mean
        else:
            ucb = iteration.reward + c * math.sqrt(n) / (1 + visits[i])
        nodes.append(
            Node(i, parent[i], ucb, visits[i], mean, iteration.reward, iteration.metric, depth[i])
        )
    return sorted(nodes, key=lambda node: (-node.ucb, -node.id))


def render(nodes: Sequence[Node], metric: str) -> str:
    r"""``ucb_scores.txt``: one line for each node, highest UCB first.

    >>> render([Node(3, 1, 1.234, 2, 0.5, 0.5, 0.87, 2)], "test_R2")
    'Node 3: UCB=1.234, parent=1, visits=2, test_R2=0.870\n'
    """
    return "".join(
        f"Node {n.id}: UCB={n.ucb:.3f}, parent={'root' if n.parent is None else n.parent}, "
        f"visits={n.visits}, {metric}={'nan' if n.metric is None else f'{n.metric:.3f}'}\n"
        for n in nodes
    )


def distance(nodes: Sequence[Node], a: int, b: int) -> int:
    """Edges between two nodes of a tree, over the root where they share no ancestor."""
    parent = {n.id: n.parent for n in nodes}

    def path(node: int | None) -> list[int | None]:
        steps: list[int | None] = []
        while node is not None:
            steps.append(node)
            node = parent[node]
        return [*steps, None]

    one, other = path(a), path(b)
    shared = next(n for n in one if n in other)
    return one.index(shared) + other.index(shared)

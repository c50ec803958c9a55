"""What a strategy sees: the history, its tree, what is known, and what the batch holds already."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralgraph.explore.history import History, Iteration, Key, Proposal, key_of
from neuralgraph.explore.knowledge import Knowledge
from neuralgraph.explore.notebook import Change, CodeChange
from neuralgraph.explore.plan import Plan
from neuralgraph.explore.space import SEED, Space, same_value
from neuralgraph.explore.surrogate import Surrogate
from neuralgraph.explore.tree import Node, grow

if TYPE_CHECKING:
    from neuralgraph.explore.settings import Settings

STEPS = (0.25, 0.125, 0.5)
"""Shares of a range that one mutation may take; the first is the conservative one."""
HINT, TIE = 0.05, 0.01
"""Weights of the plan's hints and of chance, in units of the rewards' spread."""


@dataclass
class View:
    """Everything the choice of one slot depends on.

    Args:
        history: What was run.
        block: The current block.
        space: What may change.
        plan: The protocol.
        settings: Options of the search.
        focus: Parameters the block looks at.
        drafts: Proposals of earlier slots of the same batch.
        rng: Breaks ties; seeded by the iteration alone.
        describe_code: File and function of a variant.
    """

    history: History
    block: int
    space: Space
    plan: Plan
    settings: Settings
    focus: tuple[str, ...]
    rng: np.random.Generator
    drafts: list[Proposal] = field(default_factory=list[Proposal])
    describe_code: Callable[[str], CodeChange] | None = None

    @cached_property
    def knowledge(self) -> Knowledge:
        """Comparisons and principles."""
        return self.history.once("knowledge", lambda: Knowledge(self.history, self.space))

    @cached_property
    def surrogate(self) -> Surrogate:
        """What to expect of a change, with the runs of this batch under way."""
        known = self.history.once("surrogate", lambda: Surrogate(self.history, self.space))
        return known.given([draft.values for draft in self.drafts])

    # -- where we are --------------------------------------------------------------------------

    @cached_property
    def iterations(self) -> list[Iteration]:
        """Iterations of the current block."""
        return self.history.block(self.block)

    @cached_property
    def nodes(self) -> list[Node]:
        """Tree of the block, highest UCB first."""
        return grow(self.iterations, c=self.settings.ucb_c, form=self.settings.ucb_form)

    @property
    def number(self) -> int:
        """The iteration that is being decided."""
        return len(self.history) + len(self.drafts) + 1

    @property
    def number_in_block(self) -> int:
        """The same, counted from 1 within the block."""
        return len(self.iterations) + len(self.drafts) + 1

    @cached_property
    def best(self) -> Iteration | None:
        """The best node of the block."""
        return History(self.iterations, self.history.root).best

    def values_of(self, node: int | None) -> dict[str, Any]:
        """Configuration of a node, or of the block's root."""
        if node is None:
            return self.history.block_root(self.block)
        return dict(self.history.node(node).values)

    @cached_property
    def recent_chain(self) -> set[int]:
        """The newest node and its ancestors."""
        chain: set[int] = set()
        parent = {n.id: n.parent for n in self.nodes}
        at: int | None = self.iterations[-1].number if self.iterations else None
        while at is not None:
            chain.add(at)
            at = parent[at]
        return chain

    def is_tried(self, values: Mapping[str, Any]) -> bool:
        """Whether this configuration has run, or is in the batch already.

        What differs from an earlier run only by what does not act would be that run once more.
        """
        return self.knowledge.acting(values) in self._tried

    @cached_property
    def _tried(self) -> set[Key]:
        return {self.knowledge.acting(r.values) for r in (*self.history, *self.drafts)}

    def streak(self, holds: Callable[[Iteration], bool]) -> int:
        """How many of the block's newest iterations in a row a statement holds for."""
        n = 0
        for iteration in reversed(self.iterations):
            if not holds(iteration):
                break
            n += 1
        return n

    def signal(self, iteration: Iteration, name: str) -> float | None:
        """A metric the plan gives a meaning to (gap, recovery, slope, cluster)."""
        metric = self.plan.signals.get(name, "degeneracy_gap" if name == "gap" else None)
        return None if metric is None else iteration.metrics.get(metric)

    # -- proposing -----------------------------------------------------------------------------

    def proposal(
        self,
        parent: int | None,
        changes: Mapping[str, Any],
        strategy: str,
        rule: str,
        *,
        testing: str = "",
        code: CodeChange | None = None,
        may_repeat: bool = False,
    ) -> Proposal | None:
        """A proposal, or ``None`` where nothing would be new.

        Args:
            parent: Node it starts from.
            changes: Key -> new value.
            strategy: Name of the strategy.
            rule: Why this parent.
            testing: What is being tested.
            code: Code modification.
            may_repeat: Allow a configuration that has run (replicates, baselines).
        """
        old = self.values_of(parent)
        new = {**old, **changes}
        differs = tuple(Change(k, old[k], v) for k, v in new.items() if not same_value(old[k], v))
        if not may_repeat and (not differs or self.is_tried(new)):
            return None
        return Proposal(parent, new, differs, strategy, rule, testing=testing, code=code)

    def replicate(self, of: Iteration, rule: str) -> Proposal | None:
        """The same configuration under the next training seed."""
        runs = [
            *self.history.runs_of[of.key],
            *(d for d in self.drafts if key_of(d.values) == of.key),
        ]
        seed = max(run.values[SEED] for run in runs) + 1
        parent = of.number if of.block == self.block else None
        values = {**of.values, SEED: seed}
        return self.proposal(
            parent, values, "principle-test", rule, may_repeat=True,
            testing="seed effect: how far two seeds of one configuration differ",
        )  # fmt: skip

    def options(self, values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        """Changes of one parameter from a configuration, with what else it needs to act."""
        parameter = self.space[key]
        needed = parameter.missing(values)
        if needed is None:
            return []
        if self.space.is_switch(key) and any(
            same_value(values[key], value)
            for other in self.space.values()
            for name, value in other.needs
            if name == key
        ):
            news = [v for v in parameter.values if not same_value(v, values[key])]
        elif self.space.is_switch(key):
            news = []  # alone it changes nothing: it comes with the parameter that needs it
        elif parameter.is_ordered:
            moved = [parameter.moved(values[key], d, step) for step in STEPS for d in (1, -1)]
            news = [v for v in moved if v is not None]
            news += [v for v in parameter.values if v is None and values[key] is not None]
        else:
            news = [v for v in parameter.values if not same_value(v, values[key])]
        unique: list[dict[str, Any]] = []
        for new in news:
            change = {**needed, key: new}
            if change not in unique:
                unique.append(change)
        return unique

    def best_change(
        self,
        parent: int | None,
        *,
        keys: Sequence[str] | None = None,
        avoid: Sequence[str] = (),
        curiosity: float | None = None,
    ) -> dict[str, Any] | None:
        """The untried change of one parameter that promises most from a node.

        A promise is the gain that all runs so far predict, plus ``curiosity`` times what is not
        known of it (steps longer than the conservative one gain nothing by that), plus a little for
        the plan's order, the focus of the block and the plan's interactions. Idle parameters are
        left alone, and changes that the batch makes already wait until no other is left.

        Args:
            parent: Node it starts from.
            keys: Parameters to choose among, by default all.
            avoid: Parameters to leave alone.
            curiosity: Weight of the unknown, by default ``explore.ucb_c``; 0 goes by what is known.
        """
        curiosity = self.settings.ucb_c if curiosity is None else curiosity
        values = self.values_of(parent)
        options: list[tuple[str, dict[str, Any]]] = [
            (key, change)
            for key in (self.space if keys is None else keys)
            if key not in avoid and key not in self.knowledge.idle
            for change in self.options(values, key)
            if not self.is_tried({**values, **change})
        ]
        if not options:
            return None
        taken = [(c.key, c.new) for d in self.drafts for c in d.changes]
        fresh = [(k, c) for k, c in options if not any(_holds(c, *t) for t in taken)]
        options = fresh or options
        gain, unknown = self.surrogate.gains(values, [{**values, **c} for _, c in options])
        scale = self.surrogate.scale
        best, chosen = -math.inf, None
        for index, (key, change) in enumerate(options):
            promise = float(gain[index]) + curiosity * float(unknown[index]) * self._care(
                values, key, change[key]
            )
            promise += scale * self._hint(parent, key, values[key], change[key])
            promise += TIE * scale * float(self.rng.random())
            if promise > best:
                best, chosen = promise, change
        return chosen

    def changes_together(
        self, parent: int | None, n: int, *, expected: bool = False
    ) -> dict[str, Any]:
        """Up to ``n`` changes of one parameter each that, taken together, may well improve a node.

        The gain of every change is drawn from what is known of it (Thompson sampling), or is what
        is expected of it; the largest positive gains are taken, one for each parameter.

        Args:
            parent: Node it starts from.
            n: Changes at most.
            expected: Go by the expected gains rather than by draws.
        """
        values = self.values_of(parent)
        options = [(key, c) for key in self.space for c in self.options(values, key)]
        if not options:
            return {}
        news = [{**values, **change} for _, change in options]
        if expected:
            gain, _ = self.surrogate.gains(values, news)
        else:
            gain = self.surrogate.draw(values, news, self.rng)
        taken: dict[str, Any] = {}
        count = 0
        for index in np.argsort(-gain):
            key, change = options[int(index)]
            if count == n or gain[index] <= 0:
                break
            if key in taken or any(k in taken and taken[k] != v for k, v in change.items()):
                continue
            taken |= change
            count += 1
        return taken

    def _care(self, values: Mapping[str, Any], key: str, new: Any) -> float:
        """Weight of the unknown of a step: 1 for a conservative one, less for a longer one."""
        parameter = self.space[key]
        if not parameter.is_ordered:
            return 1.0
        length = abs(parameter.position(new) - parameter.position(values[key]))
        conservative = STEPS[0]
        if parameter.values:
            conservative = max(conservative, 1.0 / max(len(parameter.values) - 1, 1))
        return min(conservative / length, 1.0) if length > 0 else 1.0

    def _hint(self, parent: int | None, key: str, old: Any, new: Any) -> float:
        """What order, focus and interactions of the plan add, in units of the rewards' spread."""
        hint = HINT if key in self.focus else 0.0
        if key in self.plan.order:
            hint += HINT * (1 - self.plan.order.index(key) / len(self.plan.order))
        parameter = self.space[key]
        if parent is None or not parameter.is_ordered:
            return hint
        step = parameter.position(new) - parameter.position(old)
        return hint + (HINT if self._is_invited(parent, key, step) else 0.0)

    def _is_invited(self, parent: int, key: str, step: float) -> bool:
        """Whether the plan says that this change goes with the one that made the parent."""
        iteration = self.history.node(parent)
        if (self.history.gain(iteration) or 0.0) <= 0:
            return False
        for interaction in self.plan.interactions:
            mine = interaction.raised if step > 0 else interaction.lowered
            others = {*interaction.raised, *interaction.lowered} - {key}
            if key in mine and any(c.key in others for c in iteration.proposal.changes):
                return True
        return False


def _holds(change: Mapping[str, Any], key: str, new: Any) -> bool:
    return key in change and same_value(change[key], new)

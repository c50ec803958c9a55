"""What has been tried and what came of it: the one thing every strategy is a function of.

The history lies in ``exploration.jsonl``, one line for each iteration, in full precision; the
notebook is written from it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from neuralgraph.core.errors import DataError
from neuralgraph.explore.notebook import Change, CodeChange
from neuralgraph.explore.space import SEED

Values = Mapping[str, Any]
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Proposal:
    """One run to be done: a parent, and what differs from it.

    Args:
        parent: Node it starts from, ``None`` for the root of the block.
        values: Every parameter of the space, the training seed and the code variant.
        changes: What differs from the parent (config keys).
        strategy: One of the documents' strategies.
        rule: Why this parent, one line.
        role: Role of the slot in its batch.
        testing: Principle or hypothesis under test, one line.
        code: Set for a code modification.
        note: A remark of the proposer for the memory file.
        proposer: Who decided.
    """

    parent: int | None
    values: dict[str, Any]
    changes: tuple[Change, ...]
    strategy: str
    rule: str
    role: str = ""
    testing: str = ""
    code: CodeChange | None = None
    note: str = ""
    proposer: str = ""

    @property
    def is_replicate(self) -> bool:
        """Whether nothing but the seed differs from the parent."""
        return [c.key for c in self.changes] == [SEED]


@dataclass(frozen=True)
class Iteration:
    """One finished iteration.

    Args:
        number: From 1; also the id of its node.
        block: From 1.
        batch: From 1, over the whole search.
        slot: From 0, within its batch.
        proposal: What was run.
        status: ``finished`` or ``failed``.
        verdict: The class that also beats the trivial row; ``failed`` for a failed run.
        verdict_document: The class by the documents' own rule.
        metric: The primary metric, ``None`` where there is none.
        reward: Its image in [0, 1]; 0 for a failed run.
        metrics: Everything the scorecard holds.
        problem: Why the run failed or has no metric.
        losses: What happened to attempts that were lost.
        folder: Run folder, relative to the exploration.
        observation: What came of it, one line.
        visual: Judgement of the figures, one line.
        next_parent: Highest UCB after the batch.
    """

    number: int
    block: int
    batch: int
    slot: int
    proposal: Proposal
    status: str
    verdict: str
    verdict_document: str
    metric: float | None
    reward: float
    metrics: dict[str, float]
    problem: str = ""
    losses: tuple[str, ...] = ()
    folder: str = ""
    observation: str = ""
    visual: str = ""
    next_parent: int | None = None

    @property
    def parent(self) -> int | None:
        """Node it came from."""
        return self.proposal.parent

    @property
    def values(self) -> dict[str, Any]:
        """Its configuration."""
        return self.proposal.values

    @property
    def is_converged(self) -> bool:
        """Class converged, which also beats the trivial row."""
        return self.verdict == "converged"

    @cached_property
    def key(self) -> Key:
        """Its configuration without the seed: equal for replicates."""
        return key_of(self.values)


def key_of(values: Values, *, but: Collection[str] = (SEED,)) -> Key:
    """Configuration without the training seed, hashable.

    Args:
        values: A configuration.
        but: What is left out, by default the seed.

    >>> key_of({"loop.lr": 0.001, "training_seed": 3})
    (('loop.lr', '0.001'),)
    """
    return tuple((k, _canonical(v)) for k, v in values.items() if k not in but)


def _canonical(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    return repr(value)


NEGLIGIBLE = 1e-3
"""Smallest spread between seeds, in reward: differences around it are of no consequence."""
LOW_CHI_SQUARE = (0.0158, 0.211, 0.584, 1.064, 1.610, 2.204, 2.833, 3.490, 4.168, 4.865)
"""10 % quantiles of chi-square with 1, 2, … degrees of freedom."""


def _low_chi_square(degrees: int) -> float:
    """10 % quantile of chi-square; Wilson & Hilferty (1931) beyond the table.

    >>> round(_low_chi_square(20), 1)
    12.4
    """
    if degrees <= len(LOW_CHI_SQUARE):
        return LOW_CHI_SQUARE[degrees - 1]
    part = 2 / (9 * degrees)
    return degrees * (1 - part - 1.2816 * math.sqrt(part)) ** 3


class History(Sequence[Iteration]):
    """Iterations in their order, with what follows from them (computed once).

    Args:
        iterations: In order of their number.
        root: Configuration of the root, the experiment's own.
    """

    def __init__(self, iterations: Sequence[Iteration], root: Values) -> None:
        self.iterations = tuple(iterations)
        self.root = dict(root)
        self._roots: dict[int, dict[str, Any]] = {}
        self._known: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What follows from this history alone, made when it is first asked for."""
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    def __getitem__(self, index: Any) -> Any:
        return self.iterations[index]

    def __len__(self) -> int:
        return len(self.iterations)

    def __iter__(self) -> Iterator[Iteration]:
        return iter(self.iterations)

    def node(self, number: int) -> Iteration:
        """Iteration by its number."""
        return self.iterations[number - 1]

    def block(self, number: int) -> list[Iteration]:
        """Iterations of a block."""
        return [i for i in self.iterations if i.block == number]

    @cached_property
    def runs_of(self) -> dict[Key, list[Iteration]]:
        """Iterations by configuration; more than one are replicates."""
        groups: dict[Key, list[Iteration]] = defaultdict(list)
        for iteration in self.iterations:
            groups[iteration.key].append(iteration)
        return dict(groups)

    @cached_property
    def mean_reward(self) -> dict[Key, float]:
        """Mean reward over the replicates of each configuration."""
        return {k: statistics.fmean(i.reward for i in g) for k, g in self.runs_of.items()}

    @cached_property
    def spread(self) -> float | None:
        """Run-to-run standard deviation of the reward: its upper 90 % confidence limit.

        Pooled over replicated configurations, failed runs left out; ``None`` before any
        configuration has run twice. One pair of seeds says little, so that the limit lies 8 times
        above what it measured; four pairs say more (twice). It is never below ``NEGLIGIBLE``.
        """
        total, degrees = 0.0, 0
        for group in self.runs_of.values():
            rewards = [i.reward for i in group if i.metric is not None]
            if len(rewards) > 1:
                mean = statistics.fmean(rewards)
                total += math.fsum((r - mean) ** 2 for r in rewards)
                degrees += len(rewards) - 1
        if not degrees:
            return None
        return max(math.sqrt(total / _low_chi_square(degrees)), NEGLIGIBLE)

    @cached_property
    def best(self) -> Iteration | None:
        """First run of the configuration with the highest mean reward among those with a metric."""
        judged = [i for i in self.iterations if i.metric is not None]
        if not judged:
            return None
        return max(judged, key=lambda i: (self.mean_reward[i.key], -i.number))

    @cached_property
    def best_run(self) -> Iteration | None:
        """The single run with the highest reward."""
        judged = [i for i in self.iterations if i.metric is not None]
        return max(judged, key=lambda i: (i.reward, -i.number)) if judged else None

    def block_root(self, block: int) -> dict[str, Any]:
        """Configuration at the root of a block: the experiment's own, later the best so far."""
        if block not in self._roots:
            best = History([i for i in self.iterations if i.block < block], self.root).best
            self._roots[block] = (
                self.root if best is None else {**best.values, SEED: self.root[SEED]}
            )
        return dict(self._roots[block])

    def parent_values(self, iteration: Iteration) -> dict[str, Any]:
        """Configuration of an iteration's parent."""
        if iteration.parent is None:
            return self.block_root(iteration.block)
        return self.node(iteration.parent).values

    def gain(self, iteration: Iteration) -> float | None:
        """Reward minus that of its parent; ``None`` below the root of a block."""
        if iteration.parent is None:
            return None
        return iteration.reward - self.node(iteration.parent).reward


# -- the journal --------------------------------------------------------------------------------


def to_line(iteration: Iteration) -> str:
    """One line of ``exploration.jsonl``."""
    return json.dumps(asdict(iteration), ensure_ascii=False)


def from_line(line: str) -> Iteration:
    """What :func:`to_line` wrote."""
    content = json.loads(line)
    proposal = proposal_from(content.pop("proposal"))
    content["losses"] = tuple(content["losses"])
    return Iteration(proposal=proposal, **content)


def proposal_from(content: Mapping[str, Any]) -> Proposal:
    """A proposal from its plain dictionary."""
    code = content["code"]
    return Proposal(
        **{
            **content,
            "changes": tuple(Change(**c) for c in content["changes"]),
            "code": None if code is None else CodeChange(**code),
        }
    )


def load_journal(path: Path) -> list[Iteration]:
    """Iterations of ``exploration.jsonl``; none where there is no file.

    Raises:
        DataError: a line that cannot be read, with line and column.
    """
    if not path.exists():
        return []
    iterations: list[Iteration] = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            iteration = from_line(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path.name}, line {index}, column {error.colno}: {error.msg}. The journal of the "
                "search is machine-written: restore it, or start a new search"
            ) from None
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path.name}, line {index}, column 1: no iteration ({error}). The journal of the "
                "search is machine-written: restore it, or start a new search"
            ) from None
        if iteration.number != index:
            raise DataError(
                f"{path.name}, line {index}, column 1: expected iteration {index}, got "
                f"{iteration.number}: a line was taken out or moved"
            )
        iterations.append(iteration)
    return iterations


__all__ = [
    "History",
    "Iteration",
    "Key",
    "Proposal",
    "Values",
    "from_line",
    "key_of",
    "load_journal",
    "proposal_from",
    "to_line",
]

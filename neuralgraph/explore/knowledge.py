"""What the runs so far say about each parameter, and which of it may be called a principle.

Two configurations that differ in one parameter are a comparison. A comparison counts as support
where its difference is larger than twice what two seeds of one configuration differ by; without a
measured spread nothing is supported, so that a seed effect is never mistaken for a parameter's.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from neuralgraph.explore.history import History, Iteration, Key, Values, key_of
from neuralgraph.explore.space import SEED, Space, same_value
from neuralgraph.explore.words import word

SUPPORTING_RUNS = 3
"""Runs a principle needs before it is called established."""
N_SIGMA = 2.0


@dataclass(frozen=True)
class Comparison:
    """Two configurations that differ in one parameter.

    Args:
        key: The parameter.
        low: Position of the lower value (for parameters without order, of the first one).
        high: Position of the higher value.
        low_value: The lower value.
        high_value: The higher value.
        gain: Reward at the higher value minus reward at the lower.
        noise: Standard deviation of the gain between seeds, ``None`` where it is not known.
        runs: The later runs, which made the comparison.
    """

    key: str
    low: float
    high: float
    low_value: Any
    high_value: Any
    gain: float
    noise: float | None
    runs: tuple[int, ...]

    @property
    def is_support(self) -> bool:
        """Whether the difference is larger than seeds explain."""
        return self.noise is not None and abs(self.gain) > N_SIGMA * self.noise


@dataclass(frozen=True)
class Principle:
    """A statement about one parameter and the runs behind it.

    Args:
        key: The parameter.
        direction: +1 where raising it raises the reward, -1 where it lowers it, 0 where the best
            value lies between the two.
        runs: Runs that support it.
        against: Runs that contradict it.
        low_value: Lowest value compared.
        high_value: Highest value compared.
    """

    key: str
    direction: int
    runs: tuple[int, ...]
    against: tuple[int, ...]
    low_value: Any
    high_value: Any

    @property
    def is_established(self) -> bool:
        """At least three supporting runs and more than twice as many as speak against it."""
        return len(self.runs) >= SUPPORTING_RUNS and len(self.runs) > 2 * len(self.against)

    def sentence(self, name: str, metric: str) -> str:
        """The principle in words."""
        if self.direction == 0 and same_value(self.low_value, self.high_value):
            return f"{metric} is best with {name} near {word(self.low_value)}"
        if self.direction == 0:
            return (
                f"{metric} is best with {name} between {word(self.low_value)} and "
                f"{word(self.high_value)}"
            )
        verb = "improves" if self.direction > 0 else "worsens"
        return (
            f"raising {name} from {word(self.low_value)} to {word(self.high_value)} {verb} {metric}"
        )


@dataclass
class Knowledge:
    """Comparisons drawn from a history.

    Args:
        history: What was run.
        space: What may change.
    """

    history: History
    space: Space
    _by_key: dict[str, list[Comparison]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._by_key = {key: self._compare(key) for key in self.space}

    def comparisons(self, key: str) -> list[Comparison]:
        """Comparisons of one parameter."""
        return self._by_key[key]

    @cached_property
    def idle(self) -> dict[str, tuple[float, ...]]:
        """Parameters without effect so far, and the positions at which they had none.

        Runs are deterministic: two that differ in one parameter and agree in every metric to the
        last bit are one run, so that the parameter has no part in it between these values.
        """
        found = {key: self._idle_at(key) for key in self.space}
        return {key: places for key, places in found.items() if places}

    def acting(self, values: Values) -> Key:
        """Configuration without the seed, idle values, and parameters whose needs are not met.

        It is equal for what would be one run.
        """
        idle = {key for key, places in self.idle.items() if self._is_among(key, values, places)}
        idle |= {key for key, p in self.space.items() if p.missing(values) != {}}
        return key_of(values, but=(SEED, *idle))

    def _idle_at(self, key: str) -> tuple[float, ...]:
        twins: dict[Key, list[Iteration]] = defaultdict(list)
        for iteration in self.history:
            if iteration.metric is not None:
                twins[key_of(iteration.values, but=(key,))].append(iteration)
        place = self.space[key].position
        places: set[float] = set()
        for one, *others in twins.values():
            for other in others:
                if same_value(one.values[key], other.values[key]):
                    continue
                if one.metrics != other.metrics:
                    return ()
                places |= {place(one.values[key]), place(other.values[key])}
        return tuple(sorted(places))

    def _is_among(self, key: str, values: Values, places: tuple[float, ...]) -> bool:
        here = self.space[key].position(values[key])
        if self.space[key].is_ordered:
            return places[0] <= here <= places[-1]
        return here in places

    @cached_property
    def principles(self) -> list[Principle]:
        """Statements with any support, the best supported first."""
        found = []
        for key in self.space:
            sides: dict[int, list[Comparison]] = defaultdict(list)
            for comparison in self._by_key[key]:
                if comparison.is_support:
                    sides[1 if comparison.gain > 0 else -1].append(comparison)
            up, down = sides.get(1, []), sides.get(-1, [])
            if up and down and max(c.high for c in up) <= min(c.low for c in down) + 1e-9:
                inner = [c.high_value for c in up], [c.low_value for c in down]
                parameter = self.space[key]
                low = max(inner[0], key=parameter.position)
                high = min(inner[1], key=parameter.position)
                found.append(Principle(key, 0, _runs([*up, *down]), (), low, high))
                continue
            for direction, side, other in ((1, up, down), (-1, down, up)):
                if not side:
                    continue
                values = [v for c in side for v in (c.low_value, c.high_value)]
                values.sort(key=self.space[key].position)
                runs, against = _runs(side), _runs(other)
                found.append(Principle(key, direction, runs, against, values[0], values[-1]))
        return sorted(found, key=lambda p: (-len(p.runs), len(p.against), p.key))

    def _compare(self, key: str) -> list[Comparison]:
        groups: dict[Key, list[tuple[float, Any, Key]]] = defaultdict(list)
        parameter = self.space[key]
        for full, runs in self.history.runs_of.items():
            rest = tuple(item for item in full if item[0] != key)
            value = runs[0].values[key]
            groups[rest].append((parameter.position(value), value, full))
        spread = self.history.spread
        found = []
        for members in groups.values():
            if len(members) < 2:
                continue
            members.sort(key=lambda m: m[0])
            for (low, low_value, a), (high, high_value, b) in pairwise(members):
                one, other = self.history.runs_of[a], self.history.runs_of[b]
                gain = self.history.mean_reward[b] - self.history.mean_reward[a]
                noise = None
                if spread is not None:
                    noise = spread * math.sqrt(1 / len(one) + 1 / len(other))
                later = other if other[0].number > one[0].number else one
                runs = tuple(i.number for i in later)
                found.append(Comparison(key, low, high, low_value, high_value, gain, noise, runs))
        return found


def _runs(comparisons: list[Comparison]) -> tuple[int, ...]:
    return tuple(sorted({run for c in comparisons for run in c.runs}))


def importance(history: History, space: Space) -> dict[str, float]:
    """Share of the variance of the reward that each parameter explains alone, largest first.

    The range is cut into thirds (values: one class each); what is returned is the adjusted
    correlation ratio between classes and reward, 0 where it explains no more than chance would.
    """
    rewards = [i.reward for i in history]
    result: dict[str, float] = {}
    for key, parameter in space.items():
        classes: dict[Any, list[float]] = defaultdict(list)
        for iteration in history:
            value = iteration.values[key]
            label = word(value) if parameter.values else min(int(parameter.position(value) * 3), 2)
            classes[label].append(iteration.reward)
        result[key] = _explained(list(classes.values()), rewards)
    return dict(sorted(result.items(), key=lambda item: -item[1]))


def _explained(classes: list[list[float]], rewards: list[float]) -> float:
    n, k = len(rewards), len(classes)
    if k < 2 or n <= k:
        return 0.0
    mean = statistics.fmean(rewards)
    whole = math.fsum((r - mean) ** 2 for r in rewards)
    if whole <= 0:
        return 0.0
    within = math.fsum((r - statistics.fmean(g)) ** 2 for g in classes for r in g)
    return max(1 - (within / (n - k)) / (whole / (n - 1)), 0.0)

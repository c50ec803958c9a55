"""What a search may change: parameters with range or values, and nothing else.

An experiment declares its space as ``search_space``::

    search_space:
      loop.learning_rate: {low: 1.0e-3, high: 1.0e-1, scale: log, group: schedule, name: lr}
      loop.batch_size: {values: [16, 32, 64, 128], group: schedule}

Everything that is not declared is frozen, the simulation above all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuralgraph.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    import numpy as np

SEED = "training_seed"
"""Key of the seed that replicates vary; in every space, never a parameter of the search."""
VARIANT = "variant"
"""Key of the code variant of a run (``null``: the experiment's own code)."""
FROZEN_ROOTS = ("simulator", "dataset", "evaluation", "report", "prior", "budget", "logger")
"""Config groups a search must not touch; ``simulator.seed`` may be declared."""
MUTABLE_SIMULATION = ("simulator.seed",)
ENTRY_KEYS = ("low", "high", "scale", "values", "group", "name", "integer", "needs")
POSITIVE = "positive"
"""In ``needs``: the other parameter must be a number above 0."""
SIGNIFICANT_DIGITS = 2
DEFAULT_STEP = 0.25
"""A conservative step: this share of the (logarithmic) range."""


@dataclass(frozen=True)
class Parameter:
    """One thing that may change.

    Args:
        key: Dotted config key.
        name: Short name in the notebook (``lr_k``).
        group: Subspace it belongs to (schedule, regularisation …).
        values: Allowed values in their order, or none for a range.
        low: Lower end of a range.
        high: Upper end of a range.
        is_log: Whether the range is searched on a logarithmic scale.
        is_integer: Whether the values of a range are whole numbers.
        needs: Values of other keys without which this one has no effect, ``(key, value)``.
    """

    key: str
    name: str
    group: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_integer: bool = False
    needs: tuple[tuple[str, Any], ...] = ()

    @property
    def is_ordered(self) -> bool:
        """Whether up and down mean something (a range, or at least two numbers)."""
        return not self.values or sum(_is_number(v) for v in self.values) >= 2

    def contains(self, value: Any) -> bool:
        """Whether a value is allowed."""
        if self.values:
            return any(_same(value, v) for v in self.values)
        slack = 1e-9 * max(abs(self.low), abs(self.high))
        fits = _is_number(value) and self.low - slack <= value <= self.high + slack
        return fits and (not self.is_integer or float(value).is_integer())

    def position(self, value: Any) -> float:
        """Where a value lies, from 0 (lowest, or first) to 1; values outside count as the end.

        >>> Parameter("a", "a", "", low=1e-4, high=1e-2, is_log=True).position(1e-3)
        0.5
        >>> Parameter("a", "a", "", values=(4, 8, 16)).position(16)
        1.0
        """
        if self.values:
            for index, known in enumerate(self.values):
                if _same(value, known):
                    return index / max(len(self.values) - 1, 1)
            if not _is_number(value):
                return 0.0
            below = [i for i, v in enumerate(self.values) if _is_number(v) and v <= value]
            share = (below[-1] + 0.5 if below else 0.0) / max(len(self.values) - 1, 1)
            return min(share, 1.0)
        if not _is_number(value):
            return 0.0
        if self.is_log:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def at(self, position: float) -> Any:
        """The value at a position in [0, 1], rounded to two significant digits on a range.

        >>> Parameter("a", "a", "", low=1e-4, high=1e-2, is_log=True).at(0.75)
        0.0032
        """
        position = min(max(position, 0.0), 1.0)
        if self.values:
            return self.values[round(position * (len(self.values) - 1))]
        if self.is_log:
            value = self.low * (self.high / self.low) ** position
        else:
            value = self.low + (self.high - self.low) * position
        value = min(max(_rounded(value), self.low), self.high)
        return round(value) if self.is_integer else value

    def moved(self, value: Any, direction: int, step: float = DEFAULT_STEP) -> Any | None:
        """The next value up (+1) or down (-1), or ``None`` at the end of the range.

        Args:
            value: Where it stands.
            direction: +1 or -1.
            step: Share of the range; of values at least the neighbour is taken.
        """
        here = self.position(value)
        if self.values:
            n = len(self.values) - 1
            if n == 0:
                return None
            jump = max(round(step * n), 1)
            exact = here * n
            index = math.floor(exact + 1e-9) if direction > 0 else math.ceil(exact - 1e-9)
            index = min(max(index + direction * jump, 0), n)
            found = self.values[index]
            return None if _same(found, value) else found
        if (direction > 0 and here >= 1.0) or (direction < 0 and here <= 0.0):
            return None if self.contains(value) else self.at(here)
        found = self.at(here + direction * step)
        return None if _same(found, value) else found

    def extreme(self, direction: int) -> Any:
        """The last value in a direction."""
        return self.at(1.0 if direction > 0 else 0.0)

    def sampled(self, rng: np.random.Generator) -> Any:
        """A uniform draw: over values, or over the (logarithmic) range, unrounded."""
        if self.values:
            return self.values[int(rng.integers(len(self.values)))]
        share = float(rng.random())
        if self.is_integer:
            return self.at(share)
        if self.is_log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share

    def missing(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """What else must change so that this parameter acts; ``None`` where nothing can be done.

        Args:
            values: A configuration.
        """
        wanted: dict[str, Any] = {}
        for key, value in self.needs:
            here: Any = values.get(key)
            if value == POSITIVE:
                if here is None or not _is_number(here) or here <= 0:
                    return None
            elif not _same(here, value):
                wanted[key] = value
        return wanted

    def words(self) -> str:
        """Range or values, for people."""
        if self.values:
            return "one of " + ", ".join(_shown(v) for v in self.values)
        return f"{self.low:g} to {self.high:g} ({'log' if self.is_log else 'linear'})"


class Space(Mapping[str, Parameter]):
    """The parameters of a search by their dotted key, in the order of the experiment file.

    Args:
        parameters: What may change.
        variants: Names of code variants that may be chosen.
    """

    def __init__(self, parameters: Sequence[Parameter], variants: Sequence[str] = ()) -> None:
        self._parameters = {p.key: p for p in parameters}
        self.variants = tuple(variants)
        names = [p.name for p in parameters]
        for name in (SEED, VARIANT):
            if name in names:
                raise ConfigError(f"search_space: the name '{name}' is taken by the search itself")
        double = next((n for n in names if names.count(n) > 1), None)
        for parameter in parameters:
            for other, value in parameter.needs:
                if other not in self._parameters:
                    raise ConfigError(
                        f"search_space.{parameter.key}.needs names {other}, which is not in the "
                        f"space: {nearest(other, self._parameters)}"
                    )
                if value != POSITIVE and not self._parameters[other].contains(value):
                    raise ConfigError(
                        f"search_space.{parameter.key}.needs {other}={_shown(value)}, which lies "
                        f"outside the space: {self._parameters[other].words()}"
                    )
        if double is not None:
            keys = [p.key for p in parameters if p.name == double]
            raise ConfigError(
                f"search_space: {' and '.join(keys)} would both be called '{double}' in the "
                "notebook: give one of them a 'name'"
            )

    def __getitem__(self, key: str) -> Parameter:
        return self._parameters[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def by_name(self, name: str) -> Parameter | None:
        """Parameter of a short name or of a key."""
        for parameter in self.values():
            if name in (parameter.name, parameter.key):
                return parameter
        return None

    def is_switch(self, key: str) -> bool:
        """Whether a parameter does nothing but let another one act."""
        return any(
            other == key and value != POSITIVE
            for parameter in self.values()
            for other, value in parameter.needs
        )

    def groups(self) -> list[str]:
        """Names of the groups in their order."""
        return list(dict.fromkeys(p.group for p in self.values()))

    def check(self, key: str, value: Any) -> None:
        """Refuse a change that the space does not allow.

        Raises:
            ConfigError: says why, and what is allowed.
        """
        if key == SEED:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{SEED} must be a whole number, got {value!r}")
            return
        if key == VARIANT:
            if value is not None and value not in self.variants:
                raise ConfigError(
                    f"variant '{value}' is not declared in search_plan.variants: "
                    + nearest(str(value), self.variants)
                )
            return
        if key not in self._parameters:
            root = key.split(".")[0]
            if root in FROZEN_ROOTS:
                raise ConfigError(
                    f"{key} is frozen: a search changes how a model is trained, never the data, "
                    "what is told of them or how it is judged"
                )
            raise ConfigError(f"{key} is not in the search space: {nearest(key, self)}")
        parameter = self._parameters[key]
        if not parameter.contains(value):
            raise ConfigError(f"{key}={_shown(value)} lies outside the space: {parameter.words()}")


def read_space(
    node: Mapping[str, Any] | None, config: Mapping[str, Any], variants: Sequence[str] = ()
) -> Space:
    """Space declared by an experiment, checked against its config.

    Args:
        node: ``search_space`` of the experiment.
        config: Resolved config; every declared key must exist in it.
        variants: Names of the code variants.
    Raises:
        ConfigError: nothing declared, unknown keys, ranges that cannot work.
    """
    if not node:
        raise ConfigError(
            f"experiment '{config['name']}' declares no search_space, so there is nothing to "
            "explore: add parameters to the search_space of its file, such as "
            "loop.learning_rate: {low: 1.0e-4, high: 1.0e-2, scale: log, group: schedule}"
        )
    return Space([_read_entry(str(k), entry, config) for k, entry in node.items()], variants)


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """Value of a dotted key.

    Raises:
        ConfigError: the config has no such key.
    """
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            known = [str(k) for k in node] if isinstance(node, Mapping) else []
            raise ConfigError(
                f"search_space names {key}, which this config does not have: {nearest(part, known)}"
            )
        node = node[part]
    return node


def _read_entry(key: str, entry: Any, config: Mapping[str, Any]) -> Parameter:
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"search_space.{key} must be a mapping with low, high and scale or values"
        )
    for name in entry:
        if name not in ENTRY_KEYS:
            raise ConfigError(f"search_space.{key}.{name}: {nearest(str(name), ENTRY_KEYS)}")
    value_at(config, key)
    if key.split(".")[0] in FROZEN_ROOTS and key not in MUTABLE_SIMULATION:
        raise ConfigError(
            f"search_space.{key}: {key.split('.')[0]} is frozen in a search "
            f"(only {', '.join(MUTABLE_SIMULATION)} may be declared)"
        )
    shared: dict[str, Any] = {
        "key": key,
        "name": str(entry.get("name") or key.rsplit(".", 1)[-1]),
        "group": str(entry.get("group", "")),
        "needs": tuple((entry.get("needs") or {}).items()),
    }
    for other, _ in shared["needs"]:
        value_at(config, other)
    if "values" in entry:
        values = tuple(entry["values"])
        if not values or "low" in entry or "high" in entry:
            raise ConfigError(f"search_space.{key} needs values, or low and high, and not both")
        return Parameter(values=values, **shared)
    if not {"low", "high", "scale"} <= set(entry):
        raise ConfigError(
            f"search_space.{key} needs low, high and scale (log or linear), or values"
        )
    low, high, scale = entry["low"], entry["high"], entry["scale"]
    if not (_is_number(low) and _is_number(high) and low < high):
        raise ConfigError(f"search_space.{key}: low must lie below high, got {low} and {high}")
    if scale not in ("log", "linear"):
        raise ConfigError(f"search_space.{key}.scale is log or linear, got '{scale}'")
    if scale == "log" and low <= 0:
        raise ConfigError(f"search_space.{key}: a log range starts above 0, got {low}")
    integer = bool(entry.get("integer", False))
    return Parameter(
        low=low if integer else float(low),
        high=high if integer else float(high),
        is_log=scale == "log",
        is_integer=integer,
        **shared,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(a: Any, b: Any) -> bool:
    if _is_number(a) and _is_number(b):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=0.0)
    return type(a) is type(b) and a == b


same_value = _same
"""Equality of two config values: numbers up to rounding, everything else by type and value."""


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)

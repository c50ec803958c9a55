"""The protocol of a search as data: parameter order, interactions, blocks, moves, what is logged.

It stands beside the space, as ``search_plan`` (``conf/search_plan/NAME.yaml``, picked by the
experiment file). Everything in it has a default, so that a space alone is enough.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.explore.space import Space

STRATEGIES = (
    "exploit", "explore", "boundary-probe", "failure-probe", "principle-test",
    "degeneracy-break", "forced-branch", "switch-dimension", "recombine", "homeo-kick",
    "embedding-focus", "k-protect", "code-modification",
)  # fmt: skip
"""The documents' names."""
PLAN_KEYS = (
    "source", "order", "blocks", "first_batch", "interactions", "strategies", "moves", "signals",
    "metrics", "table", "questions", "visual", "memory_max_lines", "variants",
)  # fmt: skip
SIGNALS = ("gap", "recovery", "slope", "cluster")
MEMORY_MAX_LINES = 500
CODE_GROUPS = ("loop", "model")


@dataclass(frozen=True)
class Move:
    """One change a strategy makes: ``up``, ``down`` or a value."""

    key: str
    to: Any


@dataclass(frozen=True)
class Slot:
    """One slot of the first batch: values that differ from the root, and why."""

    values: dict[str, Any]
    why: str


@dataclass(frozen=True)
class Focus:
    """The parameters a block looks at."""

    words: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Interaction:
    """Parameters that act together: when one is raised or lowered, so may others be."""

    raised: tuple[str, ...]
    lowered: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Look:
    """How one figure is judged from a metric: intervals of good and partial."""

    metric: str
    good: tuple[float, float]
    partial: tuple[float, float]


@dataclass(frozen=True)
class Variant:
    """Other code for the loop or the model: keys merged into that group's node."""

    name: str
    group: str
    node: dict[str, Any]
    change: str
    hypothesis: str


@dataclass(frozen=True)
class Plan:
    """A search protocol; see the module."""

    source: str = ""
    order: tuple[str, ...] = ()
    blocks: tuple[Focus, ...] = ()
    first_batch: tuple[Slot, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    strategies: tuple[str, ...] = STRATEGIES
    moves: dict[str, tuple[Move, ...]] = field(default_factory=dict[str, tuple[Move, ...]])
    signals: dict[str, str] = field(default_factory=dict[str, str])
    metrics: tuple[str, ...] = ()
    table: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    visual: dict[str, Look] = field(default_factory=dict[str, Look])
    memory_max_lines: int = MEMORY_MAX_LINES
    variants: dict[str, Variant] = field(default_factory=dict[str, Variant])


def variants_of(node: Mapping[str, Any] | None) -> dict[str, Variant]:
    """Code variants declared in ``search_plan.variants``."""
    result = {}
    for name, entry in ((node or {}).get("variants") or {}).items():
        _known(f"search_plan.variants.{name}", entry, ("group", "node", "change", "hypothesis"))
        for key in ("group", "node", "change", "hypothesis"):
            if not entry.get(key):
                raise ConfigError(f"search_plan.variants.{name} lacks '{key}'")
        if entry["group"] not in CODE_GROUPS:
            raise ConfigError(
                f"search_plan.variants.{name}.group is {' or '.join(CODE_GROUPS)}, got "
                f"'{entry['group']}'"
            )
        result[name] = Variant(name, entry["group"], dict(entry["node"]), entry["change"],
                               entry["hypothesis"])  # fmt: skip
    return result


def read_plan(node: Mapping[str, Any] | None, space: Space) -> Plan:
    """The plan of an experiment, checked against its space.

    Parameters that have left the space (``explore.n_epochs``) leave the plan too.

    Raises:
        ConfigError: unknown keys, strategies or parameters.
    """
    node = dict(node or {})
    _known("search_plan", node, PLAN_KEYS)
    for name in node.get("signals") or {}:
        if name not in SIGNALS:
            raise ConfigError(f"search_plan.signals.{name}: {nearest(name, SIGNALS)}")
    strategies = tuple(node.get("strategies") or STRATEGIES)
    for name in (*strategies, *(node.get("moves") or {})):
        if name not in STRATEGIES:
            raise ConfigError(f"search_plan: strategy '{name}': {nearest(name, STRATEGIES)}")
    return Plan(
        source=node.get("source") or "",
        order=_keys(node.get("order") or (), space),
        blocks=tuple(
            Focus(b["focus"], _keys(b.get("parameters") or (), space))
            for b in node.get("blocks") or ()
        ),
        first_batch=tuple(
            Slot({k: v for k, v in (s.get("values") or {}).items() if k in space}, s["why"])
            for s in node.get("first_batch") or ()
        ),
        interactions=tuple(
            Interaction(
                _keys(i.get("raise") or (), space), _keys(i.get("lower") or (), space), i["note"]
            )
            for i in node.get("interactions") or ()
        ),
        strategies=strategies,
        moves={
            name: tuple(Move(k, to) for k, to in moves.items() if k in space)
            for name, moves in (node.get("moves") or {}).items()
        },
        signals=dict(node.get("signals") or {}),
        metrics=tuple(node.get("metrics") or ()),
        table=tuple(node.get("table") or ()),
        questions=tuple(node.get("questions") or ()),
        visual={
            name: Look(look["metric"], tuple(look["good"]), tuple(look["partial"]))
            for name, look in (node.get("visual") or {}).items()
        },
        memory_max_lines=node.get("memory_max_lines") or MEMORY_MAX_LINES,
        variants=variants_of(node),
    )


def declared_keys(node: Mapping[str, Any] | None) -> set[str]:
    """Every parameter a plan names."""
    node = node or {}
    keys: set[str] = set(node.get("order") or ())
    for block in node.get("blocks") or ():
        keys |= set(block.get("parameters") or ())
    for slot in node.get("first_batch") or ():
        keys |= set(slot.get("values") or ())
    for interaction in node.get("interactions") or ():
        keys |= {*(interaction.get("raise") or ()), *(interaction.get("lower") or ())}
    for moves in (node.get("moves") or {}).values():
        keys |= set(moves)
    return keys


def _keys(keys: Sequence[str], space: Space) -> tuple[str, ...]:
    return tuple(key for key in keys if key in space)


def _known(where: str, node: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in node:
        if key not in keys:
            raise ConfigError(f"{where}.{key}: {nearest(str(key), keys)}")


def with_variant(node: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Config node of a loop or model under a variant.

    Keys of the node that a new ``_target_`` does not take are left out; the variant's own are
    merged in.

    Args:
        node: The group's node in the experiment.
        variant: What replaces it.
    """
    merged = {**node, **variant.node}
    if "_target_" in variant.node and variant.node["_target_"] != node.get("_target_"):
        taken = inspect.signature(_located(variant.node["_target_"])).parameters
        merged = {
            k: v for k, v in merged.items() if k.startswith("_") or k in taken or k in variant.node
        }
    return merged


def location(target: str) -> tuple[str, str]:
    """File (as a dotted path turned into one) and function of a ``_target_``."""
    function = _located(target)
    module = getattr(function, "__module__", target.rpartition(".")[0])
    return module.replace(".", "/") + ".py", getattr(function, "__name__", target.split(".")[-1])


def _located(target: str) -> Any:
    from neuralgraph.building import locate

    return locate(target, "search_plan.variants")

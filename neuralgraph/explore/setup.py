"""From a resolved config to everything a search needs, refused early where it cannot work."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.core.glossary import explain
from neuralgraph.explore.history import Proposal
from neuralgraph.explore.notebook import CodeChange
from neuralgraph.explore.plan import Plan, declared_keys, location, read_plan, variants_of
from neuralgraph.explore.reward import Reward
from neuralgraph.explore.settings import Settings
from neuralgraph.explore.space import SEED, VARIANT, Space, read_space, value_at

BUDGET_KEYS = ("n_epochs", "data_augmentation_loop")
"""Keys of ``explore`` that set the key of the same name of the loop."""
MAY_CHANGE = (
    "n_blocks", "workers", "worker_retries", "ray_address", "slurm", "command_timeout_s",
    "command_retries", "memory_max_lines",
)  # fmt: skip
"""Options that may differ when a search goes on: they do not change what is chosen."""


@dataclass(frozen=True)
class Search:
    """A search, ready to begin.

    Args:
        name: The experiment's.
        question: The experiment's.
        config: Config of the root run.
        settings: Options.
        space: What may change.
        plan: The protocol.
        root: Values of the root, with seed and variant.
        metric: Primary metric.
        reward: Its map to [0, 1].
        seed: Of the search's own choices.
    """

    name: str
    question: str
    config: dict[str, Any]
    settings: Settings
    space: Space
    plan: Plan
    root: dict[str, Any]
    metric: str
    reward: Reward
    seed: int

    def describe_code(self, variant: str) -> CodeChange:
        """File, function, change and hypothesis of a variant."""
        chosen = self.plan.variants[variant]
        node = {**self.config[chosen.group], **chosen.node}
        file, function = location(node["_target_"])
        return CodeChange(file, function, chosen.change, chosen.hypothesis)

    def check(self, proposal: Proposal) -> None:
        """Refuse a proposal that leaves the space.

        Raises:
            ConfigError: says why.
        """
        for change in proposal.changes:
            self.space.check(change.key, change.new)
        if proposal.values.keys() != self.root.keys():
            foreign = sorted(set(proposal.values) ^ set(self.root))
            raise ConfigError(f"a proposal must hold every value of the space; differs: {foreign}")
        keys = [c.key for c in proposal.changes]
        if VARIANT in keys and len(keys) > 1:
            raise ConfigError("a code modification is never combined with another change")
        if VARIANT in keys and not self.settings.allow_code:
            raise ConfigError("code modifications are off: explore.allow_code=true allows them")


def prepare(config: Mapping[str, Any]) -> Search:
    """Check everything that can be checked before a run.

    Args:
        config: Plain resolved config of the verb.
    Raises:
        ConfigError: options, space, plan or experiment that cannot work.
    """
    from neuralgraph import pipeline
    from neuralgraph.building import build

    config = copy.deepcopy(dict(config))
    if not config.get("explore"):
        raise ConfigError("there are no options under 'explore': use python -m neuralgraph.explore")
    settings: Settings = build(config["explore"], "explore")
    declared = config.get("search_space") or {}
    planned = config.get("search_plan")
    node = dict(declared)
    _set_budget(config, settings, node)
    variants = variants_of(planned)
    space = read_space(node, config, list(variants))
    for key in sorted(declared_keys(planned)):
        if key not in declared:
            raise ConfigError(
                f"search_plan names {key}, which is not in the search_space: "
                + nearest(key, declared)
            )
    plan = read_plan(planned, space)
    root = {key: value_at(config, key) for key in space}
    root |= {SEED: pipeline.training_seed(config), VARIANT: None}
    evaluation = pipeline.compose(config).evaluation
    for slot in plan.first_batch:
        for key, value in slot.values.items():
            space.check(key, value)
    _refuse_unknown_metric(evaluation.primary_metric, getattr(evaluation, "meanings", {}))
    seed = config["seed"] if settings.seed is None else settings.seed
    return Search(
        name=config["name"],
        question=config["question"],
        config=config,
        settings=settings,
        space=space,
        plan=plan,
        root=root,
        metric=evaluation.primary_metric,
        reward=Reward(evaluation.direction, settings.reward_best, settings.reward_scale),
        seed=seed,
    )


def _refuse_unknown_metric(metric: str, meanings: Mapping[str, str]) -> None:
    """Where the evaluator says what it computes; elsewhere the first scorecard tells."""
    if meanings and not explain([metric], meanings):
        raise ConfigError(
            f"evaluation.primary_metric={metric}: the evaluation has no such metric; "
            + nearest(metric, meanings)
        )


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config without the options that may change when a search goes on."""
    explore = {k: v for k, v in config["explore"].items() if k not in MAY_CHANGE}
    return {**config, "explore": explore}


def _set_budget(config: dict[str, Any], settings: Settings, space: dict[str, Any]) -> None:
    for name in BUDGET_KEYS:
        value = getattr(settings, name)
        if value is None:
            continue
        if name not in config["loop"]:
            raise ConfigError(
                f"explore.{name}={value}: this experiment's loop has no {name}; its keys are "
                + ", ".join(k for k in config["loop"] if not k.startswith("_"))
            )
        config["loop"] = {**config["loop"], name: value}
        space.pop(f"loop.{name}", None)

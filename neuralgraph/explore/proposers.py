"""Who decides what to run next. Each proposer is a function of the history alone."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from neuralgraph.core.errors import ConfigError, MissingExtraError
from neuralgraph.core.seeding import derived_seed, numpy_generator
from neuralgraph.explore import blocks, strategies
from neuralgraph.explore.history import History, Proposal
from neuralgraph.explore.notebook import CodeChange
from neuralgraph.explore.plan import STRATEGIES, Plan
from neuralgraph.explore.settings import Settings
from neuralgraph.explore.space import SEED, VARIANT, Space
from neuralgraph.explore.view import View
from neuralgraph.explore.words import one_line

OTHER_EVERY = 3
"""With one slot a batch, every third iteration has another role than to exploit."""


@dataclass(frozen=True)
class Task:
    """What a proposer is asked.

    Args:
        history: What was run.
        block: The current block.
        n: Proposals wanted.
        folder: The exploration's folder.
    """

    history: History
    block: int
    n: int
    folder: Path


class Proposer(Protocol):
    """Decides a batch."""

    def __call__(self, task: Task) -> list[Proposal]:
        """As many proposals as the task asks for, in slot order."""
        ...


@dataclass(frozen=True)
class Common:
    """What every proposer needs to know of the search."""

    space: Space
    plan: Plan
    settings: Settings
    seed: int
    describe_code: Callable[[str], CodeChange]


def baseline(history: History, block: int) -> Proposal:
    """The root's own configuration, which every search runs first."""
    return Proposal(
        None, history.block_root(block), (), "exploit", "baseline: the experiment's own settings",
        role="baseline",
    )  # fmt: skip


# -- rules --------------------------------------------------------------------------------------


class Rules:
    """The strategies of the documents; see :mod:`neuralgraph.explore.strategies`."""

    name = "rules"

    def __init__(self, common: Common) -> None:
        self.common = common

    def __call__(self, task: Task) -> list[Proposal]:
        """One batch."""
        drafts: list[Proposal] = []
        for slot in range(task.n):
            found = self.slot(task, slot, drafts)
            drafts.append(replace(found, proposer=self.name))
        return drafts

    def view(self, task: Task, drafts: list[Proposal]) -> View:
        """What the strategies see for the next slot."""
        common = self.common
        number = len(task.history) + len(drafts) + 1
        looked_at = task.history.once(
            f"focus {task.block}",
            lambda: blocks.focus(task.history, task.block, common.plan, common.space),
        )
        return View(
            history=task.history,
            block=task.block,
            space=common.space,
            plan=common.plan,
            settings=common.settings,
            focus=looked_at.keys,
            rng=numpy_generator(common.seed, f"explore/{number}"),
            drafts=drafts,
            describe_code=common.describe_code,
        )

    def slot(self, task: Task, slot: int, drafts: list[Proposal]) -> Proposal:
        """Proposal of one slot."""
        view = self.view(task, drafts)
        opening = self._opening(view)
        if opening is not None:
            return opening
        role = self.role(view, slot, task.n)
        found: Proposal | None = None
        if role == "second best" and view.nodes:
            found = strategies.second_best(view, "the best of those not taken by another slot")
        elif role == "under-visited" and view.nodes:
            found = strategies.explore(view, "the least visited node outside the recent chain")
        elif role == "principle test":
            found = strategies.principle_test(view, "a principle in another context")
            found = found or strategies.explore(view, "no principle to test: least visited node")
        found = found or strategies.choose(view) or strategies.exploit(view, "highest UCB")
        found = found or self._exhausted(view)
        return replace(found, role=role)

    def role(self, view: View, slot: int, n: int) -> str:
        """Role of a slot: the first of a batch exploits, the others go round the other roles."""
        rules = blocks.adapted(view.history, view.block)
        cycle = blocks.roles(rules)
        others = cycle[1:]
        if n == 1:
            turn, place = divmod(view.number_in_block - 1, OTHER_EVERY)
            return others[turn % len(others)] if place == OTHER_EVERY - 1 else cycle[0]
        if slot == 0:
            return cycle[0]
        batch = (view.number_in_block - 1) // n
        return others[(batch * (n - 1) + slot - 1) % len(others)]

    def _opening(self, view: View) -> Proposal | None:
        """The plan's first batch, or the baseline."""
        number = view.number
        spread = self.common.plan.first_batch
        if view.block == 1 and number <= max(len(spread), 1):
            if number == 1:
                first = baseline(view.history, 1)
                return first if not spread else replace(first, rule=spread[0].why)
            parent = 1 if view.nodes else None
            slot = spread[number - 1]
            found = view.proposal(parent, slot.values, "explore", slot.why, may_repeat=True)
            assert found is not None
            return replace(found, role="first batch")
        return None

    def _exhausted(self, view: View) -> Proposal:
        """Everything one change away has run: another seed of the best configuration."""
        best = view.history.best or (view.iterations[-1] if view.iterations else None)
        if best is None:
            return baseline(view.history, view.block)
        found = view.replicate(best, "nothing one change away is untried: another seed of the best")
        assert found is not None
        return found


# -- random and Optuna --------------------------------------------------------------------------


class Random:
    """Uniform draws from the whole space, after the baseline."""

    name = "random"

    def __init__(self, common: Common) -> None:
        self.common = common

    def __call__(self, task: Task) -> list[Proposal]:
        """One batch."""
        result = []
        for slot in range(task.n):
            number = len(task.history) + slot + 1
            if number == 1:
                result.append(replace(baseline(task.history, 1), proposer=self.name))
                continue
            rng = numpy_generator(self.common.seed, f"explore/{number}")
            drawn = {key: p.sampled(rng) for key, p in self.common.space.items()}
            result.append(_free(task, drawn, "a uniform draw from the space", self.name))
        return result


class Optuna:
    """Optuna's TPE by ask and tell; the study is built anew from the history each time."""

    name = "optuna"

    def __init__(self, common: Common) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("optuna", "optuna", "explore.proposer=optuna") from error
        self.optuna = optuna
        self.common = common
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    def __call__(self, task: Task) -> list[Proposal]:
        """One batch; points still to be run are counted as bad ones (constant liar)."""
        result = []
        number = len(task.history) + 1
        study = self.study(task.history, derived_seed(self.common.seed, f"optuna/{number}"))
        while len(result) < task.n:
            if len(task.history) + len(result) == 0:
                result.append(replace(baseline(task.history, 1), proposer=self.name))
                continue
            trial = study.ask(self._distributions())
            drawn = {key: self._value(key, trial.params[key]) for key in self.common.space}
            result.append(_free(task, drawn, "Optuna's TPE", self.name))
        return result

    def study(self, history: History, seed: int) -> Any:
        """Every iteration as a finished trial."""
        optuna = self.optuna
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, constant_liar=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        distributions = self._distributions()
        for iteration in history:
            params = {k: self._label(k, iteration.values[k]) for k in self.common.space}
            if not all(self.common.space[k].contains(iteration.values[k]) for k in params):
                continue  # a baseline outside the space has no place in it
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=distributions, value=iteration.reward
                )
            )
        return study

    def _distributions(self) -> dict[str, Any]:
        d = self.optuna.distributions
        found: dict[str, Any] = {}
        for key, p in self.common.space.items():
            if p.values:
                found[key] = d.CategoricalDistribution([self._label(key, v) for v in p.values])
            elif p.is_integer:
                found[key] = d.IntDistribution(int(p.low), int(p.high), log=p.is_log)
            else:
                found[key] = d.FloatDistribution(p.low, p.high, log=p.is_log)
        return found

    def _label(self, key: str, value: Any) -> Any:
        return value if not self.common.space[key].values else json.dumps(value)

    def _value(self, key: str, label: Any) -> Any:
        return label if not self.common.space[key].values else json.loads(label)


def _free(task: Task, drawn: Mapping[str, Any], rule: str, name: str) -> Proposal:
    """A proposal that may differ from the root everywhere."""
    from neuralgraph.explore.notebook import Change
    from neuralgraph.explore.space import same_value

    root = task.history.block_root(task.block)
    values = {**root, **drawn}
    changes = tuple(Change(k, root[k], v) for k, v in values.items() if not same_value(root[k], v))
    return Proposal(None, values, changes, "explore", rule, role=name, proposer=name)


# -- an external program ------------------------------------------------------------------------

ANSWER_KEYS = ("parent", "changes", "strategy", "rule", "testing", "note")


class BadAnswer(ConfigError):
    """What an external program printed is no proposal."""


class Command:
    """Any program: it reads a request on stdin and prints proposals as JSON on stdout.

    The request names the folder with memory file and scores, holds space, history in short, and
    the number of proposals wanted; the answer is a list of objects
    ``{"parent": 3, "changes": {"lr_k": 0.002}, "strategy": "exploit", "rule": "…", "note": "…"}``
    (one object for one proposal). A bad answer is sent back with the reason, then the rules decide.
    """

    name = "command"

    def __init__(self, common: Common, *, say: Callable[[str], None]) -> None:
        self.common = common
        self.rules = Rules(common)
        self.say = say
        assert common.settings.command is not None
        self.arguments = shlex.split(common.settings.command)

    def __call__(self, task: Task) -> list[Proposal]:
        """One batch."""
        error = ""
        for _ in range(self.common.settings.command_retries + 1):
            try:
                return self.read(task, self._ask(task, error))
            except BadAnswer as bad:
                error = str(bad)
                self.say(f"the command's answer is refused: {error}")
        self.say("the rules decide this batch")
        return self.rules(task)

    def _ask(self, task: Task, error: str) -> str:
        request = json.dumps(self.request(task, error), ensure_ascii=False)
        settings = self.common.settings
        try:
            done = subprocess.run(
                self.arguments,
                input=request,
                capture_output=True,
                text=True,
                timeout=settings.command_timeout_s,
                env={**os.environ, "NEURALGRAPH_EXPLORE_FOLDER": str(task.folder)},
            )
        except subprocess.TimeoutExpired:
            raise BadAnswer(f"no answer within {settings.command_timeout_s:g} s") from None
        except OSError as broken:
            raise ConfigError(
                f"explore.command '{self.arguments[0]}' cannot be started: {broken.strerror}"
            ) from broken
        if done.returncode:
            tail = one_line(done.stderr)[-300:]
            raise BadAnswer(f"the program ended with status {done.returncode}: {tail}")
        return done.stdout

    def request(self, task: Task, error: str) -> dict[str, Any]:
        """What the program reads."""
        space, history = self.common.space, task.history
        return {
            "folder": str(task.folder),
            "block": task.block,
            "iteration": len(history) + 1,
            "n_proposals": task.n,
            "error": error,
            "space": {
                p.name: {"key": p.key, "group": p.group, "allowed": p.words()}
                for p in space.values()
            },
            "root": _named(space, history.block_root(task.block)),
            "nodes": [
                {
                    "id": i.number,
                    "parent": i.parent,
                    "block": i.block,
                    "class": i.verdict,
                    "reward": i.reward,
                    "metric": i.metric,
                    "config": _named(space, i.values),
                }
                for i in history
            ],
            "strategies": list(STRATEGIES),
            "answer": "a JSON list of objects with " + ", ".join(ANSWER_KEYS),
        }

    def read(self, task: Task, text: str) -> list[Proposal]:
        """Proposals of an answer.

        Raises:
            BadAnswer: says what is wrong with it.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadAnswer(
                f"not JSON: {error.msg} at line {error.lineno}, column {error.colno} of "
                f"'{one_line(text)[:60]}'"
            ) from None
        found = content if isinstance(content, list) else [content]
        if len(found) < task.n:
            raise BadAnswer(f"{task.n} proposals are wanted, got {len(found)}")
        drafts: list[Proposal] = []
        for index, answer in enumerate(found[: task.n]):
            try:
                drafts.append(self._one(task, answer, drafts))
            except ConfigError as error:
                raise BadAnswer(f"proposal {index + 1}: {error}") from None
        return drafts

    def _one(self, task: Task, answer: Any, drafts: list[Proposal]) -> Proposal:
        if not isinstance(answer, Mapping) or not isinstance(answer.get("changes"), Mapping):
            raise BadAnswer("expected an object with 'changes': {parameter: value}")
        for key in answer:
            if key not in ANSWER_KEYS:
                raise BadAnswer(f"'{key}' is unknown; known: {', '.join(ANSWER_KEYS)}")
        view = self.rules.view(task, drafts)
        parent = answer.get("parent")
        ids = [node.id for node in view.nodes]
        if parent in ("root", None):
            parent = None if not ids else view.nodes[0].id
        if parent is not None and parent not in ids:
            raise BadAnswer(f"parent {parent} is no node of this block: {ids or 'root'}")
        strategy = answer.get("strategy", "exploit")
        if strategy not in STRATEGIES:
            raise BadAnswer(f"strategy '{strategy}' is none of {', '.join(STRATEGIES)}")
        changes: dict[str, Any] = {}
        for name, value in answer["changes"].items():
            parameter = self.common.space.by_name(name)
            key = name if parameter is None else parameter.key
            self.common.space.check(key, value)
            changes[key] = value
        code = None
        if changes.get(VARIANT) is not None:
            code = self._code(view, changes)
        found = view.proposal(
            parent, changes, strategy, one_line(str(answer.get("rule", ""))) or "the command's",
            testing=one_line(str(answer.get("testing", ""))), code=code,
            may_repeat=SEED in changes or (not task.history and not changes),
        )  # fmt: skip
        if found is None:
            raise BadAnswer(
                "this configuration has run already, or differs from a run only by what changed "
                "nothing so far; change something, or training_seed"
            )
        note = one_line(str(answer.get("note", "")))
        return replace(found, role="command", proposer=self.name, note=note)

    def _code(self, view: View, changes: Mapping[str, Any]) -> CodeChange:
        if not self.common.settings.allow_code:
            raise BadAnswer("code modifications are off: explore.allow_code=true allows them")
        if view.number_in_block <= strategies.N_BEFORE_CODE:
            raise BadAnswer("no code modification in the first 4 iterations of a block")
        if len(changes) > 1:
            raise BadAnswer("a code modification is never combined with another change")
        return self.common.describe_code(changes[VARIANT])


def _named(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    return {(space[k].name if k in space else k): v for k, v in values.items()}


def build(common: Common, *, say: Callable[[str], None]) -> Proposer:
    """The proposer that ``explore.proposer`` names."""
    name = common.settings.proposer
    if name == "command":
        return Command(common, say=say)
    return {"rules": Rules, "random": Random, "optuna": Optuna}[name](common)


__all__ = ["Command", "Common", "Optuna", "Proposer", "Random", "Rules", "Task", "build"]

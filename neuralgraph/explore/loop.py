"""The story of a search: propose a batch, run it, merge it in slot order, write, go on.

Everything that was decided lies on disk before it is acted on, every choice is a function of what
lies there, and every file is whole or absent: a search that is killed goes on with the choice it
would have made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.files import write_text
from neuralgraph.explore import blocks, memory, notebook, proposers, tree, workers, writing
from neuralgraph.explore.history import (
    History,
    Iteration,
    Proposal,
    load_journal,
    proposal_from,
    to_line,
)
from neuralgraph.explore.notebook import Entry, NotebookError, Summary
from neuralgraph.explore.runs import Job, Result, configured
from neuralgraph.explore.setup import Search
from neuralgraph.explore.words import one_line

JOURNAL, PENDING, SCORES, RULES = (
    "exploration.jsonl", "batch.json", "ucb_scores.txt", "strategy_rules.json",
)  # fmt: skip
NO_CLASS = "unclassified"
FREE_TEXT = ("rule", "observation", "visual", "extra")
"""Fields of an entry that people may edit."""
LINE_OF = {
    "parent": "Node", "strategy": "Mode/Strategy", "config": "Config", "metrics": "Metrics",
    "changes": "Mutation", "code": "Mutation", "next_parent": "Next",
}  # fmt: skip


class Watcher:
    """Looks on while a search goes; does nothing by itself."""

    def batch_begins(self, history: History, batch: Sequence[Proposal]) -> None:
        """A batch is about to run."""

    def run_ends(self, slot: int, result: Result) -> None:
        """One run of the batch is over."""

    def batch_ends(self, history: History, new: Sequence[Iteration], *, block_ends: bool) -> None:
        """A batch is merged and written."""

    def say(self, message: str) -> None:
        """A remark."""


@dataclass(frozen=True)
class Batch:
    """Proposals that are decided and not merged yet."""

    block: int
    batch: int
    first: int
    proposals: tuple[Proposal, ...]


def explore(
    search: Search, folder: Path, watcher: Watcher, pool: workers.Workers | None = None
) -> History:
    """Run the search in its folder, from its beginning or from where it stopped.

    Args:
        search: What :func:`neuralgraph.explore.setup.prepare` made.
        folder: The exploration's folder, claimed by the caller.
        watcher: Looks on.
        pool: Where to run, by default what ``explore.workers`` says; closed at the end.
    Raises:
        ConfigError: the primary metric is unknown, or every run of the first batch failed.
        NotebookError: a notebook file that was cut off or edited.
        DataError: a journal that cannot be read.
    """
    book = Book(search, folder)
    history = book.open()
    common = proposers.Common(
        search.space, search.plan, search.settings, search.seed, search.describe_code
    )
    proposer = proposers.build(common, say=watcher.say)
    pool = pool or workers.build(search.settings, folder)
    try:
        while len(history) < search.settings.n_iterations:
            batch = book.pending(history) or _decide(search, history, folder, proposer)
            book.begin(history, batch)
            watcher.batch_begins(history, batch.proposals)
            results = _run(search, batch, folder, pool, watcher)
            new = merge(search, history, batch, results)
            history = History([*history, *new], search.root)
            block_ends = len(history) % search.settings.n_iter_block == 0
            book.write(history)
            watcher.batch_ends(history, new, block_ends=block_ends)
            _stop_if_hopeless(search, batch, new, results)
    finally:
        pool.close()
    return history


def has_more(search: Search, folder: Path) -> bool:
    """Whether a folder holds fewer iterations than the search asks for (more blocks)."""
    return len(load_journal(folder / JOURNAL)) < search.settings.n_iterations


# -- decide and run -----------------------------------------------------------------------------


def _decide(search: Search, history: History, folder: Path, proposer: proposers.Proposer) -> Batch:
    settings = search.settings
    block, done = divmod(len(history), settings.n_iter_block)
    n = min(settings.n_parallel, settings.n_iter_block - done)
    task = proposers.Task(history, block + 1, n, folder)
    chosen = tuple(proposer(task))
    for proposal in chosen:
        search.check(proposal)
    number = history[-1].batch + 1 if len(history) else 1
    return Batch(block + 1, number, len(history) + 1, chosen)


def _run(
    search: Search, batch: Batch, folder: Path, pool: workers.Workers, watcher: Watcher
) -> list[Result]:
    group = f"{search.name}/{folder.name}"
    jobs, simulations = [], {}
    for slot, proposal in enumerate(batch.proposals):
        config = configured(
            search.config, proposal.values, search.plan, report=search.settings.report, group=group
        )
        data = folder / "data" / f"seed_{_simulator_seed(config)}"
        if not (data / "given.pt").exists():
            simulations[data] = Job("simulate", config, str(data), None)
        run = run_folder(folder, batch.first + slot)
        jobs.append(Job("run", config, str(run), str(data)))
    if simulations:
        made = pool.run(list(simulations.values()), lambda _, __: None)
        broken = next((r for r in made if r.status == "failed"), None)
        if broken is not None:
            raise DataError(f"the data of the search cannot be simulated: {broken.problem}")
    return pool.run(jobs, watcher.run_ends)


def _simulator_seed(config: Mapping[str, Any]) -> int:
    from neuralgraph.pipeline import simulator_seed

    return simulator_seed(config)


def run_folder(folder: Path, number: int) -> Path:
    """Run folder of an iteration."""
    return folder / "iterations" / f"{number:03d}"


# -- merge --------------------------------------------------------------------------------------


def merge(
    search: Search, history: History, batch: Batch, results: Sequence[Result]
) -> list[Iteration]:
    """Iterations of a batch, in slot order whatever order they ended in.

    Raises:
        ConfigError: the scorecard knows no metric of the primary metric's name.
    """
    new: list[Iteration] = []
    for slot, (proposal, result) in enumerate(zip(batch.proposals, results, strict=True)):
        number = batch.first + slot
        iteration = _judged(search, batch, slot, number, proposal, result)
        known = History([*history, *new, iteration], search.root)
        iteration = replace(
            iteration,
            observation=writing.observation(search, known, iteration),
            visual=writing.visual(search, iteration.metrics),
        )
        new.append(iteration)
    known = History([*history, *new], search.root)
    following: int | None = None
    if len(known) % search.settings.n_iter_block:
        nodes = tree.grow(
            known.block(batch.block), c=search.settings.ucb_c, form=search.settings.ucb_form
        )
        following = nodes[0].id
    return [replace(iteration, next_parent=following) for iteration in new]


def _judged(
    search: Search, batch: Batch, slot: int, number: int, proposal: Proposal, result: Result
) -> Iteration:
    metric = result.metrics.get(search.metric)
    problem = result.problem
    if result.status == "finished" and metric is None:
        reason = result.not_computed.get(search.metric)
        if reason is None:
            known = [*result.metrics, *result.not_computed]
            raise ConfigError(
                f"evaluation.primary_metric={search.metric}: the scorecard has no such metric; "
                + nearest(search.metric, known)
            )
        problem = f"{search.metric} was not computed: {reason}"
    verdict = _verdict(result.facts.get("class")) if metric is not None else "failed"
    document = _verdict(result.facts.get("class_document")) if metric is not None else ""
    return Iteration(
        number=number,
        block=batch.block,
        batch=batch.batch,
        slot=slot,
        proposal=proposal,
        status=result.status,
        verdict=verdict,
        verdict_document="" if document == NO_CLASS else document,
        metric=metric,
        reward=0.0 if metric is None else search.reward(metric),
        metrics=result.metrics,
        problem=one_line(problem),
        losses=result.losses,
        folder=f"iterations/{number:03d}",
    )


def _verdict(text: str | None) -> str:
    """First word of a class, as the log's heading takes it."""
    words = (text or "").replace(":", " ").split()
    is_class = bool(words) and words[0] != "none" and words[0][0].isalpha()
    return words[0].lower().rstrip(".,;") if is_class else NO_CLASS


def _stop_if_hopeless(
    search: Search, batch: Batch, new: Sequence[Iteration], results: Sequence[Result]
) -> None:
    if batch.first == 1 and all(i.metric is None for i in new):
        raise ConfigError(
            f"no run of the first batch gave {search.metric}; the first one: {new[0].problem}. "
            "The runs are kept in iterations/; mend the experiment and start a new search"
        )


# -- the files ----------------------------------------------------------------------------------


class Book:
    """The files of a search: journal, notebook, scores, pending batch.

    Args:
        search: The search.
        folder: Its folder.
    """

    def __init__(self, search: Search, folder: Path) -> None:
        self.search = search
        self.folder = folder
        self.analysis = folder / f"{search.name}_analysis.md"
        self.memory = folder / f"{search.name}_memory.md"
        self.text = ""
        self.n_written = 0
        self.lines: list[str] = []

    def open(self) -> History:
        """History so far; notebook files are checked against it, and completed."""
        history = History(load_journal(self.folder / JOURNAL), self.search.root)
        self.lines = [to_line(iteration) for iteration in history]
        for iteration in history:
            if iteration.values.keys() != self.search.root.keys():
                raise DataError(
                    f"{JOURNAL}, line {iteration.number}: another space than this search's"
                )
        if self.analysis.exists():
            self.text = self.analysis.read_text(encoding="utf-8")
            self._compare(history)
        if self.memory.exists():
            memory.read(self.memory.read_text(encoding="utf-8"), source=self.memory.name)
        if len(history):
            self.write(history)
        return history

    def _compare(self, history: History) -> None:
        """The log must say what the journal says, but for its free text."""
        found = notebook.read(self.text, source=self.analysis.name)
        wanted = writing.items(self.search, history)
        for index, located in enumerate(found):
            item = located.item
            if index >= len(wanted):
                raise NotebookError(
                    self.analysis.name, located.line, 1,
                    f"this is not in {JOURNAL}: take it out",
                )  # fmt: skip
            truth = wanted[index]
            if isinstance(item, Entry) and isinstance(truth, Entry):
                for name, line in {"number": "", "verdict": "", **LINE_OF}.items():
                    if getattr(item, name) != getattr(truth, name):
                        raise NotebookError(
                            self.analysis.name,
                            located.fields.get(line, located.line),
                            len(line) + 3 if line else len("## Iter "),
                            f"{name} of iteration {truth.number} is not what {JOURNAL} says: "
                            "restore the line, or delete the file and it is written anew",
                        )
            elif isinstance(item, Summary) and isinstance(truth, Summary):
                self._compare_summary(located, item, truth)
            else:
                raise NotebookError(
                    self.analysis.name, located.line, 1,
                    "an entry or a summary is missing before this line",
                )  # fmt: skip
        self._complete_blocks(found, wanted)
        self.n_written = sum(isinstance(x.item, Entry) for x in found)
        if self.text and not self.text.endswith("\n\n"):
            self.text = self.text.rstrip("\n") + "\n\n"

    def _compare_summary(self, located: notebook.Located, item: Summary, truth: Summary) -> None:
        """A summary says what the journal says; the focus of the next block may be reworded."""
        found, last = dict(item.lines), max(located.fields.values(), default=located.line)
        for name, text in truth.lines:
            if name not in found:
                raise NotebookError(
                    self.analysis.name, last, 1,
                    f"the summary of block {truth.block} ends before its '{name}:' line: restore "
                    "it, or delete the file and it is written anew",
                )  # fmt: skip
            is_cut = text != found[name] and text.startswith(found[name])
            if is_cut or (name != blocks.NEXT_FOCUS and text != found[name]):
                what = "is cut off" if is_cut else f"is not what {JOURNAL} says"
                raise NotebookError(
                    self.analysis.name, located.fields[name], len(name) + 3,
                    f"'{name}:' of the summary of block {truth.block} {what}: restore the line, "
                    "or delete the file and it is written anew",
                )  # fmt: skip
        if item.block != truth.block:
            raise NotebookError(
                self.analysis.name, located.line, len("## Block "),
                f"expected the summary of block {truth.block}, got that of block {item.block}",
            )  # fmt: skip

    def _complete_blocks(self, found: Sequence[notebook.Located], wanted: Sequence[Any]) -> None:
        """Write the summary of a block where only that is missing at the end."""
        if len(found) < len(wanted) and not isinstance(wanted[len(found)], Entry):
            self.text = self.text.rstrip("\n") + "\n\n" + notebook.render([wanted[len(found)]])

    def pending(self, history: History) -> Batch | None:
        """The batch that was decided and not merged, if there is one."""
        path = self.folder / PENDING
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{PENDING}, line {error.lineno}, column {error.colno}: {error.msg}. Delete it: "
                "the batch is decided anew"
            ) from None
        if content["first"] != len(history) + 1:
            return None
        chosen = tuple(proposal_from(p) for p in content["proposals"])
        return Batch(content["block"], content["batch"], content["first"], chosen)

    def begin(self, history: History, batch: Batch) -> None:
        """Put the decided batch on disk; a new block empties the scores."""
        n = self.search.settings.n_iter_block
        if batch.first % n == 1 % n and batch.block > 1:
            write_text(self.folder / SCORES, "")
        content = {**asdict(batch), "proposals": [asdict(p) for p in batch.proposals]}
        write_text(self.folder / PENDING, json.dumps(content, ensure_ascii=False) + "\n")

    def write(self, history: History) -> None:
        """Journal first, then what follows from it."""
        self.lines += [to_line(i) for i in history[len(self.lines) :]]
        write_text(self.folder / JOURNAL, "\n".join(self.lines) + "\n")
        self.text += notebook.render(writing.items(self.search, history, self.n_written))
        self.n_written = len(history)
        write_text(self.analysis, self.text)
        block = history[-1].block
        self._scores(history, block)
        write_text(self.memory, memory.render(writing.memory(self.search, history, block)))
        self._rules(history, block)

    def _scores(self, history: History, block: int) -> None:
        settings = self.search.settings
        nodes = tree.grow(history.block(block), c=settings.ucb_c, form=settings.ucb_form)
        text = tree.render(nodes, self.search.metric)
        write_text(self.folder / SCORES, text)
        if len(history) % settings.n_iter_block == 0:
            write_text(self.folder / f"ucb_scores_block_{block}.txt", text)

    def _rules(self, history: History, block: int) -> None:
        rules = [
            asdict(rule)
            for number in range(1, block + 1)
            for rule in blocks.adapted(history, number + 1)
            if len(history.block(number)) == self.search.settings.n_iter_block
        ]
        write_text(self.folder / RULES, json.dumps(rules, indent=2) + "\n")


__all__ = ["Batch", "Book", "Watcher", "explore", "merge", "run_folder"]

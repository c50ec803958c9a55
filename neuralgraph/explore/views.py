"""What a search shows while it goes: a live table in the terminal, and the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from neuralgraph.explore.history import History, Iteration, Proposal
from neuralgraph.explore.loop import Watcher
from neuralgraph.explore.page import write_page
from neuralgraph.explore.runs import Result
from neuralgraph.explore.setup import Search
from neuralgraph.explore.words import rounded, word
from neuralgraph.explore.writing import short
from neuralgraph.terminal import console, number, shown

N_ROWS = 16
"""Rows of the live table."""
N_BESIDE = 2
PAGE_EVERY_S = 3.0
"""The page is written anew not more often than this, and at the end of every block."""
STYLES = {"converged": "green", "failed": "red"}


class Screen(Watcher):
    """Live table where there is a terminal, one line for each iteration elsewhere.

    Args:
        search: The search.
        folder: Its folder, where the page goes.
    """

    def __init__(self, search: Search, folder: Path) -> None:
        self.search = search
        self.folder = folder
        self.history: History = History([], search.root)
        self.batch: Sequence[Proposal] = ()
        self.ended: dict[int, Result] = {}
        self.page_at = -PAGE_EVERY_S
        self.live = (
            Live(console=console, refresh_per_second=4, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Screen:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()
        if len(self.history):
            write_page(self.search, self.history, self.folder)

    def batch_begins(self, history: History, batch: Sequence[Proposal]) -> None:
        """Show what runs."""
        if not len(self.history):
            self.history = history
            if self.live is None:
                console.print(header(self.search))
        self.batch, self.ended = batch, {}
        self._refresh()

    def run_ends(self, slot: int, result: Result) -> None:
        """Show that a slot is done."""
        self.ended[slot] = result
        self._refresh()

    def batch_ends(self, history: History, new: Sequence[Iteration], *, block_ends: bool) -> None:
        """Show the batch; write the page now and then."""
        self.history, self.batch = history, ()
        if self.live is None:
            for iteration in new:
                console.print(line(self.search, iteration))
        self._refresh()
        now = time.monotonic()
        if block_ends or now - self.page_at > PAGE_EVERY_S:
            self.page_at = now
            write_page(self.search, history, self.folder)

    def say(self, message: str) -> None:
        """A remark, above the table."""
        console.print(Text(message, style="yellow"))

    def _refresh(self) -> None:
        if self.live is not None:
            self.live.update(self.render())

    def render(self) -> Group:
        """The live view: the newest iterations, what runs now, the best so far."""
        search = self.search
        table = Table(box=None, pad_edge=False, header_style="bold")
        names = beside(search, self.history)
        for title in ("iteration", "parent", "strategy", "mutation", search.metric, *names):
            right = title in ("iteration", "parent", search.metric, *names)
            table.add_column(title, justify="right" if right else "left", no_wrap=True)
        table.add_column("class", no_wrap=True)
        for iteration in self.history[-N_ROWS:]:
            table.add_row(*cells(search, iteration, names))
        first = len(self.history) + 1
        for slot, proposal in enumerate(self.batch):
            state = "done" if slot in self.ended else "running"
            table.add_row(
                str(first + slot), parent_of(proposal.parent), proposal.strategy,
                mutation_of(search, proposal), Text(state, style="dim"), *[""] * len(names), "",
            )  # fmt: skip
        return Group(table, Text(""), status(search, self.history))


def status(search: Search, history: History) -> Text:
    """Progress and the best so far."""
    settings = search.settings
    block = min(len(history) // settings.n_iter_block + 1, settings.n_blocks)
    text = f"{len(history)} of {settings.n_iterations} iterations, block {block}"
    best = history.best_run
    if best is not None and best.metric is not None:
        text += f"; best {search.metric} {number(best.metric)} (iteration {best.number})"
    return Text(text, style="bold")


def beside(search: Search, history: History) -> list[str]:
    """Metrics shown beside the primary one."""
    present = history[-1].metrics if len(history) else {}
    names = [n for n in (search.plan.metrics or present) if n in present and n != search.metric]
    return names[:N_BESIDE]


def cells(search: Search, iteration: Iteration, names: Sequence[str]) -> list[str | Text]:
    """Row of the table."""
    best = "-" if iteration.metric is None else number(iteration.metric)
    others = [number(iteration.metrics[n]) if n in iteration.metrics else "-" for n in names]
    return [
        str(iteration.number),
        parent_of(iteration.parent),
        iteration.proposal.strategy,
        mutation_of(search, iteration.proposal),
        Text(best, style="bold cyan"),
        *others,
        Text(iteration.verdict, style=STYLES.get(iteration.verdict, "")),
    ]


def header(search: Search) -> str:
    """Titles of the plain lines."""
    metric = search.metric[:24]
    return f"[bold]{'iter':>5} {'parent':>6}  {'class':<12} {metric:>24}  strategy, mutation[/bold]"


def line(search: Search, iteration: Iteration) -> str:
    """One iteration on one line, where there is no terminal."""
    value = "-" if iteration.metric is None else number(iteration.metric)
    text = (
        f"{iteration.number:>5} {parent_of(iteration.parent):>6}  {iteration.verdict:<12} "
        f"{value:>24}  {iteration.proposal.strategy}, "
        f"{mutation_of(search, iteration.proposal)}"
    ).replace("[", "\\[")
    return text + (f"  ({iteration.problem})" if iteration.problem else "")


def parent_of(parent: int | None) -> str:
    """Parent in a table."""
    return "root" if parent is None else str(parent)


def mutation_of(search: Search, proposal: Proposal) -> str:
    """What changed, in short names."""
    if proposal.code is not None:
        return f"[code] {proposal.values['variant']}"
    changes = [
        f"{short(search, c.key)}: {_word(c.old)} -> {_word(c.new)}" for c in proposal.changes
    ]
    if len(changes) > 3:
        return f"{', '.join(changes[:3])} and {len(changes) - 3} more"
    return ", ".join(changes) or "baseline"


def _word(value: object) -> str:
    return word(rounded(value, 3) if isinstance(value, float) else value)


def print_start(search: Search, folder: Path, *, resumed: bool) -> None:
    """Name, size and folder of the search."""
    settings = search.settings
    verb = "going on in" if resumed else "exploring in"
    console.print(f"[bold]{search.name}[/bold]  {verb} {shown(folder)}")
    if search.question:
        console.print(f"[dim]{search.question.strip()}[/dim]")
    console.print(
        f"{settings.n_blocks} blocks of {settings.n_iter_block} iterations, {settings.n_parallel} "
        f"at a time; {len(search.space)} parameters; proposals by {settings.proposer}; "
        f"{search.reward.direction} {search.metric}"
    )


def print_end(search: Search, history: History, folder: Path) -> None:
    """The best run and where to look."""
    best = history.best_run
    console.print()
    if best is None or best.metric is None:
        console.print(f"no run gave {search.metric}")
    else:
        console.print(
            f"best [bold cyan]{search.metric} {number(best.metric)}[/bold cyan] in iteration "
            f"{best.number} ({best.verdict})"
        )
        changed = [
            f"{search.space[k].key}={_word(v)}"
            for k, v in best.values.items()
            if k in search.space and v != search.root[k]
        ]
        console.print(f"settings  {' '.join(changed) or 'those of the experiment'}")
        console.print(f"run  [bold]{shown(folder / best.folder)}[/bold]")
    console.print(f"notebook  [bold]{shown(folder / f'{search.name}_analysis.md')}[/bold]")
    console.print(f"page  [bold]{shown(folder / 'exploration.html')}[/bold]")

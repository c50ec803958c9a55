"""The working memory, ``{config}_memory.md``: what is known, and the block under way.

Headings and their order are those of document 001; Emerging Observations stand at the end.
:func:`render` and :func:`read` are inverse to each other, and :func:`fit` keeps the file under its
number of lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from neuralgraph.explore import notebook
from neuralgraph.explore.notebook import Entry, NotebookError

TITLE = "# Working Memory: "
KNOWLEDGE = "## Knowledge Base (accumulated across all blocks)"
BEST = "### Best Configurations Found"
PRINCIPLES = "### Established Principles"
QUESTIONS = "### Open Questions"
PREVIOUS = re.compile(r"## Previous Block Summary \(Block (\d+)\)$")
NO_PREVIOUS = "## Previous Block Summary (none yet)"
CURRENT = re.compile(r"## Current Block \(Block (\d+)\)$")
INFO = "### Block Info"
HYPOTHESIS = "### Hypothesis"
ITERATIONS = "### Iterations This Block"
OBSERVATIONS = "### Emerging Observations"
RULE = "---"
NONE = "[none yet]"
PRINCIPLE = re.compile(r"- (?P<text>.*) \[iterations (?P<runs>\d+(?:, \d+)*)\]$")
KEPT = 1
"""Lines of a list that are kept however short the file must be."""


@dataclass(frozen=True)
class Established:
    """A principle with the iterations that support it."""

    text: str
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Content of the file; every text is one line.

    Args:
        config: Name of the experiment.
        columns: Columns of the table of best configurations.
        best: Its rows.
        principles: Confirmed patterns, three or more supporting iterations each.
        questions: Patterns that need more testing, contradictions.
        previous_block: Number of the previous block, ``None`` in the first.
        previous: Its summary, two or three lines.
        block: Number of the current block.
        info: Focus of the block.
        hypothesis: Prediction for the block.
        iterations: Entries of the block, oldest first.
        observations: Running notes.
    """

    config: str
    columns: tuple[str, ...]
    block: int
    best: tuple[tuple[str, ...], ...] = ()
    principles: tuple[Established, ...] = ()
    questions: tuple[str, ...] = ()
    previous_block: int | None = None
    previous: tuple[str, ...] = ()
    info: tuple[str, ...] = ()
    hypothesis: tuple[str, ...] = ()
    iterations: tuple[Entry, ...] = field(default_factory=tuple[Entry, ...])
    observations: tuple[str, ...] = ()


# -- writing ------------------------------------------------------------------------------------


def render(memory: Memory) -> str:
    """Text of the file."""
    previous = (
        NO_PREVIOUS
        if memory.previous_block is None
        else f"## Previous Block Summary (Block {memory.previous_block})"
    )
    entries = notebook.render(memory.iterations).rstrip("\n").split("\n")
    parts = [
        [f"{TITLE}{memory.config}"],
        [KNOWLEDGE],
        [BEST],
        [_row(memory.columns), _row(["---"] * len(memory.columns)), *map(_row, memory.best)],
        [PRINCIPLES],
        _list([f"{p.text} [iterations {', '.join(map(str, p.runs))}]" for p in memory.principles]),
        [QUESTIONS],
        _list(memory.questions),
        [RULE],
        [previous],
        _list(memory.previous),
        [RULE],
        [f"## Current Block (Block {memory.block})"],
        [INFO],
        _list(memory.info),
        [HYPOTHESIS],
        _list(memory.hypothesis),
        [ITERATIONS],
        entries if memory.iterations else [NONE],
        [OBSERVATIONS],
        _list(memory.observations),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _list(lines: tuple[str, ...] | list[str]) -> list[str]:
    return [f"- {line}" for line in lines] or [NONE]


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return (
        "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"
    )


def fit(memory: Memory, max_lines: int) -> Memory:
    """The same memory in at most so many lines: the oldest details go first.

    Iterations of the block but the last, then observations, questions and the lower rows of the
    table are dropped; established principles are kept as long as anything else can go.
    """

    def n_lines(m: Memory) -> int:
        return render(m).count("\n")

    trims = ("iterations", "observations", "questions", "best", "previous", "info", "hypothesis")
    for name in (*trims, "principles"):
        n = n_lines(memory)
        if n <= max_lines:
            return memory
        items = getattr(memory, name)
        keep_first = name in ("best", "principles", "questions", "info", "hypothesis", "previous")
        low, high = min(KEPT, len(items)), len(items)
        while low < high:  # the most that fits
            middle = (low + high + 1) // 2
            part = items[:middle] if keep_first else items[-middle:]
            if n_lines(replace(memory, **{name: part})) <= max_lines:
                low = middle
            else:
                high = middle - 1
        if items:
            memory = replace(memory, **{name: items[:low] if keep_first else items[-low:]})
    return memory


# -- reading ------------------------------------------------------------------------------------


def read(text: str, *, source: str) -> Memory:
    """What :func:`render` wrote.

    Raises:
        NotebookError: names line and column.
    """
    return _Reader(text, source).memory()


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self.lines = text.split("\n")
        self.source = source
        self.at = 0

    def fail(self, message: str, *, column: int = 0, line: int | None = None) -> NotebookError:
        at = self.at if line is None else line
        return NotebookError(
            self.source, at + 1, column + 1,
            f"{message}: restore it, or delete the file and it is written anew",
        )  # fmt: skip

    def skip(self) -> None:
        while self.at < len(self.lines) and not self.lines[self.at]:
            self.at += 1

    def take(self, heading: str | re.Pattern[str]) -> re.Match[str] | None:
        """The next line that is not empty, which must be this heading."""
        self.skip()
        line = self.lines[self.at] if self.at < len(self.lines) else ""
        match = heading.match(line) if isinstance(heading, re.Pattern) else None
        if line != heading and match is None:
            wanted = heading if isinstance(heading, str) else heading.pattern.replace("\\", "")
            got = f"got '{line[:40]}'" if line else "the file ends here"
            raise self.fail(f"expected the heading '{wanted.rstrip('$')}', {got}")
        self.at += 1
        return match

    def list(self) -> tuple[str, ...]:
        self.skip()
        found = []
        if self.at < len(self.lines) and self.lines[self.at] == NONE:
            self.at += 1
            return ()
        while self.at < len(self.lines) and self.lines[self.at]:
            line = self.lines[self.at]
            if not line.startswith("- "):
                raise self.fail(f"expected a line '- …', got '{line[:40]}'")
            found.append(line[2:])
            self.at += 1
        if not found:
            raise self.fail(f"expected lines '- …' or '{NONE}'")
        return tuple(found)

    def memory(self) -> Memory:
        self.skip()
        first = self.lines[self.at] if self.at < len(self.lines) else ""
        if not first.startswith(TITLE):
            raise self.fail(f"expected the title '{TITLE}NAME'")
        self.at += 1
        self.take(KNOWLEDGE)
        self.take(BEST)
        columns, best = self._table()
        self.take(PRINCIPLES)
        principles = self._principles()
        self.take(QUESTIONS)
        questions = self.list()
        self.take(RULE)
        self.skip()
        if self.at < len(self.lines) and self.lines[self.at] == NO_PREVIOUS:
            self.at += 1
            previous_block = None
        else:
            match = self.take(PREVIOUS)
            assert match is not None
            previous_block = int(match[1])
        previous = self.list()
        self.take(RULE)
        current = self.take(CURRENT)
        assert current is not None
        self.take(INFO)
        info = self.list()
        self.take(HYPOTHESIS)
        hypothesis = self.list()
        self.take(ITERATIONS)
        iterations = self._iterations()
        self.take(OBSERVATIONS)
        observations = self.list()
        self.skip()
        if self.at < len(self.lines):
            raise self.fail("Emerging Observations must be the last section")
        return Memory(
            config=first[len(TITLE) :], columns=columns, block=int(current[1]), best=best,
            principles=principles, questions=questions, previous_block=previous_block,
            previous=previous, info=info, hypothesis=hypothesis, iterations=iterations,
            observations=observations,
        )  # fmt: skip

    def _table(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        self.skip()
        rows: list[tuple[str, ...]] = []
        while self.at < len(self.lines) and self.lines[self.at].startswith("|"):
            cells = _cells(self.lines[self.at])
            if rows and len(cells) != len(rows[0]):
                raise self.fail(
                    f"the table has {len(rows[0])} columns, this row {len(cells)}",
                    column=len(self.lines[self.at]) - 1,
                )
            rows.append(cells)
            self.at += 1
        if len(rows) < 2:
            raise self.fail("expected the table of best configurations")
        return rows[0], tuple(rows[2:])

    def _principles(self) -> tuple[Established, ...]:
        self.skip()
        start, found = self.at, []
        for offset, line in enumerate(self.list()):
            match = PRINCIPLE.match(f"- {line}")
            if match is None:
                raise self.fail(
                    "expected '- principle [iterations 1, 2, 3]'",
                    line=start + offset,
                    column=len(line) + 2,
                )
            runs = tuple(int(run) for run in match["runs"].split(", "))
            found.append(Established(match["text"], runs))
        return tuple(found)

    def _iterations(self) -> tuple[Entry, ...]:
        self.skip()
        start = self.at
        while self.at < len(self.lines) and self.lines[self.at] != OBSERVATIONS:
            self.at += 1
        lines = self.lines[start : self.at]
        while lines and not lines[-1]:
            lines.pop()
        if lines == [NONE]:
            return ()
        if not lines:
            raise self.fail(f"expected entries or '{NONE}'")
        padded = "\n" * start + "\n".join(lines) + "\n"
        located = notebook.read(padded, source=self.source)
        return tuple(x.item for x in located if isinstance(x.item, Entry))


def _cells(line: str) -> tuple[str, ...]:
    r"""Cells of a table row.

    >>> _cells(r"| a | b\|c |")
    ('a', 'b|c')
    """
    inner = line.strip()[1:]
    cells, cell, escaped = [], "", False
    for character in inner:
        if escaped:
            cell, escaped = cell + character, False
        elif character == "\\":
            escaped = True
        elif character == "|":
            cells.append(cell[1:-1] if len(cell) >= 2 else cell.strip())
            cell = ""
        else:
            cell += character
    return tuple(cells)

"""The full log of a search, ``{config}_analysis.md``: one entry for each iteration, append-only.

The format is that of documents 001 and 002::

    ## Iter 5: partial
    Node: id=5, parent=3
    Mode/Strategy: exploit
    Config: seed=42, lr_k=5E-3, batch_size=8
    Metrics: rate_constants_R2=0.87, test_R2=0.98
    Visual: k_scatter=[partial: ...]
    Mutation: lr_k: 1E-3 -> 5E-3
    Parent rule: highest UCB
    Observation: +0.12 against its parent
    Next: parent=5

:func:`render` and :func:`read` are inverse to each other. With ``strict=False`` logs load that
people or agents wrote by the documents: lines with other names are kept as they are, words after a
number are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuralgraph.core.errors import NeuralGraphError
from neuralgraph.explore.words import Unreadable, pairs, read_pairs, read_word, word

HEADING = re.compile(r"## Iter (?P<number>\d+): (?P<verdict>[A-Za-z][\w-]*)$")
LOOSE_HEADING = re.compile(r"##+ Iter (?P<number>\d+):\s*\[?(?P<verdict>[A-Za-z][\w-]*)")
SUMMARY = re.compile(r"## Block (?P<block>\d+) Summary$")
LINE = re.compile(r"(?P<name>[A-Z][A-Za-z/ ]*): ?(?P<text>.*)$")
NODE = re.compile(r"id=(?P<id>\d+), parent=(?P<parent>root|None|\d+)")
NEXT = re.compile(r"parent=(?P<parent>root|None|\d+)")
CODE_LINE = re.compile(r"  (?P<name>File|Function|Change|Hypothesis): ?(?P<text>.*)$")
NO_MUTATION = "none (baseline)"
CODE = "[code]"


class NotebookError(NeuralGraphError):
    """A notebook file that cannot be read: names file, line and column."""

    def __init__(self, source: str, line: int, column: int, message: str) -> None:
        super().__init__(f"{source}, line {line}, column {column}: {message}")
        self.line = line
        self.column = column


@dataclass(frozen=True)
class Change:
    """One parameter that changes; ``key`` is its short name in the notebook, else its key."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {word(self.old)} -> {word(self.new)}"


@dataclass(frozen=True)
class CodeChange:
    """A run with other code than its parent, and nothing else changed."""

    file: str
    function: str
    change: str
    hypothesis: str


@dataclass(frozen=True)
class Entry:
    """One iteration in the log; every text is one line.

    Args:
        number: Iteration, from 1; also the id of its node.
        verdict: converged, partial, failed, partial-k …
        parent: Node it came from, ``None`` for the root.
        strategy: One of the documents' strategies.
        config: Short name -> value, the seed first.
        metrics: Name -> number, ``None`` where it was not computed (written ``n/a``).
        changes: What differs from the parent.
        rule: Why this parent.
        observation: What came of it.
        next_parent: Highest UCB after the iteration, ``None`` for the root.
        visual: Judgement of each figure, document 002.
        code: Set for a code modification.
        extra: Other lines, ``(name, text)``.
    """

    number: int
    verdict: str
    parent: int | None
    strategy: str
    config: dict[str, Any]
    metrics: dict[str, float | None]
    changes: tuple[Change, ...] = ()
    rule: str = ""
    observation: str = ""
    next_parent: int | None = None
    visual: str = ""
    code: CodeChange | None = None
    extra: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Summary:
    """Summary at the end of a block: named lines."""

    block: int
    lines: tuple[tuple[str, str], ...] = ()


Item = Entry | Summary


@dataclass(frozen=True)
class Located:
    """An item and the line (from 1) it starts at."""

    item: Item
    line: int
    fields: dict[str, int] = field(default_factory=dict)


# -- writing ------------------------------------------------------------------------------------


def render(items: Iterable[Item]) -> str:
    """Text of the log."""
    return "".join(
        (_entry(item) if isinstance(item, Entry) else _summary(item)) + "\n\n" for item in items
    )


def _entry(entry: Entry) -> str:
    parent, following = _node(entry.parent), _node(entry.next_parent)
    lines = [
        f"## Iter {entry.number}: {entry.verdict}",
        f"Node: id={entry.number}, parent={parent}",
        f"Mode/Strategy: {entry.strategy}",
        f"Config: {pairs(entry.config)}",
    ]
    if entry.code is not None:
        lines += [
            "CODE MODIFICATION:",
            f"  File: {entry.code.file}",
            f"  Function: {entry.code.function}",
            f"  Change: {entry.code.change}",
            f"  Hypothesis: {entry.code.hypothesis}",
        ]
    numbers = ", ".join(
        f"{name}={'n/a' if number is None else word(number)}"
        for name, number in entry.metrics.items()
    )
    lines.append(f"Metrics: {numbers}")
    if entry.visual:
        lines.append(f"Visual: {entry.visual}")
    lines += [
        f"Mutation: {mutation(entry.changes, entry.code)}",
        f"Parent rule: {entry.rule}",
        f"Observation: {entry.observation}",
        *(f"{name}: {text}" for name, text in entry.extra),
        f"Next: parent={following}",
    ]
    return "\n".join(line.rstrip() for line in lines)


def mutation(changes: Sequence[Change], code: CodeChange | None = None) -> str:
    """The ``Mutation:`` line, which the UCB tree reads."""
    if code is not None:
        return f"{CODE} {code.function}: {code.change}"
    return ", ".join(str(change) for change in changes) or NO_MUTATION


def _node(parent: int | None) -> str:
    return "root" if parent is None else str(parent)


def _summary(summary: Summary) -> str:
    lines = [f"## Block {summary.block} Summary"]
    return "\n".join([*lines, *(f"{name}: {text}".rstrip() for name, text in summary.lines)])


# -- reading ------------------------------------------------------------------------------------

ENTRY_LINES = (
    "Node", "Mode/Strategy", "Config", "Metrics", "Visual", "Mutation", "Parent rule",
    "Observation", "Next",
)  # fmt: skip
REQUIRED = ("Node", "Mode/Strategy", "Config", "Metrics", "Mutation", "Parent rule",
            "Observation", "Next")  # fmt: skip


def read(text: str, *, source: str, strict: bool = True) -> list[Located]:
    """Items of a log.

    Args:
        text: Content of ``{config}_analysis.md``.
        source: Name of the file, for messages.
        strict: Refuse whatever :func:`render` would not write.
    Raises:
        NotebookError: names line and column.
    """
    reader = _Reader(text, source, strict)
    return reader.items()


def load(path: Path | str, *, strict: bool = True) -> list[Located]:
    """:func:`read` of a file."""
    path = Path(path)
    return read(path.read_text(encoding="utf-8"), source=path.name, strict=strict)


class _Reader:
    def __init__(self, text: str, source: str, strict: bool) -> None:
        self.lines = text.split("\n")
        self.source = source
        self.strict = strict
        self.at = 0

    def fail(self, message: str, *, line: int | None = None, column: int = 0) -> NotebookError:
        line = self.at if line is None else line
        return NotebookError(self.source, line + 1, column + 1, message)

    def items(self) -> list[Located]:
        found: list[Located] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            heading = (HEADING if self.strict else LOOSE_HEADING).match(line)
            summary = SUMMARY.match(line)
            if heading:
                found.append(self._entry(heading))
                self._in_order(found)
            elif summary:
                found.append(self._block(int(summary["block"])))
            elif line.strip() and self.strict:
                raise self.fail(
                    "expected '## Iter N: class' or '## Block K Summary', got "
                    f"'{line[:40]}': restore the line, or delete the file and it is written anew"
                )
            else:
                self.at += 1
        return found

    def _in_order(self, found: list[Located]) -> None:
        entries = [x for x in found if isinstance(x.item, Entry)]
        if self.strict and len(entries) > 1:
            before, last = entries[-2], entries[-1]
            assert isinstance(before.item, Entry) and isinstance(last.item, Entry)
            if last.item.number != before.item.number + 1:
                raise self.fail(
                    f"iteration {last.item.number} follows iteration {before.item.number}: an "
                    "entry was taken out or moved",
                    line=last.line - 1,
                    column=len("## Iter "),
                )

    def _block(self, block: int) -> Located:
        start = self.at
        self.at += 1
        lines: list[tuple[str, str]] = []
        places: dict[str, int] = {}
        while self.at < len(self.lines) and not self.lines[self.at].startswith("##"):
            line = self.lines[self.at]
            match = LINE.match(line)
            if match:
                lines.append((match["name"], match["text"]))
                places[match["name"]] = self.at + 1
            elif line.strip() and self.strict:
                raise self.fail(f"expected 'Name: text' in the summary, got '{line[:40]}'")
            self.at += 1
        return Located(Summary(block, tuple(lines)), start + 1, places)

    def _entry(self, heading: re.Match[str]) -> Located:
        start, number = self.at, int(heading["number"])
        self.at += 1
        values: dict[str, str] = {}
        places: dict[str, int] = {}
        extra: list[tuple[str, str]] = []
        code: dict[str, str] | None = None
        order = 0
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.startswith("##") or (not line.strip() and (self.strict or "Next" in values)):
                break
            if line == "CODE MODIFICATION:":
                code = {}
            elif code is not None and CODE_LINE.match(line):
                match = CODE_LINE.match(line)
                assert match is not None
                code[match["name"]] = match["text"]
            else:
                match = LINE.match(line)
                if match is None:
                    if self.strict:
                        raise self.fail(f"expected 'Name: text' in iteration {number}")
                    self.at += 1
                    continue
                name, content = match["name"], match["text"]
                if name in ENTRY_LINES:
                    if name in values:
                        raise self.fail(f"'{name}:' stands twice in iteration {number}")
                    if self.strict and ENTRY_LINES.index(name) < order:
                        raise self.fail(f"'{name}:' is out of order in iteration {number}")
                    order = ENTRY_LINES.index(name)
                    values[name], places[name] = content, self.at
                else:
                    extra.append((name, content))
                    places[name] = self.at
            self.at += 1
        return self._build(number, heading, start, values, places, extra, code)

    def _build(
        self,
        number: int,
        heading: re.Match[str],
        start: int,
        values: dict[str, str],
        places: dict[str, int],
        extra: list[tuple[str, str]],
        code: dict[str, str] | None,
    ) -> Located:
        missing = [name for name in REQUIRED if name not in values]
        if missing and (self.strict or missing[0] == "Node"):
            last = max(places.values(), default=start)
            raise self.fail(
                f"iteration {number} ends before its '{missing[0]}:' line: the file is cut off or "
                "was edited",
                line=last,
                column=len(self.lines[last]),
            )
        node = NODE.match(values["Node"])
        if node is None or (self.strict and node.end() != len(values["Node"])):
            raise self.fail(
                "expected 'Node: id=N, parent=P' with P a number or root",
                line=places["Node"],
                column=len("Node: "),
            )
        if int(node["id"]) != number:
            raise self.fail(
                f"node {node['id']} stands in iteration {number}",
                line=places["Node"],
                column=len("Node: id="),
            )
        following = NEXT.match(values.get("Next", "parent=root"))
        if following is None or (self.strict and following.end() != len(values["Next"])):
            raise self.fail(
                "expected 'Next: parent=P' with P a number or root",
                line=places["Next"],
                column=len("Next: "),
            )
        change = self._code(code, number, start)
        changes = self._changes(values.get("Mutation", ""), places, change is not None)
        entry = Entry(
            number=number,
            verdict=heading["verdict"],
            parent=_parent(node["parent"]),
            strategy=values.get("Mode/Strategy", ""),
            config=self._pairs("Config", values, places),
            metrics=self._metrics(values, places),
            changes=changes,
            rule=values.get("Parent rule", ""),
            observation=values.get("Observation", ""),
            next_parent=_parent(following["parent"]),
            visual=values.get("Visual", ""),
            code=change,
            extra=tuple(extra),
        )
        fields = {name: line + 1 for name, line in places.items()}
        return Located(entry, start + 1, fields)

    def _code(self, code: dict[str, str] | None, number: int, start: int) -> CodeChange | None:
        if code is None:
            return None
        missing = [n for n in ("File", "Function", "Change", "Hypothesis") if n not in code]
        if missing:
            raise self.fail(
                f"the code modification of iteration {number} lacks '{missing[0]}:'", line=start
            )
        return CodeChange(code["File"], code["Function"], code["Change"], code["Hypothesis"])

    def _pairs(self, name: str, values: dict[str, str], places: dict[str, int]) -> dict[str, Any]:
        text = values.get(name, "")
        try:
            return read_pairs(text)
        except Unreadable as error:
            if self.strict:
                raise self.fail(
                    f"{error} in '{name}:'", line=places[name], column=len(name) + 2 + error.column
                ) from None
        return _loose_pairs(text)

    def _metrics(self, values: dict[str, str], places: dict[str, int]) -> dict[str, float | None]:
        found = self._pairs("Metrics", values, places)
        result: dict[str, float | None] = {}
        for key, number in found.items():
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                result[key] = float(number)
            elif self.strict and number != "n/a":
                column = len("Metrics: ") + values["Metrics"].index(f"{key}=") + len(key) + 1
                raise self.fail(
                    f"{key} must be a number or n/a, got {number!r}",
                    line=places["Metrics"],
                    column=column,
                )
            else:
                result[key] = None
        return result

    def _changes(self, text: str, places: dict[str, int], is_code: bool) -> tuple[Change, ...]:
        if is_code or text.startswith(CODE) or text in ("", NO_MUTATION):
            return ()
        try:
            return read_mutation(text, strict=self.strict)
        except Unreadable as error:
            if not self.strict:
                return ()
            raise self.fail(
                f"{error} in 'Mutation:', expected '[param]: [old] -> [new]'",
                line=places["Mutation"],
                column=len("Mutation: ") + error.column,
            ) from None


def read_mutation(text: str, *, strict: bool = True) -> tuple[Change, ...]:
    """Changes of a ``Mutation:`` line.

    Raises:
        Unreadable: with the column.

    >>> read_mutation("lr_S: 1E-3 -> 5E-4, batch_size: 8 -> 16")[1]
    Change(key='batch_size', old=8, new=16)
    """
    if not strict:
        loose = re.compile(r"\[?([\w.]+)\]?:\s*(\[?[^\s,\]]+\]?)\s*(?:->|→)\s*([^\s,]+)")
        return tuple(
            Change(m[1], _loose_word(m[2]), _loose_word(m[3])) for m in loose.finditer(text)
        )
    changes: list[Change] = []
    at = 0
    while True:
        match = re.compile(r"([\w.]+): ").match(text, at)
        if match is None:
            raise Unreadable("a parameter name and ': ' are missing", at)
        old, end = read_word(text, match.end())
        if not text.startswith(" -> ", end):
            raise Unreadable("' -> ' is missing", end)
        new, end = read_word(text, end + 4)
        changes.append(Change(match[1], old, new))
        if end == len(text):
            return tuple(changes)
        if not text.startswith(", ", end):
            raise Unreadable("expected ', ' between two changes", end)
        at = end + 2


def _loose_word(text: str) -> Any:
    return read_word(text.strip("[]"), 0)[0]


def _loose_pairs(text: str) -> dict[str, Any]:
    loose = re.compile(r"([\w.]+)\s*=\s*([^\s,;]+)")
    found: dict[str, Any] = {}
    for match in loose.finditer(text):
        try:
            found[match[1]] = read_word(match[2], 0)[0]
        except Unreadable:
            found[match[1]] = match[2]
    return found


def _parent(text: str) -> int | None:
    return None if text in ("root", "None", "0") else int(text)


__all__ = [
    "Change",
    "CodeChange",
    "Entry",
    "Item",
    "Located",
    "NotebookError",
    "Summary",
    "load",
    "mutation",
    "read",
    "read_mutation",
    "render",
]

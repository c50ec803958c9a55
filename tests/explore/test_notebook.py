"""The notebook files parse back to what was written, and logs by the documents load."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralgraph.explore import memory, notebook
from neuralgraph.explore.memory import Established, Memory
from neuralgraph.explore.notebook import Change, CodeChange, Entry, NotebookError, Summary
from neuralgraph.explore.words import read_pairs, read_word, word

NAME = st.from_regex(r"[A-Za-z][A-Za-z_0-9.]{0,12}", fullmatch=True)
TEXT = st.text(string.printable + "éλ→|\\", max_size=30).map(lambda t: " ".join(t.split()))
NUMBER = st.floats(allow_nan=False, allow_infinity=True)
VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), NUMBER, TEXT,
    st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip
CLASS = st.sampled_from(["converged", "partial", "failed", "partial-k", "unclassified"])
ID = st.none() | st.integers(1, 500)
CODE = st.builds(CodeChange, TEXT, TEXT, TEXT, TEXT)
EXTRA = st.tuples(st.sampled_from(["Lost", "Testing principle", "Activity"]), TEXT)


@st.composite
def entries(draw, number=None):
    code = draw(st.none() | CODE)
    changes = (
        () if code else tuple(draw(st.lists(st.builds(Change, NAME, VALUE, VALUE), max_size=3)))
    )
    return Entry(
        number=number or draw(st.integers(1, 999)), verdict=draw(CLASS), parent=draw(ID),
        strategy=draw(st.sampled_from(["exploit", "failure-probe", "code-modification"])),
        config=draw(st.dictionaries(NAME, VALUE, max_size=4)),
        metrics=draw(st.dictionaries(NAME, st.none() | st.floats(allow_nan=False), max_size=4)),
        changes=changes, rule=draw(TEXT), observation=draw(TEXT), next_parent=draw(ID),
        visual=draw(TEXT), code=code, extra=tuple(draw(st.lists(EXTRA, max_size=2))),
    )  # fmt: skip


@st.composite
def logs(draw):
    n = draw(st.integers(0, 4))
    items = [draw(entries(number=i + 1)) for i in range(n)]
    line = st.tuples(st.from_regex(r"[A-Z][a-z ]{0,8}[a-z]", fullmatch=True), TEXT)
    if draw(st.booleans()):
        items.append(Summary(1, tuple(draw(st.lists(line, max_size=3)))))
    return items


@settings(max_examples=60, deadline=None)
@given(logs())
def test_a_log_parses_back_losslessly(items):
    text = notebook.render(items)
    found = notebook.read(text, source="log")
    assert [x.item for x in found] == items
    assert notebook.render([x.item for x in found]) == text
    lines = text.split("\n")
    assert all(lines[x.line - 1].startswith("## ") for x in found)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAME, VALUE, max_size=5))
def test_values_of_every_type_come_back_from_one_word(values):
    line = ", ".join(f"{k}={word(v)}" for k, v in values.items())
    found = read_pairs(line)
    assert found == values
    assert [type(v) for v in found.values()] == [type(v) for v in values.values()]


LINES = st.lists(TEXT.filter(bool), max_size=3).map(tuple)


@st.composite
def memories(draw):
    n = draw(st.integers(1, 3))
    cells = TEXT
    row = st.lists(cells, min_size=n, max_size=n).map(tuple)
    runs = st.lists(st.integers(1, 99), min_size=3, max_size=5).map(tuple)
    k = draw(st.integers(0, 3))
    block = draw(st.integers(1, 9))
    return Memory(
        config=draw(NAME), columns=draw(row), block=block,
        best=tuple(draw(st.lists(row, max_size=3))),
        principles=tuple(
            draw(st.lists(st.builds(Established, TEXT.filter(bool), runs), max_size=2))
        ),
        questions=draw(LINES), previous_block=block - 1 if block > 1 else None,
        previous=draw(LINES), info=draw(LINES), hypothesis=draw(LINES),
        iterations=tuple(draw(entries(number=i + 1)) for i in range(k)), observations=draw(LINES),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(memories())
def test_a_memory_file_parses_back_losslessly_with_observations_at_the_end(content):
    text = memory.render(content)
    assert memory.read(text, source="memory") == content
    headings = [line for line in text.split("\n") if line.startswith("### ")]
    assert headings[-1] == "### Emerging Observations"


@settings(max_examples=25, deadline=None)
@given(memories(), st.integers(60, 90))
def test_a_memory_file_fits_into_its_lines_and_keeps_its_newest_iteration(content, n_lines):
    fitted = memory.fit(content, n_lines)
    assert memory.render(fitted).count("\n") <= n_lines
    assert fitted.iterations[-1:] == content.iterations[-1:]
    assert fitted.principles == content.principles


DOCUMENT_LOG = """# Experiment log

## Iter 1: partial (baseline)
Node: id=1, parent=root
Mode/Strategy: exploit
Config: seed=42, lr_k=5E-3, lr_node=1E-4, batch_size=8, recurrent=F
Metrics: rate_constants_R2=-0.41, test_R2=0.98, n_outliers=21, embedding_silhouette=N/A
Visual: MLP_sub=partial: c^1 linear, MLP_node=inactive
Activity: rank 50
Mutation: [lr_k]: [1E-3] -> [5E-3]
Parent rule: first iteration
Observation: a start
Next: parent=1 (highest UCB)

### Batch 1 summary

some words, in lines of their own

## Iter 2: failed
Node: id=2, parent=1
Mode/Strategy: explore (high lr_node)
Config: [unchanged from parent]
Metrics: rate_constants_R2=0.0613, training_time=39.0min
Mutation: lr_node: 1E-4 → 5E-3, coeff_MLP_node_L1: 1.0 -> 0.0. Testing principle: "x"
Observation: no
"""


def test_logs_that_people_or_agents_wrote_by_the_documents_load():
    first, second = (x.item for x in notebook.read(DOCUMENT_LOG, source="old", strict=False))
    assert first.config["lr_k"] == 5e-3 and first.metrics["rate_constants_R2"] == -0.41
    assert first.metrics["embedding_silhouette"] is None and first.next_parent == 1
    assert first.changes == (Change("lr_k", 1e-3, 5e-3),) and first.extra == (
        ("Activity", "rank 50"),
    )
    assert second.parent == 1 and second.strategy == "explore (high lr_node)"
    assert [c.key for c in second.changes] == ["lr_node", "coeff_MLP_node_L1"]
    with pytest.raises(NotebookError, match="line 1, column 1"):
        notebook.read(DOCUMENT_LOG, source="old")


def test_a_code_modification_is_logged_with_file_function_change_and_hypothesis():
    code = CodeChange("a/b.py", "loop", "other decay", "it may help")
    entry = Entry(5, "partial", 4, "code-modification", {"seed": 1}, {"R2": 0.5}, code=code)
    text = notebook.render([entry])
    for line in ("CODE MODIFICATION:", "  File: a/b.py", "  Function: loop",
                 "  Change: other decay", "  Hypothesis: it may help",
                 "Mutation: [code] loop: other decay"):  # fmt: skip
        assert line in text.split("\n")


def test_words_are_those_of_the_documents():
    assert [word(v) for v in (5e-4, 1e-3, 1e5, 2.5e-10)] == ["5E-4", "1E-3", "1E5", "2.5E-10"]
    assert read_word("5E-4", 0) == (5e-4, 4)

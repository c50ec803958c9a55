"""What the search writes about itself: entries, memory, scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuralgraph.explore import blocks
from neuralgraph.explore.history import NEGLIGIBLE, History, Iteration
from neuralgraph.explore.knowledge import N_SIGMA, Knowledge
from neuralgraph.explore.memory import Established, Memory, fit
from neuralgraph.explore.notebook import Change, Entry, Item
from neuralgraph.explore.plan import Look
from neuralgraph.explore.setup import Search
from neuralgraph.explore.space import SEED, VARIANT
from neuralgraph.explore.words import one_line, rounded, word

N_METRICS = 8
N_BEST = 12
N_OBSERVATIONS = 8


def short(search: Search, key: str) -> str:
    """Short name of a key in the notebook."""
    return search.space[key].name if key in search.space else {SEED: "seed"}.get(key, key)


def entry(search: Search, iteration: Iteration) -> Entry:
    """The iteration as the log has it."""
    config: dict[str, Any] = {"seed": iteration.values[SEED]}
    config |= {short(search, k): iteration.values[k] for k in search.space}
    if iteration.values[VARIANT] is not None:
        config[VARIANT] = iteration.values[VARIANT]
    proposal = iteration.proposal
    extra: list[tuple[str, str]] = []
    if proposal.testing and proposal.code is None:
        extra.append(("Testing principle", proposal.testing))
    if iteration.verdict_document and iteration.verdict_document != iteration.verdict:
        extra.append(("Class of the document", iteration.verdict_document))
    if iteration.losses:
        extra.append(("Lost", one_line("; ".join(iteration.losses))))
    return Entry(
        number=iteration.number,
        verdict=iteration.verdict,
        parent=iteration.parent,
        strategy=proposal.strategy,
        config=config,
        metrics={name: _metric(iteration, name) for name in metric_names(search, iteration)},
        changes=()
        if proposal.code is not None
        else tuple(Change(short(search, c.key), c.old, c.new) for c in proposal.changes),
        rule=one_line(proposal.rule),
        observation=one_line(iteration.observation),
        next_parent=iteration.next_parent,
        visual=one_line(iteration.visual),
        code=proposal.code,
        extra=tuple(extra),
    )


def metric_names(search: Search, iteration: Iteration) -> list[str]:
    """Metrics of the log: the plan's, else the primary one and the first others."""
    names = list(search.plan.metrics) or list(iteration.metrics)[:N_METRICS]
    return list(dict.fromkeys([search.metric, *names]))


def _metric(iteration: Iteration, name: str) -> float | None:
    value = iteration.metrics.get(name)
    if value is None:
        return None
    return int(value) if name.startswith("n_") and value == int(value) else rounded(value)


def items(search: Search, history: History, after: int = 0) -> list[Item]:
    """What the log holds: entries, and a summary after each finished block.

    Args:
        search: The search.
        history: What was run.
        after: Iterations that are in the log already.
    """
    found: list[Item] = []
    for iteration in history[after:]:
        found.append(entry(search, iteration))
        if iteration.number % search.settings.n_iter_block == 0:
            found.append(block_summary(search, history, iteration.block))
    return found


def block_summary(search: Search, history: History, block: int) -> Any:
    """Summary of a finished block, as it was known at its end."""
    known = History([i for i in history if i.block <= block], history.root)
    following = blocks.focus(known, block + 1, search.plan, search.space)
    return blocks.summary(
        known, block, metric=search.metric, following=following, space=search.space
    )


def observation(search: Search, history: History, iteration: Iteration) -> str:
    """What came of an iteration, in one line."""
    if iteration.metric is None:
        return f"failed: {iteration.problem}"
    value = f"{search.metric} {word(rounded(iteration.metric))}"
    if iteration.parent is None:
        return value + (", the baseline" if not iteration.proposal.changes else "")
    parent = history.node(iteration.parent)
    if parent.metric is None:
        return f"{value}; its parent {parent.number} has none"
    if iteration.proposal.is_replicate:
        return (
            f"{value} where seed {parent.values[SEED]} gave {word(rounded(parent.metric))}: a "
            "difference of seeds, not of parameters"
        )
    gain = iteration.reward - parent.reward
    better = iteration.metric - parent.metric
    spread = history.spread
    text = f"{value}, {better:+.3g} against parent {parent.number}"
    if abs(gain) < NEGLIGIBLE:
        return f"{text}: no effect"
    if spread is None:
        return f"{text}: {'better' if gain > 0 else 'worse'}, the spread of seeds is not known"
    if abs(gain) <= N_SIGMA * spread * 2**0.5:
        return f"{text}: within what seeds explain"
    verdict = "better" if gain > 0 else "worse"
    compared = ", compared directly: same settings, other code" if iteration.proposal.code else ""
    return f"{text}: {verdict}, more than seeds explain{compared}"


def visual(search: Search, metrics: dict[str, float]) -> str:
    """Line ``Visual:`` of document 002, judged from the metrics behind each figure."""
    parts = []
    for name, look in search.plan.visual.items():
        value = metrics.get(look.metric)
        if value is not None:
            parts.append(f"{name}=[{judged(look, value)}: {look.metric} {word(rounded(value, 3))}]")
    return ", ".join(parts)


def judged(look: Look, value: float) -> str:
    """good, partial or bad."""
    if look.good[0] <= value <= look.good[1]:
        return "good"
    return "partial" if look.partial[0] <= value <= look.partial[1] else "bad"


# -- memory -------------------------------------------------------------------------------------


def memory(search: Search, history: History, block: int) -> Memory:
    """The working memory after the iterations so far, within its number of lines."""
    known = history.once("knowledge", lambda: Knowledge(history, search.space))
    looked_at = blocks.focus(history, block, search.plan, search.space)
    rules = blocks.adapted(history, block)
    settings = search.settings
    done = len(history.block(block))
    info = [f"Focus: {looked_at.words}", f"Iteration {done} of {settings.n_iter_block}"]
    info += [f"Adapted rule: {r.rule}, since the {r.because}" for r in rules]
    established = [
        Established(p.sentence(search.space[p.key].name, search.metric), p.runs)
        for p in known.principles
        if p.is_established
    ]
    questions = list(search.plan.questions)
    for p in known.principles:
        if not p.is_established and p.against:
            name = search.space[p.key].name
            questions.append(
                f"{p.sentence(name, search.metric)}? Runs {_numbers(p.runs)} say so, "
                f"{_numbers(p.against)} say the opposite"
            )
    previous = ()
    if block > 1 and history.block(block - 1):
        summary = block_summary(search, history, block - 1)
        wanted = ("Iterations", "Best", "Next focus")
        previous = tuple(f"{n}: {t}" for n, t in summary.lines if n in wanted)
    content = Memory(
        config=search.name,
        columns=_columns(search),
        block=block,
        best=_best(search, history),
        principles=tuple(established),
        questions=tuple(questions),
        previous_block=block - 1 if block > 1 else None,
        previous=previous,
        info=tuple(info),
        hypothesis=(
            "One of "
            + ", ".join(search.space[k].name for k in looked_at.keys)
            + f" moves {search.metric} by more than seeds do",
        ),
        iterations=tuple(entry(search, i) for i in history.block(block)),
        observations=tuple(_observations(search, history, known)),
    )
    return fit(content, settings.memory_max_lines or search.plan.memory_max_lines)


def _columns(search: Search) -> tuple[str, ...]:
    return ("Blk", *(short(search, k) for k in _table(search)), search.metric, "Class", "Finding")


def _table(search: Search) -> Sequence[str]:
    return search.plan.table or tuple(search.space)[:6]


def _best(search: Search, history: History) -> tuple[tuple[str, ...], ...]:
    """The best configuration of each block, the newest block first."""
    rows = []
    for block in sorted({i.block for i in history}, reverse=True)[:N_BEST]:
        best = History(history.block(block), history.root).best
        if best is None or best.metric is None:
            continue
        n = len(history.runs_of[best.key])
        finding = f"iteration {best.number}, {n} {'seed' if n == 1 else 'seeds'}"
        cells = [word(best.values[k]) if k in best.values else "-" for k in _table(search)]
        rows.append((str(block), *cells, word(rounded(best.metric)), best.verdict, finding))
    return tuple(rows)


def _observations(search: Search, history: History, known: Knowledge) -> list[str]:
    lines = []
    best = history.best
    if best is not None and best.metric is not None:
        lines.append(
            f"Best so far: iteration {best.number}, {search.metric}={word(rounded(best.metric))}"
        )
    spread = history.spread
    lines.append(
        "The spread between seeds is not known yet: no difference counts as an effect"
        if spread is None
        else f"Two seeds of one configuration differ by {spread:.2g} in reward"
    )
    for p in known.principles:
        if not p.is_established and not p.against:
            sentence = p.sentence(search.space[p.key].name, search.metric)
            lines.append(f"Emerging: {sentence} (runs {_numbers(p.runs)}, 3 are needed)")
    failed = [i for i in history if i.status == "failed"]
    if failed:
        lines.append(f"Failed: {_numbers([i.number for i in failed])}")
    notes = [f"Note of iteration {i.number}: {i.proposal.note}" for i in history if i.proposal.note]
    return [*lines[:N_OBSERVATIONS], *notes[-N_OBSERVATIONS:]]


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

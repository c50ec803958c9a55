"""What a run says in the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.scorecard import Scorecard

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 160


LINES_SHOWN = 8
"""Combinations and parameters listed in the terminal."""


def shown(path: Path) -> str:
    """Path relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def print_start(config: Mapping[str, Any], folder: Path, *, resumed: bool) -> None:
    """Name, seed, prior and folder."""
    verb = "resuming" if resumed else "running"
    console.print(
        f"[bold]{config['name']}[/bold]  {verb} in {shown(folder)}  seed {config['seed']}"
    )
    if config["question"]:
        console.print(f"[dim]{config['question'].strip()}[/dim]")
    given = [name for name, flag in config["prior"].items() if flag]
    hidden = [name for name, flag in config["prior"].items() if not flag]
    console.print(
        f"given: {', '.join(given) or 'nothing'}   to be found: {', '.join(hidden) or '-'}"
    )


def print_result(scorecard: Scorecard, folder: Path) -> None:
    """Score table, with baselines and ceilings beside every score that has them."""
    baselines: Mapping[str, Mapping[str, float]] = scorecard.facts.get("baselines", {})
    table = Table(title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("to compare", style="dim")
    primary = scorecard.provenance["primary_metric"]
    for name, value in scorecard.ordered():
        others = "  ".join(f"{number(v)} ({k})" for k, v in baselines.get(name, {}).items())
        style = "bold cyan" if name == primary else None
        unit = scorecard.units.get(name, "")
        table.add_row(name, f"{number(value)} {unit}".strip(), others, style=style)
    console.print()
    console.print(table)
    for name, fact in scorecard.facts.items():
        if isinstance(fact, str):
            console.print(f"[bold]{name}[/bold]  {fact}")
    for why, names in scorecard.skipped().items():
        console.print(f"[dim]not computed ({why}): {', '.join(names)}[/dim]")
    print_report(folder)


def print_identifiability(found: Mapping[str, Any], folder: Path) -> None:
    """What the data determine: a table by kind of parameter, then the findings in words."""
    console.print(
        f"[dim]{found['point']}; noise {found['noise']}; "
        f"{found['n_frame']} frames × {found['n_variable']} variables[/dim]"
    )
    for text in found["assumed"]:
        console.print(f"[dim]assumed: {text}[/dim]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameters", no_wrap=True)
    bound = f"error < {100 * found['precise_below']:g} %"
    heads = ("number", "determined", "in combination", "not at all", bound, "median", "largest")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for group in found["groups"]:
        errors = [group["median_error"], group["largest_error"]]
        table.add_row(
            group["group"],
            *(str(group[key]) for key in ("n", "determined", "combination", "undetermined")),
            str(group["precise"]),
            *("–" if e is None else f"{100 * e:.3g} %" for e in errors),
        )
    console.print()
    console.print(table)
    gap = "" if found["gap"] is None else f", gap {number(found['gap'])}"
    console.print(f"rank {found['rank']} of {found['n_analysed']}{gap}")
    for title, texts in (
        ("only together", [c["combination"] for c in found["combinations"]]),
        ("not at all", [u["parameter"] for u in found["undetermined"]]),
    ):
        if texts:
            more = f"  … ({len(texts)} in all)" if len(texts) > LINES_SHOWN else ""
            short = [t if len(t) < 60 else t[:58] + " …" for t in texts[:LINES_SHOWN]]
            line = Text(f"{title}  ", style="bold")
            console.print(line + Text(",  ".join(short) + more, style="not bold"))
    console.print()
    for sentence in found["sentences"]:
        console.print(sentence)
    console.print(f"report  [bold]{shown(folder / 'identifiability.html')}[/bold]")


def print_report(folder: Path) -> None:
    """Where the report lies."""
    console.print(f"report  [bold]{shown(folder / 'report.html')}[/bold]")


def print_recording(recording: Recording, truth: Truth | None, folder: Path) -> None:
    """Size and design of simulated data."""
    console.print(
        f"{recording.n_run} runs, {recording.n_time} frames, {recording.n_var} variables; "
        f"derivatives: {recording.dx_dt_source}; truth: {'kept' if truth else 'none'}"
    )
    for key, value in recording.provenance.items():
        console.print(f"[dim]{key}[/dim]  {value}")
    console.print(f"written to [bold]{shown(folder)}[/bold]")


def number(value: float) -> str:
    """Four significant digits, without needless zeros; more where a score would round to 1.

    >>> number(0.98765), number(12.0), number(1.5e-7)
    ('0.9877', '12', '1.5e-07')
    >>> number(1 - 2.3e-7), number(0.99996), number(1.0)
    ('0.9999998', '0.99996', '1')
    """
    digits = 4
    while value < 1 and float(f"{value:.{digits}g}") == 1:
        digits += 1
    return f"{value:.{digits}g}"

"""Rules against random search and Optuna's TPE: best metric against number of runs.

    python scripts/bench_explore.py --out bench.jsonl             # the whole comparison
    python scripts/bench_explore.py --repeats 2 --runs 12 --out quick.jsonl
    python scripts/bench_explore.py --show bench.jsonl            # table and intervals again
    python scripts/bench_explore.py --show bench.jsonl --figure curve.png

Every proposer gets the same number of runs on the same data; a repeat has its own network, data,
training seed and choices of the search. Each finished search is one line of ``--out``: a comparison
that was stopped goes on with what the file holds, and processes may share the work, each with its
own repeats or proposers (``--first 3 --repeats 1 --proposers random``). One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from neuralgraph.explore.loop import Watcher, explore
from neuralgraph.explore.runs import Job, Result, do
from neuralgraph.explore.setup import prepare
from neuralgraph.explore.workers import OnDone

EXPERIMENT = "metabolism_joint_document"
METRIC = "rate_constants_R2_identifiable"
SMALL = (
    "simulator.n_met=20",
    "simulator.n_rxn=40",
    "simulator.n_frame=75",
    "simulator.dt_min=0.2",
    "simulator.n_test_run=0",
    "model.initial_log_k=[-2.0,-1.0]",  # in the range of the truth: see experiments/explore
    "evaluation.every=0",
    f"evaluation.primary_metric={METRIC}",
    "explore.n_epochs=1",
    "explore.data_augmentation_loop=200",
    "explore.report=false",
)
ROLLOUT = ("loop.time_step", [1, 2, 4])
"""Longer rollouts (8, 16) are left out for all: they took half of the time of a random search."""
PROPOSERS = ("rules", "random", "optuna")
N_BOOTSTRAP = 4000


class Inline:
    """Runs in this process, one after the other; knows how long each took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def run(self, jobs: Sequence[Job], on_done: OnDone) -> list[Result]:
        """Do all jobs."""
        results = []
        for index, job in enumerate(jobs):
            began = time.process_time()
            results.append(do(job))
            if job.kind == "run":
                self.seconds.append(time.process_time() - began)
                shutil.rmtree(job.folder, ignore_errors=True)
            on_done(index, results[-1])
        return results

    def close(self) -> None:
        """Nothing to close."""


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Plain config of the verb."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return plain(compose("explore", list(overrides)))


def one(
    proposer: str, repeat: int, n_runs: int, n_block: int, extra: Sequence[str], data: Path
) -> dict[str, Any]:
    """One search: the metric of every run in order."""
    config = composed(
        [
            f"+experiment={EXPERIMENT}",
            *SMALL,
            f"explore.proposer={proposer}",
            f"explore.n_iter_block={n_block}",
            f"explore.n_blocks={n_runs // n_block}",
            f"seed={1000 + repeat}",
            *extra,
        ]
    )
    key, values = ROLLOUT
    config["search_space"][key]["values"] = list(values)
    pool = Inline()
    with tempfile.TemporaryDirectory(prefix="neuralgraph_bench_explore_") as base:
        folder = Path(base)
        (folder / "data").symlink_to(data, target_is_directory=True)
        history = explore(prepare(config), folder, Watcher(), pool)
        return {
            "proposer": proposer,
            "repeat": repeat,
            "metric": [i.metric for i in history],
            "strategy": [i.proposal.strategy for i in history],
            "changes": [[str(c) for c in i.proposal.changes] for i in history],
            "values": [i.values for i in history],
            "cpu_s": [round(s, 2) for s in pool.seconds],
            "overrides": [*SMALL, *extra],
        }


def load(path: Path) -> list[dict[str, Any]]:
    """Finished searches of a file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def best_so_far(metric: Sequence[float | None]) -> list[float]:
    """Running maximum; a run without the metric changes nothing."""
    best, line = -np.inf, []
    for value in metric:
        best = max(best, -np.inf if value is None else value)
        line.append(best)
    return line


def interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Median over repeats with its 95 % bootstrap interval."""
    drawn = rng.choice(values, size=(N_BOOTSTRAP, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def curves(rows: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray], list[int]]:
    """Best so far by proposer, ``(n_repeat, n_run)``, over the repeats that all proposers have."""
    names = [p for p in PROPOSERS if any(r["proposer"] == p for r in rows)]
    lines = {
        p: {r["repeat"]: best_so_far(r["metric"]) for r in rows if r["proposer"] == p}
        for p in names
    }
    common = sorted(set.intersection(*(set(x) for x in lines.values())))
    n = min(len(lines[p][r]) for p in names for r in common)
    return {p: np.array([lines[p][r][:n] for r in common]) for p in names}, common


def show(rows: list[dict[str, Any]]) -> None:
    """Table of the best metric after some numbers of runs, and paired differences."""
    console = Console()
    rng = np.random.default_rng(0)
    best, common = curves(rows)
    n = next(iter(best.values())).shape[1]
    table = Table(title=f"best {METRIC}: median over {len(common)} repeats [95 % interval]")
    table.add_column("runs", justify="right")
    for name in best:
        table.add_column(name, justify="right")
    for point in sorted({4, 8, 12, 16, 24, 32, n} & set(range(1, n + 1))):
        cells = [interval(line[:, point - 1], rng) for line in best.values()]
        table.add_row(str(point), *(f"{m:.3f} [{low:.3f}, {high:.3f}]" for m, low, high in cells))
    console.print(table)
    for other in best if "rules" in best else ():
        if other == "rules":
            continue
        difference = best["rules"][:, -1] - best[other][:, -1]
        middle, low, high = interval(difference, rng)
        console.print(
            f"rules minus {other} after {n} runs: {middle:+.3f} [{low:+.3f}, {high:+.3f}], "
            f"better in {int((difference > 0).sum())} of {len(common)}"
        )
    seconds = np.array([s for r in rows for s in r["cpu_s"]])
    console.print(
        f"{len(seconds)} runs, {np.median(seconds):.2f} s of CPU each (median), "
        f"{seconds.max():.1f} s at most"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Best metric against number of runs, and the paired differences, with intervals."""
    from neuralgraph.viz import style

    rng = np.random.default_rng(0)
    best, common = curves(rows)
    runs = np.arange(1, next(iter(best.values())).shape[1] + 1)
    with style.house():
        figure = style.canvas(height=2.9)
        left, right = figure.subplots(1, 2)
        for number, (name, line) in enumerate(best.items()):
            drawn = np.array([interval(column, rng) for column in line.T])
            left.plot(runs, drawn[:, 0], color=style.CYCLE[number], label=name)
            left.fill_between(
                runs, drawn[:, 1], drawn[:, 2], color=style.CYCLE[number], alpha=0.15, lw=0
            )
            if name == "rules":
                continue
            drawn = np.array([interval(column, rng) for column in (best["rules"] - line).T])
            right.plot(runs, drawn[:, 0], color=style.CYCLE[number], label=f"rules − {name}")
            right.fill_between(
                runs, drawn[:, 1], drawn[:, 2], color=style.CYCLE[number], alpha=0.15, lw=0
            )
        right.axhline(0, color=style.INK, lw=0.8, ls="--")
        left.set(title="Best so far", xlabel="runs", ylabel=METRIC)
        right.set(title=f"Paired over {len(common)} repeats", xlabel="runs", ylabel="difference")
        left.legend(loc="lower right")
        right.legend(loc="upper left")
        style.save(figure, path, "Rules, random search and TPE", "Median and 95 % interval.")


def main() -> None:
    """Run what is missing, then show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first repeat")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--block", type=int, default=8, help="iterations of a block")
    parser.add_argument("--proposers", default=",".join(PROPOSERS))
    parser.add_argument("--out", type=Path, default=Path("bench_explore.jsonl"))
    parser.add_argument("--show", type=Path, help="only show a finished comparison")
    parser.add_argument("--figure", type=Path, help="with --show: draw the curves here")
    parser.add_argument("overrides", nargs="*", help="more overrides, such as explore.ucb_c=0.5")
    options = parser.parse_args()
    if options.show:
        rows = load(options.show)
        show(rows)
        if options.figure:
            draw(rows, options.figure)
        return
    with tempfile.TemporaryDirectory(prefix="neuralgraph_bench_data_") as data:
        for repeat in range(options.first, options.first + options.repeats):
            for proposer in options.proposers.split(","):
                if (proposer, repeat) in {(r["proposer"], r["repeat"]) for r in load(options.out)}:
                    continue
                began = time.process_time()
                row = one(
                    proposer, repeat, options.runs, options.block, options.overrides, Path(data)
                )
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")  # one short write: processes may share it
                print(
                    f"repeat {repeat} {proposer}: best {best_so_far(row['metric'])[-1]:.3f}, "
                    f"{time.process_time() - began:.0f} s of CPU",
                    flush=True,
                )
    show(load(options.out))


if __name__ == "__main__":
    main()

"""One summary at the end of a multirun: a table, ``summary.csv``, mean and spread over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

SEED_KEYS = ("seed", "training_seed", "simulator.seed")


class SweepSummary(Callback):
    """Hydra callback: collects the scorecards of the jobs that finished."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``summary.csv`` and ``summary_over_seeds.csv`` into the sweep's folder."""
        summarise(Path(config.hydra.sweep.dir))


def summarise(folder: Path) -> list[dict[str, Any]]:
    """Rows of the summary, one for each group of jobs that differ by their seed only."""
    from rich.table import Table

    from neuralgraph.core.files import write_text
    from neuralgraph.run_folder import load_config
    from neuralgraph.terminal import console, number, shown

    jobs: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    cards: list[dict[str, Any]] = []
    folders = sorted(folder.glob("*/run.json"), key=lambda p: (len(p.parent.name), p.parent.name))
    for file in folders:
        card = file.parent / "scorecard.json"
        if card.exists():
            cards.append(json.loads(card.read_text(encoding="utf-8")))
            configs.append(_flat(load_config(file.parent)))
            jobs.append({"job": file.parent.name})
    if not jobs:
        console.print(f"no job of the sweep in {shown(folder)} finished")
        return []
    everything = dict.fromkeys(key for config in configs for key in config)
    swept = [k for k in everything if len({json.dumps(c.get(k)) for c in configs}) > 1]
    for job, config, card in zip(jobs, configs, cards, strict=True):
        job.update({key: config.get(key) for key in swept})
        job.update(card["metrics"])
    metrics = list(dict.fromkeys(name for card in cards for name in card["metrics"]))
    write_text(folder / "summary.csv", _csv(jobs, ["job", *swept, *metrics]))

    varied = [key for key in swept if key not in SEED_KEYS]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        groups[json.dumps([job.get(key) for key in varied])].append(job)
    rows = []
    for members in groups.values():
        row: dict[str, Any] = {key: members[0].get(key) for key in varied}
        row["runs"] = len(members)
        for name in metrics:
            values = [m[name] for m in members if name in m]
            if values:
                row[name], row[f"{name}_sd"] = _mean_sd(values)
        rows.append(row)
    columns = [*varied, "runs", *(c for name in metrics for c in (name, f"{name}_sd"))]
    write_text(folder / "summary_over_seeds.csv", _csv(rows, columns))

    primary = cards[0]["provenance"]["primary_metric"]
    baselines = cards[0]["facts"].get("baselines", {})
    beside = [m for m in metrics if m != primary and m in baselines][:3]
    table = Table(title=f"{len(jobs)} runs", title_justify="left", box=None, header_style="bold")
    for column in (*varied, "runs", primary, *beside):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [str(row.get(key)) for key in varied] + [str(row["runs"])]
        for name in (primary, *beside):
            spread = row.get(f"{name}_sd")
            text = number(row[name]) if name in row else "-"
            cells.append(text + (f" ± {spread:.2g}" if spread is not None else ""))
        table.add_row(*cells)
    console.print(table)
    console.print(f"summary  [bold]{shown(folder / 'summary.csv')}[/bold]")
    return rows


def _mean_sd(values: list[float]) -> tuple[float, float | None]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _csv(rows: list[dict[str, Any]], columns: list[str]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()

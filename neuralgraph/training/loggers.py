"""Loggers mirror ``metrics.jsonl`` elsewhere; the file in the run folder is the truth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralgraph.core.errors import ConfigError, MissingExtraError
from neuralgraph.core.files import write_text
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.training.callbacks import Callback


class Logger(Callback):
    """A callback with a beginning and an end; ``finish`` is called whatever happens."""

    def start(self, config: Mapping[str, Any], folder: Path, name: str) -> None:
        """Open the log of one run."""

    def result(self, scorecard: Scorecard, figures: Sequence[Path]) -> None:
        """Scores and pictures of a finished run."""

    def finish(self, *, failed: bool) -> None:
        """Close the log."""


class CsvLogger(Logger):
    """``metrics.csv``: the lines of ``metrics.jsonl`` as a table."""

    def __init__(self) -> None:
        self.folder: Path | None = None

    def start(self, config: Mapping[str, Any], folder: Path, name: str) -> None:
        """Remember the folder."""
        self.folder = folder

    def finish(self, *, failed: bool) -> None:
        """Write the table whole."""
        if self.folder is None or not (self.folder / "metrics.jsonl").exists():
            return
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / "metrics.csv", buffer.getvalue())


class WandbLogger(Logger):
    """Weights & Biases.

    Args:
        mode: ``offline`` (files under the run folder, sent nowhere), ``online`` or ``disabled``.
        project: Project name.
        entity: Team or user, ``None`` for the default.
        group: Group of runs (a sweep, an exploration).
        tags: Labels.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str,
        entity: str | None,
        group: str | None,
        tags: list[str],
    ) -> None:
        if mode not in ("offline", "online", "disabled"):
            raise ConfigError(f"logger.mode must be online, offline or disabled, got '{mode}'")
        self.mode = mode
        self.project = project
        self.entity = entity
        self.group = group
        self.tags = tags
        self.run: Any = None

    def start(self, config: Mapping[str, Any], folder: Path, name: str) -> None:
        """Start the run with its whole config."""
        import wandb

        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            name=f"{name}/{folder.name}",
            job_type=name,
            dir=str(folder),
            config=dict(config),
            mode=self.mode,  # type: ignore[arg-type]  # checked in __init__
            settings=wandb.Settings(silent=True, console="off"),
        )

    def on_epoch_end(self, session: Any, row: Mapping[str, Any]) -> None:
        """Mirror one line."""
        if self.run is not None:
            values = {f"train/{k}": v for k, v in row.items() if isinstance(v, (int, float))}
            self.run.log(values)

    def result(self, scorecard: Scorecard, figures: Sequence[Path]) -> None:
        """Scores beside their baselines, as summary and table; figures as images."""
        if self.run is None:
            return
        import wandb

        baselines: Mapping[str, Mapping[str, float]] = scorecard.facts.get("baselines", {})
        table = wandb.Table(columns=["metric", "value", "baseline", "baseline value"])
        for name, value in scorecard.metrics.items():
            self.run.summary[f"score/{name}"] = value
            others = baselines.get(name) or {"": None}
            if name in baselines:
                self.run.summary[f"trivial/{name}"] = next(iter(baselines[name].values()))
            for label, other in others.items():
                table.add_data(name, value, label, other)
                if other is not None:
                    self.run.summary[f"baseline/{name}/{label}"] = other
        self.run.log({"scorecard": table})
        for path in figures:
            self.run.log({f"figure/{path.stem}": wandb.Image(str(path))})

    def finish(self, *, failed: bool) -> None:
        """Close the run, also after an error."""
        if self.run is not None:
            self.run.finish(exit_code=1 if failed else 0)
            self.run = None


class TensorBoardLogger(Logger):
    """TensorBoard event files in ``tensorboard/`` of the run folder."""

    def __init__(self) -> None:
        self.writer: Any = None

    def start(self, config: Mapping[str, Any], folder: Path, name: str) -> None:
        """Open the writer."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "dev", "logger=tensorboard") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("config", "```json\n" + json.dumps(config, indent=2) + "\n```")

    def on_epoch_end(self, session: Any, row: Mapping[str, Any]) -> None:
        """Mirror one line."""
        if self.writer is not None:
            for key, value in row.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"train/{key}", value, row["step"])

    def result(self, scorecard: Scorecard, figures: Sequence[Path]) -> None:
        """Final scores and figures."""
        if self.writer is None:
            return
        for name, value in scorecard.metrics.items():
            self.writer.add_scalar(f"score/{name}", value)
        import numpy as np
        from PIL import Image

        for path in figures:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.writer.add_image(f"figure/{path.stem}", pixels, dataformats="HWC")

    def finish(self, *, failed: bool) -> None:
        """Flush and close."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

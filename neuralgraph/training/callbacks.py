"""Callbacks: what happens at the end of each epoch besides training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralgraph.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from neuralgraph.training.session import Session


class Callback:
    """Does nothing; children override what they need.

    ``state`` and ``restore`` carry what a resumed run must remember.
    """

    def on_phase_start(self, session: Session, name: str, n_epochs: int, start: int) -> None:
        """A phase begins (or goes on) at epoch ``start`` of ``n_epochs``."""

    def on_epoch_end(self, session: Session, row: Mapping[str, Any]) -> None:
        """An epoch is over; ``row`` is its line of ``metrics.jsonl``."""

    def on_phase_end(self, session: Session, name: str) -> None:
        """A phase is over."""

    def state(self) -> dict[str, Any]:
        """What to keep in a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""


class Progress(Callback):
    """A line in the terminal: phase, epoch, loss, steps per second, time left."""

    def __init__(self, *, every_s: float = 0.2) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("[bold]{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>5.0f}/{task.total:.0f} epochs"),
            TextColumn("loss [cyan]{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            refresh_per_second=1.0 / every_s,
            disable=not self.console.is_terminal,
        )
        self.task: Any = None
        self.seen = 0
        self.began = 0.0

    def on_phase_start(self, session: Session, name: str, n_epochs: int, start: int) -> None:
        """Open a bar for the phase."""
        import time

        self.bar.start()
        self.task = self.bar.add_task(
            name, total=n_epochs, completed=start, loss="…", rate="", visible=True
        )
        self.seen, self.began = session.n_steps, time.perf_counter()

    def on_epoch_end(self, session: Session, row: Mapping[str, Any]) -> None:
        """Advance, with the speed since the phase began."""
        import time

        steps = session.n_steps - self.seen
        rate = steps / max(time.perf_counter() - self.began, 1e-9)
        loss = row.get("loss")
        self.bar.update(
            self.task,
            advance=1,
            loss="" if loss is None else f"{loss:.3e}",
            rate=f"{rate:,.0f} steps/s" if steps > 1 else "",
        )

    def on_phase_end(self, session: Session, name: str) -> None:
        """Leave the finished bar on the screen."""
        self.bar.stop()
        for task in list(self.bar.tasks):
            if self.bar.disable:
                done = f"{name}: loss {task.fields['loss']} {task.fields['rate']}"
                self.console.print(done.rstrip(), highlight=False)
            self.bar.remove_task(task.id)


class EarlyStop(Callback):
    """End a phase when a training number has not improved for a number of epochs.

    Args:
        metric: Key of the epoch's row, smaller is better.
        patience: Epochs without improvement before the phase ends.
        min_delta: Relative improvement that counts.
    """

    def __init__(self, *, metric: str = "loss", patience: int = 10, min_delta: float = 0.0) -> None:
        self.metric = metric
        self.patience = patience
        self.min_delta = min_delta
        self.best = float("inf")
        self.waited = 0

    def on_phase_start(self, session: Session, name: str, n_epochs: int, start: int) -> None:
        """A new phase starts afresh; a resumed one keeps counting."""
        if start == 0:
            self.best, self.waited = float("inf"), 0

    def on_epoch_end(self, session: Session, row: Mapping[str, Any]) -> None:
        """Count, and ask the session to stop."""
        if self.metric not in row:
            raise ConfigError(
                f"early stop watches '{self.metric}', which no epoch records: "
                + nearest(self.metric, row)
            )
        value = float(row[self.metric])
        if value < self.best * (1.0 - self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            session.stop_phase()

    def state(self) -> dict[str, Any]:
        """Best value and epochs waited."""
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue counting."""
        self.best, self.waited = float(state["best"]), int(state["waited"])


class PeriodicEvaluation(Callback):
    """Watch truth metrics while training, into ``evaluation.jsonl``; nothing is fed back.

    Args:
        watch: ``(model, data) -> {name: number}``.
        every: Epochs between two looks.
        path: File of one JSON line per look.
    """

    def __init__(
        self, *, watch: Callable[[Any, Any], Mapping[str, float]], every: int, path: Path
    ) -> None:
        self.watch = watch
        self.every = every
        self.path = path
        self.n_lines = 0

    def on_epoch_end(self, session: Session, row: Mapping[str, Any]) -> None:
        """Append one line."""
        import torch

        if (int(row["epoch"]) + 1) % self.every:
            return
        was_training = session.model.training
        session.model.eval()
        with torch.no_grad():
            values = dict(self.watch(session.model, session.data))
        session.model.train(was_training)
        line = {"phase": row["phase"], "epoch": row["epoch"], "step": row["step"], **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.n_lines += 1

    def state(self) -> dict[str, Any]:
        """Lines written so far: later ones are cut off when a run resumes."""
        return {"n_lines": self.n_lines}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Cut the file to what the checkpoint knew."""
        self.n_lines = int(state["n_lines"])
        cut_lines(self.path, self.n_lines)


class PeriodicFigures(Callback):
    """Draw the state of the training every few epochs; nothing is fed back.

    The label is phase and epoch, so that a resumed run writes the files of a killed one
    again. A figure that cannot be drawn is a warning: it must not end a training.

    Args:
        draw: ``(model, data, label)``.
        every: Epochs between two looks.
    """

    def __init__(self, *, draw: Callable[[Any, Any, str], object], every: int) -> None:
        self.draw = draw
        self.every = every

    def on_epoch_end(self, session: Session, row: Mapping[str, Any]) -> None:
        """Draw, the model in evaluation mode."""
        import logging

        import torch

        if (int(row["epoch"]) + 1) % self.every:
            return
        was_training = session.model.training
        session.model.eval()
        try:
            with torch.no_grad():
                phase = str(row["phase"]).replace(" ", "_")
                self.draw(session.model, session.data, f"{phase}_{int(row['epoch']):05d}")
        except Exception as error:
            logging.getLogger("neuralgraph").warning(
                "no figure in epoch %s: %s: %s", row["epoch"], type(error).__name__, error
            )
        finally:
            session.model.train(was_training)


def cut_lines(path: Path, n_lines: int) -> None:
    """Keep the first ``n_lines`` lines of a file (which may be absent)."""
    from neuralgraph.core.files import write_text

    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(lines[:n_lines]))

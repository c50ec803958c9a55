"""Session: the verbs a training loop is written with.

A loop is a plain function that reads from top to bottom::

    def fit(session, *, n_epochs, learning_rate, batch_size):
        with session.phase("fit", train={"": learning_rate}) as phase:
            for epoch in phase.epochs(n_epochs):
                for batch in session.batches(batch_size):
                    session.step(batch)

Everything around it (validation, callbacks, ``metrics.jsonl``, checkpoints, resuming) happens when
``phase.epochs`` hands out the next epoch. A run that was killed re-enters the same function: phases
that are finished hand out nothing, the interrupted one goes on after its last whole epoch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuralgraph.core.contracts import Dataset, Objective
from neuralgraph.core.errors import CheckpointError, ConfigError, TrainingError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.core.terms import Terms
from neuralgraph.training.adam import Adam
from neuralgraph.training.budget import Budget
from neuralgraph.training.callbacks import Callback, cut_lines
from neuralgraph.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from neuralgraph.training.optimizers import parameter_groups

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def choose_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1`` … or ``auto`` (the GPU where there is one).

    Raises:
        ConfigError: a GPU is asked for and there is none, or the name is unknown.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be cpu, cuda, cuda:N or auto, got '{name}'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name} asks for a GPU and PyTorch sees none on this machine: use device=cpu "
            "(or device=auto), or install a CUDA build of PyTorch"
        )
    return device


class Session:
    """One training of one model on one dataset.

    Args:
        model: Module to train, in place.
        data: Dataset; batches come from ``data.batch(index, horizon)``.
        objective: ``(model, batch) -> Terms``.
        optimizer: Makes an optimiser from parameter groups; Adam by default.
        seed: Seed of the order of batches (and of every draw a loop makes from ``generator``).
        folder: Run folder, or ``None`` to keep nothing on disk (notebooks).
        device: Where model and data live.
        budget: Bounds on epochs, steps and search.
        callbacks: Called at the end of each epoch, in order.
        checkpoint_every: Epochs between two checkpoints; the end of a phase is always kept.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        objective: Objective,
        *,
        optimizer: OptimizerFactory | None = None,
        seed: int = 0,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        budget: Budget | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoint_every: int = 1,
    ) -> None:
        self.device = choose_device(str(device))
        self.model = model.to(self.device)
        self.data = data.to(self.device)
        self.objective = objective
        prepare = getattr(objective, "prepare", None)
        if prepare is not None:  # an objective may take its weights from the training frames
            prepare(self.data)
        self.make_optimizer: OptimizerFactory = optimizer or Adam
        self.seed = seed
        self.generator = torch_generator(seed, "batches")
        self.folder = folder
        self.budget = budget or Budget()
        self.callbacks = list(callbacks)
        self.checkpoint_every = checkpoint_every
        self.n_steps = 0
        self.store: dict[str, Any] = {}
        """Tensors and plain values a loop hands from one phase to the next; kept in checkpoints."""
        self.last_row: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._n_lines = 0
        self._n_phases = 0
        self.pending: dict[str, Any] | None = None
        """Checkpoint that a phase has still to take up, while a run is being resumed."""
        self._phase: Phase | None = None

    # ---- the verbs of a loop -------------------------------------------------------------------

    @contextmanager
    def phase(
        self,
        name: str,
        *,
        train: Mapping[str, float],
        clip: Mapping[str, float] | None = None,
    ) -> Generator[Phase]:
        """A stretch of training in which some parameters move.

        Args:
            name: Shown in the progress line and in ``metrics.jsonl``.
            train: Learning rate by parameter-name prefix (``""`` for all). Parameters that match
                none are frozen inside the phase and thawed after it. An empty mapping trains
                nothing by gradient: for closed-form steps.
            clip: Largest gradient norm by parameter-name prefix.
        """
        before = {p: p.requires_grad for p in self.model.parameters()}
        phase = Phase(self, name, self._n_phases, train, clip or {})
        self._n_phases += 1
        self._phase = phase
        began = time.perf_counter()
        try:
            yield phase
        finally:
            for parameter, flag in before.items():
                parameter.requires_grad_(flag)
            self._phase = None
            key = f"{phase.index}_{name}"
            self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - began

    def batches(
        self, batch_size: int, *, n_batches: int | None = None, horizon: int = 1
    ) -> Iterator[Any]:
        """Batches of training frames, drawn by the session's generator.

        Args:
            batch_size: Frames in a batch.
            n_batches: That many batches of frames drawn independently; ``None`` for one pass over
                all frames in random order.
            horizon: Steps of the future each frame brings along, for rollouts.

        Raises:
            ConfigError: a batch size below 1.
            TrainingError: no frame has so long a future.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        starts = self.data.starts(horizon)
        n = int(starts.numel())
        if n == 0:
            raise TrainingError(
                f"no training frame is followed by {horizon} more in its run: lower time_step"
            )
        if n_batches is None:
            order = torch.randperm(n, generator=self.generator)
            chunks = [order[i : i + batch_size] for i in range(0, n, batch_size)][
                : self.budget.steps(n)
            ]
            for chunk in chunks:
                yield self.data.batch(starts[chunk], horizon)
            return
        n_batches = self.budget.steps(n_batches)
        per_draw = max(1, 65536 // batch_size)
        for first in range(0, n_batches, per_draw):
            count = min(per_draw, n_batches - first)
            drawn = torch.randint(n, (count, batch_size), generator=self.generator)
            for index in starts[drawn]:
                yield self.data.batch(index, horizon)

    def step(self, batch: Any) -> Terms:
        """Loss terms of a batch, their gradient, and one optimiser step.

        Raises:
            TrainingError: a term is not finite; it is named.
        """
        phase = self._phase
        if phase is None or phase.optimizer is None:
            raise ConfigError("session.step needs 'for epoch in phase.epochs(n)' around it")
        terms = self.objective(self.model, batch)
        total = terms.total
        if self.device.type == "cpu" or self.n_steps % 64 == 0:
            self._refuse_non_finite(terms, total)
        for parameter in phase.trained:
            parameter.grad = None
        torch.autograd.backward(total)
        for parameters, largest in phase.clipped:
            torch.nn.utils.clip_grad_norm_(parameters, largest)
        phase.optimizer.step()
        phase.count(terms)
        self.n_steps += 1
        return terms

    def log(self, **values: float | str) -> None:
        """Add numbers or words to the row of the epoch under way."""
        if self._phase is None:
            raise ConfigError("session.log needs a phase around it")
        self._phase.extra.update(values)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report: what this training did that a reader should know."""
        notes = self.store.setdefault("notes", [])
        if sentence not in notes:
            notes.append(sentence)

    def stop_phase(self) -> None:
        """End the phase after this epoch."""
        if self._phase is not None:
            self._phase.stopped = True

    # ---- resuming ------------------------------------------------------------------------------

    def resume_from(self, path: Path) -> bool:
        """Prepare to go on from a checkpoint; False where there is none."""
        if not path.exists():
            return False
        content = load_checkpoint(path)
        load_weights(self.model, content["model"], source=str(path))
        self.pending = content
        self.store = dict(content["store"])
        self.n_steps = int(content["n_steps"])
        self.last_row = dict(content["row"])
        self._n_lines = int(content["n_lines"])
        for callback, state in zip(self.callbacks, content["callbacks"], strict=False):
            if state:
                callback.restore(state)
        if self.folder is not None:
            cut_lines(self.folder / "metrics.jsonl", self._n_lines)
        return True

    def save(self, path: Path, *, phase: Phase | None, epoch: int, done: bool) -> None:
        """Write a checkpoint of everything that decides how training goes on."""
        optimizer = phase.optimizer if phase is not None else None
        save_checkpoint(
            path,
            {
                "model": self.model.state_dict(),
                "optimizer": optimizer.state_dict() if optimizer is not None else None,
                "generator": self.generator.get_state(),
                "phase": phase.index if phase is not None else self._n_phases,
                "phase_name": phase.name if phase is not None else "",
                "epoch": epoch,
                "phase_done": done,
                "n_steps": self.n_steps,
                "n_lines": self._n_lines,
                "row": self.last_row,
                "store": self.store,
                "callbacks": [callback.state() for callback in self.callbacks],
            },
        )

    # ---- inside --------------------------------------------------------------------------------

    def _refuse_non_finite(self, terms: Terms, total: Tensor) -> None:
        if math.isfinite(total.item()):
            return
        for name, value in terms.weighted():
            if not bool(torch.isfinite(value)):
                raise TrainingError(
                    f"the loss term '{name}' is {float(value)} at step {self.n_steps} of phase "
                    f"'{self._phase.name if self._phase else ''}': lower its learning rate or "
                    "weight, clip the gradient, or look at the data of that batch"
                )
        raise TrainingError(f"the weighted sum of the loss terms overflows at step {self.n_steps}")

    def write_row(self, row: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.last_row = row
        self._n_lines += 1
        if self.folder is not None:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


class Phase:
    """Handed out by :meth:`Session.phase`; a loop uses :meth:`epochs` only."""

    def __init__(
        self,
        session: Session,
        name: str,
        index: int,
        train: Mapping[str, float],
        clip: Mapping[str, float],
    ) -> None:
        self.session = session
        self.name = name
        self.index = index
        self.stopped = False
        self.extra: dict[str, float | str] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        groups = parameter_groups(session.model, train) if train else []
        self.rates = [float(group["lr"]) for group in groups]
        """Learning rate of each group at the start, for schedules."""
        trained = {name for group in groups for name in group.pop("names")}
        for parameter_name, parameter in session.model.named_parameters():
            if parameter_name not in trained:
                parameter.requires_grad_(False)
        if groups:
            self.optimizer = session.make_optimizer(groups)
        self.clipped = [
            (group["params"], float(largest))
            for prefix, largest in clip.items()
            for group in parameter_groups(session.model, {prefix: 0.0})
        ]
        self.trained: list[Tensor] = [p for group in groups for p in group["params"]]
        self._sums: dict[str, Tensor | float] = {}
        self._is_cpu = session.device.type == "cpu"
        self._n = 0

    def epochs(self, n_epochs: int) -> Iterator[int]:
        """Epoch numbers still to be done; between two of them everything is kept on disk."""
        session = self.session
        n_epochs = session.budget.epochs(n_epochs)
        first = self._first_epoch()
        if first is None or first >= n_epochs:
            return
        for callback in session.callbacks:
            callback.on_phase_start(session, self.name, n_epochs, first)
        try:
            for epoch in range(first, n_epochs):
                self._sums, self._n, self.extra = {}, 0, {}
                session.model.train()
                yield epoch
                last = epoch == n_epochs - 1
                self._end_epoch(epoch, last)
                if self.stopped:
                    break
        finally:
            for callback in session.callbacks:
                callback.on_phase_end(session, self.name)

    def count(self, terms: Terms) -> None:
        """Add the terms of one step to the epoch's means."""
        sums = self._sums
        for name, value in terms.values.items():
            weight = terms.weights[name]
            # numbers on a CPU; on a GPU nothing may wait for the device
            term = weight * (value.item() if self._is_cpu else value.detach().double())
            sums[name] = sums[name] + term if name in sums else term
        self._n += 1

    def _first_epoch(self) -> int | None:
        session = self.session
        saved = session.pending
        if saved is None:
            return 0
        if self.index < saved["phase"] or (self.index == saved["phase"] and saved["phase_done"]):
            if self.index == saved["phase"]:
                self._same_phase(saved)
                session.generator.set_state(saved["generator"])
                session.pending = None
            return None
        if self.index == saved["phase"]:
            self._same_phase(saved)
            if self.optimizer is not None and saved["optimizer"] is not None:
                self.optimizer.load_state_dict(saved["optimizer"])
            session.generator.set_state(saved["generator"])
            session.pending = None
            return int(saved["epoch"]) + 1
        raise CheckpointError("the loop's phases changed since the checkpoint was written")

    def _same_phase(self, saved: Mapping[str, Any]) -> None:
        if saved["phase_name"] != self.name:
            raise CheckpointError(
                f"the checkpoint stopped in phase '{saved['phase_name']}', this loop calls phase "
                f"{self.index} '{self.name}': resume with the loop the run was started with"
            )

    def _end_epoch(self, epoch: int, last: bool) -> None:
        session = self.session
        row: dict[str, Any] = {"phase": self.name, "epoch": epoch, "step": session.n_steps}
        if self._n:
            means = {name: float(total) / self._n for name, total in self._sums.items()}
            row["loss"] = means.pop("loss")
            row["regul_total"] = math.fsum(means.values())
            row.update(means)
        else:
            row["loss"], row["regul_total"] = self._loss_of_all_frames()
        for name in ("loss", "regul_total"):  # on a GPU most steps are not looked at
            if not math.isfinite(row[name]):
                raise TrainingError(
                    f"{name} is {row[name]} in epoch {epoch} of phase '{self.name}': lower the "
                    "learning rate or a weight, or clip the gradient; the last checkpoint is whole"
                )
        validation = session.data.validation()
        if validation is not None:
            session.model.eval()
            with torch.no_grad():
                row["validation_loss"] = float(session.objective(session.model, validation).loss)
            session.model.train()
        row.update(self.extra)
        session.write_row(row)
        for callback in session.callbacks:
            callback.on_epoch_end(session, row)
        done = last or self.stopped
        if session.folder is not None and (done or (epoch + 1) % session.checkpoint_every == 0):
            path = session.folder / "checkpoints" / "last.pt"
            session.save(path, phase=self, epoch=epoch, done=done)

    def _loss_of_all_frames(self) -> tuple[float, float]:
        """Loss after a closed-form step, over every training frame."""
        session = self.session
        with torch.no_grad():
            everything = session.data.batch(session.data.starts(1), 1)
            terms = session.objective(session.model, everything)
        return float(terms.loss), float(terms.total - terms.loss)

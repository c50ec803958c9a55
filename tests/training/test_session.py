"""The session: phases, parameter groups, resuming, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from neuralgraph.core.errors import CheckpointError, ConfigError, TrainingError
from neuralgraph.core.terms import Terms
from neuralgraph.training.budget import Budget
from neuralgraph.training.callbacks import (
    Callback,
    EarlyStop,
    PeriodicEvaluation,
    PeriodicFigures,
)
from neuralgraph.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from neuralgraph.training.loops import fit
from neuralgraph.training.optimizers import parameter_groups
from neuralgraph.training.session import Session, choose_device
from neuralgraph.training.trainer import train


class Line(nn.Module):
    """y = w x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.w_other = nn.Parameter(torch.zeros(1))
        self.inner = nn.Linear(1, 1)
        nn.init.zeros_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w + self.w_other) * x + self.inner(x)


class Points:
    """y = 3 x on 32 points."""

    spec = None

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, 32)[:, None]
        self.y = 3 * self.x

    def starts(self, horizon: int) -> torch.Tensor:
        return torch.arange(32 - (horizon if horizon > 1 else 0))

    def batch(self, index: torch.Tensor, horizon: int = 1):
        return self.x[index], self.y[index]

    def validation(self):
        return self.x[:4], self.y[:4]

    def to(self, device):
        return self


def objective(model: nn.Module, batch) -> Terms:
    x, y = batch
    return Terms(((model(x) - y) ** 2).mean()).add("size", model.w.abs().sum(), 1e-3)


def session(folder=None, **options) -> Session:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return Session(Line(), Points(), objective, seed=1, folder=folder, **options)


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


KNOBS = {"n_epochs": 4, "learning_rate": 0.05, "batch_size": 8, "clip_norm": None}


def test_fit_learns_and_every_row_holds_loss_regul_total_and_terms(tmp_path):
    s = session(tmp_path / "a")
    train(s, lambda x: fit(x, **{**KNOBS, "n_epochs": 60}))
    found = rows(tmp_path / "a")
    assert found[-1]["loss"] < 1e-2 < found[0]["loss"]
    assert [r["epoch"] for r in found] == list(range(60))
    assert found[0].keys() >= {"phase", "step", "loss", "regul_total", "size", "validation_loss"}
    assert found[-1]["regul_total"] == pytest.approx(found[-1]["size"])


class Killed(Exception):
    pass


class KillAt(Callback):
    """Dies inside an epoch, like a process that is killed."""

    def __init__(self, n_rows: int) -> None:
        self.left = n_rows

    def on_epoch_end(self, session, row) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def two_phases(s: Session) -> None:
    with s.phase("first", train={"w": 0.05}) as phase:
        for _ in phase.epochs(3):
            for batch in s.batches(8):
                s.step(batch)
    with s.phase("closed", train={}) as phase:
        for _ in phase.epochs(1):
            with torch.no_grad():
                s.model.w_other.fill_(float(s.model.w) / 7)
            s.store["seen"] = s.model.w.detach().clone()
    with s.phase("second", train={"": 0.01}) as phase:
        for _ in phase.epochs(3):
            for batch in s.batches(8, n_batches=5):
                s.step(batch)
            with torch.no_grad():
                s.model.inner.bias.add_(1e-3 * s.store["seen"])


@pytest.mark.parametrize("die_after", [1, 2, 3, 4, 5, 6, 7])
def test_a_killed_and_resumed_run_gives_the_same_bytes(tmp_path, die_after):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(session(whole), two_phases)
    with pytest.raises(Killed):
        train(session(broken, callbacks=[KillAt(die_after)]), two_phases)
    train(session(broken, callbacks=[Callback()]), two_phases)
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    a = load_checkpoint(whole / "checkpoints" / "final.pt")
    b = load_checkpoint(broken / "checkpoints" / "final.pt")
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    assert torch.equal(a["generator"], b["generator"])


def test_a_phase_moves_only_its_parameters_and_thaws_the_others_after():
    s = session()
    with s.phase("w only", train={"w": 0.1}) as phase:
        assert not s.model.inner.weight.requires_grad
        for _ in phase.epochs(1):
            s.step(s.data.batch(torch.arange(8)))
    assert float(s.model.w.detach()) != 0 and float(s.model.inner.weight.detach()) == 0
    assert s.model.inner.weight.requires_grad


def test_groups_take_the_longest_prefix_of_whole_name_parts():
    model = Line()
    groups = parameter_groups(model, {"": 1.0, "w": 2.0, "inner.bias": 3.0})
    rate = {name: g["lr"] for g in groups for name in g["names"]}
    assert rate == {"w": 2.0, "w_other": 1.0, "inner.weight": 1.0, "inner.bias": 3.0}
    with pytest.raises(ConfigError, match=r"innr.*did you mean 'inner"):
        parameter_groups(model, {"innr.bias": 1.0})


def test_a_non_finite_term_is_named():
    def bad(model, batch):
        return Terms(model.w.sum() * 0).add("explodes", model.w.sum() / 0, 1.0)

    s = Session(Line(), Points(), bad)
    with torch.no_grad():
        s.model.w.fill_(1.0)
    with (
        pytest.raises(TrainingError, match="'explodes' is inf at step 0 of phase 'p'"),
        s.phase("p", train={"": 0.1}) as phase,
    ):
        for _ in phase.epochs(1):
            s.step(s.data.batch(torch.arange(4)))


def test_early_stop_counts_epochs_and_survives_resuming(tmp_path):
    stop = EarlyStop(patience=2, min_delta=0.5)
    s = session(tmp_path, callbacks=[stop])
    train(s, lambda x: fit(x, **{**KNOBS, "n_epochs": 50, "learning_rate": 1e-6}))
    assert len(rows(tmp_path)) == 3
    again = EarlyStop(patience=2, min_delta=0.5)
    again.restore(stop.state())
    assert (again.best, again.waited) == (stop.best, stop.waited)


def test_periodic_evaluation_writes_and_changes_nothing(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    train(session(a), two_phases)
    watched = PeriodicEvaluation(
        watch=lambda model, data: {"w": float(model.w)}, every=2, path=b / "evaluation.jsonl"
    )
    train(session(b, callbacks=[watched]), two_phases)
    assert len((b / "evaluation.jsonl").read_text().splitlines()) == 2
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def test_periodic_figures_change_nothing_and_a_broken_one_ends_nothing(tmp_path, caplog):
    a, b = tmp_path / "a", tmp_path / "b"
    train(session(a), two_phases)
    labels = []

    def draw(model, data, label):
        assert not model.training
        labels.append(label)
        if len(labels) == 2:
            raise ValueError("no axes")

    train(session(b, callbacks=[PeriodicFigures(draw=draw, every=1)]), two_phases)
    assert len(labels) == len(set(labels)) == len(rows(b))
    assert "ValueError: no axes" in caplog.text
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def test_budget_bounds_epochs_and_steps(tmp_path):
    s = session(tmp_path, budget=Budget(max_epochs=2, max_steps=3))
    train(s, lambda x: fit(x, **KNOBS))
    assert [r["step"] for r in rows(tmp_path)] == [3, 6]


def test_a_step_outside_a_phase_is_refused():
    s = session()
    with pytest.raises(ConfigError, match="phase"):
        s.step(s.data.batch(torch.arange(4)))


def test_the_loop_must_be_the_one_the_run_was_started_with(tmp_path):
    with pytest.raises(Killed):
        train(session(tmp_path, callbacks=[KillAt(2)]), two_phases)
    with pytest.raises(CheckpointError, match=r"'first'.*'fit'"):
        train(session(tmp_path), lambda x: fit(x, **KNOBS))


def test_broken_and_foreign_checkpoints(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="broken"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        load_checkpoint(tmp_path / "none.pt")
    save_checkpoint(path, {"model": nn.Linear(2, 2).state_dict()})
    content = load_checkpoint(path)
    with pytest.raises(CheckpointError, match="another model"):
        load_weights(Line(), content["model"], source=str(path))
    with pytest.raises(CheckpointError, match=r"shape \(2, 2\)"):
        load_weights(nn.Linear(3, 2), content["model"], source=str(path))


def test_a_checkpoint_cannot_run_code(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save(
        {"kind": "checkpoint", "format": 1, "x": Evil()}, tmp_path / "evil.pt", pickle_module=pickle
    )
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "touched").exists()


def test_devices():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="must be cpu, cuda"):
        choose_device("quantum")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="asks for a GPU"):
        choose_device("cuda")

"""RiemannianAdam as an optimiser of the shared trainer, and the schedule of document 003."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from neuralgraph.building import build
from neuralgraph.core.terms import Terms
from neuralgraph.nn.hyperbolic import ManifoldEmbedding, geometry
from neuralgraph.training.callbacks import Callback
from neuralgraph.training.checkpoint import load_checkpoint
from neuralgraph.training.loops import fit
from neuralgraph.training.schedules import exponential_cosine, set_rate
from neuralgraph.training.session import Session
from neuralgraph.training.trainer import train


class Tree(nn.Module):
    """Points of eight leaves, and a plain scale."""

    def __init__(self, manifold: str) -> None:
        super().__init__()
        self.space = geometry(manifold)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        self.table = ManifoldEmbedding(self.space, 8, 2, generator=generator)
        self.scale = nn.Parameter(torch.ones(1))


class Pairs:
    """Distance 2 between siblings and 4 between the others."""

    spec = None

    def __init__(self) -> None:
        self.pair = torch.combinations(torch.arange(8))
        is_sibling = self.pair[:, 0] // 2 == self.pair[:, 1] // 2
        self.goal = 4.0 - 2.0 * is_sibling

    def starts(self, horizon: int) -> torch.Tensor:
        return torch.arange(len(self.pair))

    def batch(self, index: torch.Tensor, horizon: int = 1):
        return self.pair[index], self.goal[index]

    def validation(self):
        return None

    def to(self, device):
        return self


def objective(model: Tree, batch) -> Terms:
    pair, goal = batch
    points = model.table()
    distance = model.scale * model.space.dist(points[pair[:, 0]], points[pair[:, 1]])
    return Terms(((distance - goal) ** 2).mean())


def optimizer():
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = plain(compose("train", ["+experiment=linear_smoke", "optimizer=riemannian_adam"]))
    return build(config["optimizer"], "optimizer")


class Killed(Exception):
    pass


class KillAt(Callback):
    def __init__(self, n_rows: int) -> None:
        self.left = n_rows

    def on_epoch_end(self, session, row) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


KNOBS = {"n_epochs": 12, "learning_rate": 0.1, "batch_size": 7, "clip_norm": 1.0}


@pytest.mark.parametrize("manifold", ["poincare", "lorentz", "euclidean"])
def test_a_killed_and_resumed_run_on_a_manifold_gives_the_same_bytes(tmp_path, manifold):
    made = optimizer()

    def session(name: str, *callbacks: Callback) -> Session:
        (tmp_path / name).mkdir(exist_ok=True)
        return Session(
            Tree(manifold), Pairs(), objective, optimizer=made, seed=1, folder=tmp_path / name,
            callbacks=callbacks,
        )  # fmt: skip

    whole = session("whole")
    first = float(objective(whole.model, whole.data.batch(whole.data.starts(1))).total.detach())
    log = train(whole, lambda s: fit(s, **KNOBS))
    assert log["final_loss"] < 0.5 * first
    with pytest.raises(Killed):
        train(session("broken", KillAt(5)), lambda s: fit(s, **KNOBS))
    train(session("broken", Callback()), lambda s: fit(s, **KNOBS))
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
    assert rows[0] == rows[1]
    a, b = (
        load_checkpoint(tmp_path / name / "checkpoints" / "final.pt")["model"]
        for name in ("whole", "broken")
    )
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    assert "table.point" in a


def test_exponential_cosine_has_the_document_s_numbers_and_restarts():
    rates = [1e-5 * exponential_cosine(t, period=30, floor=0.1) for t in range(61)]
    assert rates[0] == rates[30] == rates[60] == pytest.approx(1e-5)
    for step, value in ((1, 9.68e-6), (15, 3.73e-6), (29, 1.01e-6)):
        assert rates[step] == pytest.approx(value, rel=2e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[:30]))
    half = 0.9 * math.exp(-0.5) * 0.5 * (1 + math.cos(math.pi / 2)) + 0.1
    assert exponential_cosine(15, period=30, floor=0.1) == pytest.approx(half)


def test_the_schedule_sets_the_rate_of_each_group():
    s = Session(Tree("poincare"), Pairs(), objective, optimizer=optimizer(), seed=1)
    with s.phase("x", train={"table": 0.1, "scale": 0.2}) as phase:
        set_rate(phase, 0.5)
        assert phase.optimizer is not None
        assert [g["lr"] for g in phase.optimizer.param_groups] == [0.05, 0.1]

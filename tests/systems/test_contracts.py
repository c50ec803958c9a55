"""What every biology must hold to; systems are discovered, none is named here.

A system is tried at the first experiment whose model it provides, with ``budget=smoke``; an
optional ``tests/systems/NAME/contract.txt`` names another experiment and overrides (one a line).
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest
import torch
import yaml

import neuralgraph.systems

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = [module.name for module in pkgutil.iter_modules(neuralgraph.systems.__path__)]


def overrides_of(system: str) -> list[str]:
    own = ROOT / "tests" / "systems" / system / "contract.txt"
    if own.exists():
        return own.read_text().split()
    for path in sorted((ROOT / "conf/experiment").glob("*.yaml")):
        for line in yaml.safe_load(path.read_text()).get("defaults", []):
            stem = line.get("override /model") if isinstance(line, dict) else None
            target = stem and (ROOT / f"conf/model/{stem}.yaml").read_text()
            if target and f"neuralgraph.systems.{system}." in target:
                return [f"+experiment={path.stem}"]
    raise AssertionError(f"no experiment uses a model of the system '{system}'")


class Tried:
    """One system, composed, simulated and built."""

    def __init__(self, system: str) -> None:
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        from neuralgraph import pipeline
        from neuralgraph.cli import plain
        from neuralgraph.config import CONFIG_FOLDER

        self.overrides = [*overrides_of(system), "budget=smoke"]
        GlobalHydra.instance().clear()
        with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
            self.config = plain(compose("train", self.overrides))
        self.parts = pipeline.compose(self.config)
        self.recording, self.truth = self.parts.simulator.simulate(1)
        self.given = self.parts.simulator.reveal(self.recording, self.truth, **self.config["prior"])
        self.data, self.model = pipeline.cut_and_build(
            self.parts, self.config, self.recording, self.given
        )
        prepare = getattr(self.parts.loss, "prepare", None)
        if prepare is not None:
            prepare(self.data)

    def loss(self, model: torch.nn.Module) -> torch.Tensor:
        return self.parts.loss(model, self.data.batch(self.data.starts(1))).total


@pytest.fixture(scope="module", params=SYSTEMS)
def tried(request: pytest.FixtureRequest) -> Tried:
    return Tried(request.param)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tried, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recording, truth = tried.parts.simulator.simulate(seed)
        recording.save(tmp_path / f"{name}.pt")
        truth.save(tmp_path / f"{name}_truth.pt")
    read = {p.stem: p.read_bytes() for p in tmp_path.iterdir()}
    assert read["a"] == read["b"] != read["c"]
    assert read["a_truth"] == read["b_truth"] != read["c_truth"]


def test_simulation_leaves_the_global_generators_alone(tried):
    import random

    import numpy as np

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    tried.parts.simulator.simulate(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


def test_sizes_agree(tried):
    recording = tried.recording
    assert recording.state.shape == (recording.n_run, recording.n_time, recording.n_var)
    assert len(recording.names) == recording.n_var and recording.units["state"]
    starts = tried.data.starts(1)
    assert starts.numel() > 0
    assert torch.isfinite(tried.loss(tried.model))


def test_every_trained_parameter_receives_a_finite_gradient_that_is_not_zero(tried):
    tried.model.zero_grad()
    tried.loss(tried.model).backward()
    for name, parameter in tried.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name


def test_save_and_load_change_no_prediction(tried, tmp_path):
    from neuralgraph.pipeline import cut_and_build
    from neuralgraph.training.checkpoint import load_checkpoint, load_weights, save_checkpoint

    with torch.no_grad():
        for parameter in tried.model.parameters():
            parameter.add_(0.01)
        before = tried.loss(tried.model)
        save_checkpoint(tmp_path / "x.pt", {"model": tried.model.state_dict()})
        _, fresh = cut_and_build(tried.parts, tried.config, tried.recording, tried.given)
        assert not torch.equal(tried.loss(fresh), before)
        load_weights(fresh, load_checkpoint(tmp_path / "x.pt")["model"], source="x.pt")
        assert torch.equal(tried.loss(fresh), before)


def test_training_from_a_perturbed_start_lowers_the_loss_beyond_the_spread_of_seeds(tried):
    from neuralgraph.pipeline import cut_and_build
    from neuralgraph.training.loops import fit
    from neuralgraph.training.session import Session

    before, after = [], []
    for seed in range(3):
        config = {**tried.config, "training_seed": seed}
        data, model = cut_and_build(tried.parts, config, tried.recording, tried.given)
        session = Session(model, data, tried.parts.loss, seed=seed)
        before.append(float(tried.loss(session.model).detach()))
        fit(session, n_epochs=12, learning_rate=1e-2, batch_size=64, clip_norm=None)
        after.append(float(tried.loss(session.model).detach()))
    assert max(after) < min(before)


def test_training_without_the_truth_gives_the_same_bytes(tried, inside, tmp_path):
    common = ("trainer.progress=false", "evaluation.every=0")
    status, message = inside("train", *tried.overrides, *common, "hydra.run.dir=with")
    assert status == 0, message
    (tmp_path / "with" / "data" / "truth.pt").unlink()
    kept = [o for o in tried.overrides if not o.startswith("simulator.")]
    status, message = inside(
        "train", *kept, *common, "simulator=saved", "simulator.path=with", "hydra.run.dir=without"
    )
    assert status == 0, message
    for name in ("metrics.jsonl", "checkpoints/final.pt"):
        a, b = (tmp_path / run / name for run in ("with", "without"))
        assert a.read_bytes() == b.read_bytes(), name


def test_the_identity_card_is_there(tried):
    system = tried.model.__class__.__module__.split(".")[2]
    card = ROOT / "neuralgraph" / "systems" / system / "README.md"
    assert card.exists() and len(card.read_text()) > 500

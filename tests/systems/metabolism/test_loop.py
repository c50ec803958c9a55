"""The default loop: resumed at any moment it gives the same bytes; what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from neuralgraph.training.checkpoint import load_checkpoint

SMALL = (
    "simulator.n_met=20", "simulator.n_rxn=30", "simulator.n_run=60", "simulator.n_test_run=2",
    "budget=smoke", "trainer.progress=false",
)  # fmt: skip


class Killed(BaseException):
    """A process that is killed asks nobody."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody killed."""
    from neuralgraph import pipeline
    from neuralgraph.config import experiment
    from neuralgraph.run_folder import RunFolder

    config = experiment("metabolism_s", *SMALL)
    path = tmp_path_factory.mktemp("whole")
    folder = RunFolder(path, config, resume=False)
    pipeline.run(config, path)
    folder.finish()
    return config, path


@pytest.mark.parametrize(
    "n_saved", [1, pytest.param(3, marks=pytest.mark.long), pytest.param(5, marks=pytest.mark.long)]
)
def test_killed_after_any_checkpoint_and_resumed_gives_the_same_bytes(
    whole, tmp_path, monkeypatch, n_saved
):
    """1: after the integer decoding; 3: in the gradient phase; 5: after the final checkpoint."""
    from neuralgraph import pipeline
    from neuralgraph.run_folder import RunFolder
    from neuralgraph.training.session import Session

    config, reference = whole
    save, count = Session.save, [0]

    def dying(self, path, **what):
        if count[0] == n_saved:
            raise Killed
        save(self, path, **what)
        count[0] += 1
        if n_saved == 5 and count[0] == 5:
            raise Killed

    monkeypatch.setattr(Session, "save", dying)
    folder = RunFolder(tmp_path, config, resume=False)
    with pytest.raises(Killed):
        pipeline.run(config, tmp_path)
    folder.release()
    monkeypatch.setattr(Session, "save", save)
    assert not (tmp_path / "scorecard.json").exists()

    folder = RunFolder(tmp_path, config, resume=True)
    pipeline.run(config, tmp_path)
    folder.finish()
    rows = [(p / "metrics.jsonl").read_bytes() for p in (reference, tmp_path)]
    assert rows[0] == rows[1]
    finals = [load_checkpoint(p / "checkpoints/final.pt")["model"] for p in (reference, tmp_path)]
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name]), name
    cards = [json.loads((p / "scorecard.json").read_text()) for p in (reference, tmp_path)]
    assert cards[0]["metrics"] == cards[1]["metrics"]
    assert "gradient phase" in cards[0]["facts"]["training"]

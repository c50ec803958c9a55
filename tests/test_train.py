"""The command a user types: folders, errors, resuming, sweeps."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "+experiment=linear_smoke",
    "simulator.n_var=5",
    "simulator.n_run=6",
    "trainer.progress=false",
)

EXPECTED = (
    "scorecard.json", "analysis.log", "metrics.jsonl", "metrics.csv", "config.yaml",
    "provenance.json", "timing.json", "report.html", "run.json", "evaluation.jsonl",
    "checkpoints/final.pt", "checkpoints/last.pt", "data/recording.pt", "data/truth.pt",
    "figures/matrix.png",
)  # fmt: skip


def test_a_run_leaves_everything_it_promises(command, tmp_path):
    done = command("train", *SMALL, "loop.n_epochs=10", "hydra.run.dir=out")
    out = tmp_path / "out"
    assert [name for name in EXPECTED if not (out / name).exists()] == []
    card = json.loads((out / "scorecard.json").read_text())
    assert card["provenance"]["seed"] == 42
    assert card["given"]["prior"] == {"support": False}
    log = dict(line.split(": ", 1) for line in (out / "analysis.log").read_text().splitlines())
    assert float(log["matrix_R2"]) == pytest.approx(card["metrics"]["matrix_R2"], rel=1e-4)
    origin = json.loads((out / "provenance.json").read_text())
    assert origin["versions"]["torch"] and "+experiment=linear_smoke" in origin["command"]
    html = (out / "report.html").read_text()
    assert "data:image/png;base64" in html and 'src="http' not in html
    assert "matrix_R2" in done.stdout and "report" in done.stdout

    again = command("train", *SMALL, "loop.n_epochs=10", "hydra.run.dir=out", check=False)
    assert again.returncode == 1 and "finished run" in again.stderr
    assert "Traceback" not in again.stderr

    before = (out / "scorecard.json").read_bytes()
    command("evaluate", "run=out")
    after = json.loads((out / "scorecard.json").read_text())
    assert after["metrics"] == json.loads(before)["metrics"]
    (out / "report.html").unlink()
    command("report", "run=out")
    assert (out / "report.html").exists()


def test_same_command_same_bytes_and_another_seed_other_bytes(command, tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        command("train", *SMALL, "loop.n_epochs=3", f"seed={seed}", f"hydra.run.dir={folder}")

    def read(folder: str, name: str) -> bytes:
        return (tmp_path / folder / name).read_bytes()

    assert read("a", "metrics.jsonl") == read("b", "metrics.jsonl") != read("c", "metrics.jsonl")
    assert read("a", "scorecard.json") == read("b", "scorecard.json")
    assert read("a", "checkpoints/final.pt") == read("b", "checkpoints/final.pt")


def test_simulator_and_training_seeds_act_apart(command, tmp_path):
    base = (*SMALL, "loop.n_epochs=1", "seed=1")
    for folder, extra in (("a", ()), ("b", ("training_seed=9",)), ("c", ("simulator.seed=9",))):
        command("train", *base, *extra, f"hydra.run.dir={folder}")
    data = [(tmp_path / f / "data/recording.pt").read_bytes() for f in "abc"]
    rows = [(tmp_path / f / "metrics.jsonl").read_bytes() for f in "abc"]
    assert data[0] == data[1] != data[2]
    assert len(set(rows)) == 3


def test_training_without_the_truth_gives_the_same_bytes(command, tmp_path):
    """Simulate, delete the truth, train on what is left."""
    command("train", *SMALL, "loop.n_epochs=3", "hydra.run.dir=with", "evaluation.every=0")
    command("simulate", *SMALL, "hydra.run.dir=data")
    (tmp_path / "data" / "data" / "truth.pt").unlink()
    command(
        "train", "+experiment=linear_smoke", "simulator=saved", "simulator.path=data",
        "loop.n_epochs=3", "hydra.run.dir=without", "evaluation.every=0", "trainer.progress=false",
    )  # fmt: skip
    for name in ("metrics.jsonl", "checkpoints/final.pt"):
        a, b = (tmp_path / run / name for run in ("with", "without"))
        assert a.read_bytes() == b.read_bytes(), name
    card = json.loads((tmp_path / "without" / "scorecard.json").read_text())
    assert "matrix_R2" in card["not_computed"] and "test_R2" in card["metrics"]


def test_a_run_killed_and_resumed_gives_the_same_bytes(command, tmp_path):
    options = (*SMALL, "loop.n_epochs=400", "loop.batch_size=8")
    command("train", *options, "hydra.run.dir=whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "neuralgraph.train", *options, "hydra.run.dir=runs/x/broken"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = tmp_path / "runs/x/broken/checkpoints/last.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    broken = tmp_path / "runs/x/broken"
    assert not (broken / "scorecard.json").exists()

    refused = command("train", *options, "hydra.run.dir=runs/x/broken", check=False)
    assert refused.returncode == 1 and "resume=auto" in refused.stderr
    other = command(
        "train", *SMALL, "loop.n_epochs=401", "loop.batch_size=8",
        "resume=runs/x/broken", check=False,
    )  # fmt: skip
    assert other.returncode == 1 and "loop.n_epochs" in other.stderr

    done = command("train", *options, "resume=auto", "hydra.run.dir=runs/x/unused")
    assert "resuming" in done.stdout and not (tmp_path / "runs/x/unused").exists()
    for name in ("metrics.jsonl", "evaluation.jsonl", "checkpoints/final.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (broken / name).read_bytes(), name
    metrics = [
        json.loads((folder / "scorecard.json").read_text())["metrics"]
        for folder in (tmp_path / "whole", broken)
    ]
    assert metrics[0] == metrics[1]


def test_a_sweep_ends_with_one_summary(command, tmp_path):
    done = command(
        "train", *SMALL, "loop.n_epochs=2", "seed=1,2", "loop.batch_size=32,64",
        "hydra.sweep.dir=sweep", "--multirun",
    )  # fmt: skip
    with (tmp_path / "sweep/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row["seed"] for row in rows} == {"1", "2"}
    with (tmp_path / "sweep/summary_over_seeds.csv").open() as file:
        means = list(csv.DictReader(file))
    assert [row["runs"] for row in means] == ["2", "2"] and float(means[0]["matrix_R2_sd"]) > 0
    first = [float(r["matrix_R2"]) for r in rows if r["loop.batch_size"] == "32"]
    assert float(means[0]["matrix_R2"]) == pytest.approx(sum(first) / 2)
    assert "±" in done.stdout


LINEAR, METABOLISM = "+experiment=linear_smoke", "+experiment=metabolism_s"
MISTAKES = {
    "no experiment": ((), "+experiment=NAME"),
    "unknown experiment": (("+experiment=liner",), "linear_smoke"),
    "misspelt root key": ((LINEAR, "sed=3"), "did you mean 'seed'"),
    "misspelt nested key": ((LINEAR, "loop.n_epoch=3"), "did you mean 'n_epochs'"),
    "added nested key": ((LINEAR, "+loss.coef_L1=3"), "did you mean 'coeff_L1'"),
    "wrong type": ((LINEAR, "loop.n_epochs=ten"), "must be a whole number"),
    "wrong root type": ((LINEAR, "seed=abc"), "seed"),
    "unknown group choice": ((LINEAR, "loop=fits"), "fit"),
    "unknown target": (
        (LINEAR, "loop._target_=neuralgraph.training.loops.fitt"),
        "did you mean 'fit'",
    ),
    "unknown prior": ((LINEAR, "+prior.suport=true"), "did you mean 'support'"),
    "impossible value": ((LINEAR, "simulator.n_edge_per_var=99"), "below n_var"),
    "unwritable folder": ((LINEAR, "hydra.run.dir=/dev/null/x"), "/dev/null"),
    "unknown device": ((LINEAR, "device=abacus"), "cpu, cuda"),
    "unknown precision": ((LINEAR, "precision=half"), "float32"),
    "evaluate nothing": (("evaluate",), "run=DIR"),
    "negative rate": ((LINEAR, "loop.learning_rate=-1"), "0 or above"),
    "no batch": ((LINEAR, "loop.batch_size=0"), "1 or above"),
    "no checkpoint": ((LINEAR, "trainer.checkpoint_every=0"), "at least 1"),
    "one beta": ((LINEAR, "optimizer.betas=[0.9]"), "optimizer"),
    "share above 1": ((LINEAR, "dataset.validation_fraction=1.5"), "[0, 1)"),
    "watch at -1": ((LINEAR, "evaluation.every=-1"), "evaluation.every"),
    "no patience": (
        (LINEAR, "trainer.early_stop.patience=0"),
        "patience must be at least 1",
    ),
    "no closed form": (
        (METABOLISM, "prior.roles=false", "prior.support=false"),
        "loop=metabolism_adam",
    ),
    "no rate above 0": (
        (METABOLISM, "loop.learning_rate_start=-1"),
        "loop.learning_rate_start must be",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_readable_message(inside, tmp_path, name):
    arguments, expected = MISTAKES[name]
    verb = "evaluate" if arguments == ("evaluate",) else "train"
    status, message = inside(verb, *(() if verb == "evaluate" else arguments))
    assert status == 1
    assert expected in message and message.startswith("error: ")
    assert not list(tmp_path.glob("runs/*/*/data")), "refused before any work"


def test_a_run_that_failed_leaves_its_folder_free(inside, tmp_path):
    few = ("+experiment=linear_smoke", "hydra.run.dir=out", "trainer.progress=false")
    status, message = inside("train", *few, "simulator.n_time=2")
    assert status == 1 and "at least 3 frames" in message
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "failed"
    assert inside("train", *few, "simulator.n_run=4", "loop.n_epochs=1")[0] == 0
    card = json.loads((tmp_path / "out/scorecard.json").read_text())
    assert card["metrics"]


def test_simulate_writes_a_table_that_reads_back(command, tmp_path):
    import torch

    from neuralgraph.core.recording import Recording

    command("simulate", *SMALL, "hydra.run.dir=out")
    with (tmp_path / "out/data/series.csv").open() as file:
        rows = list(csv.DictReader(file))
    recording = Recording.load(tmp_path / "out/data/recording.pt")
    assert len(rows) == recording.n_run * recording.n_time
    column = torch.tensor([float(row["x1"]) for row in rows], dtype=torch.float64)
    assert torch.equal(column, recording.state[:, :, 1].flatten())


def test_verbs_on_a_finished_run_refuse_what_they_would_ignore(inside, tmp_path):
    assert inside("train", *SMALL, "loop.n_epochs=1", "hydra.run.dir=out")[0] == 0
    status, message = inside("evaluate", "run=out", "seed=7")
    assert status == 1 and "seed=7 would have no effect" in message


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    from neuralgraph.core.errors import RunFolderError
    from neuralgraph.run_folder import RunFolder

    first = RunFolder(tmp_path / "x", {"a": 1}, resume=False)
    with pytest.raises(RunFolderError, match="another run"):
        RunFolder(tmp_path / "x", {"a": 1}, resume=True)
    first.release()
    second = RunFolder(tmp_path / "x", {"a": 1}, resume=True)
    assert second.resumed
    second.release()


@pytest.mark.parametrize("has_model", [False, True])
def test_only_what_was_trained_can_be_judged_again(tmp_path, has_model):
    """A plan of batches or an identifiability report leaves a finished folder too."""
    from neuralgraph.core.errors import RunFolderError
    from neuralgraph.run_folder import RunFolder

    first = RunFolder(tmp_path / "x", {"a": 1}, resume=False)
    if has_model:
        (tmp_path / "x/checkpoints").mkdir()
    first.finish()
    with pytest.raises(RunFolderError, match="holds a finished run") as caught:
        RunFolder(tmp_path / "x", {"a": 1}, resume=False)
    assert ("neuralgraph.evaluate" in str(caught.value)) == has_model


def test_a_users_own_config_folder_and_loop(command, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "my_loops.py").write_text(
        "def slow(session, *, n_epochs):\n"
        "    with session.phase('mine', train={'': 0.01}) as phase:\n"
        "        for _ in phase.epochs(n_epochs):\n"
        "            for batch in session.batches(64):\n"
        "                session.step(batch)\n"
    )
    (tmp_path / "mine/experiment/own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /experiment/linear_smoke@_global_\n  - _self_\n"
        "name: own\n"
    )
    (tmp_path / "mine/loop").mkdir()
    (tmp_path / "mine/loop/slow.yaml").write_text(
        "_target_: my_loops.slow\n_partial_: true\nn_epochs: 2\n"
    )
    done = command(
        "train", "--config-dir", "mine", "+experiment=own", "loop=slow", "hydra.run.dir=o"
    )
    assert "own" in done.stdout
    row = json.loads((tmp_path / "o/metrics.jsonl").read_text().splitlines()[0])
    assert row["phase"] == "mine"


def test_show_config_and_help_answer_at_once(command):
    shown = command("train", "+experiment=linear_smoke", "--cfg", "job").stdout
    assert "name: linear_smoke" in shown and "coeff_L1" in shown
    text = command("train", "--help").stdout
    assert "+experiment=NAME" in text and "linear_smoke" in text


def test_the_ten_lines_of_the_readme_run(capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("```python")[1].split("```")[0]
    small = '"seed=42", "simulator.n_met=20", "simulator.n_rxn=30", "budget=smoke"'
    assert '"seed=42"' in code
    exec(code.replace('"seed=42"', small), {})
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1


def test_wandb_offline_keeps_config_scores_and_baselines(command, tmp_path, monkeypatch):
    """Nothing is sent; the run is finished, and mirrors what the files hold."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    command("train", *SMALL, "loop.n_epochs=2", "logger=wandb", "hydra.run.dir=out")
    (archive,) = (tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb")
    content = archive.read_bytes()
    for needle in (b"score/matrix_R2", b"trivial/matrix_R2", b"train/loss", b"linear_smoke"):
        assert needle in content, needle
    assert list((tmp_path / "out/wandb").glob("offline-run-*/files/media/images/figure/*.png"))


def test_tensorboard(command, tmp_path):
    command("train", *SMALL, "loop.n_epochs=2", "logger=tensorboard", "hydra.run.dir=out")
    (events,) = (tmp_path / "out/tensorboard").glob("events.*")
    assert b"score/matrix_R2" in events.read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["linear_smoke", "metabolism_s"])
def test_the_same_command_on_a_gpu_agrees_with_the_cpu(command, tmp_path, name):
    size = () if name == "linear_smoke" else ("simulator.n_met=20", "simulator.n_rxn=30")
    for device in ("cpu", "cuda"):
        command(
            "train", f"+experiment={name}", *size, f"device={device}", f"hydra.run.dir={device}"
        )
    cards = [
        json.loads((tmp_path / d / "scorecard.json").read_text())["metrics"]
        for d in ("cpu", "cuda")
    ]
    primary = {"linear_smoke": "matrix_R2", "metabolism_s": "exact_edges_identifiable"}[name]
    assert cards[0][primary] == pytest.approx(cards[1][primary], abs=1e-3)

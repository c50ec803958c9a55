"""A whole run of the learning half, with and without the truth."""

from __future__ import annotations

import json

SMALL = (
    "+experiment=grn_phenotype",
    "budget=smoke",
    "trainer.progress=false",
)
POPULATION = (
    "simulator.sizes_learn=[4]",
    "simulator.n_natural=40",
    "simulator.n_per_phenotype=0",
    "simulator.sizes_test=[6]",
    "simulator.n_test=30",
    "simulator.n_test_per_phenotype=0",
)


def test_training_without_the_truth_gives_the_same_bytes(inside, tmp_path):
    status, message = inside("train", *SMALL, *POPULATION, "hydra.run.dir=with")
    assert status == 0, message
    card = json.loads((tmp_path / "with" / "scorecard.json").read_text())
    for name in ("accuracy_3", "accuracy_structure_only_6", "majority_6", "balanced_accuracy_6"):
        assert 0 <= card["metrics"][name] <= 1
    assert "no test circuit has 10 genes" in card["not_computed"]["accuracy_10"]
    report = (tmp_path / "with" / "report.html").read_text()
    for words in ("Confusion", "Generalisation to larger circuits", "Calibration"):
        assert words in report
    (tmp_path / "with" / "data" / "truth.pt").unlink()
    status, message = inside(
        "train", *SMALL, "simulator=saved", "simulator.path=with", "hydra.run.dir=without"
    )
    assert status == 0, message
    for name in ("metrics.jsonl", "checkpoints/final.pt"):
        a, b = (tmp_path / run / name for run in ("with", "without"))
        assert a.read_bytes() == b.read_bytes(), name
    blind = json.loads((tmp_path / "without" / "scorecard.json").read_text())
    assert "no truth" in blind["not_computed"]["accuracy_3"]


def test_a_misspelt_stage_is_refused_before_any_circuit_is_drawn(inside):
    status, message = inside(
        "train", *SMALL, "loop.stages=[{name: x, n_gene: 3, epochs: 1}]", "hydra.run.dir=x"
    )
    assert status != 0 and "loop.stages[0] must have the keys" in message

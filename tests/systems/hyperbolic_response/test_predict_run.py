"""``neuralgraph.predict`` on a finished run, as a user calls it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

OVERRIDES = (Path(__file__).parent / "contract.txt").read_text().split()


def test_a_run_predicts_names_and_refuses_what_it_does_not_know(inside, tmp_path):
    common = ("budget=smoke", "trainer.progress=false", "hydra.run.dir=out")
    status, message = inside("train", *OVERRIDES, *common)
    assert status == 0, message
    out = tmp_path / "out"
    card = json.loads((out / "scorecard.json").read_text())
    for name in (
        "pearson_delta_additive_lo", "pearson_delta_vs_mean_disjoint", "pds_disjoint_ceiling_hi",
        "mse_top20_de_no_change", "energy_distance_disjoint_perturbed_mean", "residual_gate",
        "pearson_delta_ungated", "n_test_perturbations", "gain_pearson_delta_additive_lo",
    ):  # fmt: skip
        assert name in card["metrics"] or name in card["not_computed"], name
    assert "pearson_delta_no_change" in card["not_computed"]
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert {"forest", "predicted", "rankings", "sensitivity", "embedding"} <= figures
    with (out / "predictions.csv").open() as file:
        held_out = next(csv.DictReader(file))["perturbation"]

    status, message = inside("predict", "checkpoint=out", f"perturbation={held_out}")
    assert status == 0, message
    path = out / "predictions" / f"{held_out}.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    predicted = [float(row["predicted"]) for row in rows]
    assert predicted == sorted(predicted, reverse=True)
    assert all(float(row["low_90"]) < float(row["high_90"]) for row in rows)
    first = path.read_bytes()
    again = ("checkpoint=out/checkpoints/final.pt", f"perturbation={held_out}")
    assert inside("predict", *again)[0] == 0
    assert path.read_bytes() == first

    status, message = inside("predict", "checkpoint=out", "perturbation=G7x")
    assert status == 1 and "did you mean" in message
    status, message = inside("predict", "checkpoint=out")
    assert status == 1 and "perturbation=GENE" in message
    status, message = inside("predict", "perturbation=G7")
    assert status == 1 and "checkpoint=DIR" in message
    status, message = inside("predict", "checkpoint=nowhere", "perturbation=G7")
    assert status == 1 and "no run" in message
    asked = ("checkpoint=out", f"perturbation={held_out}")
    status, message = inside("predict", *asked, "n_top=0")
    assert status == 1 and "1 or above" in message
    status, message = inside("predict", *asked, "n_top=1000")
    assert status == 1 and f"{len(rows)} genes are predicted: lower it" in message
    for name in ("checkpoints/final.pt", "config.yaml"):
        (out / name).rename(tmp_path / "away")
        status, message = inside("predict", *asked)
        assert status == 1 and Path(name).name in message, message
        (tmp_path / "away").rename(out / name)

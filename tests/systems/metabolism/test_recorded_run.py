"""From a user's own CSV files to a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def files(tmp_path):
    """Two runs of a small network as CSV, and its reaction graph with roles but no numbers."""
    import pandas as pd
    from hydra.utils import instantiate

    node = yaml.safe_load((ROOT / "conf/simulator/metabolism_oscillatory.yaml").read_text())
    node.pop("seed")
    node.update(n_met=9, n_rxn=9, n_run=2, n_test_run=0, n_frame=400, dt_min=0.05)
    node["homeostasis"].update(lambda_per_min=[0.0], baseline_mM=[1.0])
    recording, truth = instantiate(node, _convert_="all").simulate(3)
    table = pd.concat(
        pd.DataFrame(recording.state[run].numpy(), columns=list(recording.names)).assign(
            time=recording.time[run].numpy(), run=run
        )
        for run in range(2)
    )
    table.to_csv(tmp_path / "levels.csv", index=False)
    p = truth.parameters
    names = recording.names
    substrates = {(int(m), int(r)) for m, r in zip(p["met_sub"], p["rxn_sub"], strict=True)}
    rows = [
        {
            "metabolite": names[int(m)],
            "reaction": f"r{int(r)}",
            "coefficient": float(s),
            "role": "substrate" if s < 0 else "catalyst",
        }
        for m, r, s in zip(p["met_all"], p["rxn_all"], p["sto_all"], strict=True)
        if (int(m), int(r)) in substrates
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "graph.csv", index=False)
    return tmp_path


def test_own_csv_to_report(files, inside):
    status, message = inside(
        "train", "+experiment=metabolism_textbook", "simulator=metabolism_recorded",
        "simulator.table=levels.csv", "simulator.graph=graph.csv", "simulator.run_column=run",
        "trainer.progress=false", "hydra.run.dir=out",
    )  # fmt: skip
    assert status == 0, message
    card = json.loads((files / "out" / "scorecard.json").read_text())
    assert card["provenance"]["truth"].startswith("none")
    assert "exact_edges" in card["not_computed"]
    assert card["metrics"]["test_R2_one_step"] > 0.99
    assert (files / "out" / "report.html").exists()
    rows = (files / "out" / "stoichiometry.csv").read_text().splitlines()
    assert rows[0].startswith("metabolite,r0,") and len(rows) == 10
    assert len((files / "out" / "reactions.txt").read_text().splitlines()) == 9
    assert "stoichiometry_confidence.csv" in (files / "out" / "report.html").read_text()

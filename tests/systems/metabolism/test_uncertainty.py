from __future__ import annotations

import csv
import math

import pytest
import torch

from neuralgraph.systems.metabolism.uncertainty import (
    log_k_errors,
    read_uncertainty,
    write_rate_constants,
)

TABLE = """parameter,group,status,combination,estimate,standard_error,relative_error,\
precise,unit,note
k(R1),rate constant,determined,,0.1,0.001,0.01,yes,,
k(R2),rate constant,combination,k(R2) + k(R3),0.2,,,,,
k(R3),rate constant,undetermined,,,,,,,does not act on the data
"""


def test_rate_constants_carry_error_interval_and_status(tmp_path):
    assert read_uncertainty(tmp_path) == {}
    (tmp_path / "identifiability.csv").write_text(TABLE)
    known = read_uncertainty(tmp_path)
    names = ("R1", "R2", "R3")
    error = log_k_errors(known, names)
    assert float(error[0]) == pytest.approx(0.01 / math.log(10))
    assert torch.isnan(error[1:]).all()
    path = tmp_path / "rate_constants.csv"
    write_rate_constants(path, names, known, log_k=None, true_log_k=None)
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [r["status"] for r in rows] == ["determined", "combination", "undetermined"]
    assert float(rows[0]["k"]) == pytest.approx(0.1)
    assert float(rows[0]["standard_error"]) == pytest.approx(0.001)
    assert float(rows[0]["k_low_95"]) < 0.1 < float(rows[0]["k_high_95"])
    assert rows[1]["combination"] == "k(R2) + k(R3)" and rows[1]["standard_error"] == ""
    assert rows[2]["k"] == rows[2]["log10_k"] == ""
    true = torch.tensor([-1.0 + 0.02 / math.log(10), 0.0, 0.0])
    write_rate_constants(path, names, known, log_k=torch.tensor([-1.0, -0.7, 0.3]), true_log_k=true)
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert float(rows[0]["error_in_standard_errors"]) == pytest.approx(-2, rel=1e-4)
    assert rows[1]["error_in_standard_errors"] == ""

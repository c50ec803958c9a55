"""Comparison of metrics over the runs of a sweep."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts" / "over_runs.py"
    spec = importlib.util.spec_from_file_location("over_runs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_constant_ratio_has_no_interval_and_equal_metrics_a_ratio_of_one(script):
    other = np.array([1.0, 4.0, 2.0, 8.0])
    found = script.compared(other / 2, other)
    assert found["lower"] == found["runs"] == 4
    assert found["ratio"] == found["ratio_lo"] == found["ratio_hi"] == pytest.approx(0.5)
    assert found["difference"] == pytest.approx(-other.mean() / 2)
    assert found["difference_lo"] < found["difference"] < found["difference_hi"] < 0
    assert (
        script.compared(other, other)["ratio"] == 1 and not script.compared(other, other)["lower"]
    )


def test_the_interval_covers_the_mean_about_as_often_as_it_says(script):
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        low, high = script.interval(rng.standard_normal(20))
        inside += low < 0 < high
    assert 85 <= inside <= 99


def test_runs_without_a_value_are_left_out_and_a_wrong_name_is_refused(script, tmp_path, capsys):
    path = tmp_path / "summary.csv"
    path.write_text("job,seed,a,b\n0,1,1,2\n1,2,,2\n2,3,3,2\n", encoding="utf-8")
    script.main([str(path), "a", "b"])
    assert "lower in 1 of 2 runs" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no column 'c'; it has: job, seed, a, b"):
        script.main([str(path), "a", "c"])

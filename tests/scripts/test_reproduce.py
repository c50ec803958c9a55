"""A claim is compared number by number, and a claim that cannot be checked is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
assert SPEC is not None and SPEC.loader is not None
reproduce = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reproduce)


def test_a_metric_outside_its_tolerance_or_absent_disagrees():
    expected = {
        "near": {"value": 0.9, "tolerance": 0.02},
        "far": {"value": 0.9, "tolerance": 0.02},
        "absent": {"value": 1.0, "tolerance": 0.0},
    }
    lines = reproduce.compare(expected, {"near": 0.919, "far": 0.921})
    assert [line[0] for line in lines] == ["✓", "✗", "✗"]
    assert "not computed" in lines[2]


def test_a_claim_without_tolerance_is_refused(tmp_path):
    folder = tmp_path / "experiments" / "bad"
    folder.mkdir(parents=True)
    (folder / "expected.json").write_text(json.dumps({"metrics": {"a": {"value": 1.0}}}))
    with pytest.raises(SystemExit, match="tolerance"):
        reproduce.claim("bad", tmp_path)
    with pytest.raises(SystemExit, match="known: bad"):
        reproduce.claim("none", tmp_path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*/expected.json")), ids=lambda p: p.parent.name
)
def test_every_claim_of_the_repository_can_be_checked(path):
    content = reproduce.claim(path.parent.name)
    experiment = content.get("experiment", path.parent.name)
    assert (ROOT / "conf" / "experiment" / f"{experiment}.yaml").is_file()
    assert (ROOT / "conf" / "budget" / f"{content['budget']}.yaml").is_file()
    assert isinstance(content["seed"], int)
    assert (path.parent / "README.md").is_file(), "a claim needs its notebook page"

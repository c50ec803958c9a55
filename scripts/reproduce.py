"""Run a claimed experiment again and compare: ``make reproduce EXP=metabolism_s``.

``experiments/<name>/expected.json`` states the claim:

    {
      "seed": 42,
      "budget": "full",
      "overrides": [],
      "metrics": {"stoichiometry_R2": {"value": 0.95, "tolerance": 0.02}}
    }

``tolerance`` is absolute. ``experiment`` may name another experiment file than the folder's name.
The exit status is 0 when every metric agrees, 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"experiment", "seed", "budget", "overrides", "metrics", "note"}


def claim(name: str, root: Path = ROOT) -> dict[str, Any]:
    """Content of ``expected.json``, checked."""
    path = root / "experiments" / name / "expected.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in (root / "experiments").glob("*/expected.json"))
        sys.exit(
            f"experiments/{name}/expected.json is missing; known: {', '.join(known) or 'none'}"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    foreign = set(content) - KEYS
    if foreign or not content.get("metrics"):
        sys.exit(
            f"{path}: expected the keys {sorted(KEYS)} with some metrics, got {sorted(content)}"
        )
    for metric, entry in content["metrics"].items():
        if set(entry) != {"value", "tolerance"}:
            sys.exit(f"{path}: {metric} needs value and tolerance, got {sorted(entry)}")
    return content


def command(name: str, content: Mapping[str, Any], folder: Path) -> list[str]:
    """The run that the claim is about."""
    return [
        sys.executable,
        "-m",
        "neuralgraph.train",
        f"+experiment={content.get('experiment', name)}",
        f"seed={content['seed']}",
        f"budget={content['budget']}",
        *content.get("overrides", []),
        f"hydra.run.dir={folder}",
    ]


def compare(expected: Mapping[str, Mapping[str, float]], got: Mapping[str, float]) -> list[str]:
    """One line for each metric; lines that disagree begin with a cross."""
    lines = []
    for metric, entry in expected.items():
        value = got.get(metric)
        agrees = value is not None and abs(value - entry["value"]) <= entry["tolerance"]
        shown = "not computed" if value is None else f"{value:.6g}"
        lines.append(
            f"{'✓' if agrees else '✗'} {metric}: expected {entry['value']:g} ± "
            f"{entry['tolerance']:g}, got {shown}"
        )
    return lines


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", help="a folder of experiments/ with expected.json")
    name = parser.parse_args().experiment
    content = claim(name)
    with tempfile.TemporaryDirectory(prefix="neuralgraph_reproduce_") as base:
        folder = Path(base) / "run"
        done = subprocess.run(command(name, content, folder), cwd=ROOT)
        if done.returncode:
            sys.exit(f"the run failed with exit status {done.returncode}")
        card = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
    lines = compare(content["metrics"], card["metrics"])
    print("\n" + "\n".join(lines))
    if any(line.startswith("✗") for line in lines):
        sys.exit(f"{name} is not reproduced")
    print(f"{name} is reproduced")


if __name__ == "__main__":
    main()

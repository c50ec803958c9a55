"""A scaffolded system runs at once, and no file that was there before is touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "toy_pathway"
KEPT = ("neuralgraph", "conf", "tests", "docs", "experiments", "scripts", "pyproject.toml")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def call(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository in which a new system has been scaffolded."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "_build")
    for name in KEPT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, folder / name)
    before = digests(folder)
    answer = call("scripts/new_system.py", NAME, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    after = digests(folder)
    assert {path: after.get(path) for path in before} == before, "an existing file was changed"
    return folder


def test_the_smoke_run_of_a_new_system_ends_with_a_report(checkout):
    answer = call(
        "-m", "neuralgraph.train", f"+experiment={NAME}_smoke", "budget=smoke", cwd=checkout
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (card,) = checkout.glob(f"runs/{NAME}_smoke/*/scorecard.json")
    assert json.loads(card.read_text())["provenance"]["name"] == f"{NAME}_smoke"
    assert (card.parent / "report.html").is_file()


def test_a_new_system_has_no_import_of_the_template(checkout):
    created = list((checkout / "neuralgraph" / "systems" / NAME).rglob("*.py"))
    created += list((checkout / "conf").rglob(f"{NAME}*.yaml"))
    assert created
    for path in created:
        text = path.read_text(encoding="utf-8")
        assert "systems.linear" not in text and "linear_smoke" not in text, path


@pytest.mark.long
def test_a_new_system_passes_the_contract_tests(checkout):
    answer = call("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "-k", NAME, cwd=checkout)
    assert answer.returncode == 0, answer.stdout[-3000:]
    assert " passed" in answer.stdout


def test_a_name_that_is_taken_or_no_identifier_is_refused(checkout):
    assert "already" in call("scripts/new_system.py", NAME, cwd=checkout).stderr
    for name in ("Glycolysis", "two words", "class", "3d"):
        answer = call("scripts/new_system.py", name, cwd=checkout)
        assert answer.returncode == 1 and "cannot be" in answer.stderr

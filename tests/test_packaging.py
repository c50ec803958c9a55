"""What a user meets before any science: metadata, quick imports, one copy of the menu, layers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import neuralgraph

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = ("torch", "numpy", "scipy", "pandas", "matplotlib", "scanpy", "wandb", "roadrunner")
VERBS = ("train", "simulate", "evaluate", "report", "fetch")


def locked() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements(*extras: str) -> list[Requirement]:
    project = PROJECT["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def heavy_after(statement: str) -> list[str]:
    code = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return answer.stdout.split("\n")[-2].split()


def test_importing_the_package_imports_nothing_heavy():
    assert heavy_after("import neuralgraph") == []


def test_importing_the_config_imports_nothing_heavy():
    assert heavy_after("import neuralgraph.config") == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_imports_nothing_heavy(verb):
    if not (ROOT / "neuralgraph" / f"{verb}.py").is_file():
        pytest.fail(f"neuralgraph/{verb}.py is missing")
    statement = (
        f"import runpy, sys; sys.argv = ['{verb}', '--help']\n"
        f"try: runpy.run_module('neuralgraph.{verb}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass"
    )
    assert heavy_after(statement) == []


def test_the_lock_satisfies_every_declared_range():
    pins = locked()
    for requirement in requirements("sbml", "dev", "docs"):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version)), requirement


def test_the_lock_is_complete_and_agnostic_of_any_index():
    pins = locked()
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text and "+cpu" not in text and "nvidia" not in text
    assert pins["torch"] == "2.13.0"
    assert all(Version(version) for version in pins.values())


def test_every_third_party_import_is_declared():
    """A module that is imported but not declared works here and fails at the user's."""
    name_of = {
        "sklearn": "scikit-learn",
        "libsbml": "python-libsbml",
        "roadrunner": "libroadrunner",
        "torch_geometric": "torch-geometric",
        "hydra": "hydra-core",
        "yaml": "pyyaml",
        "PIL": "pillow",
        "ot": "pot",
        "cycler": "matplotlib",  # split out of it, and always with it
    }
    declared = {
        canonicalize_name(r.name)
        for r in requirements(*PROJECT["project"]["optional-dependencies"])
    }
    pattern = re.compile(r"^\s*(?:import|from)\s+([A-Za-z_]\w*)[\w.]*(?:\s|$)", re.MULTILINE)
    undeclared: dict[str, str] = {}
    for path in (ROOT / "neuralgraph").rglob("*.py"):
        for line in _import_lines(path):
            match = pattern.match(line)
            if match is None:
                continue
            module = match.group(1)
            if module in sys.stdlib_module_names or module == "neuralgraph":
                continue
            name = canonicalize_name(name_of.get(module, module))
            if name not in declared:
                undeclared[module] = str(path.relative_to(ROOT))
    assert undeclared == {}


def _import_lines(path: Path) -> list[str]:
    import ast

    lines = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            lines += [f"import {alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            lines.append(f"from {node.module} import x")
    return lines


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {neuralgraph.__version__}" in citation
    assert re.search(rf"^## \[(Unreleased|{re.escape(neuralgraph.__version__)})\]", changelog, re.M)


def test_the_menu_goes_into_the_wheel_and_lies_once_in_the_repository():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"conf": "neuralgraph/conf"}
    assert (ROOT / "conf").is_dir() and not (ROOT / "neuralgraph" / "conf").exists()


def test_layers():
    lint = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert lint is not None, "import-linter is not installed: make setup"
    answer = subprocess.run(
        [sys.executable, lint, "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-1000:]


def test_make_names_every_promised_verb():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = "help setup run test test-all check lint types format docs bench reproduce wheel-check"
    for verb in (*verbs.split(), "clean"):
        assert re.search(rf"^{verb}:.*## ", makefile, re.M), f"make {verb} is missing"
    assert ".DEFAULT_GOAL := help" in makefile

"""Shared fixtures: how the tests start a run, and where tests marked ``gpu`` skip."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two workers share the machine, and the same thread count gives the same bytes."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip, with the reason, where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m neuralgraph.VERB …`` as a user would, in an empty folder."""

    def call(verb: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            [sys.executable, "-m", f"neuralgraph.{verb}", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return call


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The same in this process, which is faster: exit status and what stands on stderr."""
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph.cli import guarded

    def call(verb: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"neuralgraph.{verb}", *arguments])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        try:
            guarded(importlib.import_module(f"neuralgraph.{verb}").task)
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        finally:
            GlobalHydra.instance().clear()
        return 0, capsys.readouterr().err

    return call

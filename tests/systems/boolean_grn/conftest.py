"""Fixtures of the learning half; ``learning.py`` beside this file holds what they build."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def learning() -> ModuleType:
    path = Path(__file__).with_name("learning.py")
    spec = importlib.util.spec_from_file_location("grn_learning", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small(learning):
    """Recording, truth and data of a small population."""
    return learning.population()

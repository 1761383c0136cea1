"""Fixtures that every test folder uses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# The same examples in every run: a red test is the fault of the change under test. No deadline: machines are shared.
settings.register_profile("vitdeploy", deadline=None, derandomize=True)
settings.load_profile("vitdeploy")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens, data and weights beside the repository."""
    path = ROOT.parent / "shared"
    if not path.exists():
        pytest.skip("needs the reference material in ../shared, which is not here")
    return path


@pytest.fixture(scope="session")
def fill(shared: Path) -> ModuleType:
    """Deterministic weights and inputs: fill_tensor(key, shape), fill_input(shape, seed)."""
    spec = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""A made-up machine and two small bundles for the tests of benchmarks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bundles import write_tiny_bundle
from tests.latency.fake_benchmark import FakeWorker
from vitdeploy.bundle import Bundle
from vitdeploy.latency import benchmark as module
from vitdeploy.latency import energy
from vitdeploy.machine.energy.meter import Found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Fake workers on a made-up machine, whose settings a test may change."""
    settings: dict[str, Any] = {"processor": "Fast CPU", "cores": 8, "governor": "performance"}
    monkeypatch.setattr(FakeWorker, "alive", 0)
    monkeypatch.setattr(FakeWorker, "started", [])
    monkeypatch.setattr(module, "Worker", FakeWorker)
    monkeypatch.setattr(module, "machine_settings", lambda: dict(settings))
    monkeypatch.setattr(module, "machine_conditions", lambda: {"temperatures_c": {"CPU": 45.5}, "load_average": 0.5})
    monkeypatch.setattr(energy, "find_sensors", lambda: Found([], []))
    return settings


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [write_tiny_bundle(folder / name) for name in ("one", "two")]

"""Benchmarks without time: workers that run nothing, on a machine that is made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vitdeploy.errors import BackendError, MissingDependencyError
from vitdeploy.latency.benchmark import benchmark
from vitdeploy.latency.measurement import Turn
from vitdeploy.latency.report import BenchmarkReport
from vitdeploy.latency.worker import Loaded

MILLISECONDS = {"onnxruntime": 4.0, "openvino": 2.0}


class FakeWorker:
    """Runs nothing; each call takes what MILLISECONDS says, batch times, and every third round twice that."""

    alive = 0
    started: ClassVar[list[tuple[str, str, int, dict[str, Any]]]] = []
    missing: tuple[str, ...] = ("torch",)
    version = "1.0"
    stop_after: int | None = None

    def __init__(self, bundle: Path, runtime: str, batch: int, options: Mapping[str, Any]) -> None:
        self.started.append((bundle.name, runtime, batch, dict(options)))
        if runtime in self.missing:
            raise MissingDependencyError(runtime, needed_for="a test", extra="all")
        name = "openvino" if runtime == "auto" else runtime
        if name not in MILLISECONDS:
            raise BackendError(f"{name} refuses the model")
        FakeWorker.alive += 1
        self.number = 1000 + len(self.started)
        self.seconds = MILLISECONDS[name] * batch / 1000
        self.turns = 0
        facts = {"backend": name, "version": self.version, "device": "CPU", "compute_precision": "fp32", "threads": 2}
        identity = {"bundle": str(bundle), "model": "tiny", "weights": "random", "precision": "fp32"}
        self.loaded = Loaded({**identity, **facts, "reason": "it was asked for"}, 0.5, 0.25)

    def turn(self, calls: int) -> Turn:
        if self.turns == self.stop_after:
            raise KeyboardInterrupt
        self.turns += 1
        each = self.seconds * (2 if self.turns % 3 == 0 else 1)
        return Turn([each] * calls, each * calls, 50_000_000)

    def close(self) -> None:
        FakeWorker.alive -= 1


def run(*args: Any, **kwargs: Any) -> BenchmarkReport:
    """A benchmark of twelve rounds."""
    return benchmark(*args, **{"rounds": 12, "warmup": 0, **kwargs})

"""What a benchmark tells: a table for people, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import write_tiny_bundle
from tests.latency.fake_benchmark import FakeWorker, run
from vitdeploy.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.latency import benchmark as module
from vitdeploy.latency.measurement import Turn

pytestmark = pytest.mark.usefixtures("machine")


def test_the_json_has_a_schema_and_only_json_values(bundles: list[Bundle]) -> None:
    report = run(bundles[0], runtime="all", batch=8)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["schema_version"] == 1
    assert document.keys() == {
        "schema_version",
        "created",
        "vitdeploy",
        "interrupted",
        "rounds",
        "machine",
        "baseline",
        "differences",
        "max_slowdown",
        "passed",
        "failures",
        "candidates",
        "skipped",
    }
    assert document["machine"]["settings"] == {"processor": "Fast CPU", "cores": 8, "governor": "performance"}
    assert document["machine"]["before"] == {"temperatures_c": {"CPU": 45.5}, "load_average": 0.5}
    candidate = document["candidates"][1]
    assert candidate.keys() == {
        "bundle",
        "model",
        "precision",
        "runtime",
        "batch",
        "settings",
        "load_seconds",
        "first_call_seconds",
        "peak_memory_bytes",
        "gpu_memory_bytes",
        "calls",
        "latency_ms",
        "images_per_second",
        "image_seconds",
        "energy",
        "ratio",
    }
    settings = {"version": "1.0", "device": "CPU", "compute_precision": "fp32", "threads": 2, "callers": 1}
    assert candidate["settings"] == settings
    assert candidate["latency_ms"].keys() == {"min", "mean", "max", "p50", "p90", "p95", "p99"}
    assert candidate["latency_ms"]["p50"] == pytest.approx(16.0)
    assert candidate["latency_ms"]["max"] == pytest.approx(32.0)
    assert candidate["calls"] == 12 * 3
    assert candidate["ratio"]["value"] == pytest.approx(0.5)
    assert len(candidate["image_seconds"]) == document["rounds"] == 12


def test_the_csv_has_a_line_for_each_candidate(bundles: list[Bundle]) -> None:
    report = run(bundles, runtime=["onnxruntime", "openvino"])
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [(Path(line["bundle"]).name, line["runtime"]) for line in lines] == [
        ("one", "onnxruntime"),
        ("one", "openvino"),
        ("two", "onnxruntime"),
        ("two", "openvino"),
    ]
    assert [float(line["p50_ms"]) for line in lines] == pytest.approx([4.0, 2.0, 4.0, 2.0])
    assert float(lines[0]["images_per_second"]) == pytest.approx(1000 / (4.0 * 16 / 12))
    assert lines[0]["peak_memory_bytes"] == "50000000"


def test_the_table_tells_settings_conditions_and_what_the_ratio_is(bundles: list[Bundle]) -> None:
    text = str(run(bundles[0], runtime=["onnxruntime", "openvino"]))
    assert "processor Fast CPU; cores 8; governor performance" in text
    assert "openvino: version 1.0; device CPU; compute precision fp32; threads 2; callers 1" in text
    assert "45.5 °C (CPU), load average 0.5" in text
    assert "below 1 is faster" in text
    assert "BUSY" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("one") and "openvino" in line)
    assert line.split()[:4] == ["one", "openvino", "1", "2"]
    assert line.endswith("0.500")


def test_a_busy_or_changing_machine_is_reported(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]
) -> None:
    turn = FakeWorker.turn
    monkeypatch.setattr(module, "machine_conditions", lambda: {"temperatures_c": {}, "load_average": 7.9})

    def change(self: FakeWorker, calls: int) -> Turn:
        machine["governor"] = "powersave"
        return turn(self, calls)

    monkeypatch.setattr(FakeWorker, "turn", change)
    text = str(run(bundles[0], runtime="openvino"))
    assert "BUSY" in text
    assert "changed while measuring: governor was performance and is powersave" in text
    assert "no temperature to read" in text


def test_bundles_of_the_same_name_are_told_apart(bundles: list[Bundle], tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "one")
    assert run([bundles[0], other], runtime="openvino").labels() == [
        f"{bundle.path} on openvino, batch 1" for bundle in (bundles[0], other)
    ]
    assert run(bundles, runtime="openvino").labels() == ["one on openvino, batch 1", "two on openvino, batch 1"]


def test_the_gate_fails_what_is_certainly_slower(bundles: list[Bundle], tmp_path: Path) -> None:
    both = {"runtime": ["openvino", "onnxruntime"], "baseline": "openvino"}
    assert run(bundles[0], **both).passed
    assert run(bundles[0], **both, max_slowdown=2).passed, "at the limit"
    slow = run(bundles[0], **both, max_slowdown=1.9)
    assert slow.failures == ("one on onnxruntime, batch 1 takes 2 (2 to 2) times openvino, allowed are 1.9",)
    assert str(slow).endswith(f"FAILED: {slow.failures[0]}")
    assert slow.to_dict()["failures"] == list(slow.failures)
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(run(bundles[0], runtime="onnxruntime").to_dict()))
    assert str(run(bundles[0], runtime="onnxruntime", baseline=kept, max_slowdown=2.1)).endswith(
        f"passed: nothing certainly takes more than 2.1 times {kept}"
    )


def test_the_gate_passes_nothing_that_it_cannot_judge(bundles: list[Bundle], tmp_path: Path) -> None:
    few = run(bundles, runtime="openvino", rounds=5, max_slowdown=100)
    assert [failure.partition(": ")[2] for failure in few.failures] == [
        "5 rounds, or those of the baseline, are too few for an interval"
    ] * 2
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(run(bundles[0], runtime="openvino").to_dict()))
    both = run(bundles[0], runtime=["openvino", "onnxruntime"], baseline=kept, max_slowdown=100)
    assert both.failures == (
        f"one on onnxruntime, batch 1 cannot be judged: {kept} has no candidate of this runtime and batch",
    )


@pytest.mark.parametrize("limit", [0.0, 0.99, -1.0, float("nan"), float("inf")])
def test_a_gate_below_the_baseline_or_without_one_is_refused(bundles: list[Bundle], limit: float) -> None:
    with pytest.raises(UsageError, match="invalid max_slowdown"):
        run(bundles, runtime="openvino", max_slowdown=limit)
    with pytest.raises(UsageError, match="no baseline to be slower than"):
        run(bundles[0], runtime="openvino", max_slowdown=1)
    assert FakeWorker.alive == 0

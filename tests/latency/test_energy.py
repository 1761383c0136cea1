"""What a benchmark tells of energy, from sensors that are made up; no sensor, no figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.latency.fake_benchmark import FakeWorker, run
from vitdeploy.bundle import Bundle
from vitdeploy.latency import benchmark as module
from vitdeploy.latency import energy
from vitdeploy.latency.energy import EnergySensor
from vitdeploy.latency.measurement import Measurement, Turn
from vitdeploy.latency.report import BenchmarkReport
from vitdeploy.machine.energy.meter import Found, Meter
from vitdeploy.machine.energy.sensor import Counters, Facts, Sensor, Unreadable
from vitdeploy.machine.gpus import Gpu

pytestmark = pytest.mark.usefixtures("machine")


class Draw(Counters):
    """A counter that adds a joule for every reading, and closes once."""

    closed = 0

    def __init__(self, name: str, label: str, update_seconds: float = 0.001, *, broken: bool = False) -> None:
        self.readings = 0.0
        super().__init__(Facts(name, f"what {name} covers", label, update_seconds), self._next, [None])
        self.poll_seconds, self.broken = 3600.0, broken

    def _next(self) -> list[float] | None:
        self.readings += 1.0
        return None if self.broken else [self.readings]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job takes a second, and so does the machine before the run, without waiting for it."""

    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 1.0

    def meter(sensors: list[Sensor]) -> Meter:
        ticks = clock()
        return Meter(sensors, lambda: next(ticks))

    monkeypatch.setattr(energy, "Meter", meter)
    monkeypatch.setattr(energy, "IDLE_SECONDS", 0.0)


def measured(monkeypatch: pytest.MonkeyPatch, sensors: list[Draw], *given: Any, **kwargs: Any) -> BenchmarkReport:
    monkeypatch.setattr(energy, "find_sensors", lambda: Found(sensors, []))
    report = run(*given, **kwargs)
    assert [one.closed for one in sensors] == [1] * len(sensors)
    return report


@pytest.mark.usefixtures("second")
def test_each_sensor_gives_joules_an_image_with_their_interval_and_watts(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = measured(
        monkeypatch,
        [Draw("RAPL", "cpu"), Draw("NVML", "gpu")],
        bundles[0],
        runtime=["onnxruntime", "openvino"],
        batch=8,
    )
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["machine"]["energy_sensors"] == [
        {
            "name": name,
            "covers": f"what {name} covers",
            "label": label,
            "update_seconds": 0.001,
            "idle_watts": 1.0,
        }
        for name, label in (("RAPL", "cpu"), ("NVML", "gpu"))
    ]
    for candidate, milliseconds in zip(document["candidates"], (4.0, 2.0), strict=True):
        assert candidate["energy"].keys() == {"cpu", "gpu"}
        # One watt, and every third round takes twice as long: the median is that of the others.
        assert candidate["energy"]["cpu"] == pytest.approx(
            {
                "joules_per_image": milliseconds / 1000,
                "low": milliseconds / 1000,
                "high": 2 * milliseconds / 1000,
                "watts": 1.0,
            }
        )
    text = str(report)
    (header,) = (line for line in text.splitlines() if line.startswith("bundle"))
    assert header.split()[-7:] == ["cpu", "mJ/image", "W", "gpu", "mJ/image", "W", "ratio"]
    (line,) = (line for line in text.splitlines() if line.startswith("one") and "openvino" in line)
    assert line.split()[-5:] == ["2", "1", "2", "1", "0.500"]
    assert "cpu energy: RAPL, what RAPL covers, everything that runs included; idle before: 1 W" in text
    (first, _) = csv.DictReader(io.StringIO(report.to_csv()))
    assert float(first["gpu_joules_per_image"]) == pytest.approx(0.004)
    assert float(first["cpu_watts"]) == 1.0


def test_without_a_sensor_there_is_no_figure(bundles: list[Bundle]) -> None:
    report = run(bundles[0], runtime="openvino")
    document = report.to_dict()
    assert document["machine"]["energy_sensors"] == []
    assert document["candidates"][0]["energy"] is None
    assert document["candidates"][0]["gpu_memory_bytes"] is None
    for text in (str(report), report.to_csv()):
        assert "energy" not in text
        assert "joules" not in text
        assert "GPU MB" not in text


@pytest.mark.usefixtures("second")
def test_a_sensor_that_tells_nothing_gives_null_and_no_column(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Draw("RAPL", "cpu", broken=True)
    report = measured(monkeypatch, [broken], bundles[0], runtime="openvino")
    document = report.to_dict()
    assert document["machine"]["energy_sensors"][0]["idle_watts"] is None
    assert document["candidates"][0]["energy"] is None
    assert "mJ/image" not in str(report)
    assert "idle before: unknown" in str(report)
    (line,) = csv.DictReader(io.StringIO(report.to_csv()))
    assert line["cpu_joules_per_image"] == ""


def test_rounds_that_a_sensor_missed_do_not_count() -> None:
    settings = {"callers": 2}
    rounds = [Turn([0.1] * 4, 0.2, None, (watts,)) for watts in (5.0, None, 7.0, None, 6.0)]
    one = Measurement("b", "openvino", 2, settings, "tiny", "fp32", 0.5, 0.25, rounds)
    found = one.energy(0)
    assert found is not None
    assert found[1:] == (None, None, 6.0)
    assert found.joules_per_image == pytest.approx(6.0 * 0.2 / 8)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("update", "calls", "warned"), [(0.001, 25, False), (0.1, 250, False), (0.4, 500, True)])
def test_a_slow_sensor_makes_turns_longer_up_to_a_second(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, update: float, calls: int, warned: bool
) -> None:
    report = measured(monkeypatch, [Draw("INA", "board", update)], bundles[0], runtime="openvino")
    assert {len(one.seconds) for one in report.measurements[0].rounds} == {calls}
    assert ("EVERY 0.4 s" in str(report)) == warned


@pytest.mark.usefixtures("second")
def test_an_interrupted_benchmark_closes_its_sensors(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWorker, "stop_after", 3)
    report = measured(
        monkeypatch, [Draw("RAPL", "cpu")], bundles[0], runtime="openvino", rounds=9, on_interrupt="report"
    )
    assert report.interrupted
    assert report.to_dict()["candidates"][0]["energy"]["cpu"]["watts"] == 1.0


def test_a_sensor_that_may_not_be_read_is_told(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    closed = Unreadable("the counters", "root only", "sudo chmod")
    monkeypatch.setattr(energy, "find_sensors", lambda: Found([], [closed]))
    run(bundles[0], runtime="openvino")
    assert "not measured: the counters; what to type: vitdeploy doctor" in caplog.text


def test_the_memory_of_a_gpu_is_that_of_the_candidate(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_gpus", lambda: (Gpu("NVIDIA L4", 89),))
    monkeypatch.setattr(module, "memory_of_processes", lambda: {1001: 300_000_000, 7: 5})
    report = run(bundles[0], runtime=["onnxruntime", "openvino"])
    assert [one["gpu_memory_bytes"] for one in report.to_dict()["candidates"]] == [300_000_000, None]
    header, first, second = (line for line in str(report).splitlines() if line.startswith(("bundle", "one")))
    place = header.index("GPU MB") + len("GPU MB")
    assert [line[:place].split()[-1] for line in (first, second)] == ["300", "-"]


def test_a_turn_is_as_long_as_the_slowest_sensor_needs() -> None:
    sensors = [EnergySensor("a", "b", "cpu", update, None) for update in (0.001, 0.03)]
    assert energy.turn_seconds(0.05, []) == 0.05
    assert energy.turn_seconds(0.05, sensors[:1]) == 0.05
    assert energy.turn_seconds(0.05, sensors) == pytest.approx(0.15)

"""Sensors of energy on machines that are folders of files, and NVML's driver as a small program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy.machine.energy import ina3221, nvml, rapl
from vitdeploy.machine.energy.meter import Meter, find_sensors
from vitdeploy.machine.energy.sensor import Counters, Facts, Power, Sensor, Unreadable

POWERCAP, DRIVERS = "sys/class/powercap", "sys/bus/i2c/drivers"
RANGE = 262143328850


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def zone(number: str, name: str, microjoules: object, end: object = RANGE) -> dict[str, object]:
    folder = f"{POWERCAP}/intel-rapl:{number}"
    return {f"{folder}/name": name, f"{folder}/energy_uj": microjoules, f"{folder}/max_energy_range_uj": end}


def channel(folder: str, number: int, label: str, millivolts: object, milliamperes: object) -> dict[str, object]:
    chip = f"{DRIVERS}/ina3221/{folder}/hwmon/hwmon3"
    return {
        f"{chip}/in{number}_label": label,
        f"{chip}/in{number}_input": millivolts,
        f"{chip}/curr{number}_input": milliamperes,
    }


def sensor(found: Sensor | Unreadable | None) -> Sensor:
    assert isinstance(found, Sensor)
    return found


class Clock:
    """Time that passes only when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Job:
    """A job of two seconds, during which `change` happens to the machine."""

    def __init__(self, clock: Clock, change: Callable[[], object] = lambda: None) -> None:
        self.clock, self.change = clock, change

    def __call__(self) -> str:
        self.clock.now += 2.0
        self.change()
        return "done"


def watts(one: Sensor, change: Callable[[], object] = lambda: None) -> float | None:
    """What a job of two seconds draws, by a meter whose thread is not started."""
    clock = Clock()
    one._clock = clock
    result, (found,) = Meter([one], clock).measure(Job(clock, change))
    assert result == "done"
    return found


# RAPL


def test_packages_and_their_memory_are_added_and_no_part_is_counted_twice(tmp_path: Path) -> None:
    files = {
        **zone("0", "package-0", 5_000_000),
        **zone("0:0", "core", 3_000_000),
        **zone("0:1", "uncore", 1_000_000),
        **zone("0:2", "dram", 7_000_000),
        **zone("1", "package-1", 9_000_000),
        **zone("1:0", "core", 9_000_000),
        **zone("2", "psys", 50_000_000),
        f"{POWERCAP}/intel-rapl-mmio:0/name": "package-0",
        f"{POWERCAP}/intel-rapl-mmio:0/energy_uj": 5_000_000,
        f"{POWERCAP}/intel-rapl/enabled": 1,
    }
    one = sensor(rapl.find(write(tmp_path, files)))
    assert one.facts.name == "RAPL package-0, dram-0, package-1"
    assert one.facts.covers == "the processor's packages and memory (DRAM)"
    every = {name: int(str(value)) + 4_000_000 for name, value in files.items() if name.endswith("energy_uj")}
    assert watts(one, lambda: write(tmp_path, dict(every))) == pytest.approx(3 * 4 / 2)


def test_a_counter_begins_at_zero_after_its_range(tmp_path: Path) -> None:
    one = sensor(rapl.find(write(tmp_path, zone("0", "package-0", RANGE - 1_000_000))))
    assert one.facts.covers == "the processor's packages, without memory"
    assert watts(one, lambda: write(tmp_path, zone("0", "package-0", 5_000_000))) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "after",
    [
        pytest.param({"energy_uj": 5_000_000}, id="stands still, as in a virtual machine"),
        pytest.param({"energy_uj": "0x1f"}, id="no number"),
        pytest.param({"energy_uj": ""}, id="empty"),
        pytest.param({"energy_uj": "-3"}, id="below zero"),
        pytest.param({"energy_uj": "9" * 40}, id="absurd"),
        pytest.param({}, id="gone"),
    ],
)
def test_a_counter_that_tells_nothing_gives_no_figure(tmp_path: Path, after: dict[str, object]) -> None:
    one = sensor(rapl.find(write(tmp_path, zone("0", "package-0", 5_000_000))))
    folder = tmp_path / POWERCAP / "intel-rapl:0"

    def change() -> None:
        (folder / "energy_uj").unlink()
        write(folder, after)

    assert watts(one, change) is None


def test_a_fall_without_a_known_range_is_no_energy(tmp_path: Path) -> None:
    one = sensor(rapl.find(write(tmp_path, zone("0", "package-0", 5_000_000, end="unknown"))))
    assert watts(one, lambda: write(tmp_path, zone("0", "package-0", 1_000_000))) is None
    assert watts(one, lambda: write(tmp_path, zone("0", "package-0", 2_000_000))) == pytest.approx(0.5)


def test_energy_that_passed_while_a_counter_was_gone_is_not_left_out(tmp_path: Path) -> None:
    """A turn that begins with a reading that fails has no figure, though later ones succeed."""
    one = sensor(rapl.find(write(tmp_path, zone("0", "package-0", 5_000_000))))
    (tmp_path / POWERCAP / "intel-rapl:0/energy_uj").unlink()

    def change() -> None:
        write(tmp_path, zone("0", "package-0", 6_000_000))
        one.read()
        write(tmp_path, zone("0", "package-0", 7_000_000))

    assert watts(one, change) is None
    assert watts(one, lambda: write(tmp_path, zone("0", "package-0", 9_000_000))) == pytest.approx(1.0)


def test_counters_that_only_root_may_read_are_told_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path, {**zone("0", "package-0", 1), **zone("0:0", "core", 1), **zone("1", "package-1", 1)})
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    found = find_sensors(root)
    assert found.sensors == []
    (closed,) = found.unreadable
    zones = [f"{root}/{POWERCAP}/intel-rapl:{number}/energy_uj" for number in (0, 1)]
    assert closed.fix == f"sudo chmod a+r {' '.join(zones)}"
    assert "only root" in closed.why


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({}, id="nothing"),
        pytest.param({f"{POWERCAP}/intel-rapl/enabled": 0}, id="the driver without a zone"),
        pytest.param({f"{POWERCAP}/intel-rapl:0/name": "package-0"}, id="a zone without a counter"),
        pytest.param(zone("0", "psys", 1), id="the platform alone"),
        pytest.param(zone("0:0", "dram", 1), id="a subzone without its package"),
        pytest.param(channel("1-0040", 1, "NC", 0, 0), id="a channel that is not connected"),
        pytest.param(channel("1-0040", 1, "VDD_IN", "error", 100), id="a rail that tells nothing"),
        pytest.param({f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_IN"}, id="a label alone"),
    ],
)
def test_where_there_is_no_sensor_none_is_found(tmp_path: Path, files: dict[str, object]) -> None:
    assert find_sensors(write(tmp_path, files)) == ([], [])


# INA3221


def test_the_input_of_a_jetson_orin_nano_is_its_total(tmp_path: Path) -> None:
    files = {
        **channel("1-0040", 1, "VDD_IN", 5000, 1200),
        **channel("1-0040", 2, "VDD_CPU_GPU_CV", 5000, 300),
        **channel("1-0040", 3, "VDD_SOC", 5000, 300),
        f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3/in7_label": "sum of shunt voltages",
        f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3/in7_input": 9000,
        f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3/update_interval": 35,
    }
    (one,) = find_sensors(write(tmp_path, files)).sensors
    assert one.facts == Facts("INA3221 VDD_IN", "the whole module", "board", 0.035)
    assert watts(one) == pytest.approx(6.0)


def test_the_rails_of_a_jetson_without_an_input_are_added_but_for_parts_of_others(tmp_path: Path) -> None:
    files = {
        **channel("1-0040", 1, "VDD_GPU_SOC", 12000, 500),
        **channel("1-0040", 2, "VDD_CPU_CV", 12000, 250),
        **channel("1-0040", 3, "VIN_SYS_5V0", 5000, 800),
        **channel("1-0041", 1, "NC", 0, 0),
        **channel("1-0041", 2, "VDDQ_VDD2_1V8AO", 5000, 200),
    }
    (one,) = find_sensors(write(tmp_path, files)).sensors
    assert one.facts.name == "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert watts(one) == pytest.approx(6.0 + 3.0 + 4.0)
    (tmp_path / DRIVERS / "ina3221/1-0040/hwmon/hwmon3/curr3_input").unlink()
    assert watts(one) is None, "a sum without one of its rails would be too small"


def test_the_input_of_a_jetson_thor_is_its_total(tmp_path: Path) -> None:
    files = {
        **channel("2-0040", 1, "VDD_GPU", 12000, 500),
        **channel("2-0040", 2, "VDD_CPU_SOC_MSS", 12000, 250),
        f"{DRIVERS}/ina238/2-0044/hwmon/hwmon5/power1_input": 41_500_000,
    }
    (one,) = find_sensors(write(tmp_path, files)).sensors
    assert one.facts == Facts("INA238 VIN", "the whole board, at its input", "board", ina3221.UPDATE_SECONDS)
    assert watts(one) == pytest.approx(41.5)


def test_the_files_of_jetpack_4_tell_milliwatts(tmp_path: Path) -> None:
    chip = f"{DRIVERS}/ina3221x/7-0040/iio:device0"
    rails = {0: ("VDD_IN", 4200), 1: ("VDD_CPU_GPU_CV", 900), 2: ("VDD_SOC", 1100)}
    files: dict[str, object] = {f"{chip}/rail_name_{number}": name for number, (name, _) in rails.items()}
    files |= {f"{chip}/in_power{number}_input": power for number, (_, power) in rails.items()}
    (one,) = find_sensors(write(tmp_path, files)).sensors
    assert one.facts.name == "INA3221 VDD_IN"
    assert watts(one) == pytest.approx(4.2)


def test_power_is_integrated_between_its_samples() -> None:
    clock, told = Clock(), iter([4.0, 8.0, 2.0, None, 6.0, 6.0])
    one = Power(Facts("made up", "nothing", "board", 0.1), lambda: next(told), clock)
    readings = []
    for _ in range(6):
        readings.append(one.read())
        clock.now += 0.5
    assert [reading.joules for reading in readings] == pytest.approx([0.0, 3.0, 5.5, 5.5, 5.5, 8.5])
    assert [reading.gaps for reading in readings] == [1, 1, 1, 2, 3, 3]


# NVML


def driver(*answers: str) -> tuple[str, ...]:
    """A driver's probe that prints one answer after another, and then hangs."""
    answer = f"for text in {answers!r}:\n sys.stdin.readline()\n print(text, flush=True)"
    return (sys.executable, "-I", "-c", f"import sys, time\n{answer}\ntime.sleep(60)")


def test_the_energy_of_all_gpus_is_added() -> None:
    first, last = (json.dumps({"millijoules": pair, "milliwatts": None}) for pair in ((1000, 5000), (4000, 9000)))
    one = sensor(nvml.find(driver(first, first, last)))
    try:
        assert one.facts.name == "NVML energy"
        assert one.facts.covers == "the boards of all 2 GPUs"
        assert watts(one) == pytest.approx((3 + 4) / 2)
    finally:
        one.close()


def test_the_power_of_a_gpu_without_a_counter_is_sampled() -> None:
    told = [json.dumps({"millijoules": None, "milliwatts": [power]}) for power in (1, 1, 30_000, 50_000)]
    one = sensor(nvml.find(driver(*told)))
    try:
        assert (one.facts.name, one.facts.covers) == ("NVML power", "the board of the GPU")
        assert watts(one) == pytest.approx(40.0)
    finally:
        one.close()


@pytest.mark.parametrize(
    "answer",
    ['{"millijoules": null, "milliwatts": null}', "NVIDIA-SMI has failed", "[]", '{"millijoules": ["a"]}', ""],
)
def test_a_driver_that_tells_nothing_gives_no_sensor(answer: str) -> None:
    assert nvml.find(driver(answer, answer)) is None
    assert nvml.find((sys.executable, "-c", "raise SystemExit(1)")) is None
    assert nvml.find(("/nowhere/python",)) is None


def test_a_driver_that_hangs_or_loses_a_gpu_gives_no_figure_and_does_not_hang_the_meter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvml, "ANSWER_SECONDS", 0.2)
    two, one_left = '{"millijoules": [1, 2]}', '{"millijoules": [9]}'
    for answers in ((two, two), (two, two, one_left)):
        one = sensor(nvml.find(driver(*answers)))
        try:
            assert watts(one) is None
            assert watts(one) is None, "nor does it come back"
        finally:
            one.close()
        assert one._probe._process.returncode is not None  # type: ignore[attr-defined]


def test_the_probe_of_this_machine_ends_with_the_sensor() -> None:
    one = nvml.find()
    if one is not None:
        assert one.read().gaps == 1
        one.close()
        assert one.read().gaps == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4242, 512\n4243, 100\n4242, 8\n", {4242: 520 * 2**20, 4243: 100 * 2**20}),
        ("4242, [N/A]\n", {}),
        ("No running processes found\n", {}),
        ("", {}),
    ],
)
def test_memory_is_that_of_a_process_on_all_gpus(text: str, found: dict[int, int]) -> None:
    assert nvml.parse_memory(text) == found


# The meter


def test_the_thread_samples_and_ends() -> None:
    values = iter(range(1_000_000))
    one = Counters(Facts("made up", "nothing", "cpu", 0.001), lambda: [float(next(values))], [None])
    one.poll_seconds = 0.001
    with Meter([one]) as meter:
        while next(values) < 50:
            meter.measure(lambda: None)
    assert not any(thread.is_alive() for thread in meter._threads)
    assert one.read().gaps == 1

"""Several builds at once, in processes and in threads: one engine, no timings lost, no logs mixed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import tiny_model, write_tiny_bundle
from tests.tensorrt.fake_tensorrt import Config, World
from vitdeploy import build
from vitdeploy.tensorrt import build as engine_build
from vitdeploy.tensorrt.options import BuildOptions
from vitdeploy.tensorrt.timings import save_timings

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("concurrent_build.py")


def started(bundle: Path, folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that is about to build, and waits for the file `go`."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(bundle), str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    document: dict[str, Any] = json.loads(said)
    return document


def test_four_workers_build_once(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", 2).path
    with ThreadPoolExecutor(4) as pool:
        workers = list(pool.map(lambda _: started(bundle, tmp_path, 0.5), range(4)))
    (tmp_path / "go").touch()
    reports = [answer(worker) for worker in workers]
    assert all(report["passed"] for report in reports)
    assert sorted(report["cached"] for report in reports) == [False, True, True, True]
    assert len((tmp_path / "begun").read_text().splitlines()) == 1
    assert len({report["engine"] for report in reports}) == 1
    assert not list((tmp_path / "cache").glob("*.lock"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_worker_that_is_killed_while_it_builds_leaves_the_work_to_the_next(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", 2).path
    first = started(bundle, tmp_path, 60)
    (tmp_path / "go").touch()
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
    second = started(bundle, tmp_path, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    first.send_signal(signal.SIGKILL)
    report = answer(second)
    assert (report["passed"], report["cached"]) == (True, False)
    first.communicate()


def test_threads_build_once_too(world: World, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: build(bundle), range(4)))
    assert all(report.passed for report in reports)
    assert sum(report.cached for report in reports) == 3
    assert len(world.builds) == 1


def test_what_two_builds_timed_is_kept_of_both(world: World, tmp_path: Path) -> None:
    """The second one begins after the first one read the file and ends before that writes it."""
    timing = tmp_path / "kernels.cache"
    timing.write_bytes(b"earlier")
    world.timing = b"of the second"

    def another(model: bytes) -> None:
        world.while_building = lambda model: None
        engine_build.build(tiny_model(3), BuildOptions(), timing=timing)
        world.timing = b"of the first"

    world.while_building = another
    engine_build.build(tiny_model(2), BuildOptions(), timing=timing)
    assert timing.read_bytes().splitlines() == [b"earlier", b"of the first", b"of the second"]


def test_no_timings_are_lost_by_threads_that_save_at_once(world: World, tmp_path: Path) -> None:
    timing = tmp_path / "kernels.cache"

    def save(number: int) -> None:
        config = Config(world, {})
        config.timed = {f"{number:02}".encode()}
        save_timings(timing, config)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(40)))
    assert timing.read_bytes().splitlines() == [f"{number:02}".encode() for number in range(40)]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kernels.cache"]


def test_timings_of_another_version_are_replaced(world: World, tmp_path: Path) -> None:
    timing = tmp_path / "kernels.cache"
    timing.write_bytes(b"of another version")
    config = Config(world, {})
    config.timed = {b"mine"}
    save_timings(timing, config)
    assert timing.read_bytes() == b"mine"


def test_timings_that_cannot_be_kept_cost_no_engine(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = build(write_tiny_bundle(tmp_path / "b"), timing_cache=tmp_path / "nowhere" / "kernels.cache")
    assert report.passed
    assert "kernel timings are not kept" in caplog.text


def test_each_build_has_a_log_of_its_own_and_the_process_keeps_its_loggers(world: World) -> None:
    models = [tiny_model(batch) for batch in (2, 3, 4, 5)]
    together = threading.Barrier(len(models), timeout=30)
    before = (world.logger.level, world.logger.propagate, logging.getLogger().level)
    during = []

    def meet(model: bytes) -> None:
        together.wait()
        during.append((world.logger.level, world.logger.propagate, logging.getLogger().level))

    world.while_building = meet
    with ThreadPoolExecutor(len(models)) as pool:
        logs = [built.log for built in pool.map(lambda model: engine_build.build(model, BuildOptions()), models)]
    assert logs == [f"[V] choosing kernels for model {zlib.crc32(model)}" for model in models]
    assert set(during) == {before}


def test_what_the_parser_refuses_is_in_the_log_and_in_the_error(world: World) -> None:
    world.refused_operator = "Foo"
    with pytest.raises(engine_build.BuildError, match="an operator of the graph: Foo") as caught:
        engine_build.build(tiny_model(2), BuildOptions())
    assert "[E] In node 3" in caught.value.log

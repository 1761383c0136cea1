"""A check by workers of Ray: the report is that of one process, whatever becomes of a worker.

The fast tests play a cluster in this process; the slow ones start the real one on this machine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vitdeploy
from tests.accuracy.accuracy_cases import photos, prepare
from vitdeploy.accuracy import cluster
from vitdeploy.accuracy.cluster import IMAGES, SHARDS, TRIES, shards_for
from vitdeploy.accuracy.sharded import ShardComputer, ShardReport
from vitdeploy.accuracy.shards import Shard
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, MissingDependencyError, UsageError

pytest.importorskip("onnxruntime")

COUNT = 101


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with bundles `fp32` and `int8` and with `data`, in shards of 16 images."""
    monkeypatch.setattr(cluster, "IMAGES", 16)
    return prepare(tmp_path, monkeypatch, photos(COUNT))


def report(**options: Any) -> str:
    """The JSON of the check."""
    made = vitdeploy.validate(["int8", "fp32"], "data", record=False, runtime="onnxruntime", **options)
    return json.dumps(made.to_dict())


class RayError(Exception):
    """What all errors of Ray are."""


class Lost(BaseException):
    """Ends the process of a worker."""


class PlayedRay(SimpleNamespace):
    """The part of Ray and Ray Data that is used, in this process. `before` is called with the number of each task.

    A task for which it raises `Lost` is tried again by a new actor, as Ray Data does it, for ever.
    """

    def __init__(self, processors: int = 3) -> None:
        super().__init__(exceptions=SimpleNamespace(RayError=RayError))
        self.processors, self.actors, self.tasks, self.ended = processors, [], [], 0
        self.before: Callable[[int], None] = lambda number: None
        self.initialized = False
        self.context = SimpleNamespace(enable_progress_bars=True)
        self.data = SimpleNamespace(
            DataContext=SimpleNamespace(get_current=lambda: self.context),
            ActorPoolStrategy=SimpleNamespace,
            from_items=lambda rows, override_num_blocks: PlayedDataset(self, rows),
        )

    def is_initialized(self) -> bool:
        return self.initialized

    def init(self, **options: Any) -> None:
        self.initialized = True

    def shutdown(self) -> None:
        self.initialized, self.ended = False, self.ended + 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.processors)}


class PlayedDataset:
    """Rows, and what is made of them when they are read."""

    def __init__(self, ray: PlayedRay, rows: list[dict[str, Any]]) -> None:
        self._ray, self._rows = ray, rows

    def map_batches(
        self, kind: type, *, fn_constructor_args: tuple[Any, ...], batch_size: int, num_cpus: int, compute: Any
    ) -> PlayedDataset:
        assert (batch_size, compute.max_tasks_in_flight_per_actor) == (1, 1)
        self._start = lambda: kind(*fn_constructor_args)
        self._ray.actors += [num_cpus] * compute.size
        self._actors = [self._start() for _ in range(compute.size)]
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for place, row in reversed(list(enumerate(self._rows))):
            made = self._try(place % len(self._actors), row["shard"])
            yield {name: values[0] for name, values in made.items()}

    def _try(self, place: int, number: int) -> dict[str, Any]:
        while True:
            self._ray.tasks.append(number)
            try:
                made: dict[str, Any] = self._actors[place]({"shard": np.array([number])})
            except Lost:
                self._actors[place] = self._start()
            else:
                return made


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedRay:
    ray, compute = PlayedRay(), ShardComputer.compute

    def watched(self: ShardComputer, shard: Shard) -> ShardReport:
        ray.before(shard.number)
        return compute(self, shard)

    monkeypatch.setattr(ShardComputer, "compute", watched)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    return ray


def test_the_report_of_workers_is_that_of_one_process_bit_for_bit(place: Path, played: PlayedRay) -> None:
    whole = report(max_drop=1, samples=90, seed=3)
    assert report(max_drop=1, samples=90, seed=3, engine="ray", logits="rows") == whole
    assert sorted(played.tasks) == list(range(6))
    assert len(played.actors) == 3
    assert played.ended == 1
    played.tasks.clear()
    assert report(max_drop=1, samples=90, seed=3, engine="ray", logits="rows", workers=1) == whole
    assert len(played.actors) == 4


def test_threads_are_the_processors_of_a_worker(place: Path, played: PlayedRay) -> None:
    played.processors = 8
    report(engine="ray", logits="rows", threads=2)
    assert played.actors == [2] * 4


def test_a_cluster_that_was_started_by_others_goes_on(place: Path, played: PlayedRay) -> None:
    played.initialized = True
    report(engine="ray", logits="rows")
    assert played.ended == 0


def test_what_ray_prints_is_not_part_of_the_answer(
    place: Path, played: PlayedRay, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def told(number: int) -> None:
        print("(raylet) A worker died")
        seen.append(played.context.enable_progress_bars)

    played.before = told
    command = ["validate", "int8", "fp32", "--data", "data", "--runtime", "onnxruntime", "--logits", "rows"]
    assert main([*command, "--engine", "ray", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["runs"]
    assert "(raylet)" in told.err
    assert set(seen) == {False}
    assert played.context.enable_progress_bars, "as it was, for what else the process does with Ray"


def test_a_worker_that_is_lost_again_and_again_ends_the_check_and_loses_nothing(place: Path, played: PlayedRay) -> None:
    def lost(number: int) -> None:
        if number == 2:
            raise Lost

    played.before = lost
    with pytest.raises(BackendError, match="lost 4 times") as found:
        report(engine="ray", logits="rows")
    assert "in shard 2 of 7" in str(found.value.why)
    assert played.tasks.count(2) == TRIES + 1
    there = {path.parent.name: path.stat().st_mtime_ns for path in Path("rows").rglob("block-*.npz")}
    assert len(there) == 4
    assert not list(Path("rows").glob(".ray-*")), "the tries of one call are not those of the next"
    played.before = lambda number: None
    assert report(engine="ray", logits="rows") == report()
    after = {path.parent.name: path.stat().st_mtime_ns for path in Path("rows").rglob("block-*.npz")}
    assert there.items() <= after.items()


def test_a_worker_that_is_lost_once_is_started_again(place: Path, played: PlayedRay) -> None:
    left = [2, 5, 5]

    def lost(number: int) -> None:
        if number in left:
            left.remove(number)
            raise Lost

    played.before = lost
    assert report(engine="ray", logits="rows") == report()
    assert not left


def test_an_error_of_ray_itself_is_one_of_ours(place: Path, played: PlayedRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PlayedDataset) -> Iterator[dict[str, Any]]:
        raise RayError("The node died.\nSee the logs.")
        yield

    monkeypatch.setattr(PlayedDataset, "iter_rows", broken)
    with pytest.raises(BackendError, match="ray gave up") as found:
        report(engine="ray", logits="rows")
    assert found.value.why == "The node died."


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [(UsageError("no such thing", fix="another"), UsageError, "no such"), (OSError("odd"), BackendError, "a worker")],
)
def test_an_error_of_a_worker_is_told_as_it_is(
    place: Path, played: PlayedRay, error: Exception, kind: type[Exception], words: str
) -> None:
    def fails(number: int) -> None:
        raise error

    played.before = fails
    with pytest.raises(kind, match=words):
        report(engine="ray", logits="rows")
    assert played.ended == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "spark", "logits": "rows"}, "there is no engine 'spark'"),
        ({"engine": "ray"}, "needs a folder"),
        ({"engine": "ray", "logits": "rows", "merge": "rows"}, "exclude each other"),
        ({"engine": "ray", "logits": "rows", "workers": 0}, "invalid --workers 0"),
        ({"engine": "ray", "logits": "rows", "metric": lambda outputs, targets: 0.0}, "workers cannot be given a func"),
    ],
)
def test_what_does_not_go_with_an_engine_is_refused(
    place: Path, played: PlayedRay, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        report(**options)
    assert not played.actors


def test_without_ray_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match="ray is not installed"):
        report(engine="ray", logits="rows")


def test_a_shard_by_an_engine_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["validate", "int8", "--data", "data", "--logits", "rows", "--shard", "0/2", "--engine", "ray"]
    assert main(command) == 2
    assert "--shard and --engine exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "shards"),
    [(1, 1), (IMAGES, 1), (IMAGES + 1, 2), (IMAGES * SHARDS, SHARDS), (IMAGES * SHARDS * 9, SHARDS)],
)
def test_shards_depend_on_the_images_alone(images: int, shards: int) -> None:
    assert shards_for(images) == shards


def workers() -> Iterator[int]:
    """Processes of Ray's actors."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                name = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::MapWorker"):
                yield int(process.name)


@pytest.mark.slow
def test_the_real_cluster_loses_a_worker_and_nothing_else(place: Path) -> None:
    pytest.importorskip("ray")
    whole = report()
    killed: list[int] = []

    def kill_one() -> None:
        end = time.monotonic() + 300
        while not killed and time.monotonic() < end:
            if any(Path("rows").rglob("block-*.npz")):
                for process in list(workers())[:1]:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one)
    thread.start()
    found = report(engine="ray", logits="rows", workers=2)
    thread.join()
    assert found == whole
    assert killed, "no worker could be killed while it computed"

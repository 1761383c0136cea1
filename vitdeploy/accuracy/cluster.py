"""The shards of a check on a cluster of Ray: actors hold the sessions, and each takes one shard after another."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.accuracy.check import Check
from vitdeploy.accuracy.shards import Shard
from vitdeploy.bundle import Bundle
from vitdeploy.data.blobs import url_of
from vitdeploy.errors import BackendError, MissingDependencyError, UsageError, VitDeployError
from vitdeploy.progress import Progress

if TYPE_CHECKING:
    from vitdeploy.accuracy.sharded import ShardComputer

log = logging.getLogger(__name__)

RAY = "ray"
ENGINES = (RAY,)
IMAGES = 1024  # of a shard at most, unless there would be more than `SHARDS`
SHARDS = 1024
_AGAIN = "run the same command again, which goes on where it stopped"
RESTARTS = 3  # of a worker that is lost, and tries of the shard that it had


def shards_for(images: int) -> int:
    """Into how many shards a check of so many images is cut, whatever computes them."""
    return max(1, min(SHARDS, -(-images // IMAGES)))


def check_engine(engine: str, *, data: Any, metric: Any, logits: Any, merge: Any, workers: int | None) -> None:
    """UsageError for an engine that does not exist, and for arguments of `validate` that do not go with one."""
    if engine not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}", fix=f"--engine {' or '.join(ENGINES)}")
    if merge is not None:
        raise UsageError("--engine and --merge exclude each other", why="an engine merges itself", fix="--logits DIR")
    if logits is None:
        raise UsageError(
            "an engine needs a folder for the rows",
            why="every worker writes there what it computes",
            fix="--logits DIR, which all machines can write to",
        )
    if workers is not None and workers < 1:
        raise UsageError(f"invalid --workers {workers}: expected 1 or more", fix="--workers 2")
    for name, value in (("data", data), ("metric", metric)):
        if value is not None and not isinstance(value, (str, Path)):
            raise UsageError(
                f"workers cannot be given a {type(value).__name__} as {name}",
                why="they may run on other machines, and read it themselves",
                fix="give a path",
            )


def compute_on_ray(given: Mapping[str, Any], root: Path, shards: int, workers: int | None) -> None:
    """Compute all shards of a check into `root`; what is there already stays as it is.

    given    arguments of `Check.of`, which are sent to the workers
    workers  actors; None for as many as the cluster has processors for

    A worker that is lost is started again, up to `RESTARTS` times, and goes on with its shard. Raises what
    `validate_shard` raises, BackendError where workers are lost again and again, and MissingDependencyError.
    """
    data = given["data"] if url_of(given["data"]) is not None else Path(given["data"]).absolute()
    given = {**given, "bundle": _paths(given["bundle"]), "baseline": _paths(given["baseline"]), "data": data}
    with _connected() as ray:
        processors = given["options"].threads or 1
        count = workers or int(ray.cluster_resources().get("CPU", 1)) // processors
        kind = ray.remote(num_cpus=processors, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Worker)
        idle = deque(kind.remote(given, root.absolute()) for _ in range(max(1, min(count, shards))))
        left = deque(range(shards))
        busy: dict[Any, Any] = {}
        log.info("%d shards on %d workers of ray", shards, len(idle))
        with Progress("validating shards", shards) as progress:
            while left or busy:
                while left and idle:
                    worker = idle.popleft()
                    busy[worker.compute.remote(left.popleft(), shards)] = worker
                (done, *_), _ = ray.wait(list(busy))
                _raise_ours(ray, done)
                idle.append(busy.pop(done))
                progress.advance()


def _paths(bundles: Any) -> Any:
    """Bundles by their folders, wherever a worker is started."""
    if bundles is None:
        return None
    if isinstance(bundles, (str, Path, Bundle)):
        return Path(bundles.path if isinstance(bundles, Bundle) else bundles).absolute()
    return [_paths(one) for one in bundles]


class _Worker:
    """In a process of its own, perhaps on another machine.

    Sessions are loaded with the first shard: an error then is that of a task, which Ray hands on as it is.
    """

    def __init__(self, given: Mapping[str, Any], root: Path) -> None:
        self._given, self._root = given, root
        self._closing = ExitStack()
        self._computer: ShardComputer | None = None

    def compute(self, number: int, total: int) -> None:
        from vitdeploy.accuracy.sharded import ShardComputer

        if self._computer is None:
            self._computer = ShardComputer(Check.of(**self._given), self._root, self._closing)
        self._computer.compute(Shard(number, total))


def _raise_ours(ray: Any, task: Any) -> None:
    """Raise what a task raised, as an error of ours."""
    try:
        ray.get(task)
    except ray.exceptions.RayActorError as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError(f"a worker of ray was lost more than {RESTARTS} times", why=why, fix=_AGAIN) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VitDeployError):
            raise error.cause from None
        why = f"{type(error.cause).__name__}: {error.cause}"
        raise BackendError("a worker of ray failed", why=why, fix=_AGAIN) from error


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names, or to one on this machine alone, which ends with it."""
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", needed_for="--engine ray", extra="ray") from None
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # ray raises kinds of its own, and of what is below it
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackendError("ray does not start", why=why, fix="check RAY_ADDRESS, or unset it") from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()

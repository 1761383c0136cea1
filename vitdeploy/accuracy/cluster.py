"""The shards of a check on a cluster of Ray: actors of Ray Data hold the sessions, and take one after another."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.accuracy.blocks import cannot_write
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
TRIES = 4  # of a shard whose worker is lost
SHARD, ERROR = "shard", "error"  # columns of the dataset


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

    The numbers of the shards are a dataset of Ray Data, and its actors hold the sessions.

    given    arguments of `Check.of`, which are sent to the workers
    workers  actors; None for as many as the cluster has processors for

    A worker that is lost is started again and goes on with its shard, which is tried `TRIES` times. Raises what
    `validate_shard` raises, BackendError where workers are lost again and again, and MissingDependencyError.
    """
    data = given["data"] if url_of(given["data"]) is not None else Path(given["data"]).absolute()
    given = {**given, "bundle": _paths(given["bundle"]), "baseline": _paths(given["baseline"]), "data": data}
    with _connected() as ray, _counted(root) as tries:
        processors = given["options"].threads or 1
        count = max(1, min(shards, workers or int(ray.cluster_resources().get("CPU", 1)) // processors))
        done = ray.data.from_items(
            [{SHARD: number} for number in range(shards)], override_num_blocks=shards
        ).map_batches(
            _Worker,
            fn_constructor_args=(given, root.absolute(), shards, tries),
            batch_size=1,
            num_cpus=processors,
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        )
        log.info("%d shards on %d workers of ray", shards, count)
        with Progress("validating shards", shards) as progress:
            for row in _rows(ray, done):
                if row[ERROR]:
                    raise pickle.loads(row[ERROR])
                progress.advance()


def _paths(bundles: Any) -> Any:
    """Bundles by their folders, wherever a worker is started."""
    if bundles is None:
        return None
    if isinstance(bundles, (str, Path, Bundle)):
        return Path(bundles.path if isinstance(bundles, Bundle) else bundles).absolute()
    return [_paths(one) for one in bundles]


class _Worker:
    """In a process of its own, perhaps on another machine. Sessions are loaded with the first shard."""

    def __init__(self, given: Mapping[str, Any], root: Path, shards: int, tries: Path) -> None:
        self._given, self._root, self._shards, self._tries = given, root, shards, tries
        self._closing = ExitStack()
        self._computer: ShardComputer | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Which shards, and of each the error as bytes: Ray wraps what is raised in texts of its own."""
        return {SHARD: rows[SHARD], ERROR: [self._error(int(number)) for number in rows[SHARD]]}

    def _error(self, number: int) -> bytes:
        try:
            self._compute(number)
        except VitDeployError as error:
            return pickle.dumps(error)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            return pickle.dumps(BackendError("a worker of ray failed", why=why, fix=_AGAIN))
        return b""

    def _compute(self, number: int) -> None:
        from vitdeploy.accuracy.sharded import ShardComputer

        # Ray Data starts a lost worker again for ever.
        with (self._tries / str(number)).open("ab") as file:
            file.write(b".")
            if file.tell() > TRIES:
                why = f"each time in shard {number} of {self._shards}"
                raise BackendError(f"a worker of ray was lost {TRIES} times", why=why, fix=_AGAIN)
        if self._computer is None:
            self._computer = ShardComputer(Check.of(**self._given), self._root, self._closing)
        self._computer.compute(Shard(number, self._shards))


@contextlib.contextmanager
def _counted(root: Path) -> Iterator[Path]:
    """A folder beside the shards, in which the tries of this call are counted."""
    with cannot_write(root):
        root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".ray-", dir=root, ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name).absolute()


def _rows(ray: Any, done: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a dataset as they are ready; BackendError where Ray gives up."""
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError("ray gave up", why=why, fix=_AGAIN) from error


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names, or to one on this machine alone, which ends with it."""
    # What Ray says of its own actors is of no use here; a variable that is set stays as it is.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        name = (error.name or "ray").partition(".")[0]
        raise MissingDependencyError(name, needed_for="--engine ray", extra="ray") from None
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # ray raises kinds of its own, and of what is below it
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackendError("ray does not start", why=why, fix="check RAY_ADDRESS, or unset it") from error
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray tells that a worker is lost
            yield ray
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
        if mine:
            ray.shutdown()

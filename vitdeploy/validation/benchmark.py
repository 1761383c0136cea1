"""How fast is this bundle here? Candidates take turns, each in a process of its own."""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, UsageError, VitDeployError
from vitdeploy.runtime.backends import Options, backend_names, find_backend
from vitdeploy.validation.baseline import Own, find_baseline
from vitdeploy.validation.benchmark_report import BenchmarkReport
from vitdeploy.validation.latency import Candidate, Measurement, Turn
from vitdeploy.validation.settings import differences, machine_conditions, machine_settings
from vitdeploy.validation.worker import Worker

log = logging.getLogger(__name__)

ALL = "all"
SECONDS, WARMUP_SECONDS = 10.0, 1.0
# Long enough for a call to find its caches warm again, short enough for many rounds.
TURN_SECONDS, TURN_CALLS = 0.05, 1000
PROGRESS_SECONDS = 5.0

# Of `Session.describe`: what says which candidate it is, not how it runs.
_IDENTITY = ("bundle", "model", "weights", "bundle_precision", "backend", "reason")

Result = TypeVar("Result")


def benchmark(
    bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
    *,
    runtime: str | Sequence[str] = "auto",
    batch: int | Sequence[int] | None = None,
    seconds: float | None = None,
    rounds: int | None = None,
    warmup: float = WARMUP_SECONDS,
    baseline: str | Path | None = None,
    allow_different: bool = False,
    **options: Any,
) -> BenchmarkReport:
    """Measures one or several bundles on one or several runtimes and batches.

    runtime          names of runtimes, `auto`, or `all` that are installed and can run the bundle
    batch            images a call; None means the batch of the bundle, or 1 where that is dynamic
    seconds, rounds  how long to measure: until the first round that ends after `seconds`, or so many rounds, or what
                     comes first; 10 seconds where neither is given
    warmup           seconds of calls of each candidate that do not count
    baseline         what ratios are taken to: a runtime, one of the bundles, or the JSON file of an earlier run
    allow_different  compare with an earlier run even if its settings were different
    options          `threads`, `streams` (so many callers at once), `precision`, `device`: see `vitdeploy.load`

    A round gives each candidate one turn, in random order, so that what slows the machine down slows all of them; a
    turn is as many calls as fit into 50 ms. Each candidate is loaded in a process of its own and fed with the
    reference inputs of its bundle.

    Raises UsageError for options that do not fit, for a fixed batch other than `batch` and for an earlier run under
    different settings, and what `load` raises; of `all` runtimes those that cannot run the bundle are left out.
    """
    with Benchmark(
        bundle,
        runtime=runtime,
        batch=batch,
        seconds=seconds,
        rounds=rounds,
        warmup=warmup,
        baseline=baseline,
        allow_different=allow_different,
        **options,
    ) as run:
        run.measure()
        return run.report()


class _Running(NamedTuple):
    """A candidate, the process that runs it, and how many calls make its turn."""

    candidate: Candidate
    worker: Worker
    calls: int

    def measurement(self, rounds: Sequence[Turn]) -> Measurement:
        loaded = self.worker.loaded
        return Measurement(
            **vars(self.candidate),
            model=loaded.describe["model"],
            bundle_precision=loaded.describe["bundle_precision"],
            load_seconds=loaded.load_seconds,
            first_call_seconds=loaded.first_call_seconds,
            rounds=rounds,
        )


class Benchmark:
    """A benchmark that may be stopped: `measure` fills it round by round, `report` tells what there is so far.

    Takes what `benchmark` takes. A context manager, which ends the processes of the candidates.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
        *,
        runtime: str | Sequence[str] = "auto",
        batch: int | Sequence[int] | None = None,
        seconds: float | None = None,
        rounds: int | None = None,
        warmup: float = WARMUP_SECONDS,
        baseline: str | Path | None = None,
        allow_different: bool = False,
        **options: Any,
    ) -> None:
        given = [bundle] if isinstance(bundle, (Bundle, str, Path)) else list(bundle)
        self._bundles = [one if isinstance(one, Bundle) else Bundle.open(one) for one in given]
        self._runtimes = list(dict.fromkeys([runtime] if isinstance(runtime, str) else runtime))
        batches = [batch] if batch is None or isinstance(batch, int) else list(dict.fromkeys(batch))
        if not (self._bundles and self._runtimes and batches):
            raise UsageError("there is nothing to measure", fix="at least one bundle, one runtime and one batch")
        for name in self._runtimes:
            if name not in ("auto", ALL):
                find_backend(name)
        Options(**options)
        self._options = {
            key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
        }
        self._seconds, self._rounds, self._warmup = seconds, rounds, warmup
        if seconds is None and rounds is None:
            self._seconds = SECONDS
        _check_duration(self._seconds, rounds, warmup)
        self._batches = {one.path: _batches_of(one, batches) for one in self._bundles}
        paths = [str(one.path) for one in self._bundles]
        self._baseline = find_baseline(None if baseline is None else str(baseline), paths, backend_names())
        self._allow_different = allow_different
        self._differences: list[str] = []
        self._running: list[_Running] = []
        self._complete: list[list[Turn]] = []  # round by round, in the order of `_running`
        self._skipped: list[dict[str, str]] = []
        self._machine, self._before = machine_settings(), machine_conditions()
        self._processes = ExitStack()

    def __enter__(self) -> Benchmark:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.close()

    @property
    def measured(self) -> bool:
        """Whether there is a complete round to report."""
        return bool(self._complete)

    def measure(self) -> None:
        """Loads every candidate, warms it up, checks that it may be compared, and measures."""
        for bundle in self._bundles:
            for name in self._resolve(bundle):
                self._load(bundle, name)
        if not self._running:
            reasons = "; ".join(f"{skip['runtime']}: {skip['reason']}" for skip in self._skipped)
            raise BackendError("no runtime here can run this", why=reasons, fix="vitdeploy doctor")
        self._check_baseline()
        log.info("measuring %d candidates …", len(self._running))
        turns = [partial(one.worker.turn, one.calls) for one in self._running]
        told = begin = time.perf_counter()
        for number, results in enumerate(interleave(turns, seconds=self._seconds, rounds=self._rounds), 1):
            self._complete.append(results)
            if time.perf_counter() - told >= PROGRESS_SECONDS:
                told = time.perf_counter()
                limit = f" of {self._seconds:g}" if self._seconds else ""
                log.info("measuring: %d rounds, %.0f%s s", number, told - begin, limit)

    def report(self, *, interrupted: bool = False) -> BenchmarkReport:
        """What was measured so far; there has to be a complete round, see `measured`."""
        turns = zip(*self._complete, strict=True)
        measurements = [one.measurement(each) for one, each in zip(self._running, turns, strict=True)]
        return BenchmarkReport(
            measurements=measurements,
            ratios=self._baseline.ratios(measurements) if self._baseline else [None] * len(measurements),
            baseline=self._baseline.name if self._baseline else None,
            differences=self._differences,
            machine=self._machine,
            before=self._before,
            after=machine_conditions(),
            changed=differences(self._machine, machine_settings()),
            skipped=self._skipped,
            interrupted=interrupted,
        )

    def _resolve(self, bundle: Bundle) -> list[str]:
        """The runtimes by name; `auto` is found out in a process that ends, since it tries and verifies several."""
        names: list[str] = []
        for name in self._runtimes:
            if name == ALL:
                names += backend_names()
            elif name == "auto":
                log.info("choosing a runtime for %s …", bundle.path)
                worker = Worker(bundle.path, name, self._batches[bundle.path][0], self._options)
                names.append(worker.loaded.describe["backend"])
                worker.close()
            else:
                names.append(name)
        return list(dict.fromkeys(names))

    def _load(self, bundle: Bundle, runtime: str) -> None:
        path = bundle.path
        for batch in self._batches[path]:
            log.info("loading %s on %s, batch %d …", path, runtime, batch)
            try:
                worker = Worker(path, runtime, batch, self._options)
                self._processes.callback(worker.close)
                calls = warm_up(worker.turn, self._warmup)
            except VitDeployError as error:
                if ALL not in self._runtimes or runtime in self._runtimes:
                    raise
                log.info("leaving %s out: %s", runtime, error.what)
                self._skipped.append({"bundle": str(path), "runtime": runtime, "reason": error.what})
                return
            facts = worker.loaded.describe
            settings = {key: value for key, value in facts.items() if key not in _IDENTITY}
            settings["callers"] = self._options.get("streams", 1)
            self._running.append(_Running(Candidate(str(path), runtime, batch, settings), worker, calls))

    def _check_baseline(self) -> None:
        candidates = [one.candidate for one in self._running]
        if self._baseline is None and len({one.runtime for one in candidates}) > 1:
            self._baseline = Own(None, candidates[0].runtime)
        if self._baseline is None:
            return
        self._differences = self._baseline.check(candidates, self._machine)
        if self._differences and not self._allow_different:
            raise UsageError(
                f"{self._baseline.name} was measured under different settings",
                why="; ".join(self._differences),
                fix="the same settings, or --allow-different to compare all the same",
            )


def interleave(
    turns: Sequence[Callable[[], Result]],
    *,
    seconds: float | None,
    rounds: int | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[list[Result]]:
    """Complete rounds until `seconds` have passed or there are `rounds`; at least one.

    Each takes every turn once, in a new random order (the same in every run); its results are in the order of `turns`.
    """
    chance = random.Random(0)
    begin = clock()
    for number in itertools.count(1):
        order = chance.sample(range(len(turns)), len(turns))
        results = {index: turns[index]() for index in order}
        yield [results[index] for index in range(len(turns))]
        if number == rounds or (seconds is not None and clock() - begin >= seconds):
            return


def warm_up(turn: Callable[[int], Turn], seconds: float, clock: Callable[[], float] = time.perf_counter) -> int:
    """Calls for at least `seconds`, then says how many calls of a caller fill a turn."""
    begin, latest = clock(), turn(1).seconds
    while clock() - begin < seconds:
        latest = turn(1).seconds
    return min(TURN_CALLS, max(1, int(TURN_SECONDS / median(latest))))


def _batches_of(bundle: Bundle, wanted: Sequence[int | None]) -> list[int]:
    fixed = bundle.manifest.inputs[0].shape[0]
    batches = []
    for batch in wanted:
        if batch is None:
            batch = fixed if isinstance(fixed, int) else 1
        if batch < 1:
            raise UsageError(f"a batch of {batch} images cannot be measured", fix="--batch 1 or more")
        if isinstance(fixed, int) and batch != fixed:
            raise UsageError(
                f"{bundle.path} cannot be measured with batch {batch}",
                why=f"it was exported for batches of exactly {fixed}",
                fix=f"--batch {fixed}, or vitdeploy export --batch dynamic",
            )
        batches.append(batch)
    return batches


def _check_duration(seconds: float | None, rounds: int | None, warmup: float) -> None:
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"{seconds} is no time to measure", fix="--seconds 10")
    if rounds is not None and rounds < 1:
        raise UsageError(f"{rounds} rounds measure nothing", fix="--rounds 20")
    if not 0 <= warmup < math.inf:
        raise UsageError(f"{warmup} is no time to warm up", fix="--warmup 1")

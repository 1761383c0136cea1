"""Measuring the latency of bundles: candidates take turns, each in a process of its own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, UsageError, VitDeployError
from vitdeploy.latency.baseline import Own, find_baseline
from vitdeploy.latency.energy import start_meter, turn_seconds
from vitdeploy.latency.measurement import Candidate, Measurement, Turn
from vitdeploy.latency.report import BenchmarkReport
from vitdeploy.latency.turns import TURN_SECONDS, interleave, warm_up
from vitdeploy.latency.worker import Worker
from vitdeploy.machine.energy.meter import Meter
from vitdeploy.machine.energy.nvml import memory_of_processes
from vitdeploy.machine.gpus import read_gpus
from vitdeploy.machine.settings import differences, machine_conditions, machine_settings
from vitdeploy.progress import Progress
from vitdeploy.runtime.backends import backend_names, find_backend, full_name
from vitdeploy.runtime.options import Options

log = logging.getLogger(__name__)

ALL = "all"
SECONDS, WARMUP_SECONDS = 10.0, 1.0

# Keys of `Session.describe` that identify a candidate; the others are its settings.
_IDENTITY = ("bundle", "model", "weights", "precision", "backend", "reason")


@checked_arguments
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
    max_slowdown: float | None = None,
    on_interrupt: Literal["raise", "report"] = "raise",
    threads: int | None = None,
    num_requests: int | None = None,
    compute_precision: str | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    untrusted: bool | None = None,
) -> BenchmarkReport:
    """Measure one or several bundles on one or several runtimes and batches.

    A round gives each candidate one turn, in random order, so that what slows the machine down slows all of them; a
    turn is as many calls as fit into 50 ms, or longer where the machine has a slow sensor of energy. Each candidate is
    loaded in a process of its own and fed with the reference inputs of its bundle.

    Args:
        bundle: One or several bundles, or their folders.
        runtime: Names of runtimes, `auto`, or `all` for those that are installed and can run the bundle.
        batch: Images a call; None for the batch of the bundle, or 1 where that is dynamic.
        seconds: Time after which no further round begins; 10 where neither `seconds` nor `rounds` is given.
        rounds: Number of rounds after which the benchmark ends; with `seconds`, whichever comes first.
        warmup: Seconds of calls of each candidate that are not measured.
        baseline: The baseline of the ratios: a runtime, one of the bundles, or the JSON file of an earlier run.
        allow_different: Whether to compare with an earlier run even if its settings were different.
        max_slowdown: The gate: the report fails where a candidate takes more than so many times the time of its
            baseline. The whole 95 % interval of the ratio has to be above, so that no disturbance fails it by chance.
        on_interrupt: Whether Ctrl-C raises KeyboardInterrupt, or ends the benchmark with a `report` of the complete
            rounds; without a complete round it always raises.
        threads: Threads of computation, see `vitdeploy.load`.
        num_requests: Number of callers at the same time.
        compute_precision: `fp32`, `bf16` or `fp16`, see `vitdeploy.load`.
        device: What computes, see `vitdeploy.load`.
        cache: Folder of compiled models, see `vitdeploy.load`.
        checkpoint: File with the weights, for the runtime `torch`.
        untrusted: Whether the bundle is a stranger's, see `vitdeploy.load`.

    Returns:
        The report: latency, throughput, load time and memory of every candidate, and ratios; energy where the machine
        has a sensor of it.

    Raises:
        UsageError: Options do not fit, `max_slowdown` has no baseline to be held against, the batch is not the fixed
            one, or an earlier run had different settings.
        BundleError: A bundle is damaged or altered, or contradicts itself.
        BackendError: A runtime refuses the model; with `all`, such runtimes are left out.
    """
    given = [bundle] if isinstance(bundle, (Bundle, str, Path)) else list(bundle)
    bundles = [one if isinstance(one, Bundle) else Bundle.open(one) for one in given]
    runtimes = list(dict.fromkeys(map(full_name, [runtime] if isinstance(runtime, str) else runtime)))
    batches = [batch] if batch is None or isinstance(batch, int) else list(dict.fromkeys(batch))
    if not (bundles and runtimes and batches):
        raise UsageError("there is nothing to measure", fix="give at least one bundle, one runtime and one batch")
    for name in runtimes:
        if name not in ("auto", ALL):
            find_backend(name)
    options = Options(
        threads=threads,
        num_requests=num_requests,
        compute_precision=compute_precision,
        device=device,
        cache=cache,
        checkpoint=checkpoint,
        untrusted=untrusted,
    )
    if seconds is None and rounds is None:
        seconds = SECONDS
    _check_duration(seconds, rounds, warmup)
    if max_slowdown is not None and not 1 <= max_slowdown < math.inf:
        raise UsageError(f"invalid max_slowdown {max_slowdown:g}: expected 1 or more", fix="--max-slowdown 1.1")
    paths = [str(one.path) for one in bundles]
    base = find_baseline(None if baseline is None else full_name(str(baseline)), paths, backend_names())
    plans = [_Plan(one, runtimes, _batches_of(one, batches)) for one in bundles]
    chosen = {key: str(value) if isinstance(value, Path) else value for key, value in options.given().items()}
    machine, before = machine_settings(), machine_conditions()
    complete: list[list[Turn]] = []  # round by round, in the order of `running`
    interrupted = False
    with ExitStack() as processes:
        meter, sensors = start_meter(processes)
        length = turn_seconds(TURN_SECONDS, sensors)
        running, skipped = _start(plans, chosen, _Warmup(warmup, length), processes)
        candidates = [one.candidate for one in running]
        if base is None and len({one.runtime for one in candidates}) > 1:
            base = Own(None, candidates[0].runtime)
        different = base.check(candidates, machine) if base else []
        if base is None and max_slowdown is not None:
            raise UsageError(
                "there is no baseline to be slower than",
                why="one candidate of each batch is measured",
                fix="--baseline FILE with the --json of an earlier run, or give the other bundle as well",
            )
        if base and different and not allow_different:
            raise UsageError(
                f"{base.name} was measured under different settings",
                why="; ".join(different),
                fix="use the same settings, or add --allow-different to compare all the same",
            )
        try:
            _measure(running, meter, complete, seconds=seconds, rounds=rounds)
        except KeyboardInterrupt:
            if on_interrupt == "raise" or not complete:
                raise
            interrupted = True
        memory = memory_of_processes() if read_gpus() else {}
    measurements = [
        one.measurement(turns, memory.get(one.worker.number))
        for one, turns in zip(running, zip(*complete, strict=True), strict=True)
    ]
    return BenchmarkReport(
        measurements=measurements,
        ratios=base.ratios(measurements) if base else [None] * len(measurements),
        baseline=base.name if base else None,
        differences=different,
        machine=machine,
        before=before,
        after=machine_conditions(),
        changed=differences(machine, machine_settings()),
        skipped=skipped,
        interrupted=interrupted,
        sensors=sensors,
        turn_seconds=length,
        max_slowdown=max_slowdown,
    )


class _Plan(NamedTuple):
    """What is to be measured of one bundle."""

    bundle: Bundle
    runtimes: Sequence[str]
    batches: Sequence[int]

    def resolve(self, options: Mapping[str, Any]) -> list[str]:
        """The runtimes by name; `auto` is found out in a process that ends, since it tries and verifies several."""
        names: list[str] = []
        for name in self.runtimes:
            if name == ALL:
                names += backend_names()
            elif name == "auto":
                log.info("choosing a runtime for %s …", self.bundle.path)
                worker = Worker(self.bundle.path, name, self.batches[0], options)
                names.append(worker.loaded.describe["backend"])
                worker.close()
            else:
                names.append(name)
        return list(dict.fromkeys(names))


class _Running(NamedTuple):
    """A candidate, the process that runs it, and how many calls make its turn."""

    candidate: Candidate
    worker: Worker
    calls: int

    def measurement(self, rounds: Sequence[Turn], gpu_memory_bytes: int | None) -> Measurement:
        loaded = self.worker.loaded
        return Measurement(
            **vars(self.candidate),
            model=loaded.describe["model"],
            precision=loaded.describe["precision"],
            load_seconds=loaded.load_seconds,
            first_call_seconds=loaded.first_call_seconds,
            rounds=rounds,
            gpu_memory_bytes=gpu_memory_bytes,
        )

    def turn(self, meter: Meter) -> Turn:
        """A turn, and what the machine draws meanwhile."""
        turn, watts = meter.measure(partial(self.worker.turn, self.calls))
        return turn._replace(watts=watts)


class _Warmup(NamedTuple):
    """Seconds of calls that do not count, and seconds that a turn is to last."""

    seconds: float
    turn_seconds: float


def _start(
    plans: Sequence[_Plan], options: Mapping[str, Any], warmup: _Warmup, processes: ExitStack
) -> tuple[list[_Running], list[dict[str, str]]]:
    """Every candidate, loaded and warm, and which of `all` runtimes were left out; `processes` will end them."""
    running: list[_Running] = []
    skipped: list[dict[str, str]] = []
    for plan in plans:
        for runtime in plan.resolve(options):
            try:
                for batch in plan.batches:
                    running.append(_load(plan.bundle.path, runtime, batch, options, warmup, processes))
            except VitDeployError as error:
                if ALL not in plan.runtimes or runtime in plan.runtimes:
                    raise
                log.info("leaving %s out: %s", runtime, error.what)
                skipped.append({"bundle": str(plan.bundle.path), "runtime": runtime, "reason": error.what})
    if not running:
        reasons = "; ".join(f"{skip['runtime']}: {skip['reason']}" for skip in skipped)
        raise BackendError("no runtime of this machine can run the bundle", why=reasons, fix="vitdeploy doctor")
    return running, skipped


def _load(
    path: Path, runtime: str, batch: int, options: Mapping[str, Any], warmup: _Warmup, processes: ExitStack
) -> _Running:
    log.info("loading %s on %s, batch %d …", path, runtime, batch)
    worker = Worker(path, runtime, batch, options)
    processes.callback(worker.close)
    calls = warm_up(worker.turn, warmup.seconds, turn_seconds=warmup.turn_seconds)
    settings = {key: value for key, value in worker.loaded.describe.items() if key not in _IDENTITY}
    settings["callers"] = options.get("num_requests", 1)
    return _Running(Candidate(str(path), runtime, batch, settings), worker, calls)


def _measure(
    running: Sequence[_Running],
    meter: Meter,
    complete: list[list[Turn]],
    *,
    seconds: float | None,
    rounds: int | None,
) -> None:
    """Appends round after round to `complete`, so that an interrupt leaves those that were."""
    what = f"measuring {len(running)} candidate{'' if len(running) == 1 else 's'}"
    log.info("%s …", what)
    turns = [partial(one.turn, meter) for one in running]
    begin = time.perf_counter()
    total = math.ceil(seconds) if seconds else rounds
    with Progress(f"{what}, {'seconds' if seconds else 'rounds'}", total) as progress:
        for results in interleave(turns, seconds=seconds, rounds=rounds):
            complete.append(results)
            done = min(int(time.perf_counter() - begin), total or 0) if seconds else len(complete)
            if done > progress.done:
                progress.advance(done - progress.done)


def _batches_of(bundle: Bundle, wanted: Sequence[int | None]) -> list[int]:
    fixed = bundle.manifest.inputs[0].shape[0]
    batches = []
    for batch in wanted:
        if batch is None:
            batch = fixed if isinstance(fixed, int) else 1
        if batch < 1:
            raise UsageError(f"invalid batch {batch}: expected 1 or more images", fix="--batch 1")
        if isinstance(fixed, int) and batch != fixed:
            raise UsageError(
                f"{bundle.path} cannot be measured with batch {batch}",
                why=f"it was exported for batches of exactly {fixed}",
                fix=f"--batch {fixed}, or export it with --batch dynamic",
            )
        batches.append(batch)
    return batches


def _check_duration(seconds: float | None, rounds: int | None, warmup: float) -> None:
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"invalid seconds {seconds:g}: expected a number above 0", fix="--seconds 10")
    if rounds is not None and rounds < 1:
        raise UsageError(f"invalid rounds {rounds}: expected 1 or more", fix="--rounds 20")
    if not 0 <= warmup < math.inf:
        raise UsageError(f"invalid warmup {warmup:g}: expected 0 or more seconds", fix="--warmup 1")

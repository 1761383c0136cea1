"""One candidate of a benchmark in a process of its own, so that its memory, threads and crashes affect no other."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdeploy.errors import BackendError, VitDeployError
from vitdeploy.latency.measurement import Turn
from vitdeploy.runtime.frames import raised_there, told
from vitdeploy.runtime.isolated import GIGABYTES, SECONDS, limit
from vitdeploy.runtime.isolated_child import limit_memory
from vitdeploy.runtime.options import is_untrusted

# The search path is the parent's, so that the child runs the same vitdeploy and the same runtimes.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from vitdeploy.latency.worker import serve; serve()"


class Loaded(NamedTuple):
    """What loading gave: `Session.describe()`, seconds of `vitdeploy.load` (import included) and of the first call."""

    describe: dict[str, Any]
    load_seconds: float
    first_call_seconds: float


class Worker:
    """The parent's end. `loaded` is known after the constructor; `turn` runs calls; `close` ends the process.

    `options` are keywords of `vitdeploy.load`. With `num_requests` among them so many callers call at once, else one.
    """

    def __init__(self, bundle: Path, runtime: str, batch: int, options: Mapping[str, Any]) -> None:
        self._name = f"{bundle} on {runtime}"
        untrusted = is_untrusted(options.get("untrusted"))
        # The process is its own already, so what is isolated has the limits here and no second process.
        self._seconds = limit(SECONDS) if untrusted else None
        most = int(limit(GIGABYTES) * 1e9) if untrusted else None
        # In a session of its own, so that Ctrl-C reaches the parent alone, which then reports what it has.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self.loaded = Loaded(**self._ask([str(bundle), runtime, batch, {**options, "untrusted": False}, most]))
        except BaseException:
            self.close()
            raise

    @property
    def number(self) -> int:
        """The number of the process."""
        return self._process.pid

    def turn(self, calls: int) -> Turn:
        """One call that does not count, because others ran in between, then `calls` of each caller that do."""
        return Turn(**self._ask(calls))

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _ask(self, request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._seconds or 0.0, self._process.kill)
        if self._seconds is not None:
            timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # a process that ended is noticed by its missing answer
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self._process.wait()
            raise BackendError(
                f"the process that ran {self._name} ended",
                why=f"signal {-code}, often from lack of memory" if code < 0 else f"exit code {code}, see above",
                fix="give fewer candidates at a time, or a smaller --batch",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise raised_there(answer["error"])
        return answer


def serve() -> None:
    """The child's end: reads what to load, then numbers of calls, one JSON value a line, and answers each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a runtime prints must not get between the answers
    try:
        bundle, runtime, batch, options, most = json.loads(sys.stdin.readline())
        if most is not None:
            limit_memory(most)
        call, loaded = _load(bundle, runtime, batch, options)
        print(json.dumps(loaded._asdict()), file=answers)
        num_requests = options.get("num_requests", 1)
        with ThreadPoolExecutor(num_requests) as pool:
            spread = pool.map if num_requests > 1 else map  # one caller stays in the thread that loaded
            for line in sys.stdin:
                callers = spread(partial(_call, call), [int(line)] * num_requests)
                print(json.dumps(_gather(callers)._asdict()), file=answers)
    except (VitDeployError, MemoryError) as raised:
        error = (
            raised
            if isinstance(raised, VitDeployError)
            else BackendError("out of memory", fix="give a smaller --batch")
        )
        print(json.dumps({"error": told(error)}), file=answers)


def _load(bundle: str, runtime: str, batch: int, options: dict[str, Any]) -> tuple[Callable[[], object], Loaded]:
    from vitdeploy.runtime.session import load

    start = time.perf_counter()
    session = load(bundle, runtime=runtime, **options)
    load_seconds = time.perf_counter() - start
    # The reference samples: with random numbers other tokens would be chosen, and other values be denormal.
    samples = session.bundle.reference().inputs
    try:
        inputs = {name: array[np.arange(batch) % len(array)] for name, array in samples.items()}
    except ValueError:  # what numpy raises for more than any memory holds
        raise MemoryError from None
    del samples
    start = time.perf_counter()
    session.run(inputs)
    first = time.perf_counter() - start
    return lambda: session.run(inputs), Loaded(session.describe(), load_seconds, first)


def _call(call: Callable[[], object], calls: int) -> list[float]:
    """When the first call began, and when each one ended."""
    call()
    times = [time.perf_counter()]
    for _ in range(calls):
        call()
        times.append(time.perf_counter())
    return times


def _gather(callers: Iterable[list[float]]) -> Turn:
    times = list(callers)
    seconds = [end - begin for each in times for begin, end in pairwise(each)]
    wall = max(each[-1] for each in times) - min(each[0] for each in times)
    return Turn(seconds, wall, peak_memory())


def peak_memory() -> int | None:
    """The largest resident memory of this process in bytes.

    From /proc, because `getrusage` hands the parent's peak down to a child.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)

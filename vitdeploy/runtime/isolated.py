"""A backend in a process of its own, with a limit of time and memory: for bundles from strangers.

A runtime that crashes on a crafted model, fills the memory or does not come back then costs an error. The process is
asked in frames (see `frames`); nothing that it answers is unpickled or executed here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.bundle import Bundle, TensorSpec
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.runtime.backends.base import Array, Backend
from vitdeploy.runtime.executed import ExecutedGraph
from vitdeploy.runtime.frames import FrameError, raised_there, read_frame, write_frame
from vitdeploy.runtime.options import Options, is_untrusted

SECONDS, GIGABYTES = "VITDEPLOY_UNTRUSTED_SECONDS", "VITDEPLOY_UNTRUSTED_GB"
# A LeMeViT-Tiny at 224 pixels loads within 3 s and 1 GB in every runtime; a board is ten times slower.
DEFAULTS = {SECONDS: 60.0, GIGABYTES: 4.0}

# The search path is the parent's, so that the child runs the same vitdeploy and the same runtimes.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from vitdeploy.runtime.isolated_child import serve; serve({limit})"


def open_backend(kind: type[Backend], bundle: Bundle, options: Options) -> Backend:
    """The bundle in a backend: in this process, or where `options` or the environment say untrusted in one of its own.

    Raises what `Backend.open` raises, and BackendError where the process crashes or passes a limit.
    """
    if not is_untrusted(options.untrusted):
        return kind.open(bundle, options)
    process = _Process(kind.name, str(bundle.path))
    try:
        answer, _ = process.ask({"open": str(bundle.path), "runtime": kind.name, "options": _plain(options)})
        return IsolatedBackend(process, kind.name, answer)
    except BaseException:
        process.end()
        raise


def executed(kind: type[Backend], bundle: Bundle) -> ExecutedGraph:
    """`Backend.executed`, in a process of its own where the environment says untrusted."""
    if not is_untrusted(None):
        return kind.executed(bundle)
    process = _Process(kind.name, str(bundle.path))
    try:
        answer, _ = process.ask({"executed": str(bundle.path), "runtime": kind.name})
    finally:
        process.end()
    answer.pop("attention_fused", None)
    try:
        return ExecutedGraph(**{**answer, "attention": tuple(answer.get("attention", ()))})
    except TypeError as error:
        raise process.strange(error) from error


class IsolatedBackend(Backend):
    """What another process has loaded. Calls run one after another there, and each has the time limit."""

    def __init__(self, process: _Process, name: str, answer: Mapping[str, Any]) -> None:
        try:
            sides = [
                tuple(TensorSpec(str(n), str(d), tuple(shape)) for n, d, shape in answer[side])
                for side in ("inputs", "outputs")
            ]
            self._told = {str(key): value for key, value in dict(answer["describe"]).items()}
            self.num_requests = int(answer["num_requests"])
        except (KeyError, TypeError, ValueError) as error:
            raise process.strange(error) from error
        super().__init__(process, *sides)
        self.name = name  # type: ignore[misc]  # that of the backend in the process

    def close(self) -> None:
        """Ends the process."""
        process, self._native = self._native, None
        if process is not None:
            process.end()

    def describe(self) -> dict[str, Any]:
        """What the backend in the process says of itself, and that it is isolated."""
        return {**self._told, "isolated": True}

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        raise BackendError("an isolated backend opens bundles only", fix="vitdeploy.load(bundle, untrusted=True)")

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        _, found = native.ask({"run": sorted(inputs)}, inputs)
        specs = {spec.name: spec for spec in self.outputs}
        if found.keys() != specs.keys() or any(array.dtype.name != specs[n].dtype for n, array in found.items()):
            raise native.strange(ValueError("other outputs than those of the model"))
        return dict(found)

    def _facts(self) -> dict[str, Any]:
        return self._told


class _Process:
    """The child and what is said to it."""

    def __init__(self, runtime: str, bundle: str) -> None:
        self._name, self._seconds = f"{bundle} on {runtime}", limit(SECONDS)
        limit_bytes = int(limit(GIGABYTES) * 1e9)
        environment = {key: value for key, value in os.environ.items() if key != "VITDEPLOY_UNTRUSTED"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path, limit=limit_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )
        self._lock = threading.Lock()

    def ask(
        self, question: dict[str, Any], arrays: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Any], Mapping[str, Array]]:
        """The answer, within the limit of time; raises the child's error as if it had been raised here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            timer = threading.Timer(self._seconds, self._process.kill)
            timer.daemon = True
            timer.start()
            try:
                with contextlib.suppress(BrokenPipeError):  # a process that ended is noticed by its missing answer
                    write_frame(self._process.stdin, question, arrays or {})
                answer, found = read_frame(self._process.stdout)
            except (FrameError, MemoryError) as error:
                late = not timer.is_alive()
                timer.cancel()
                self.end()
                raise self._ended(late, error) from None
            finally:
                timer.cancel()
        if "error" in answer:
            raise raised_there(answer["error"])
        return answer, found

    def end(self) -> None:
        """Kills the process."""
        self._process.kill()
        with contextlib.suppress(OSError, ValueError):
            self._process.communicate()

    def strange(self, error: Exception) -> BackendError:
        """The error for an answer that no backend gives."""
        return BackendError(
            f"the process that ran {self._name} answered what no runtime answers",
            why=str(error) or type(error).__name__,
            fix="do not use this bundle",
        )

    def _ended(self, late: bool, error: Exception) -> BackendError:
        code = self._process.returncode
        if late:
            return BackendError(
                f"{self._name} did not come back within {self._seconds:g} s",
                why="untrusted bundles run under a limit of time",
                fix=f"set {SECONDS} to more seconds if you trust it",
            )
        if code is None or code in (0, -9):
            return self.strange(error)
        return BackendError(
            f"the process that ran {self._name} ended",
            why=f"signal {-code}" if code < 0 else f"exit code {code}: see above, often the limit of memory",
            fix=f"do not use this bundle; if you trust it, set {GIGABYTES} to more gigabytes",
        )


def limit(name: str) -> float:
    """The limit in the environment variable `name`, or its default; UsageError for what is no positive number."""
    text = os.environ.get(name)
    if not text:
        return DEFAULTS[name]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (0 < value < 1e6 and np.isfinite(value)):
        raise UsageError(f"invalid {name}: {text!r}", fix=f"{name}={DEFAULTS[name]:g}")
    return value


def _plain(options: Options) -> dict[str, Any]:
    """The options as JSON values."""
    given = replace(options, untrusted=False).given()
    for name in ("cache", "checkpoint"):
        if name in given:
            given[name] = str(Path(given[name]).absolute())
    if "build" in given and not isinstance(given["build"], Mapping):
        given["build"] = asdict(given["build"])
    return given

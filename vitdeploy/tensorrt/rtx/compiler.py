"""One ONNX file through NVIDIA's parser and compiler, in a process of its own and with a time limit."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError
from vitdeploy.progress import Progress
from vitdeploy.tensorrt.rtx import requirements
from vitdeploy.tensorrt.rtx.worker import ANSWER, ENGINE, LOG, MODEL, REQUEST

BUILT, REFUSED, FAILED, CRASHED, TIMED_OUT = "built", "refused", "failed", "crashed", "timed out"
POLL = 0.2  # seconds
TIME_LIMIT = 600.0  # seconds; the networks of the zoo take 2 to 6

# The search path is the parent's, so that the child runs the same vitdeploy and the same libraries.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from vitdeploy.tensorrt.rtx.worker import serve; serve()"
_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>\[.*?\]), (?:Constants: (?P<constants>.*?), )?"
    r"Outputs: (?P<outputs>\[.*\]), TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\],(?: Strides: \[(?P<strides>[^\]]*)\],)?"
    r"[^{}]*?Datatype: (?P<type>[\w+]+)"
)
# Without a driver every error has this appended; it is none of the model's faults.
_NO_DRIVER = re.compile(r"\[?[^\[\n]*(?:catchCudaError|CUDA driver version is insufficient)[^\n]*\)?", re.MULTILINE)
_SERIOUS = ("INTERNAL_ERROR", "ERROR")

Shapes = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    state   BUILT, REFUSED by the parser, FAILED in the compiler, CRASHED or TIMED_OUT
    errors  of the parser: node, operator, code and why
    log     severity and text of everything that the libraries said
    ended   how the process ended, in words, where it crashed or ran out of time
    plan    the engine, where it was asked for
    """

    state: str
    version: str = ""
    errors: tuple[Mapping[str, str], ...] = ()
    log: tuple[tuple[str, str], ...] = ()
    plan_bytes: int = 0
    seconds: float = 0.0
    ended: str = ""
    plan: bytes = field(default=b"", repr=False)

    @property
    def engine(self) -> str:
        """The engine's layers in the form of the engine inspector's JSON, which takes a GPU to ask."""
        return json.dumps({"Layers": [layer for text in self._lines() if (layer := _layer(text))]})

    @property
    def weights_bytes(self) -> int | None:
        """Memory of the engine's weights."""
        return self._memory("Total Weights Memory")

    @property
    def activation_bytes(self) -> int | None:
        """Memory of its activations."""
        return self._memory("Total Activation Memory")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the libraries warned of, each once."""
        return tuple(dict.fromkeys(without_driver(text) for severity, text in self.log if severity == "WARNING"))

    @property
    def last_words(self) -> str:
        """The last error, or without one the last thing that was said before the process ended."""
        spoken = [text for severity, text in self.log if severity in _SERIOUS] or [text for _, text in self.log]
        cleaned = [words for text in spoken if (words := without_driver(text))]
        return cleaned[-1] if cleaned else "nothing was said"

    def _lines(self) -> list[str]:
        return [line for _, text in self.log for line in text.splitlines()]

    def _memory(self, title: str) -> int | None:
        found = (re.match(rf"{title}: (\d+)", line) for line in self._lines())
        return next((int(match[1]) for match in found if match), None)


def run_compiler(
    model: bytes,
    sm: int | Sequence[int],
    shapes: Shapes,
    *,
    time_limit: float = TIME_LIMIT,
    engine: Mapping[str, Any] | None = None,
) -> Outcome:
    """Parses and builds `model` for compute capability `sm`, or for several.

    `shapes` are the smallest, usual and largest of each input with a free axis; `engine` asks for the engine too, with
    `tf32` (whether FP32 may be multiplied so) and `workspace` (bytes). A crash of NVIDIA's libraries and the end of
    `time_limit` (seconds) are outcomes; BackendError is raised where the libraries do not load.
    """
    kinds = [sm] if isinstance(sm, int) else list(sm)
    with tempfile.TemporaryDirectory(prefix="vitdeploy-rtx-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(model)
        (folder / REQUEST).write_text(json.dumps({"sm": kinds, "shapes": shapes, "engine": engine}))
        start = time.monotonic()
        ended = _run(folder, time_limit)
        seconds = time.monotonic() - start
        log = _read_log(folder / LOG)
        try:
            answer: dict[str, Any] = json.loads((folder / ANSWER).read_text())
        except (OSError, ValueError):
            state = TIMED_OUT if ended is None else CRASHED
            words = f"it ran longer than {time_limit:g} s" if ended is None else ended
            return Outcome(state, requirements.version(), log=log, seconds=seconds, ended=words)
        plan = (folder / ENGINE).read_bytes() if (folder / ENGINE).exists() else b""
    if "unusable" in answer:
        raise BackendError(
            f"{requirements.NAME} cannot be imported",
            why=answer["unusable"],
            fix=f"pip install --force-reinstall 'vitdeploy[{requirements.EXTRA}]'; it takes glibc 2.28 or newer",
        )
    built = answer["plan_bytes"] is not None
    state = REFUSED if not answer["parsed"] else BUILT if built else FAILED
    return Outcome(
        state,
        answer["version"],
        tuple({**error, "why": without_driver(error["why"])} for error in answer["errors"]),
        log,
        answer["plan_bytes"] or 0,
        seconds,
        plan=plan,
    )


def without_driver(text: str) -> str:
    """What NVIDIA's libraries said, without the lines about the driver that this machine need not have."""
    return "\n".join(line for part in text.splitlines() if (line := _NO_DRIVER.sub("", part).strip()))


def _run(folder: Path, time_limit: float) -> str | None:
    """How the child ended, in words; None where it was stopped because its time was over."""
    program = [sys.executable, "-c", _PROGRAM.format(path=sys.path), str(folder)]
    # What the libraries print by themselves must not get into the report; its last line may explain a crash.
    with (folder / "output").open("w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as child:
            if not _wait(child, time_limit):
                return None
        output.seek(0)
        printed = output.read().strip().splitlines()
    if child.returncode < 0:
        try:
            name = signal.Signals(-child.returncode).name
        except ValueError:
            name = "unknown"
        memory = ", often from lack of memory" if child.returncode == -signal.SIGKILL else ""
        return f"its process ended by signal {-child.returncode} ({name}){memory}"
    return f"its process ended with exit code {child.returncode}" + (f": {printed[-1]}" if printed else "")


def _wait(child: subprocess.Popen[bytes], time_limit: float) -> bool:
    """Whether the child ended by itself within `time_limit`; it has ended in any case."""
    end = time.monotonic() + time_limit
    try:
        with Progress("compiling with NVIDIA's compiler", None) as progress:
            while time.monotonic() < end:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(min(POLL, max(0.0, end - time.monotonic())))
                    return True
                progress.advance(0)
        return False
    finally:
        child.kill()


def _read_log(path: Path) -> tuple[tuple[str, str], ...]:
    """The log as far as it was written; a last line that a crash cut off is left out."""
    found = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            severity, message = json.loads(line)
        except ValueError:
            continue
        found.append((str(severity), str(message)))
    return tuple(found)


def _layer(line: str) -> dict[str, Any] | None:
    """One line of the builder's layer list as the inspector would say it; None for any other line."""
    found = _LAYER.match(line)
    if found is None:
        return None
    return {
        "Name": found["name"],
        "LayerType": found["kind"],
        "Inputs": _tensors(found["inputs"]),
        "Constants": _tensors(found["constants"] or ""),
        "Outputs": _tensors(found["outputs"]),
        "TacticName": found["tactic"],
        "Metadata": found["metadata"],
    }


def _tensors(text: str) -> list[dict[str, Any]]:
    """One side of a layer; strides are in elements, and None where the line states none."""
    return [
        {
            "Name": tensor["name"],
            "Dimensions": _numbers(tensor["dims"]),
            "Strides": None if tensor["strides"] is None else _numbers(tensor["strides"]),
            "Datatype": tensor["type"],
        }
        for tensor in _TENSOR.finditer(text)
    ]


def _numbers(text: str) -> list[int]:
    """Lengths or strides; -1 stands for what is free."""
    return [int(part) if part.strip().isdecimal() else -1 for part in text.split(",") if part.strip()]

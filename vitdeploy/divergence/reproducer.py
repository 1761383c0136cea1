"""The smallest part of a graph that a runtime computes wrongly on its own, as a folder for a report to its makers."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitdeploy.divergence.runners import Computes
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.graph.parts import Parts
from vitdeploy.graph.smallest import shrink
from vitdeploy.proof.agreement import agreement
from vitdeploy.proof.bisect import Divergence, with_outputs
from vitdeploy.proof.parity import Bounds

Array = NDArray[Any]

log = logging.getLogger(__name__)

BLOCK, INPUTS, EXPECTED, SCRIPT = "block.onnx", "inputs.npz", "expected.npz", "reproduce.py"
TRIALS = 40
SECONDS = 600


@dataclass(frozen=True)
class Reproducer:
    """A model that is computed wrongly.

    model     the ONNX file
    nodes     the names of its nodes, each with its operator
    whole     nothing smaller than the whole model is computed wrongly
    inputs    by name
    expected  the outputs that are trusted, by name
    """

    model: bytes
    nodes: tuple[str, ...]
    whole: bool
    inputs: dict[str, Array]
    expected: dict[str, Array]


class Search:
    """Parts of a model that are run on what the whole model gives them."""

    def __init__(
        self, model: bytes, inputs: Mapping[str, Array], trusted: Computes, suspect: Computes, bounds: Bounds
    ) -> None:
        self._model, self._trusted, self._suspect, self._bounds = model, trusted, suspect, bounds
        self._values: dict[str, Array] = dict(inputs)
        self._inputs = inputs

    def smallest(self, divergence: Divergence) -> Reproducer:
        """The smallest part around the place of a divergence that is wrong on its own; the whole model where none is.

        A part may be right alone, since what is wrong is its fusion with its neighbours: then it grows on both sides
        until it is wrong, and loses what is not needed for that.
        """
        proto = onnx.load_model_from_string(self._model)
        parts = Parts(proto)
        count = len(parts.nodes)
        start, stop = min(divergence.start, count - 1), max(1, min(divergence.stop, count))
        room = 0
        while True:
            window = range(max(0, start - room), min(count, stop + room))
            everything = len(window) == count
            self._record(parts, window)
            known = Parts(proto, self._values)
            part = known.part(window)
            log.info("%d of %d nodes alone", len(window), count)
            if everything or (part is not None and self._fails(part)):
                kept = shrink(known, window, self._fails, trials=TRIALS) if len(window) > 1 else list(window)
                smallest = known.part(kept)
                if smallest is None or len(kept) == count:
                    return self._made(proto, whole=True)
                return self._made(smallest, whole=False)
            room = 2 * room + 1

    def _made(self, proto: onnx.ModelProto, *, whole: bool) -> Reproducer:
        data = proto.SerializeToString()
        inputs = self._fed(proto)
        nodes = tuple(f"{node.name} ({node.op_type})" for node in proto.graph.node)
        return Reproducer(data, nodes, whole, inputs, self._trusted(data, inputs))

    def _fed(self, proto: onnx.ModelProto) -> dict[str, Array]:
        return {port.name: self._values[port.name] for port in proto.graph.input}

    def _record(self, parts: Parts, window: Sequence[int]) -> None:
        """What any part inside of the window reads and gives."""
        wanted = dict.fromkeys(parts.ports(window)[0])
        wanted |= dict.fromkeys(name for index in window for name in parts.nodes[index].output if name)
        missing = [name for name in wanted if name not in self._values]
        if missing:
            found = self._trusted(with_outputs(self._model, missing), self._inputs)
            self._values.update({name: array for name, array in found.items() if name in wanted})

    def _fails(self, part: onnx.ModelProto) -> bool:
        """Whether the part, on its own, is computed and is wrong."""
        names = [port.name for port in part.graph.input]
        if any(name not in self._values or self._values[name].dtype.kind not in "fiub" for name in names):
            return False
        inputs, data = self._fed(part), part.SerializeToString()
        try:
            expected, found = self._trusted(data, inputs), self._suspect(data, inputs)
        except BackendError as error:
            log.info("not taken: %s", error.why or error.what)
            return False
        return any(not agreement(name, array, found[name], self._bounds).passed for name, array in expected.items())


def write(folder: Path, found: Reproducer, script: str) -> tuple[int | None, str]:
    """Write the files into the new `folder` and run the script there; its exit code and the last line that it printed.

    The folder is complete or not there. Raises UsageError where it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            (made / BLOCK).write_bytes(found.model)
            _write_arrays(made / INPUTS, found.inputs)
            _write_arrays(made / EXPECTED, found.expected)
            (made / SCRIPT).write_text(script, encoding="utf-8")
            ended = run_script(made)
            made.chmod(0o755)
            made.replace(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"cannot write the reproducer to {folder}", why=error.strerror or str(error), fix="give -o another folder"
        ) from error
    return ended


def check_folder(folder: Path) -> None:
    """Raises UsageError, before anything is computed, where `folder` could not be made."""
    taken = next((path for path in folder.parents if path.exists() and not path.is_dir()), None)
    why = f"{taken} is a file" if taken else None
    if why is None and folder.exists():
        full = not folder.is_dir() or any(folder.iterdir())
        why = "it exists, and nothing is written over" if full else None
    if why is not None:
        raise UsageError(f"cannot write the reproducer to {folder}", why=why, fix="give -o a new folder")


def run_script(folder: Path) -> tuple[int | None, str]:
    """The exit code of the script in a process of its own, None where it does not end, and what it printed last."""
    try:
        ended = subprocess.run(
            [sys.executable, SCRIPT], cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, f"it did not end within {SECONDS} s"
    lines = [line.strip() for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    return ended.returncode, lines[-1] if lines else ""


def script_of(title: str, seen: str, run: str, bounds: Bounds) -> str:
    """The text of a program that runs the block, prints the difference, and ends with 1 where it differs.

    title  what is wrong, one sentence
    seen   the runtime with its version and device
    run    its function `run(model, inputs)`, see `Backend.stand_alone`
    """
    relative, decibels = bounds.max_relative, bounds.min_snr_db
    rule = (
        f"an error of more than {relative:g} of the largest value"
        if relative is not None
        else f"a signal-to-noise ratio below {decibels:.1f} dB"
    )
    judged = f"not relative <= {relative!r}" if relative is not None else f"not snr >= {decibels!r}"
    return _SCRIPT.format(
        title=title, seen=f"{seen}, {platform.system()} {platform.machine()}", rule=rule, run=run, judged=judged
    )


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """An .npz file whose members may have any name, `file` too."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


_SCRIPT = '''\
"""{title}

Seen with {seen}.

Run this file beside block.onnx, inputs.npz and expected.npz: it prints how far the outputs are from the expected ones,
and ends with exit code 1 where they differ, which is {rule}.
Exit code 2 says that the block did not run.
"""

import os
import sys
import traceback
from pathlib import Path

import numpy as np


def failed(*error):
    traceback.print_exception(*error)
    sys.stderr.flush()
    os._exit(2)


sys.excepthook = failed  # so that nothing but a difference ends with exit code 1

{run}

def difference(expected, found):
    """Largest error, the same over the largest expected value, signal-to-noise ratio in dB, and whether it differs."""
    if expected.shape != found.shape:
        print(f"  the shape is {{list(found.shape)}} instead of {{list(expected.shape)}}")
        return np.inf, np.inf, float("-inf"), True
    if expected.dtype == bool or (expected.dtype.kind in "iu" and expected.dtype.itemsize > 1):
        wrong = np.count_nonzero(expected != found) / max(expected.size, 1)
        return float(wrong > 0), wrong, np.inf, wrong > 0.005
    one, other = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    if expected.dtype.kind in "iu":
        one, other = one - one.mean(), other - one.mean()
    usual = np.isfinite(one)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    if not same[~usual].all() or not np.isfinite(other[usual]).all():
        print(f"  {{np.count_nonzero(~np.isfinite(other))}} of {{other.size}} values are NaN or Inf")
        return np.inf, np.inf, float("-inf"), True
    one, other = one[usual], other[usual]
    error = np.abs(other - one).max(initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = error / np.abs(one).max(initial=0.0) if error else 0.0
        snr = 10 * np.log10(np.square(one).sum() / np.square(other - one).sum()) if error else np.inf
    return error, relative, snr, {judged}


here = Path(__file__).resolve().parent
inputs, expected = (dict(np.load(here / name)) for name in ("inputs.npz", "expected.npz"))
differs = False
for (name, wanted), found in zip(expected.items(), run(str(here / "block.onnx"), inputs), strict=True):
    error, relative, snr, wrong = difference(wanted, np.asarray(found))
    told = "WRONG" if wrong else "ok"
    print(f"{{name}}: largest error {{error:.3e}}, relative {{relative:.2e}}, {{snr:.1f}} dB: {{told}}")
    differs |= bool(wrong)
sys.exit(1 if differs else 0)
'''

"""CPU time of `vitdeploy predict BUNDLE IMAGE` from cold, of several trees of the package, and of normalising an image.

  python benchmarks/startup.py BUNDLE IMAGE --python LIGHT/bin/python --tree before --tree .

LIGHT is an environment of numpy, Pillow, onnx and ONNX Runtime alone. Every process has one thread. `floor` imports
numpy and ONNX Runtime, makes the session of model.onnx and runs it once. The first round, which is not counted, writes
the caches; `first` clears that of proofs before each process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from timing import interleave, process

from vitdeploy.preprocess import Preprocessing, normalise
from vitdeploy.preprocess.transform import _scaled

FLOOR = """
import sys, numpy, onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads, settings.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
session.run(None, {given.name: numpy.zeros(given.shape, numpy.float32)})
"""


def normalising() -> None:
    """Print the CPU time of an image of 224x224 by the formula and by the table."""
    recipe = Preprocessing()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)[16:240, 16:240]
    forms = {
        "formula": lambda: np.ascontiguousarray(
            np.moveaxis(_scaled(pixels, recipe.mean, recipe.std, recipe.scale), -1, -3)
        ),
        "table": lambda: normalise(pixels, recipe),
    }
    for name, seconds in interleave(forms, rounds=300, clock=time.thread_time).items():
        print(f"{name:24} {statistics.median(seconds) * 1e3:8.2f} ms an image")


def starting(args: argparse.Namespace) -> None:
    """Print the CPU time of the processes."""
    with tempfile.TemporaryDirectory() as caches:
        os.environ.update(OMP_NUM_THREADS="1", XDG_CACHE_HOME=caches)
        found: dict[str, list[float]] = {}

        def predict(name: str, tree: Path, *options: str, clear: bool = False) -> None:
            if clear:
                for note in Path(caches).glob("vitdeploy/proofs/*"):
                    note.unlink()
            os.environ["PYTHONPATH"] = str(tree.resolve())
            words = ["-m", "vitdeploy", "predict", args.bundle, args.image, "--threads", "1", *options]
            found.setdefault(name, []).append(process([args.python, *words])["cpu_seconds"])

        def floor() -> None:
            words = ["-c", FLOOR, str(Path(args.bundle) / "model.onnx")]
            found.setdefault("floor", []).append(process([args.python, *words])["cpu_seconds"])

        candidates = {"floor": floor}
        for tree in args.tree:
            for name, options, clear in (
                (f"{tree} first", (), True),
                (f"{tree} again", (), False),
                (f"{tree} named", ("--runtime", "onnxruntime"), False),
            ):
                candidates[name] = partial(predict, name, tree, *options, clear=clear)
        for number in range(args.rounds + 1):
            for candidate in candidates.values():
                candidate()
            if not number:
                found.clear()
    for name, seconds in found.items():
        print(f"{name:24} {statistics.median(seconds):8.3f} s, {min(seconds):.3f} to {max(seconds):.3f}")


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("image")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--tree", type=Path, action="append", required=True, help="folder with the package vitdeploy")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    normalising()
    starting(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

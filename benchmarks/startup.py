"""CPU time of `vitdeploy predict BUNDLE IMAGE` from cold, of several trees of the package, and of normalising an image.

  python benchmarks/startup.py BUNDLE IMAGE --python LIGHT/bin/python --tree before --tree . [--save]

LIGHT is an environment of numpy, Pillow, onnx and ONNX Runtime alone. Every process has one thread. `floor` imports
numpy and ONNX Runtime, makes the session of model.onnx and runs it once. The first round, which is not counted, writes
the caches and the bytecode, which an installed package has; `first` clears the cache of proofs before each
process. `--save` writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import environment, finished, interleave, process, ratio

from vitdeploy.preprocess import Preprocessing, normalise

HERE = Path(__file__).resolve().parent

FLOOR = """
import sys, numpy, onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads, settings.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
session.run(None, {given.name: numpy.zeros(given.shape, numpy.float32)})
"""


def normalising() -> dict[str, float]:
    """Milliseconds of CPU time for an image of 224x224, by the formula and by the table."""
    recipe = Preprocessing()
    mean, std = np.float32(recipe.mean), np.float32(recipe.std)
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)[16:240, 16:240]

    def formula() -> Any:
        return np.ascontiguousarray(np.moveaxis((pixels.astype(np.float32) / np.float32(255) - mean) / std, -1, 0))

    np.testing.assert_array_equal(formula(), normalise(pixels, recipe))
    found = interleave(
        {"formula": formula, "table": lambda: normalise(pixels, recipe)}, rounds=300, clock=time.thread_time
    )
    return {name: round(statistics.median(seconds) * 1e3, 3) for name, seconds in found.items()}


def starting(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """CPU seconds of the processes: median, lowest and highest, and the ratio to the floor of the same round."""
    found: dict[str, list[float]] = {}
    bundle, image, python = (Path(given).absolute() for given in (args.bundle, args.image, args.python))
    trees = {str(tree): tree.resolve() for tree in args.tree}

    def timed(name: str, *words: str) -> None:
        found.setdefault(name, []).append(process([str(python), *words])["cpu_seconds"])

    with tempfile.TemporaryDirectory() as caches:
        os.environ.update(OMP_NUM_THREADS="1", XDG_CACHE_HOME=caches)
        os.chdir(caches)  # `python -m` would take the package of the working directory

        def predict(name: str, tree: Path, *options: str, clear: bool = False) -> None:
            for note in Path(caches).glob("vitdeploy/proofs/*") if clear else ():
                note.unlink()
            os.environ["PYTHONPATH"] = str(tree)
            timed(name, "-m", "vitdeploy", "predict", str(bundle), str(image), "--threads", "1", *options)

        floor = partial(timed, "floor", "-c", FLOOR, str(bundle / "model.onnx"))
        candidates: list[Callable[[], None]] = [floor]
        for tree, folder in trees.items():
            candidates += [
                partial(predict, f"{tree} first", folder, clear=True),
                partial(predict, f"{tree} again", folder),
                partial(predict, f"{tree} named", folder, "--runtime", "onnxruntime"),
            ]
        for number in range(args.rounds + 1):
            for candidate in candidates:
                candidate()
            if not number:
                found.clear()
    return {
        name: {
            "cpu_seconds": round(statistics.median(seconds), 3),
            "lowest": round(min(seconds), 3),
            "highest": round(max(seconds), 3),
            "over_floor": ratio(seconds, found["floor"]),
        }
        for name, seconds in found.items()
    }


def main() -> int:
    """Print both tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("image")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--tree", type=Path, action="append", required=True, help="folder with the package vitdeploy")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    report = {
        "environment": environment(["numpy", "pillow", "onnx", "onnxruntime"]),
        "normalising_ms": normalising(),
        "processes": starting(args),
    }
    text = json.dumps(finished(report), indent=1)
    print(text)
    if args.save:
        (HERE / "results/startup.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

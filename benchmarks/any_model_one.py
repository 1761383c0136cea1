"""One network of any_model.py, in the process that it starts: NAME FOLDER OUT IMAGES CALIBRATION FORM ….

A line of JSON is added to OUT when the network is made, and after each form. Bundles stay in FOLDER.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from any_model_networks import Made, find_network
from export import graph_cost
from failure import describe, without_paths
from naive_export import naive
from unseen import difficult, figures, largest_error, natural

from vitdeploy import export, load, verify
from vitdeploy.bundle import Bundle
from vitdeploy.errors import VitDeployError
from vitdeploy.quantize.options import Int8Options

Arrays = Mapping[str, np.ndarray]

IMAGES = 8
CALIBRATION = 32
ROUNDS = 20
NAIVE = "naive"
# The options of each form, and the runtimes that run it here.
FORMS: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "fp32": ({}, ("onnxruntime", "openvino")),
    "fp16": ({"precision": "fp16"}, ("onnxruntime", "openvino")),
    "fp16 tensorrt10": ({"precision": "fp16", "target": "tensorrt10"}, ("onnxruntime",)),
    "fp32 dynamic": ({"batch": "dynamic"}, ("onnxruntime", "openvino")),
    "int8": ({"precision": "int8"}, ("onnxruntime", "openvino")),
}


class Original:
    """What the original makes of images that no bundle has seen; computed once for each preprocessing."""

    def __init__(self, made: Made, data: Path) -> None:
        self._made, self._data = made, data
        self._known: dict[str, tuple[np.ndarray, Arrays, Arrays | None]] = {}

    def __call__(self, bundle: Bundle) -> tuple[np.ndarray, Arrays, Arrays | None]:
        """The images, the outputs, and the outputs in FP32, None where the first are no others."""
        recipe = bundle.manifest.preprocessing
        if repr(recipe) not in self._known:
            images = np.concatenate([natural(self._data, recipe, IMAGES), difficult(recipe)])
            single = self._made.outputs(images, False)
            try:
                self._known[repr(recipe)] = images, self._made.outputs(images, True), single
            except Exception as error:  # a network that converts to FP32 on its way says so in its own words
                print(f"no FP64: {error}", file=sys.stderr)
                self._known[repr(recipe)] = images, single, None
        return self._known[repr(recipe)]


def measure(form: str, made: Made, original: Original, folder: Path, calibration: Path) -> dict[str, Any]:
    options, runtimes = FORMS[form]
    options = {**made.options, **options}
    if form == "int8":
        options |= {"calibration": calibration, "int8": Int8Options(samples=CALIBRATION)}
    start = time.perf_counter()
    bundle = export(made.source, folder / form.replace(" ", "_"), force=True, **options)
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
    manifest = bundle.manifest
    row["nodes"] = len(onnx.load(bundle.path / "model.onnx").graph.node)
    if manifest.precision == "fp16":
        row["kept_fp32"] = len(manifest.precision_report.get("kept_fp32", []))
    if manifest.precision == "int8":
        row["snr_db"] = manifest.precision_report.get("snr_db")
    images, expected, single = original(bundle)
    if single is not None:
        own = max(largest_error(expected[name], single[name]) for name in expected)
        row["pytorch_fp32_error"] = float(f"{own:.2g}")
    for runtime in runtimes:
        row[runtime] = compare(bundle, runtime, images, expected, single, dynamic=form.endswith("dynamic"))
    return row


def compare(
    bundle: Bundle, runtime: str, images: np.ndarray, expected: Arrays, single: Arrays | None, *, dynamic: bool
) -> dict[str, Any]:
    try:
        report = verify(bundle, runtime=runtime)
        with load(bundle, runtime=runtime) as session:
            parts = [session.run(batch) for batch in batches(images, dynamic)]
    except VitDeployError as error:
        return {"error": str(error)}
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if missing := expected.keys() ^ found.keys():
        return {"error": f"outputs {', '.join(missing)} on one side alone"}
    each = [figures(expected[name], found[name], IMAGES, (single or expected)[name]) for name in expected]
    return {
        "verify": "passed" if report.passed else report.failures[0],
        "finite": all(one["finite"] for one in each),
        "natural_db": min(one["natural_db"] for one in each),
        "difficult_db": min(one["difficult_db"] for one in each),
        "magnified_db": max(one["magnified_db"] for one in each),
        "error": float(f"{max(largest_error(expected[name], found[name]) for name in expected):.2g}"),
    }


def batches(images: np.ndarray, dynamic: bool) -> Iterator[np.ndarray]:
    """One image after another; where the batch is free, 1, 2, 3 … images."""
    start = step = 0
    while start < len(images):
        step += dynamic or not step
        yield images[start : start + step]
        start += step


def against_naive(made: Made, size: int, folder: Path) -> dict[str, Any]:
    """Nodes and time of the FP32 bundle and of what `torch.onnx.export` and onnxsim make."""
    import torch

    assert made.naive is not None
    model = naive(made.naive, torch.randn(1, 3, size, size), None)
    onnx.save(model, folder / "naive.onnx")
    if not (folder / "fp32/model.onnx").exists():  # it was refused
        return {"nodes": {"naive": len(model.graph.node)}}
    return graph_cost(folder, ROUNDS)


def conditioning(form: str, made: Made, original: Original, folder: Path) -> dict[str, float]:
    """What the original itself keeps of FP64 in the precision of a form that is refused, in dB of natural images."""
    path = folder / "fp32"
    if made.half is None or not form.startswith("fp16") or not path.exists():
        return {}
    images, expected, _ = original(Bundle.open(path))
    found = made.half(images)
    each = [figures(expected[name], found[name], IMAGES) for name in expected]
    return {f"pytorch_fp16_{key}": min(one[key] for one in each) for key in ("natural_db", "difficult_db")}


def row_of(form: str, made: Made, original: Original, size: int, folder: Path, calibration: Path) -> dict[str, Any]:
    try:
        if form == NAIVE:
            return against_naive(made, size, folder)
        return measure(form, made, original, folder, calibration)
    except VitDeployError as error:
        return {
            "refused": without_paths(str(error)),
            "kind": type(error).__name__,
            **conditioning(form, made, original, folder),
        }
    except Exception as error:
        return {"crashed": describe(error)}


def translate_operators_once() -> None:
    """torch.onnx translates its operators anew for every graph, which takes as long as the rest of a capture."""
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    make = functools.cache(registry.from_torchlib)

    def copied(**options: int) -> object:
        fresh, made = registry(), make(**options)
        vars(fresh).update(vars(made), functions={name: list(found) for name, found in made.functions.items()})
        return fresh

    registry.from_torchlib = staticmethod(copied)


def capture_once() -> None:
    """All forms of a fixed batch begin with the same graph, which takes longer to capture than a form to make of it."""
    module = importlib.import_module("vitdeploy.exporter.capture")
    capture, known = module.capture, {}

    def remembered(model: Any, example: Any, *, dynamic_batch: bool, **names: Any) -> Any:
        if dynamic_batch not in known:
            known[dynamic_batch] = capture(model, example, dynamic_batch=dynamic_batch, **names)
        return known[dynamic_batch].clone()

    module.capture = remembered


def main() -> None:
    warnings.filterwarnings("ignore")
    translate_operators_once()
    capture_once()
    name, folder, out, images, calibration, *forms = sys.argv[1:]
    network = find_network(name)

    def add(form: str, row: Mapping[str, Any]) -> None:
        with Path(out).open("a") as file:
            file.write(json.dumps({"form": form, "row": row}) + "\n")

    made = network.make(network, Path(folder))
    original = Original(made, Path(images))
    add("", {"size": network.size, "arguments": dict(network.arguments)})
    for form in forms:
        if form != NAIVE or made.naive is not None:
            add(form, row_of(form, made, original, network.size, Path(folder), Path(calibration)))


if __name__ == "__main__":
    main()

"""Which block does an engine compute wrongly? ONNX Runtime says what each should give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitdeploy.bundle import Bundle
from vitdeploy.errors import VitDeployError
from vitdeploy.graph.run import run
from vitdeploy.proof.bisect import Divergence, first_divergence, same_within
from vitdeploy.proof.parity import compare_outputs
from vitdeploy.proof.prove import bounds_of, selections_of
from vitdeploy.runtime.options import Options
from vitdeploy.tensorrt.backend import EngineBackend
from vitdeploy.tensorrt.options import BuildOptions

Array = NDArray[Any]


def diagnose(
    kind: type[EngineBackend], bundle: Bundle, model: bytes, options: Options, asked: BuildOptions, timing: Path
) -> tuple[Divergence | None, str]:
    """The first block that differs from ONNX Runtime on the reference inputs; else None and why it is not known.

    Needs the packages onnx, onnx-ir and onnxruntime, and a build for each question, which `timing` makes faster.
    """
    reference = bundle.reference()
    rows = _rows(bundle, asked)
    inputs = {name: array[:rows] for name, array in reference.inputs.items()}
    expected = {name: array[:rows] for name, array in reference.outputs.items()}
    precision, bounds = bundle.manifest.precision, bounds_of(bundle.manifest)
    trusted = run(model, inputs)
    report = compare_outputs(
        expected,
        trusted,
        runtime="onnxruntime",
        precision=precision,
        bounds=bounds,
        selections=selections_of(bundle.manifest),
    )
    if not report.passed:
        return (
            None,
            f"ONNX Runtime does not reproduce the reference either: it is the bundle, not {kind.library_type.product}",
        )

    def suspect(marked: bytes) -> Mapping[str, Array]:
        return computed(kind, marked, inputs, options, asked, timing)[0]

    try:
        found = first_divergence(model, lambda marked: run(marked, inputs), suspect, same_within(bounds))
    except VitDeployError as error:
        return None, f"looking for the block ended early: {error.what}"
    if found is None:
        return None, "built once more the engine is as right as ONNX Runtime: it differs from build to build"
    return found, ""


def computed(
    kind: type[EngineBackend],
    model: bytes,
    inputs: Mapping[str, Array],
    options: Options,
    asked: BuildOptions,
    timing: Path,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """All outputs of an engine of `model` that is built for this one call, and what the engine says of itself."""
    backend = kind(kind.build_engine(model, asked, timing).engine, options, asked)
    try:
        return backend.run(inputs), backend.describe()
    finally:
        backend.close()


def _rows(bundle: Bundle, asked: BuildOptions) -> int:
    """Images to look at: one call of the model."""
    batch = bundle.manifest.inputs[0].shape[0]
    return batch if isinstance(batch, int) else asked.profile[1]

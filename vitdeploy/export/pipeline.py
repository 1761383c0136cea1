"""The recipe: module, capture, lowering, optimization, precision, bundle, proof."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import Bundle, BundleWriter
from vitdeploy.calibration.options import Int8Options
from vitdeploy.data import DataSource
from vitdeploy.errors import ExportError, GateError, UsageError
from vitdeploy.export import need
from vitdeploy.export.artifact import describe, write_model
from vitdeploy.export.graph import Array
from vitdeploy.export.half import half_precision
from vitdeploy.export.int8 import choose_samples, eight_bits, open_calibration
from vitdeploy.export.optimize import lower, node_count, optimize, run_pass
from vitdeploy.export.outputs import Outputs, choose_outputs
from vitdeploy.export.passes.bake_preprocessing import BakePreprocessing
from vitdeploy.export.precision import pin_modules
from vitdeploy.export.reference import choose_images
from vitdeploy.export.source import resolve
from vitdeploy.export.targets import Target, find_target
from vitdeploy.runtime.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("vitdeploy.export")

PRECISIONS = ("fp32", "fp16", "int8")
DYNAMIC = "dynamic"


def export(
    source: str | nn.Module,
    output: str | Path,
    *,
    precision: str = "fp32",
    target: str = "portable",
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    batch: int | str = 1,
    checkpoint: str | Path | None = None,
    labels: Sequence[str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    bake_preprocessing: bool = False,
    reference: Array | Sequence[str | Path] | None = None,
    calibration: DataSource | None = None,
    int8: Int8Options | None = None,
    features: bool = False,
    force: bool = False,
) -> Bundle:
    """Export `source` to the folder `output` and prove it: the bundle exists only if its numbers hold.

    source      a name of the zoo, a module, or `file.py:function` that returns one
    precision   `fp32`, `fp16` or `int8` (inputs and outputs stay float32)
    target      a row of `targets.TARGETS`
    image_size  pixels, an int or (height, width); None for the card's
    batch       images a call takes, or `dynamic`
    checkpoint  weights for a model of the zoo; without any it gets seeded random ones, and the manifest says so
    labels      names of the classes in the order of the logits
    hyperparameters  replaces some of the card's, e.g. `{"windows": (8, 8, 16, 8)}` for QnA-ViT at 256 pixels
    preprocessing  how pictures become inputs, where the model's card or checkpoint does not say it or says it wrongly:
                a whole `Preprocessing` (its size gives way to the network's) or some fields, e.g. `{"mode": "stretch"}`
    bake_preprocessing  put scale, mean, deviation and channel order into the graph, whose input is then RGB pixels,
                uint8 [N, H, W, 3]; resize and crop stay with the runtime
    reference   pictures to prove the bundle on: paths, RGB pixels uint8 [n, H, W, 3], or (unless the preprocessing is
                baked in) normalised float32 [n, 3, H, W]; None for `reference_pixels`, or pictures of `calibration`
    calibration  for INT8: pictures like those in use, see `vitdeploy.data`; labels only for `Int8Options.max_drop`
    int8        how to quantize, see `vitdeploy.calibration.options.Int8Options`
    features    export the feature pyramid instead of the logits: one output a stride, high resolution first
    force       replace an existing bundle

    Raises UsageError, ModelError and CheckpointError for input that does not fit, ExportError where the network cannot
    be exported, BundleError where the folder cannot be written, and GateError where the outputs differ from PyTorch's.
    """
    plan = _check(precision, target, batch, calibration, int8)
    int8 = int8 or Int8Options()
    if int8.tune_latency is not None and int8.tune_latency not in plan.target.runtimes:
        raise UsageError(
            f"{plan.target.name} is not for {int8.tune_latency}", fix=f"--target portable or {int8.tune_latency}"
        )
    if features and int8.max_drop is not None:
        raise UsageError("--max-drop needs class scores, and --features has none", fix="--min-snr 35")
    data = open_calibration(calibration, int8) if plan.precision == "int8" else None
    clock = _Clock()
    with BundleWriter(output, force=force) as writer:
        with clock.step("building the network"):
            model, card = resolve(
                source,
                num_classes=num_classes,
                image_size=image_size,
                checkpoint=checkpoint,
                labels=labels,
                hyperparameters=hyperparameters,
                preprocessing=preprocessing,
            )
            if card.weights.kind == "random":
                log.warning(
                    "WARNING: %s has no trained weights, exporting SEEDED RANDOM ones (%s); see --checkpoint",
                    card.name,
                    card.weights.detail,
                )
            if card.assumption:
                log.warning("NOTE: %s; if that is wrong, see --preprocessing", card.assumption)
        with clock.step("computing the PyTorch reference"):
            wanted = choose_outputs(model, features=features)
            if data is not None:
                samples = choose_samples(data, card, int8)
                reference = samples.reference(plan.batch or 1) if reference is None else reference
            pixels, inputs = choose_images(reference, card.preprocessing, batch=plan.batch or 1)
            fed: Array | None = pixels if bake_preprocessing else inputs
            if fed is None:
                raise UsageError("a graph that normalises cannot be fed normalised images", fix="uint8 [n, H, W, 3]")
            outputs = _reference(model, inputs, plan, wanted)
        graph, counts, records = _build_graph(model, inputs, list(outputs), wanted, plan, clock)
        pin_modules(graph, getattr(model, "float32_modules", ()))
        del model
        precision_report: dict[str, Any] = {"precision": plan.precision}
        if plan.precision == "fp16":
            with clock.step("setting half precision from the reference activations"):
                graph, precision_report = half_precision(graph, inputs, outputs)
        elif data is not None:
            with clock.step(f"calibrating on {len(samples.calibrate)} pictures and quantizing"):
                graph, precision_report = eight_bits(graph, samples, plan.target.name, int8, inputs, outputs)
        with clock.step("writing the bundle"):
            if bake_preprocessing:
                records.append(run_pass(BakePreprocessing(plan.target, card.preprocessing), graph))
            write_model(graph, writer, plan.target)
            writer.write_reference(inputs={"images": fed}, outputs=outputs)
            manifest = describe(graph, card, wanted, target=plan.target, precision=plan.precision)
            manifest.graph.update(counts, passes=records, seconds=clock.seconds)
            manifest.precision_report.update(precision_report)
            bundle = writer.seal(manifest)
        with clock.step("verifying the files against PyTorch"):
            _prove(bundle, plan)
        return writer.commit()


@dataclass(frozen=True)
class _Plan:
    precision: str
    target: Target
    batch: int | None  # None: dynamic


def _check(
    precision: str, target: str, batch: int | str, calibration: DataSource | None, int8: Int8Options | None
) -> _Plan:
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", fix=f"--precision {' or '.join(PRECISIONS)}")
    if batch != DYNAMIC and (not isinstance(batch, int) or batch < 1):
        raise UsageError(f"a batch is a positive number or {DYNAMIC!r}, not {batch!r}", fix=f"--batch 1 or {DYNAMIC}")
    if precision != "int8" and (calibration is not None or int8 is not None):
        raise UsageError(f"{precision} needs no calibration", fix="--int8, or leave --calibration out")
    plan = _Plan(precision, find_target(target), batch if isinstance(batch, int) else None)
    if plan.target.name == "openvino":
        need("openvino", "openvino", extra="openvino")
    return plan


def _reference(model: nn.Module, images: Array, plan: _Plan, wanted: Outputs) -> dict[str, Array]:
    """What PyTorch FP32 makes of the images, by output name."""
    import torch

    step = plan.batch or len(images)
    with torch.inference_mode():
        if plan.precision == "fp16" and callable(prepare := getattr(model, "prepare_fp16", None)):
            prepare(torch.from_numpy(images[:step]))
        parts = [
            wanted.named(wanted.call(model, torch.from_numpy(images[i : i + step])))
            for i in range(0, len(images), step)
        ]
    outputs = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    broken = [name for name, array in outputs.items() if not np.isfinite(array).all()]
    if broken:
        raise ExportError(f"PyTorch itself returns NaN or Inf in {broken[0]}", fix="check the checkpoint")
    return outputs


def _build_graph(
    model: nn.Module, inputs: Array, names: list[str], wanted: Outputs, plan: _Plan, clock: _Clock
) -> tuple[ir.Model, dict[str, int], list[dict[str, Any]]]:
    import torch

    from vitdeploy.export.capture import capture

    example = torch.from_numpy(inputs[: plan.batch or 2])
    with clock.step("capturing the graph"):
        graph = capture(model, example, dynamic_batch=plan.batch is None, output_names=names, call=wanted.call)
    counts = {"nodes_captured": node_count(graph)}
    with clock.step(f"lowering and optimizing for {plan.target.name}"):
        records = lower(graph, plan.target)
        graph, more = optimize(graph, plan.target)
    return graph, counts, records + more


def _prove(bundle: Bundle, plan: _Plan) -> None:
    """Open the files as the device will and hold their outputs against PyTorch's; the result goes into the manifest."""
    from vitdeploy.validation.verify import verify

    results = []
    for runtime in _proving(plan):
        report = verify(bundle, runtime=runtime)
        if not report.passed:
            raise GateError(
                f"{bundle.manifest.model.name} does not reproduce PyTorch in {runtime}",
                why="; ".join(report.failures),
                fix="vitdeploy export … --precision fp32" if plan.precision != "fp32" else None,
            )
        results.append(report.parity.to_dict())
    bundle.update_results(parity=results)


def _proving(plan: _Plan) -> list[str]:
    """The runtimes that a bundle proves itself on; INT8 on every CPU runtime there is, for some compute it wrongly."""
    if plan.target.name == "openvino":
        return ["openvino"]
    both = plan.precision == "int8" and "openvino" in plan.target.runtimes and find_spec("openvino") is not None
    return ["onnxruntime", "openvino"] if both else ["onnxruntime"]


@dataclass
class _Clock:
    """Seconds a step; each step is announced before it runs."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        log.info("%s …", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        if self.seconds[name] >= 1:
            log.info("%s: %.1f s", name, self.seconds[name])

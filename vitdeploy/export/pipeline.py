"""The recipe: module, capture, lowering, optimization, precision, bundle, proof."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import Bundle, BundleWriter
from vitdeploy.errors import ExportError, GateError, UsageError
from vitdeploy.export import need
from vitdeploy.export.artifact import describe, write_model
from vitdeploy.export.graph import Array
from vitdeploy.export.outputs import Outputs, choose_outputs
from vitdeploy.export.precision import pin_modules
from vitdeploy.export.reference import REFERENCE_IMAGES, reference_images
from vitdeploy.export.source import resolve
from vitdeploy.export.targets import Target, find_target
from vitdeploy.models.registry import ModelCard

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("vitdeploy.export")

PRECISIONS = ("fp32", "fp16")
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
    reference: Array | Sequence[str | Path] | None = None,
    features: bool = False,
    force: bool = False,
) -> Bundle:
    """Export `source` to the folder `output` and prove it: the bundle exists only if its numbers hold.

    source      a name of the zoo, a module, or `file.py:function` that returns one
    precision   `fp32` or `fp16` (inputs and outputs stay float32)
    target      a row of `targets.TARGETS`
    image_size  pixels, an int or (height, width); None for the card's
    batch       images a call takes, or `dynamic`
    checkpoint  weights for a model of the zoo; without any it gets seeded random ones, and the manifest says so
    labels      names of the classes in the order of the logits
    hyperparameters  replaces some of the card's, e.g. `{"windows": (8, 8, 16, 8)}` for QnA-ViT at 256 pixels
    reference   pictures to prove the bundle on: paths, or normalised float32 [n, 3, H, W]; None for `reference_images`
    features    export the feature pyramid instead of the logits: one output a stride, high resolution first
    force       replace an existing bundle

    Raises UsageError, ModelError and CheckpointError for input that does not fit, ExportError where the network cannot
    be exported, BundleError where the folder cannot be written, and GateError where the outputs differ from PyTorch's.
    """
    plan = _check(precision, target, batch)
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
            )
            if card.weights.kind == "random":
                log.warning(
                    "WARNING: %s has no trained weights, exporting SEEDED RANDOM ones (%s); see --checkpoint",
                    card.name,
                    card.weights.detail,
                )
        with clock.step("computing the PyTorch reference"):
            wanted = choose_outputs(model, features=features)
            inputs, outputs = _reference(model, card, plan, reference, wanted)
        graph, counts, records = _build_graph(model, inputs, list(outputs), wanted, plan, clock)
        pin_modules(graph, getattr(model, "float32_modules", ()))
        del model
        precision_report: dict[str, Any] = {"precision": plan.precision}
        if plan.precision == "fp16":
            with clock.step("setting half precision from the reference activations"):
                graph, precision_report = half_precision(graph, inputs, outputs)
        with clock.step("writing the bundle"):
            write_model(graph, writer, plan.target)
            writer.write_reference(inputs={"images": inputs}, outputs=outputs)
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


def _check(precision: str, target: str, batch: int | str) -> _Plan:
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", fix=f"--precision {' or '.join(PRECISIONS)}")
    if batch != DYNAMIC and (not isinstance(batch, int) or batch < 1):
        raise UsageError(f"a batch is a positive number or {DYNAMIC!r}, not {batch!r}", fix=f"--batch 1 or {DYNAMIC}")
    plan = _Plan(precision, find_target(target), batch if isinstance(batch, int) else None)
    if plan.target.name == "openvino":
        need("openvino", "openvino", extra="openvino")
    return plan


def _reference(
    model: nn.Module, card: ModelCard, plan: _Plan, given: Array | Sequence[str | Path] | None, wanted: Outputs
) -> tuple[Array, dict[str, Array]]:
    """Reference images and what PyTorch FP32 makes of them, by output name."""
    import torch

    height, width = card.image_size
    count = plan.batch * -(-REFERENCE_IMAGES // plan.batch) if plan.batch else REFERENCE_IMAGES
    if given is None:
        images = reference_images(count, card.preprocessing)
    else:
        images = given if isinstance(given, np.ndarray) else _pictures(given, card, plan.batch or 1)
    if images.ndim != 4 or images.shape[1:] != (3, height, width) or images.dtype != np.float32:
        raise UsageError(
            f"reference images are {images.dtype} {list(images.shape)}", fix=f"float32 [n, 3, {height}, {width}]"
        )
    if plan.batch and len(images) % plan.batch:
        raise UsageError(f"{len(images)} reference images do not fill batches of {plan.batch}")
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
    return images, outputs


def _pictures(paths: Sequence[str | Path], card: ModelCard, batch: int) -> Array:
    """The pictures as the network sees them, the last one repeated to fill a batch."""
    from vitdeploy.runtime.preprocess import preprocess_batch

    paths = [*paths, *[paths[-1]] * (-len(paths) % batch)]
    return preprocess_batch(paths, card.preprocessing)


def _build_graph(
    model: nn.Module, inputs: Array, names: list[str], wanted: Outputs, plan: _Plan, clock: _Clock
) -> tuple[ir.Model, dict[str, int], list[dict[str, Any]]]:
    import torch

    from vitdeploy.export.capture import capture
    from vitdeploy.export.optimize import lower, node_count, optimize

    example = torch.from_numpy(inputs[: plan.batch or 2])
    with clock.step("capturing the graph"):
        graph = capture(model, example, dynamic_batch=plan.batch is None, output_names=names, call=wanted.call)
    counts = {"nodes_captured": node_count(graph)}
    with clock.step(f"lowering and optimizing for {plan.target.name}"):
        records = lower(graph, plan.target)
        graph, more = optimize(graph, plan.target)
    return graph, counts, records + more


def half_precision(graph: ir.Model, images: Array, expected: Mapping[str, Array]) -> tuple[ir.Model, dict[str, Any]]:
    """A typed FP16 copy of an optimized FP32 graph, and what the manifest records of it.

    `expected` is what PyTorch FP32 makes of `images` [n, 3, H, W], by output name. Raises GateError where half
    precision does not reach the bound on them.
    """
    from vitdeploy.export.precision import to_half
    from vitdeploy.validation.parity import BOUNDS, compare_outputs

    def quality(actual: Mapping[str, Array]) -> float:
        report = compare_outputs(expected, actual, runtime="emulation", precision="fp16")
        return min(output.snr_db for output in report.outputs)

    bound = BOUNDS["fp16"].min_snr_db
    assert bound is not None
    typed, report = to_half(graph, {"images": images}, quality, min_snr_db=bound)
    if not report.snr_db >= bound:
        raise GateError(
            f"half precision reaches {report.snr_db:.1f} dB against PyTorch FP32, the bound is {bound:.0f} dB",
            why="; ".join(list(report.kept.values())[-3:]) or None,
            fix="--precision fp32, or check the weights",
        )
    return typed, {"precision": "fp16", **report.to_dict()}


def _prove(bundle: Bundle, plan: _Plan) -> None:
    """Open the files as the device will and hold their outputs against PyTorch's; the result goes into the manifest."""
    from vitdeploy.validation.verify import verify

    runtime = "openvino" if plan.target.name == "openvino" else "onnxruntime"
    report = verify(bundle, runtime=runtime)
    if not report.passed:
        raise GateError(
            f"{bundle.manifest.model.name} does not reproduce PyTorch in {runtime}",
            why="; ".join(report.failures),
            fix="vitdeploy export … --precision fp32" if plan.precision != "fp32" else None,
        )
    bundle.update_results(parity=[report.parity.to_dict()])


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

"""The recipe: module, reference, capture, lowering, optimization, precision, files, proof."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import onnx_ir as ir

from vitdeploy.bundle import MODEL, Bundle, BundleWriter
from vitdeploy.data import Dataset
from vitdeploy.data.slots import Slot, takes_images_alone
from vitdeploy.errors import BackendError, GateError, UsageError
from vitdeploy.exporter.artifact import describe, write_bill, write_model
from vitdeploy.exporter.emulation import emulate_half, in_single
from vitdeploy.exporter.free_axes import require_free
from vitdeploy.exporter.half import half_precision, pin_modules
from vitdeploy.exporter.inputs import lengths
from vitdeploy.exporter.int8 import eight_bits
from vitdeploy.exporter.network import Network
from vitdeploy.exporter.onnx_import.network import OnnxNetwork
from vitdeploy.exporter.onnx_import.read import OnnxFile
from vitdeploy.exporter.optimize import Record, lower, optimize, run_pass
from vitdeploy.exporter.origin import captured, open_network, reference_outputs
from vitdeploy.exporter.reference_inputs import choose_inputs
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.exporter.scores import hide_scores, show_scores
from vitdeploy.exporter.sources.resolve import check_labels, find_network
from vitdeploy.exporter.sources.subject import Subject
from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import Inputs, samples_in
from vitdeploy.graph.run import run as run_graph
from vitdeploy.models.registry import ModelCard
from vitdeploy.passes.bake_preprocessing import BakePreprocessing, require_bakeable
from vitdeploy.platforms.boards import Platform
from vitdeploy.platforms.check import check
from vitdeploy.platforms.report import BLOCKS
from vitdeploy.progress import each
from vitdeploy.proof.recorded import image_db, natural_images, pooled_db, record
from vitdeploy.quantize.gates import check_goals
from vitdeploy.quantize.samples import BATCH, CalibrationSet, choose_samples, fit_inputs, open_calibration
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.verify import verify
from vitdeploy.statistics import json_number
from vitdeploy.targets import Target, targets
from vitdeploy.tensorrt.rtx.compile import fusion_receipt

log = logging.getLogger("vitdeploy.export")

# What proves a file whose own runtimes are not here: it computes what the ONNX standard says.
STANDARD_RUNTIME = "onnxruntime"


class Reference(NamedTuple):
    """What the bundle is proven on.

    kinds    of the samples, see `choose_images`
    fed      the inputs as the bundle takes them, by name
    inputs   the same as the network sees them
    outputs  what the network makes of them in FP32, by output name
    network  what computes them
    """

    kinds: tuple[str, ...]
    fed: Inputs
    inputs: Inputs
    outputs: dict[str, Array]
    network: Network


def run(request: ExportRequest) -> Bundle:
    """Export what `request` asks for; see `vitdeploy.export` for what is raised."""
    from vitdeploy.exporter.diagnosis.culprit import Evidence, explained, require_right

    data = open_calibration(request.calibration, request.quantization) if request.precision == "int8" else None
    clock = _Clock()
    with BundleWriter(request.output, force=request.force) as writer, contextlib.ExitStack() as gates:
        build = find_network(request)
        with clock.step("building the network"):
            subject = build()
            _tell(subject)
            if request.bake_preprocessing:
                require_bakeable(subject.card.preprocessing)
        with clock.step(f"computing the {_computing(subject)} reference"):
            options, card = request.quantization, subject.card
            samples = _samples(subject, request, data) if request.precision == "int8" else None
            reference = _reference(subject, request, samples)
            check_goals(options, reference.outputs)
            card = _with_classes(card, reference, asked=request.labels is not None)
        with clock.step("capturing the graph"):
            original, nodes = captured(reference.network, reference.inputs, reference.outputs)
        graph, records = _graph(original, reference, request, clock)
        evidence = Evidence(
            reference.network,
            original,
            graph.clone(),
            request.row,
            reference.inputs,
            reference.outputs,
            request.precision,
        )
        gates.enter_context(explained(evidence))
        if request.precision != "fp32":
            require_right(evidence)
        require_free(reference.network, graph, reference.inputs, subject.inputs)
        graph, precision_report = _precision(graph, reference, request, samples, clock)
        with clock.step("writing the bundle"):
            if request.bake_preprocessing:
                records.append(run_pass(BakePreprocessing(request.row, card.preprocessing), graph))
            write_model(graph, writer, request.row)
            file, rounding_db = _file_outputs(graph, reference.fed, request)
            images = subject.images
            recipe = card.preprocessing if images else None
            writer.write_reference(reference.fed, reference.outputs, file=file, preprocessing=recipe)
            manifest = describe(graph, card, reference.network, images, request)
            manifest.graph.update(nodes_captured=nodes, passes=records, seconds=clock.seconds)
            manifest.graph.update(fusion_receipt(writer.path / MODEL, request.row))
            manifest.reference.update(images=list(reference.kinds), rounding_db=rounding_db)
            manifest.precision_report.update(precision_report)
            write_bill(manifest, writer)
            bundle = writer.seal(manifest)
        with clock.step(f"verifying the files against {reference.network.original}"):
            _prove(bundle, request)
        gates.close()  # what follows has nothing to do with the numbers
        if request.platform is not None:
            _check_rules(bundle, request.platform)
        return writer.commit()


def _check_rules(bundle: Bundle, platform: Platform) -> None:
    """GateError where the rules of a board, or of a version of TensorRT, say that no engine can be built of it."""
    report = check(bundle, platform.name)
    log.info("%s", report.verdict)
    blocking = [finding for finding in report.findings if finding.level == BLOCKS]
    if blocking:
        raise GateError(
            f"{bundle.manifest.model.name} would not build on {platform.name}",
            why="; ".join(f"{one.where}: {one.what}" for one in blocking),
            fix=blocking[0].fix,
        )


def _computing(subject: Subject) -> str:
    return "ONNX Runtime" if isinstance(subject.model, OnnxFile) else "PyTorch"


def _tell(subject: Subject) -> None:
    """Says what had to be assumed of the network."""
    card = subject.card
    for note in subject.notes:
        log.warning("%s", note)
    if card.weights.kind == "random":
        log.warning(
            "%s has no trained weights, exporting SEEDED RANDOM ones (%s); see --checkpoint",
            card.name,
            card.weights.detail,
        )
    if card.assumption:
        log.warning("%s; if that is wrong, see --preprocessing", card.assumption)


def _samples(subject: Subject, request: ExportRequest, opened: Dataset | None) -> CalibrationSet:
    """What calibrates the network, and what INT8 is evaluated on; `opened` is DATA of images."""
    options, card = request.quantization, subject.card
    slots = tuple(Slot(spec.name, lengths(spec), spec.dtype, spec.image) for spec in subject.inputs)
    data = fit_inputs(opened, () if request.calibration is None else request.calibration, slots, options)
    several = () if takes_images_alone(slots) else slots
    return choose_samples(data, card.labels, card.preprocessing, options, several)


def _reference(subject: Subject, request: ExportRequest, samples: CalibrationSet | None) -> Reference:
    """The inputs that prove the bundle, and the network's outputs for them."""
    network = open_network(subject, features=request.features, batch=request.fixed_batch)
    batch = request.fixed_batch or 1
    given = request.reference
    if given is None and samples is not None:
        given = samples.reference(batch)
    chosen = choose_inputs(subject, given, batch=batch)
    fed = chosen.inputs
    if request.bake_preprocessing:
        if chosen.pixels is None:
            raise UsageError(
                "a bundle with baked preprocessing cannot be proven on these inputs",
                why="its graph takes RGB pixels alone",
                fix="a network of images alone, and reference images as paths, or uint8 [n, H, W, 3]",
            )
        fed = {subject.inputs[0].name: chosen.pixels}
    if request.precision == "fp16":
        network.prepare_half(chosen.inputs)
    return Reference(chosen.kinds, fed, chosen.inputs, reference_outputs(network, chosen.inputs), network)


def _with_classes(card: ModelCard, reference: Reference, *, asked: bool) -> ModelCard:
    """The card with the number of classes that the logits show, if it knew none; UsageError for other labels.

    `asked` says whether the user gave the labels: those of a checkpoint are no mistake where features are exported.
    """
    logits = reference.outputs.get(reference.network.scores or "")
    scores = logits is not None and logits.ndim >= 2 and logits.dtype.kind == "f"
    if logits is not None and scores and not card.num_classes and (logits.ndim == 2 or card.labels):
        card = replace(card, num_classes=logits.shape[1])
    if asked and not scores:
        raise UsageError(
            f"{card.name} has labels, and its outputs are no class scores [N, classes, …]",
            fix="leave --labels out, or call the scores logits: forward returns {'logits': scores}",
        )
    check_labels(card)
    return card


def _graph(
    original: ir.Model, reference: Reference, request: ExportRequest, clock: _Clock
) -> tuple[ir.Model, list[Record]]:
    """The optimized FP32 graph, and the record of each rewrite on the way there."""
    graph = original.clone()
    with clock.step(f"lowering and optimizing for {request.row.name}"):
        records = lower(graph, request.row)
        records += optimize(graph, request.row)
    unused = [str(value.name) for value in graph.graph.inputs if not value.uses() and not value.is_graph_output()]
    if unused:
        raise UsageError(
            f"no output of {reference.network.name} depends on its input {' and '.join(unused)}",
            why="a runtime may leave such an input out of the model",
            fix="export the .onnx without it"
            if isinstance(reference.network, OnnxNetwork)
            else "leave it out of forward, or give it a default there and no --input",
        )
    pin_modules(graph, reference.network.float32_modules)
    return graph, records


def _precision(
    graph: ir.Model, reference: Reference, request: ExportRequest, samples: CalibrationSet | None, clock: _Clock
) -> tuple[ir.Model, dict[str, Any]]:
    """The graph in the precision that was asked for, and what that took."""
    if request.precision == "fp32":
        return graph, {"precision": request.precision}
    inputs, selections = reference.inputs, reference.network.selections
    expected = show_scores(graph, inputs, reference.outputs)
    if samples is None:
        with clock.step("setting half precision from the reference activations"):
            made, record = half_precision(graph, inputs, expected, selections=selections)
    else:
        with clock.step(f"calibrating on {len(samples.calibrate)} images and quantizing"):
            natural, options = natural_images(reference.kinds), request.quantization
            made, record = eight_bits(graph, samples, request.row, options, inputs, expected, natural, selections)
    hide_scores(made, reference.outputs)
    return made, record


def _file_outputs(graph: ir.Model, fed: Inputs, request: ExportRequest) -> tuple[dict[str, Array], dict[str, float]]:
    """What a finished graph computes by the ONNX standard, all floats in FP32, and what rounding them to FP16 costs.

    Nothing in FP32: there PyTorch's outputs say the same.
    """
    if request.precision == "fp32":
        return {}, {}
    step = request.fixed_batch or BATCH
    forms = each("computing what the file gives", (in_single, emulate_half))
    exact, rounded = (run_graph(form(graph), fed, "as_written", step) for form in forms)
    costs = {
        name: json_number(pooled_db(image_db(array, rounded[name], samples_in(fed))), 2)
        for name, array in exact.items()
        if array.dtype.kind == "f"
    }
    return exact, {name: cost for name, cost in costs.items() if cost is not None}


def _prove(bundle: Bundle, request: ExportRequest) -> None:
    """Open the files as the device will and hold their outputs against the reference; what is found is recorded."""
    results = []
    for runtime in each("proving", proving_runtimes(request.row)):
        try:
            report = verify(bundle, runtime=runtime)
        except BackendError as error:
            others = [row.name for row in targets() if row.runtimes and runtime not in row.runtimes]
            fix = f"--target {others[0]}, which {runtime} need not read" if len(request.row.runtimes) > 1 else error.fix
            raise BackendError(error.what, why=error.why, fix=fix) from error
        if not report.passed:
            raise GateError(
                f"{bundle.manifest.model.name} does not reproduce {bundle.manifest.against} in {runtime}",
                why="; ".join(report.failures),
                fix="another --target" if request.precision == "fp32" else "vitdeploy export … --precision fp32",
            )
        results.append({**report.parity.to_dict(), **record(report.runtime, report.measured)})
    bundle.update_results(parity=results)


def proving_runtimes(target: Target) -> list[str]:
    """The runtimes that a bundle proves itself on here.

    Of the target's runtimes those that need no engine built first: the first of them, and every other one that is
    installed. Where the target has none, the runtime that follows the ONNX standard.
    """
    able = [name for name in target.runtimes if find_backend(name).proves_exports] or [STANDARD_RUNTIME]
    return [able[0], *(name for name in able[1:] if find_backend(name).available() is None)]


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

"""The recipe: module, reference, capture, lowering, optimization, precision, files, proof."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import Any

import onnx_ir as ir

from vitdeploy.bundle import MODEL, Bundle, BundleWriter
from vitdeploy.errors import BackendError, GateError
from vitdeploy.exporter.artifact import describe, write_bill, write_model
from vitdeploy.exporter.emulation import emulate_half, in_single
from vitdeploy.exporter.free_axes import require_free
from vitdeploy.exporter.half import half_precision
from vitdeploy.exporter.int8 import eight_bits
from vitdeploy.exporter.optimize import run_pass
from vitdeploy.exporter.preparation import Clock, Prepared, Reference, prepare, samples_of
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.exporter.scores import hide_scores, show_scores
from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import Inputs, samples_in
from vitdeploy.graph.run import run as run_graph
from vitdeploy.passes.bake_preprocessing import BakePreprocessing
from vitdeploy.platforms.boards import Platform
from vitdeploy.platforms.check import check
from vitdeploy.platforms.report import BLOCKS
from vitdeploy.progress import each
from vitdeploy.proof.recorded import image_db, natural_images, pooled_db, record
from vitdeploy.quantize.samples import BATCH, CalibrationSet, open_calibration
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.verify import verify
from vitdeploy.statistics import json_number
from vitdeploy.targets import Target, targets
from vitdeploy.tensorrt.rtx.compile import fusion_receipt

log = logging.getLogger("vitdeploy.export")

# What proves a file whose own runtimes are not here: it computes what the ONNX standard says.
STANDARD_RUNTIME = "onnxruntime"


def run(request: ExportRequest, prepared: Prepared | None = None) -> Bundle:
    """Export what `request` asks for; see `vitdeploy.export` for what is raised.

    prepared  of a request that differs in nothing but the precision and how it is reached, with the samples of DATA
              that INT8 needs; None where the network is yet to be opened. Not for FP16: a network may move its values
              into that range before it is captured
    """
    from vitdeploy.exporter.diagnosis.culprit import Evidence, explained, require_right

    samples_for = None
    if request.precision == "int8" and prepared is None:
        data, options = open_calibration(request.calibration, request.quantization), request.quantization
        given = () if request.calibration is None else request.calibration
        samples_for = partial(samples_of, data=given, opened=data, options=options)
    clock = Clock()
    with BundleWriter(request.output, force=request.force) as writer, contextlib.ExitStack() as gates:
        made = _again(prepared, request) if prepared is not None else prepare(request, clock, samples_for)
        subject, card, samples, reference, original, nodes, graph, records = made
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


def _again(prepared: Prepared, request: ExportRequest) -> Prepared:
    """What was prepared, for an export that changes its graph and its records."""
    samples = prepared.samples if request.precision == "int8" else None
    return prepared._replace(graph=prepared.graph.clone(), records=list(prepared.records), samples=samples)


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


def _precision(
    graph: ir.Model, reference: Reference, request: ExportRequest, samples: CalibrationSet | None, clock: Clock
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
            made, record = eight_bits(
                graph, samples, request.row, options, inputs, expected, natural, selections, request.known
            )
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

"""INT8 as a step of the export: from an optimized graph and the images of DATA to a graph with Q/DQ that holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import REPORT, ExportError, InputError
from vitdeploy.exporter.emulation import emulate_half
from vitdeploy.exporter.half import half_precision
from vitdeploy.exporter.half_parts import pinned
from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import Inputs, run
from vitdeploy.proof.parity import compare_outputs
from vitdeploy.proof.recorded import pick
from vitdeploy.quantize.calibrate import Known
from vitdeploy.quantize.evaluator import Evaluator
from vitdeploy.quantize.gates import enforce, missed_gates
from vitdeploy.quantize.insert import violations
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.pipeline import Int8Report, quantize
from vitdeploy.quantize.samples import BATCH, CalibrationSet
from vitdeploy.statistics import json_number
from vitdeploy.targets import Int8Rules, Target

# What FP16 may cost where it takes the rest; INT8 alone is 100 times as coarse.
HALF_REST_DB = 2.0


def eight_bits(
    graph: ir.Model,
    samples: CalibrationSet,
    target: Target,
    options: Int8Options,
    inputs: Inputs,
    expected: Mapping[str, Array],
    natural: NDArray[np.bool_],
    selections: Collection[str] = (),
    known: Known | None = None,
) -> tuple[ir.Model, dict[str, Any]]:
    """A copy of an optimized FP32 graph with Q/DQ, and what the manifest records of it.

    target      in whose form the graph is, with its rules for INT8
    expected    what PyTorch FP32 makes of `inputs`, by output name: the reference of the bundle
    natural     which of the samples look like those in use: what INT8 keeps of others depends on how far they lie
                outside of the calibrated ranges, and is measured but not judged
    selections  outputs that are sets of whole numbers
    known       see `quantize`

    Raises GateError for what misses a gate of `options`, or the floor below which INT8 is not to be trusted; where the
    loss is accepted, the record names it under `missed`. Further errors as of `quantize`.
    """
    labels, rules = None, target.int8 or Int8Rules()
    if options.max_drop is not None:
        _check_classes(samples, next(iter(expected.values())))
        labels = samples.labels()
    evaluator = Evaluator(graph, samples.evaluation(), labels)
    quantized, report = quantize(
        graph,
        rules,
        samples.recipe,
        samples.calibration(),
        evaluator,
        options,
        pinned(graph),
        samples.images,
        target=target,
        known=known,
    )
    if broken := violations(quantized.graph, rules):
        raise ExportError("the INT8 graph breaks a rule of its target", why="; ".join(broken[:3]), fix=REPORT)
    actual = run(quantized, inputs, "qdq", BATCH)
    wanted, found = pick(expected, natural), pick(actual, natural)
    parity = compare_outputs(wanted, found, runtime="standard", precision="int8", selections=selections)
    snr_db = min(output.snr_db for output in parity.outputs)
    record: dict[str, Any] = {"precision": "int8", "reference_snr_db": None, "data": samples.data.where}
    half = None
    if rules.half_rest:
        quantized, half = half_precision(
            quantized,
            inputs,
            expected,
            min_snr_db=snr_db - HALF_REST_DB,
            judged=natural,
            selections=selections,
        )
        snr_db = snr_db if half["snr_db"] is None else half["snr_db"]
        report = _with_half(report, evaluator, quantized)
    record |= report.to_dict() | ({} if half is None else {"half_rest": half})
    record["reference_snr_db"] = json_number(snr_db, 2)
    missed = missed_gates(options, snr_db=report.outputs, reference_snr_db=snr_db, drop=report.drop)
    enforce(options, missed)
    record["missed"] = [one.to_dict() for one in missed]
    return quantized, record


def _with_half(report: Int8Report, evaluator: Evaluator, typed: ir.Model) -> Int8Report:
    """`report` with what is measured of the graph whose rest is FP16, every FP16 tensor rounded where it is made."""
    emulated = emulate_half(typed)
    drop = None if report.drop is None else evaluator.drop(emulated, "as_written")
    return replace(report, outputs=evaluator.ratios(emulated, "as_written"), drop=drop)


def _check_classes(samples: CalibrationSet, logits: Array) -> None:
    """InputError where DATA names other classes than the network has: no class number would be certain."""
    named = samples.data.classes
    if named is not None and logits.ndim == 2 and len(named) != logits.shape[1]:
        raise InputError(
            f"{samples.data.where} has {len(named)} classes, the network {logits.shape[1]}",
            why="the network has no class names, so the classes of DATA cannot be found among its own",
            fix="--labels with the names of all classes in the network's order",
        )

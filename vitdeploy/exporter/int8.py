"""INT8 as a step of the export: from an optimized graph and the images of DATA to a graph with Q/DQ that holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from vitdeploy.errors import REPORT, ExportError
from vitdeploy.exporter.half import half_precision, pinned
from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import run
from vitdeploy.proof.parity import compare_outputs
from vitdeploy.quantize.insert import violations
from vitdeploy.quantize.mixed_precision import Evaluator
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.pipeline import quantize
from vitdeploy.quantize.samples import BATCH, CalibrationSet
from vitdeploy.statistics import json_number
from vitdeploy.targets import Int8Rules

# What FP16 may cost where it takes the rest; INT8 alone is 100 times as coarse.
HALF_REST_DB = 2.0


def eight_bits(
    graph: ir.Model,
    samples: CalibrationSet,
    rules: Int8Rules,
    options: Int8Options,
    images: Array,
    expected: Mapping[str, Array],
) -> tuple[ir.Model, dict[str, Any]]:
    """A copy of an optimized FP32 graph with Q/DQ, and what the manifest records of it.

    `expected` is what PyTorch FP32 makes of `images` [n, 3, H, W], by output name: the reference of the bundle.
    """
    labels = None if options.max_drop is None else samples.labels()
    evaluator = Evaluator(graph, samples.evaluation(), labels)
    quantized, report = quantize(graph, rules, samples.recipe, samples.calibration(), evaluator, options, pinned(graph))
    if broken := violations(quantized.graph, rules):
        raise ExportError("the INT8 graph breaks a rule of its target", why="; ".join(broken[:3]), fix=REPORT)
    actual = run(quantized, {str(quantized.graph.inputs[0].name): images}, "qdq", BATCH)
    parity = compare_outputs(expected, actual, runtime="standard", precision="int8")
    snr_db = min(output.snr_db for output in parity.outputs)
    record = {"precision": "int8", "reference_snr_db": None, "data": samples.data.where, **report.to_dict()}
    if rules.half_rest:
        quantized, record["half_rest"] = half_precision(quantized, images, expected, min_snr_db=snr_db - HALF_REST_DB)
        snr_db = record["half_rest"]["snr_db"]
    record["reference_snr_db"] = json_number(snr_db, 2)
    return quantized, record

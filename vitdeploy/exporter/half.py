"""FP16 as graph types: what is safe in half precision is typed FLOAT16, the rest stays FLOAT and says why.

Precision lives in the graph because strongly typed builders (TensorRT 10 and newer) read nothing else. Inputs and
outputs stay float32. What stays FP32 is decided from the activations of the reference inputs, not from a list of
operators.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import GateError
from vitdeploy.exporter.emulation import (
    HALF_MAX,
    MIN_TENSOR_SNR_DB,
    Range,
    activation_ranges,
    emulate_half,
    half_snr_db,
)
from vitdeploy.exporter.guards import guarded_regions
from vitdeploy.exporter.half_repair import IMAGE_ALLOWANCE_DB, Quality, find_repairs
from vitdeploy.exporter.partial_sums import partial_sums
from vitdeploy.graph.edit import Array, attribute, constant, only_consumer, remove_unused
from vitdeploy.graph.names import block_of
from vitdeploy.graph.retype import float_inputs, retype
from vitdeploy.graph.run import Inputs, run, samples_in
from vitdeploy.graph.traffic import bytes_moved
from vitdeploy.proof.parity import BOUNDS, compare_outputs
from vitdeploy.proof.recorded import image_db, pick, pooled_db
from vitdeploy.statistics import json_number

log = logging.getLogger(__name__)

HEADROOM = 2.0  # other images may reach higher than the reference ones
MASK_LIMIT = -10000.0
SPARE_DB = 1.0  # kept above the bound, for runtimes that round in other places than the emulation

_PIN = "vitdeploy.keep_fp32"

SINGLE, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

_SUMS_OVER_AXES = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})


@dataclass
class HalfReport:
    """What the conversion decided.

    kept        the names of the nodes that compute in FP32, and why
    more_bytes  what they cost: the bytes that all operators move, beyond those with every node in FP16, as a part of
                these
    """

    snr_db: float = float("nan")
    half_nodes: int = 0
    more_bytes: float = 0.0
    kept: dict[str, str] = field(default_factory=dict)
    repairs: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest records it."""
        return {
            "snr_db": json_number(self.snr_db, 2),
            "measured_by": "emulation: every FP16 tensor rounded where it is made, products accumulated in FP32",
            "half_nodes": self.half_nodes,
            "more_bytes": round(self.more_bytes, 4),
            "kept_fp32": [{"node": node, "reason": reason} for node, reason in self.kept.items()],
            "repairs": self.repairs,
        }


def keep_single(node: ir.Node, reason: str) -> None:
    """Mark `node` to stay FP32 whatever its activations; the mark is gone from what ships."""
    node.metadata_props[_PIN] = reason


def pin_modules(model: ir.Model, modules: Sequence[str]) -> None:
    """Mark every node of the modules that a network declares as `float32_modules`, such as a discrete selection."""
    for node in model.graph:
        path = str(node.name).rpartition("/")[0]
        owner = next((name for name in modules if path == name or path.startswith(f"{name}.")), None)
        if owner:
            keep_single(node, f"the network declares that {owner} computes in FP32")


def pinned(model: ir.Model) -> dict[str, str]:
    """The nodes that `keep_single` marked, by name, with the reason."""
    return {str(node.name): node.metadata_props[_PIN] for node in model.graph if _PIN in node.metadata_props}


def half_precision(
    graph: ir.Model,
    inputs: Inputs,
    expected: Mapping[str, Array],
    *,
    min_snr_db: float | None = None,
    judged: NDArray[np.bool_] | None = None,
    selections: Collection[str] = (),
) -> tuple[ir.Model, dict[str, Any]]:
    """A typed FP16 copy of an optimized graph, and what the manifest records of it.

    expected    what PyTorch FP32 makes of `inputs`, by output name
    min_snr_db  what it has to reach on them, or GateError is raised; None for the bound of FP16
    judged      which of the samples are to reach it; None for all, of which then no single one may fall far below
    selections  outputs that are sets of whole numbers
    """
    wanted = pick(expected, judged)

    def quality(actual: Mapping[str, Array]) -> float:
        found = pick(actual, judged)
        report = compare_outputs(wanted, found, runtime="emulation", precision="fp16", selections=selections)
        ratios = [output.snr_db for output in report.outputs]
        for name in (name for name, array in expected.items() if judged is None and array.dtype.kind == "f"):
            each = image_db(expected[name], actual[name], samples_in(inputs))
            ratios += [min(each) + IMAGE_ALLOWANCE_DB, pooled_db(each)]
        return min(ratios, default=math.inf)

    bound = BOUNDS["fp16"].min_snr_db if min_snr_db is None else min_snr_db
    assert bound is not None, "the bounds of FP16 are ours"
    typed, report = to_half(graph, inputs, quality, min_snr_db=bound)
    if not report.snr_db >= bound:
        raise GateError(
            f"half precision reaches {report.snr_db:.1f} dB against FP32, the bound is {bound:.0f} dB",
            why=_costs(report),
            fix="--precision fp32, or check the weights",
        )
    return typed, {"precision": "fp16", **report.to_dict()}


def _costs(report: HalfReport) -> str:
    """The blocks that cost half precision most, or that none costs more than others; and why nodes stay FP32 anyway."""
    if not report.repairs:
        reasons = "; ".join(dict.fromkeys(list(report.kept.values())[-3:]))
        kept = f", besides what is in FP32 already ({reasons})" if reasons else ""
        return f"no single block in FP32 helps{kept}"
    figures = [(one["block"], one["snr_db_before"] or 0.0, one["snr_db_after"] or 0.0) for one in report.repairs]
    most = sorted(figures, key=lambda one: one[1] - one[2])[:3]
    return "most is lost in " + ", ".join(f"{block} ({low:.1f} dB, in FP32 {high:.1f} dB)" for block, low, high in most)


def to_half(
    model: ir.Model, inputs: Mapping[str, Array], quality: Quality, *, min_snr_db: float
) -> tuple[ir.Model, HalfReport]:
    """A typed FP16 copy of the FP32 graph `model`, and what it took.

    `inputs` are the reference inputs; `quality(outputs) -> dB` judges emulated outputs against PyTorch's. Nodes marked
    by `keep_single`, and nodes whose tensors would overflow or underflow, stay FP32; then, while the emulated quality
    is below `min_snr_db`, blocks are reverted to FP32, those that cost most first.
    The result may still be below the bound: the caller's gate decides.
    """
    model = model.clone()
    _finite_masks(model)
    ranges = activation_ranges(model, inputs)
    sums = {
        name: f"overflow: terms that {name} adds up reach {largest:.3g} before they cancel"
        for name, largest in partial_sums(model, inputs, ranges).items()
    }
    report = HalfReport(kept={**guarded_regions(model.graph), **sums, **_unsafe(model, ranges), **pinned(model)})
    bound = min_snr_db + SPARE_DB

    blocks = _blocks(model, report)

    def emulated(half: Collection[str]) -> dict[str, Array]:
        single = {node: "" for block, nodes in blocks.items() if block not in half for node in nodes}
        return run(emulate_half(_typed(model, {**report.kept, **single})), inputs, "as_written")

    report.snr_db = quality(emulated(blocks))
    if not report.snr_db >= bound:
        exact = emulated(())
        for one in find_repairs(emulated, quality, blocks, exact, bound=bound, snr_db=report.snr_db):
            reason = f"FP16 here costs accuracy: {one.before:.1f} dB at the outputs with it, {one.after:.1f} without"
            report.kept.update(dict.fromkeys(blocks[one.block], reason))
            before, after = json_number(one.before), json_number(one.after)
            report.repairs.append({"block": one.block, "snr_db_before": before, "snr_db_after": after})
            report.snr_db = one.after
    typed = _typed(model, report.kept)
    report.half_nodes = sum(any(out.dtype == HALF for out in n.outputs) and n.op_type != "Cast" for n in typed.graph)
    report.more_bytes = bytes_moved(typed.graph) / bytes_moved(_typed(model, {}).graph) - 1
    return typed, report


def _unsafe(model: ir.Model, ranges: Mapping[str, Range]) -> dict[str, str]:
    """Nodes that FP16 would break on the reference inputs, each with the reason."""
    kept: dict[str, str] = {}
    for node in model.graph:
        if not _is_float(node):
            continue
        reasons = [_constant_reason(value) for _, value in float_inputs(node) if value.dtype == SINGLE]
        touched = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name in ranges]
        reasons += [_range_reason(value, ranges[str(value.name)]) for value in touched]
        reasons += [_sum_reason(node, ranges), _growth_reason(node, ranges)]
        found = next((reason for reason in reasons if reason), None)
        if found:
            kept[str(node.name)] = found
    return kept


def _range_reason(value: ir.Value, seen: Range) -> str | None:
    if not seen.max_abs * HEADROOM <= HALF_MAX:
        return f"overflow: {value.name} reaches {seen.max_abs:.3g}, half precision ends at {HALF_MAX:.0f}"
    if seen.max_abs > 0 and seen.half_snr_db < MIN_TENSOR_SNR_DB:
        return f"underflow: {value.name} (at most {seen.max_abs:.3g}) keeps {seen.half_snr_db:.0f} dB in half precision"
    return None


def _constant_reason(value: ir.Value) -> str | None:
    array = constant(value)
    if array is None or array.dtype != np.float32 or array.size == 0 or not np.any(array):
        return None
    finite = array[np.isfinite(array)]
    if finite.size and np.abs(finite).max() > HALF_MAX:
        return f"overflow: constant {value.name} holds {np.abs(finite).max():.3g}"
    snr = half_snr_db(array)
    if snr < MIN_TENSOR_SNR_DB:
        return f"underflow: constant {value.name} keeps {snr:.0f} dB in half precision"
    return None


def _sum_reason(node: ir.Node, ranges: Mapping[str, Range]) -> str | None:
    """A mean is a sum first; some kernels hold that sum in FP16. The online softmax of fused attention does too."""
    if node.op_type not in _SUMS_OVER_AXES and node.op_type != "Softmax":
        return None
    value = node.inputs[0]
    if value is None or value.name is None or value.shape is None or value.name not in ranges:
        return None
    shape = [dim if isinstance(dim, int) else 1 for dim in value.shape]
    if node.op_type == "Softmax":
        count, largest = shape[int(attribute(node, "axis", -1))], 1.0
    else:
        count, largest = int(np.prod([shape[axis] for axis in _reduced_axes(node, len(shape))])), 0.0
        largest = ranges[value.name].max_abs
    if count * largest <= HALF_MAX:
        return None
    return f"overflow: a sum over {count} values of up to {largest:.3g} may pass {HALF_MAX:.0f}"


def _growth_reason(node: ir.Node, ranges: Mapping[str, Range]) -> str | None:
    """A power or an exponential leaves more headroom for its input than for itself: other images may reach higher."""
    seen = ranges.get(str(node.outputs[0].name))
    if seen is None:
        return None
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    if node.op_type == "Exp":
        largest = seen.max_abs**HEADROOM if seen.max_abs > 1 else seen.max_abs
    elif node.op_type == "ReduceL2":
        largest = (HEADROOM * seen.max_abs) ** 2  # the sum, before its root
    elif node.op_type == "ReduceSumSquare" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1]):
        largest = HEADROOM**2 * seen.max_abs
    elif exponent is not None and exponent.size == 1 and exponent.item() > 1:
        largest = HEADROOM ** float(exponent.item()) * seen.max_abs
    else:
        return None
    if largest <= HALF_MAX:
        return None
    return f"overflow: inputs {HEADROOM:g} times as large take {node.op_type} to {largest:.3g}"


def _reduced_axes(node: ir.Node, rank: int) -> list[int]:
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(given) if given is not None else attribute(node, "axes")
    return list(range(rank)) if axes is None else [int(axis) for axis in axes]


def _blocks(model: ir.Model, report: HalfReport) -> dict[str, list[str]]:
    """The FP16 nodes of each block."""
    blocks: dict[str, list[str]] = {}
    for node in model.graph:
        name = str(node.name)
        if _is_float(node) and name not in report.kept:
            blocks.setdefault(block_of(name), []).append(name)
    return blocks


def _is_float(node: ir.Node) -> bool:
    return any(value.dtype == SINGLE for value in (*node.inputs, *node.outputs) if value is not None)


def _finite_masks(model: ir.Model) -> None:
    """An attention mask of -inf becomes a large negative number: the same probabilities, without infinities."""
    for value in list(model.graph.initializers.values()):
        array = constant(value)
        if array is None or array.dtype != np.float32 or not np.isneginf(array).any():
            continue
        add = only_consumer(value, "Add")
        if add is not None and only_consumer(add.outputs[0], "Softmax") is not None:
            value.const_value = ir.tensor(np.maximum(array, np.float32(MASK_LIMIT)), name=value.name)


def _typed(model: ir.Model, kept: Mapping[str, str]) -> ir.Model:
    """`model` with FP16 types on every FP32 node outside `kept`, and Casts where the two precisions meet."""
    model = model.clone()
    retype(model.graph, [node for node in model.graph if _is_float(node) and node.name not in kept], HALF)
    remove_unused(model)
    return model

"""An FP32 graph with what half precision would break in it: the graph with any part of the rest in FP16 follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.emulation import HALF_MAX, MIN_TENSOR_SNR_DB, Range, activation_ranges, half_snr_db
from vitdeploy.exporter.guards import guarded_regions
from vitdeploy.exporter.partial_sums import partial_sums
from vitdeploy.graph.edit import Array, attribute, constant, only_consumer, remove_unused
from vitdeploy.graph.names import block_of
from vitdeploy.graph.retype import float_inputs, retype

HEADROOM = 2.0  # other images may reach higher than the reference ones
MASK_LIMIT = -10000.0

_PIN = "vitdeploy.keep_fp32"

SINGLE, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

_SUMS_OVER_AXES = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})


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


@dataclass(frozen=True)
class HalfParts:
    """What the reference inputs tell of a graph.

    model   FP32, its masks finite
    ranges  of the inputs and of every computed float tensor, by name
    kept    the nodes that stay FP32 whatever is asked for, by name, with the reason
    """

    model: ir.Model
    ranges: Mapping[str, Range]
    kept: Mapping[str, str]

    @classmethod
    def of(cls, model: ir.Model, inputs: Mapping[str, Array]) -> HalfParts:
        """What `inputs` tell of a copy of `model`.

        Nodes that `keep_single` marked, and nodes whose tensors would overflow or underflow, stay FP32.
        """
        model = model.clone()
        _finite_masks(model)
        ranges = activation_ranges(model, inputs)
        sums = {
            name: f"overflow: terms that {name} adds up reach {largest:.3g} before they cancel"
            for name, largest in partial_sums(model, inputs, ranges).items()
        }
        return cls(model, ranges, {**guarded_regions(model.graph), **sums, **_unsafe(model, ranges), **pinned(model)})

    def blocks(self) -> dict[str, list[str]]:
        """The nodes of each block that may compute in FP16."""
        blocks: dict[str, list[str]] = {}
        for node in self.model.graph:
            name = str(node.name)
            if is_float(node) and name not in self.kept:
                blocks.setdefault(block_of(name), []).append(name)
        return blocks

    def typed(self, kept: Collection[str]) -> ir.Model:
        """The graph with FP16 types on every FP32 node outside `kept`, and Casts where the two precisions meet."""
        model = self.model.clone()
        retype(model.graph, [node for node in model.graph if is_float(node) and node.name not in kept], HALF)
        remove_unused(model)
        return model

    def only(self, nodes: Collection[str]) -> ir.Model:
        """The graph with FP16 types on those of `nodes` that may compute in it, and on no others."""
        return self.typed({str(node.name) for node in self.model.graph if node.name not in nodes} | set(self.kept))


def _unsafe(model: ir.Model, ranges: Mapping[str, Range]) -> dict[str, str]:
    """Nodes that FP16 would break on the reference inputs, each with the reason."""
    kept: dict[str, str] = {}
    for node in model.graph:
        if not is_float(node):
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


def is_float(node: ir.Node) -> bool:
    """Whether a node reads or makes a float32 tensor."""
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

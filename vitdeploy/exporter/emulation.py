"""Running a graph on the host while watching it, or rounding it as half precision would.

A CPU runtime executes FP16 graphs by computing in FP32, so its answer says nothing about half precision. The emulation
here rounds every tensor that the graph types as FP16 right after it is made; products still accumulate in FP32, as
they do on tensor cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import Runner
from vitdeploy.statistics import decibels

HALF_MAX = 65504.0
MIN_TENSOR_SNR_DB = 50.0  # a normal tensor keeps 70 to 75 dB in half precision; less means subnormal values


@dataclass(frozen=True)
class Range:
    """What the reference inputs do to one tensor: its largest magnitude, and how well FP16 can hold it (dB)."""

    max_abs: float
    half_snr_db: float


def activation_ranges(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Range]:
    """Range of the inputs and of every computed float tensor, in one run whose memory is that of inference.

    The statistics are computed inside the graph, next to the tensors, so that no activation has to be kept.
    """
    watched = model.clone()
    made = [value for node in watched.graph for value in node.outputs if value.uses() or value.is_graph_output()]
    values = [value for value in (*watched.graph.inputs, *made) if value.dtype == ir.DataType.FLOAT]
    watched.graph.outputs.clear()
    for index, value in enumerate(values):
        for statistic in _statistics(watched.graph, value, f"watch.{index}"):
            watched.graph.outputs.append(statistic)
    parts = list(Runner(watched, "as_written").batches(inputs))

    def seen(index: int, statistic: str) -> list[float]:
        return [float(part[f"watch.{index}.{statistic}"]) for part in parts]

    return {
        str(value.name): Range(
            max_abs=float(np.max(seen(index, "max"))),
            half_snr_db=decibels(sum(seen(index, "signal")), sum(seen(index, "noise"))),
        )
        for index, value in enumerate(values)
    }


def _statistics(graph: ir.Graph, value: ir.Value, name: str) -> list[ir.Value]:
    made: list[ir.Node] = []

    def op(op_type: str, inputs: Sequence[ir.Value], suffix: str = "", **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        made.append(node)
        out = node.outputs[0]
        out.type = ir.TensorType(ir.DataType.FLOAT)
        if suffix:
            out.name, out.shape = f"{name}.{suffix}", ir.Shape([])
        return out

    half = op("Cast", [value], to=ir.DataType.FLOAT16.value)
    half.type = ir.TensorType(ir.DataType.FLOAT16)
    error = op("Sub", [value, op("Cast", [half], to=ir.DataType.FLOAT.value)])
    statistics = [
        op("ReduceMax", [op("Abs", [value])], "max", keepdims=0),
        op("ReduceSumSquare", [value], "signal", keepdims=0),
        op("ReduceSumSquare", [error], "noise", keepdims=0),
    ]
    source = value.producer()
    if source is None:
        graph.insert_before(graph[0], made)
    else:
        graph.insert_after(source, made)
    return statistics


def half_snr_db(array: Array) -> float:
    """Signal-to-noise in dB of a constant when it is stored in half precision; infinities count as themselves."""
    finite = array[np.isfinite(array)].astype(np.float64)
    with np.errstate(over="ignore"):
        error = finite - finite.astype(np.float16).astype(np.float64)
    return decibels(float(np.square(finite).sum()), float(np.square(error).sum()))


def emulate_half(model: ir.Model) -> ir.Model:
    """The same graph in FP32 types, every FP16 tensor rounded where it is made."""
    return _in_single(model, rounded=True)


def in_single(model: ir.Model) -> ir.Model:
    """The same graph in FP32 types: nothing is rounded but the constants, which are what they were."""
    return _in_single(model, rounded=False)


def _in_single(model: ir.Model, *, rounded: bool) -> ir.Model:
    emulated = model.clone()
    graph = emulated.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT16:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT16.value:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT16:
                continue
            if rounded:
                _round(graph, node, value)
            else:
                value.type = ir.TensorType(ir.DataType.FLOAT)
    return emulated


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    single, half = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.FLOAT16)
    value.type = single
    down = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT16.value})
    up = ir.node("Cast", [down.outputs[0]], attributes={"to": ir.DataType.FLOAT.value})
    down.outputs[0].type, up.outputs[0].type = half, single
    down.outputs[0].shape = up.outputs[0].shape = value.shape
    ir.convenience.replace_all_uses_with(value, up.outputs[0], replace_graph_outputs=True)
    down.replace_input_with(0, value)
    graph.insert_after(node, [down, up])

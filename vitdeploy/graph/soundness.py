"""What a parsed ONNX file has to be before any runtime sees it: closed, acyclic, of standard operators, of sane sizes.

Light: imports onnx when it is called. Runtimes differ in what they do with files that are not: they open other files,
read addresses that the file names, or do not come back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx")
# Elements of one value for one image: 1 GiB in FP32, more than a whole reference may have.
LARGEST_VALUE = 1 << 28
# The largest network in benchmarks/results has 1,636.
MOST_NODES = 30_000
# Above this many bytes a constant is a weight, whose values no shape depends on.
_WEIGHT_BYTES = 4096

# Messages that hold no tensors; a graph has one for each of its values.
_NO_TENSORS = ("ValueInfoProto", "StringStringEntryProto", "OperatorSetIdProto", "TensorAnnotation")
# Bits of an element where they are not a multiple of eight.
_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
_SHOWN = 60


def messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages inside it: subgraphs, functions, attributes and what else a file can hold."""
    waiting = [message]
    while waiting:
        message = waiting.pop()
        yield message
        if message.DESCRIPTOR.name == "TensorProto":  # has its values inside, and no other tensors
            continue
        for field, value in message.ListFields():
            inner = field.message_type
            if inner is not None and inner.name not in _NO_TENSORS:
                waiting.extend([value] if hasattr(value, "ListFields") else value)


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors whose values lie in other files, or are said to."""
    import onnx

    external = onnx.TensorProto.EXTERNAL
    tensors = (message for message in messages(model) if message.DESCRIPTOR.name == "TensorProto")
    return [tensor for tensor in tensors if tensor.data_location == external or tensor.external_data]


def unsound(model: onnx.ModelProto) -> str | None:
    """Why no runtime should see the model, in words that name the place; None for one that is as exports are.

    External data is not judged here, see `external_tensors`.
    """
    for faults in (_foreign(model), _wrong_order(model.graph), _wrong_lengths(model), _contradictory(model)):
        fault = next(faults, None)
        if fault is not None:
            return fault
    return _absurd_shapes(model)


def _foreign(model: onnx.ModelProto) -> Iterator[str]:
    """Operators that need code from elsewhere, or run other graphs for as long as they like."""
    import onnx.defs

    if len(model.graph.node) > MOST_NODES:
        yield f"it has {len(model.graph.node):,} nodes, more than {MOST_NODES:,}"
    if model.functions:
        yield f"it defines functions of its own, the first is {shown(model.functions[0].name)}"
    if model.graph.sparse_initializer:
        yield "it has sparse constants"
    opset = max((one.version for one in model.opset_import if one.domain in STANDARD), default=0)
    if not 1 <= opset <= onnx.defs.onnx_opset_version():
        yield f"its opset is {opset}, and the installed onnx knows 1 to {onnx.defs.onnx_opset_version()}"
    known: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in known or node.domain not in STANDARD:
            if node.domain not in STANDARD or not _has_schema(node.op_type, opset):
                kind = f"{node.domain or 'ai.onnx'}.{node.op_type}"
                yield f"the node {named(node)} is {shown(kind)}, which opset {opset} of ONNX does not define"
            known.add(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                yield f"the node {named(node)} is {node.op_type}, which runs a graph of its own"


def _has_schema(operator: str, opset: int) -> bool:
    import onnx.defs

    try:
        onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _wrong_order(graph: onnx.GraphProto) -> Iterator[str]:
    """Values that are made twice, never, or only after they are read."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input]
    made = set(constants)
    weights = (tensor.name for tensor in graph.initializer)
    yield from (f"two constants are called {shown(name)}" for name in _twice(weights))
    yield from (f"two inputs are called {shown(name)}" for name in _twice(inputs))
    yield from (f"two outputs are called {shown(name)}" for name in _twice(value.name for value in graph.output))
    made.update(inputs)
    makers = {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            if name and name not in made:
                late = "before it is computed: the graph is cyclic or out of order"
                why = late if name in makers else "which nothing computes"
                yield f"the node {named(node)} reads {shown(name)} {why}"
        for name in node.output:
            if name and name in made:
                yield f"the value {shown(name)} is defined twice, the second time by the node {named(node)}"
            made.add(name)
    yield from (f"the output {shown(v.name)} is computed by nothing" for v in graph.output if v.name not in made)


def _wrong_lengths(model: onnx.ModelProto) -> Iterator[str]:
    """Constants that say to have more or fewer values than they have."""
    import onnx

    for tensor in messages(model):
        if tensor.DESCRIPTOR.name != "TensorProto":
            continue
        kind = onnx.TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in _known_types() else None
        if kind is None or kind in ("UNDEFINED", "STRING"):
            yield f"the constant {shown(tensor.name)} is of type {kind or tensor.data_type}"
            continue
        if min(tensor.dims, default=0) < 0:
            yield f"the constant {shown(tensor.name)} has the shape {list(tensor.dims)}"
            continue
        count = math.prod(tensor.dims)
        if tensor.HasField("raw_data"):
            bits = _PACKED_BITS.get(kind) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            wanted, found, unit = -(-count * bits // 8), len(tensor.raw_data), "bytes"
        else:
            field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
            per = 1 / 2 if _PACKED_BITS.get(kind) == 4 else 2 if kind.startswith("COMPLEX") else 1
            wanted, found, unit = math.ceil(count * per), len(getattr(tensor, field)), "values"
        if wanted != found:
            yield f"the constant {shown(tensor.name)} is {list(tensor.dims)} and has {found:,} {unit}, not {wanted:,}"


def _contradictory(model: onnx.ModelProto) -> Iterator[str]:
    """Nodes with an attribute of another type or none at all, or too few inputs; runtimes take these differently."""
    import onnx

    context = type(onnx.checker.DEFAULT_CONTEXT)()
    context.ir_version = model.ir_version
    context.opset_imports = {one.domain: one.version for one in model.opset_import}
    for node in model.graph.node:
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError as error:
            why = next(iter(str(error).strip().splitlines()), "it contradicts its definition")
            yield f"the node {named(node)} is no {node.op_type} of ONNX: {why}"


def _known_types() -> set[int]:
    import onnx

    return set(onnx.TensorProto.DataType.values())


def _absurd_shapes(model: onnx.ModelProto) -> str | None:
    """A value of more than LARGEST_VALUE elements, by the inference of ONNX; and what that finds contradictory."""
    import onnx

    light = _without_weights(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # its own kinds, and those of protobuf
        return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        lengths = [axis.dim_value for axis in value.type.tensor_type.shape.dim if axis.HasField("dim_value")]
        if math.prod(lengths) > LARGEST_VALUE or min(lengths, default=0) < 0:
            limits = f"more than {LARGEST_VALUE:,} elements, or fewer than none"
            return f"the value {shown(value.name)} is {lengths}: {limits}"
    return None


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants have types and shapes and no values, which are not even copied on the way."""
    light = _copied(model, without=("graph",))
    light.graph.CopyFrom(_copied(model.graph, without=("initializer",)))
    for tensor in model.graph.initializer:
        large = len(tensor.raw_data) > _WEIGHT_BYTES
        light.graph.initializer.append(_copied(tensor, without=("raw_data",)) if large else tensor)
        if large:
            light.graph.initializer[-1].raw_data = b""
    return light


def _copied(message: Any, without: Collection[str]) -> Any:
    """A copy of a protobuf message, without some of its fields."""
    copy = type(message)()
    for field, value in message.ListFields():
        if field.name in without:
            continue
        if hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)
    return copy


def named(node: onnx.NodeProto) -> str:
    """A node in messages: its name, or that of its first output."""
    return shown(node.name or next(iter(node.output), "") or "without a name")


def shown(name: str) -> str:
    """A name out of a file as one short, printable word."""
    short = name if len(name) <= _SHOWN else name[: _SHOWN - 1] + "…"
    return short if short.isprintable() else repr(short)


def _twice(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]

"""Whether a graph is valid ONNX at the opset that it declares, and made of what the target's runtime has."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx_ir as ir

from vitdeploy.errors import REPORT, ExportError
from vitdeploy.exporter.lowering.refusal import newer_target, refusal
from vitdeploy.platforms.boards import PLATFORMS
from vitdeploy.platforms.graph_rules import unreadable
from vitdeploy.targets import Target

_REPLACE = "write that part of the network with other operations"
_SMALL = 1024  # bytes; constants up to here may be shapes, axes and other numbers that decide on the form


def require_valid(model: ir.Model, target: Target) -> None:
    """Raise ExportError unless `model` is valid at its declared opset and TensorRT, if it is the target, can read it.

    Operators, attributes, numbers of inputs and types are held against the schemas of ONNX one node after another, so
    that the message can name the module; then onnx.checker holds the whole graph, shapes included.
    """
    opset = model.graph.opset_imports[""]
    for node in model.graph:
        if node.domain in ("", "ai.onnx"):
            _require_known(node, opset, target)
    _require_runtime(model, target)
    try:
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"the graph is not valid at opset {opset}", why=why, fix=REPORT) from error


def _require_known(node: ir.Node, opset: int, target: Target) -> None:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        since = _introduced(node.op_type)
        raise refusal(
            node,
            f"{node.op_type} does not exist in opset {opset}, which the target {target.name} declares",
            why=f"{node.op_type} is an operator of opset {since}" if since else "it is no standard operator",
            fix=newer_target(target, since, _REPLACE) if since else _REPLACE,
        ) from None
    wrong = [f"the attribute {name}" for name in node.attributes if name not in schema.attributes]
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        wrong.append(f"{len(node.inputs)} inputs")
    wrong += _types(node, schema)
    if wrong:
        raise refusal(
            node,
            f"{node.op_type} with {' and '.join(wrong)} cannot be said in opset {opset}",
            why=f"the target {target.name} declares opset {opset}, whose {node.op_type} is that of opset "
            f"{schema.since_version}",
            fix=newer_target(target, opset + 1, _REPLACE),
        )


def _types(node: ir.Node, schema: onnx.defs.OpSchema) -> list[str]:
    allowed = {row.type_param_str: set(row.allowed_type_strs) for row in schema.type_constraints}
    wrong = []
    for value, formal in zip(node.inputs, _formal(schema, len(node.inputs)), strict=True):
        if value is None or value.type is None or not isinstance(value.type, ir.TensorType):
            continue
        name = f"tensor({_NAMES.get(value.type.dtype, value.type.dtype.name.lower())})"
        if name not in allowed.get(formal.type_str, {formal.type_str}):
            wrong.append(f"an input of type {name}")
    return wrong


_NAMES = {ir.DataType.DOUBLE: "double", ir.DataType.FLOAT: "float"}


def _formal(schema: onnx.defs.OpSchema, count: int) -> list[onnx.defs.OpSchema.FormalParameter]:
    """The schema's input for each of `count` inputs, the last one again for a variadic rest."""
    given = list(schema.inputs)
    return (given + given[-1:] * count)[:count] if given else []


def _introduced(op_type: str) -> int | None:
    versions = [row.since_version for row in onnx.defs.get_all_schemas_with_history() if row.name == op_type]
    return min(versions, default=None)


def _require_runtime(model: ir.Model, target: Target) -> None:
    """A file that is for TensorRT alone has operators that its parser knows."""
    if not target.for_nvidia_alone or target.name not in PLATFORMS:
        return
    for node, finding in unreadable(model, PLATFORMS[target.name]):
        raise refusal(
            node,
            f"TensorRT cannot read {node.op_type}",
            why=f"{finding.what} ({finding.source})",
            fix=f"{finding.fix}, or vitdeploy export … --target onnxruntime",
        )


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf, large constants as inputs: what is checked does not depend on them, and they may be GB."""
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL and not value.is_graph_input():
            del light.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(list(tensor.numpy().shape))
            light.graph.inputs.append(value)
    return ir.to_proto(light)

"""From the opset of a file to that of the capture: upwards by ONNX's converter, downwards by what operators mean.

Upwards the version converter of ONNX knows every change of form. Downwards an operator that is new is said by its
definition in the standard, and one that only gained types or attributes it does not use stays as it is.
"""

from __future__ import annotations

import onnx
import onnx.defs
import onnx.helper
import onnx.inliner
import onnx.version_converter

from vitdeploy.errors import ModelError
from vitdeploy.exporter.capture import CAPTURE_OPSET

# Operators that mean something else since an opset after that of the capture.
_RESIZE = 11
_CHANGED = {"GroupNormalization": 21}


def upgraded(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The same graph at the opset of the capture; ModelError for one that cannot be said there."""
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset == CAPTURE_OPSET:
        return proto
    if opset > CAPTURE_OPSET:
        return _downgraded(proto, opset, where)
    try:
        if opset < _RESIZE:
            proto = onnx.version_converter.convert_version(proto, _RESIZE)
            _state_coordinates(proto)
        return onnx.version_converter.convert_version(proto, CAPTURE_OPSET)
    except Exception as error:  # of the C++ converter, without a class of its own
        raise ModelError(
            f"{where} is of opset {opset}, and cannot be restated in opset {CAPTURE_OPSET}",
            why=str(error).strip().splitlines()[-1],
            fix=f"export it again with opset_version={CAPTURE_OPSET}",
        ) from error


def _state_coordinates(proto: onnx.ModelProto) -> None:
    """Resize said no more than its mode before opset 11, and meant this; the converter takes the new defaults."""
    for node in proto.graph.node:
        if node.op_type == "Resize":
            given = {attribute.name for attribute in node.attribute}
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                if name not in given:
                    node.attribute.append(onnx.helper.make_attribute(name, value))


def _downgraded(proto: onnx.ModelProto, opset: int, where: str) -> onnx.ModelProto:
    new = sorted({node.op_type for node in proto.graph.node if _is_new(node)})
    if new:
        proto = _with_defaults(proto, opset)
        proto = onnx.inliner.inline_selected_functions(
            proto, [("", name) for name in new], inline_schema_functions=True
        )
    left = next((node for node in proto.graph.node if _is_new(node) or not _is_known(node)), None)
    if left is not None:
        since = onnx.defs.get_schema(left.op_type, opset, "").since_version
        raise ModelError(
            f"{where} has {left.op_type} in the form of opset {since}, at the node {left.name or left.output[0]}",
            why=f"opset {CAPTURE_OPSET}, which every rewrite here speaks, has no such form",
            fix=f"export it again with opset_version={CAPTURE_OPSET}",
        )
    copied = _copy(proto)
    for entry in copied.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = CAPTURE_OPSET
    copied.ir_version = min(copied.ir_version, 10)
    return copied


def _with_defaults(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """With all attributes of new operators and the types of all weights written out: definitions refer to them."""
    copied = _copy(proto)
    for tensor in proto.graph.initializer:
        copied.graph.value_info.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for node in copied.graph.node:
        if _is_new(node):
            given = {attribute.name for attribute in node.attribute}
            for name, row in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
                if name not in given and row.default_value.name:
                    node.attribute.append(row.default_value)
    return copied


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


def _is_new(node: onnx.NodeProto) -> bool:
    if node.op_type in _CHANGED:
        return True
    try:
        onnx.defs.get_schema(node.op_type, CAPTURE_OPSET, "")
    except onnx.defs.SchemaError:
        return True
    return False


def _is_known(node: onnx.NodeProto) -> bool:
    """Whether the operator has at the opset of the capture all that the node uses of it."""
    schema = onnx.defs.get_schema(node.op_type, CAPTURE_OPSET, "")
    inputs = [name for name in node.input if name]
    return len(inputs) <= schema.max_input and all(one.name in schema.attributes for one in node.attribute)

"""From the bytes of an ONNX file to a graph whose values have shapes and types, and back."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from vitdeploy.graph.edit import remove_unused


def read_graph(data: bytes, *, strict: bool = True) -> ir.Model:
    """The model of an ONNX file, with the shape and type of every value that inference reaches.

    What is no ONNX file, or contradicts itself, raises whatever error onnx and protobuf have for it. Where it is not
    `strict`, a node whose results inference cannot tell, such as one of another domain, is left without them.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=strict)
    model: ir.Model = ir.from_proto(proto)
    return model


def write_graph(model: ir.Model) -> bytes:
    """The ONNX file of `model`, from which the nodes and initializers that no output depends on are removed."""
    remove_unused(model)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data

"""Operators as single nodes in every form and element type: test cases of the onnx package, retyped by the schemas."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20  # of the exports for TensorRT 11, where the operator has this form there
TYPES: dict[str, Any] = {
    "float": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "double": np.float64,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "uint64": np.uint64,
    "bool": np.bool_,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8e5m2": ml_dtypes.float8_e5m2,
    "float8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "float4e2m1": ml_dtypes.float4_e2m1fn,
}
# Which inputs are constants: all but the first and those of its type, all but the first, the head of a loop, or all.
OTHERS, REST, HEAD, ALL = "others", "rest", "head", "all"
LOOP_HEAD = 2


@dataclass(frozen=True)
class Form:
    """One node with values for all of its inputs."""

    name: str
    node: onnx.NodeProto
    values: dict[str, np.ndarray]
    outputs: list[onnx.ValueInfoProto]
    opset: int

    @functools.cached_property
    def schema(self) -> Any:
        return onnx.defs.get_schema(self.node.op_type, self.opset, "")

    def formal(self, index: int) -> str:
        """The type variable of input `index`."""
        inputs = self.schema.inputs
        return str(inputs[min(index, len(inputs) - 1)].type_str)

    @property
    def variables(self) -> dict[str, tuple[str, ...]]:
        """The element types that the schema allows for each type variable of the inputs, the first input's first."""
        allowed = {row.type_param_str: set(map(str, row.allowed_type_strs)) for row in self.schema.type_constraints}
        names = dict.fromkeys(self.formal(index) for index, name in enumerate(self.node.input) if name)
        return {name: tuple(kind for kind in TYPES if f"tensor({kind})" in allowed.get(name, {name})) for name in names}

    def model(self, *, constants: str, variable: str = "", kind: str = "") -> bytes:
        """The model, of which `constants` says what is no input; all tensors of type `variable` get the type `kind`."""
        given, weights = [], []
        for index, name in enumerate(self.node.input):
            if not name or any(tensor.name == name for tensor in (*weights, *given)):
                continue
            array = self.values[name]
            if variable and self.formal(index) == variable:
                array = array.astype(TYPES[kind])
            tensor = numpy_helper.from_array(array, name)
            if self._is_activation(index, constants):
                given.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))
            else:
                weights.append(tensor)
        outputs = []
        for index, value in enumerate(self.outputs):
            formal = self.schema.outputs[min(index, len(self.schema.outputs) - 1)].type_str
            fresh = onnx.ValueInfoProto()
            fresh.CopyFrom(value)
            if variable and formal == variable:
                fresh.type.tensor_type.elem_type = getattr(TensorProto, kind.upper())
            outputs.append(fresh)
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        node.name = f"probe/{node.op_type}"
        graph = helper.make_graph([node], "probe", given, outputs, weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        onnx.checker.check_model(made)
        data: bytes = made.SerializeToString()
        return data

    def _is_activation(self, index: int, constants: str) -> bool:
        if constants == HEAD:
            return index >= LOOP_HEAD
        return constants != ALL and (index == 0 or (constants == OTHERS and self.formal(index) == self.formal(0)))


def forms() -> Iterator[Form]:
    """One node each of the standard domain, whose inputs and outputs are tensors of numbers."""
    for name, node, values, outputs, newest in (*_test_cases(), *_without_test_case()):
        for opset in (OPSET, newest):
            form = Form(name, node, values, outputs, opset)
            try:
                form.model(constants=OTHERS)
            except Exception:  # the operator, or this form of it, is newer
                continue
            yield form
            extra = form.schema.outputs[1:]
            optional = all(str(one.option).endswith("Optional") for one in extra)
            if optional and len(form.outputs) == len(form.node.output) > 1:
                first = onnx.NodeProto()
                first.CopyFrom(form.node)
                del first.output[1:]
                yield replace(form, name=f"{form.name}_one_output", node=first, outputs=form.outputs[:1])
            break


_Case = tuple[str, onnx.NodeProto, dict[str, np.ndarray], list[onnx.ValueInfoProto], int]


def _test_cases() -> Iterator[_Case]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        graph = case.model.graph
        if "_expanded" in case.name or len(graph.node) != 1 or graph.node[0].domain or not graph.node[0].input:
            continue
        kinds = [value.type for value in (*graph.input, *graph.output)]
        if not all(kind.HasField("tensor_type") for kind in kinds):
            continue
        with contextlib.suppress(ValueError):  # of sequences
            arrays = [np.asarray(array) for array in case.data_sets[0][0]]
            if any(array.dtype.kind in "OSU" for array in arrays):
                continue
            values = dict(zip([value.name for value in graph.input], arrays, strict=True))
            # Zero points other than 0 have variants of their own.
            if graph.node[0].op_type in ("QuantizeLinear", "DequantizeLinear") and len(arrays) > 2:
                values[graph.node[0].input[2]] = np.zeros_like(arrays[2])
            newest = max(entry.version for entry in case.model.opset_import if not entry.domain)
            yield case.name.removeprefix("test_"), graph.node[0], values, list(graph.output), newest


def _without_test_case() -> Iterator[_Case]:
    """Operators of which the onnx package has no test case in some version that is supported."""
    image, bytes_ = np.ones((1, 4, 8, 8), np.float32), np.ones((1, 4, 8, 8), np.uint8)
    kernel, one, zero = np.ones((4, 4, 3, 3), np.uint8), np.float32(0.1), np.uint8(0)
    made: tuple[tuple[str, tuple[Any, ...], int, dict[str, Any]], ...] = (
        ("BlackmanWindow", (np.int64(8),), TensorProto.FLOAT, {}),
        ("HammingWindow", (np.int64(8),), TensorProto.FLOAT, {}),
        ("HannWindow", (np.int64(8),), TensorProto.FLOAT, {}),
        ("Cast", (image,), TensorProto.FLOAT16, {"to": TensorProto.FLOAT16}),
        ("CastLike", (image, np.float16(0)), TensorProto.FLOAT16, {}),
        ("ConvInteger", (bytes_, kernel), TensorProto.INT32, {}),
        ("CumSum", (image, np.int64(1)), TensorProto.FLOAT, {}),
        ("GlobalLpPool", (image,), TensorProto.FLOAT, {}),
        ("MaxRoiPool", (image, np.array([[0, 0, 0, 7, 7]], np.float32)), TensorProto.FLOAT, {"pooled_shape": [2, 2]}),
        ("MelWeightMatrix", tuple(map(np.asarray, (np.int64(8), np.int64(16), np.int64(8192), one, np.float32(4096)))),
         TensorProto.FLOAT, {}),
        ("Multinomial", (np.ones((2, 8), np.float32),), TensorProto.INT32, {"sample_size": 4}),
        ("OneHot", (np.arange(4), np.int64(8), np.array([0, 1], np.float32)), TensorProto.FLOAT, {}),
        ("QLinearConv", (bytes_, one, zero, kernel, one, zero, one, zero), TensorProto.UINT8, {}),
        ("RandomNormalLike", (image,), TensorProto.FLOAT, {}),
        ("RandomUniformLike", (image,), TensorProto.FLOAT, {}),
    )  # fmt: skip
    for kind, arrays, result, attributes in made:
        values = {f"x{index}": np.asarray(array) for index, array in enumerate(arrays)}
        node = helper.make_node(kind, list(values), ["y"], **attributes)
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in values.items()
        ]
        free = helper.make_empty_tensor_value_info("y")
        graph = helper.make_graph([node], "probe", inputs, [free])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        shape = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape
        sizes = [size.dim_value if size.HasField("dim_value") else None for size in shape.dim]
        yield f"{kind.lower()}_made", node, values, [helper.make_tensor_value_info("y", result, sizes)], OPSET

"""What the bytes of `model.onnx` say of themselves: the facts that a manifest is held against.

Light: imports onnx when it is called. Nothing is run, and no file is opened beside the bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vitdeploy.bundle.manifest import DTYPES, TensorSpec
from vitdeploy.errors import BackendError, BundleError, MissingDependencyError
from vitdeploy.graph.soundness import STANDARD, external_tensors, messages, shown, unsound

# An axis whose length the graph leaves open and does not name.
OPEN = "?"

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class GraphFacts:
    """An ONNX file by what a manifest says of it too.

    opset            of the standard operators; 0 where the file names none
    inputs, outputs  in the order of the graph; an axis of any length carries its name, or OPEN
    quantized        it has QuantizeLinear or DequantizeLinear
    float_types      names of the floating-point types that its constants have and its Casts convert to
    unusual          inputs and outputs that no bundle has, in words; they are not among the others
    """

    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quantized: bool
    float_types: frozenset[str]
    unusual: tuple[str, ...] = ()


def read_facts(data: bytes, *, where: str) -> GraphFacts:
    """The facts of an ONNX file, which is one that a runtime may see.

    Raises BundleError, which names `where`, for what is no ONNX file, for one that refers to other files, whose
    contents are in no hash and which runtimes read wherever they are, and for one that is not as exports are, see
    `soundness`; BackendError where onnx is not installed or broken.
    """
    onnx = _require_onnx()
    try:
        model = onnx.load_model_from_string(data)
        outside, fault = external_tensors(model), unsound(model)
        facts = _facts(model, onnx)
    except Exception as error:  # onnx and protobuf have no common base
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(f"{where} is not a valid ONNX model", why=why[0], fix="export the bundle again") from error
    if outside:
        first = shown(outside[0].name) or "a tensor without a name"
        raise BundleError(
            f"{where} does not hold all its weights",
            why=f"{len(outside)} tensors are in other files, the first is {first}; no hash of the bundle covers them",
            fix="export the bundle again",
        )
    if fault is not None:
        raise BundleError(f"{where} is no model that vitdeploy exports", why=fault, fix="export the bundle again")
    return facts


def _require_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnx":
            needed_for = "comparing a bundle with its graph"
            raise MissingDependencyError("onnx", needed_for=needed_for, extra="onnxruntime") from None
        raise BackendError(
            "onnx is installed but cannot be imported",
            why=str(error) or type(error).__name__,
            fix="pip install --force-reinstall onnx",
        ) from error


def _facts(model: Any, onnx: Any) -> GraphFacts:
    kinds = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    floats: set[str] = set()
    quantized = False
    for message in messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            floats.add(kinds.get(message.data_type, ""))
        elif kind == "NodeProto":
            quantized = quantized or message.op_type in _CONVERSIONS
            floats |= {
                kinds.get(one.i, "") for one in message.attribute if message.op_type == "Cast" and one.name == "to"
            }
    constants = {tensor.name for tensor in model.graph.initializer}
    unusual: list[str] = []
    return GraphFacts(
        opset=max((one.version for one in model.opset_import if one.domain in STANDARD), default=0),
        inputs=_specs([value for value in model.graph.input if value.name not in constants], onnx, unusual),
        outputs=_specs(model.graph.output, onnx, unusual),
        quantized=quantized,
        float_types=frozenset(name for name in floats if "float" in name or name == "double"),
        unusual=tuple(unusual),
    )


def _specs(values: Iterable[Any], onnx: Any, unusual: list[str]) -> tuple[TensorSpec, ...]:
    """The signature; what a bundle cannot have is left out of it and said in `unusual`."""
    specs = []
    for value in values:
        try:
            specs.append(_spec(value, onnx))
        except ValueError as error:
            unusual.append(str(error))
    return tuple(specs)


def _spec(value: Any, onnx: Any) -> TensorSpec:
    """One input or output; ValueError where a bundle cannot have it."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise ValueError(f"{value.name} of the graph is no tensor of a known number of axes")
    tensor = value.type.tensor_type
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        dtype = "undefined"
    if dtype not in DTYPES:
        raise ValueError(f"{value.name} of the graph is of type {dtype}, which no bundle has at its ends")
    axes = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or OPEN for axis in tensor.shape.dim]
    return TensorSpec(value.name, dtype, tuple(axes))

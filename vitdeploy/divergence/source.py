"""What is bisected: the graph of a bundle or of any ONNX file, and the inputs that it is asked with."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from vitdeploy.bundle import Bundle
from vitdeploy.errors import InputError, UsageError
from vitdeploy.graph.names import make_unique
from vitdeploy.signing.check import open_bundle
from vitdeploy.tensorrt.rtx.model_file import open_model, serialized

Array = NDArray[Any]

RANDOM_BATCH = 2
# Types whose values are stored in integers.
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"}
    | {"MatMulInteger"}
)


@dataclass(frozen=True)
class Source:
    """A graph and what it is asked with.

    where      the bundle or file, in words
    model      the ONNX file, in which every node and every tensor has a name of its own
    inputs     by name, all samples along the first axis
    asked      where the inputs are from, in words
    precision  `fp32`, `fp16` or `int8`
    call       samples of one call; None where the graph leaves that open, or inputs are no samples
    bundle     where it is one
    carried    whether the inputs are those that the bundle carries
    """

    where: str
    model: bytes
    inputs: dict[str, Array]
    asked: str
    precision: str
    call: int | None
    bundle: Bundle | None
    carried: bool

    @property
    def samples(self) -> int:
        """How many samples all inputs have along their first axis; 1 where they do not have as many."""
        counts = {len(array) if array.ndim else 0 for array in self.inputs.values()}
        return counts.pop() if len(counts) == 1 and 0 not in counts else 1

    def rows(self, start: int, stop: int) -> dict[str, Array]:
        """The inputs of the samples from `start` to `stop`; all of them where they are not samples."""
        if self.samples == 1:
            return self.inputs
        return {name: array[start:stop] for name, array in self.inputs.items()}


def open_source(source: Bundle | str | Path, inputs: str | Path | None, seed: int, key: str | Path | None) -> Source:
    """The bundle or ONNX file at `source`.

    inputs  .npz with an array for each input; None for the reference of the bundle, or random ones of the seed

    Raises BundleError, InputError or UsageError for what cannot be read or does not fit.
    """
    if key is not None:
        if not isinstance(source, Bundle) and Path(source).is_file():
            raise UsageError(
                f"{source} is a file, which has no signature", fix="leave --key out, or give the bundle that is signed"
            )
        source = open_bundle(source, key)
    where, proto, bundle = open_model(source)
    if not proto.graph.node:
        raise InputError(f"{where} is not a valid ONNX model", why="it has no nodes", fix="export it again")
    if bundle is not None:
        bundle.check_graph()
    serialized(proto, where)  # refuses what is too large
    try:
        model = prepared(proto)
    except Exception as error:  # onnx, onnx_ir and protobuf have errors of their own for graphs that are broken
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{where} is not a valid ONNX model", why=why, fix="onnx.checker.check_model(FILE) says what is wrong"
        ) from error
    ports = {port.name: port for port in onnx.load_model_from_string(model).graph.input}
    if not ports:
        raise InputError(f"{where} takes no inputs", why="it is a constant", fix="a model that takes inputs")
    if inputs is not None:
        given, asked = _read(Path(inputs), ports), f"the inputs in {inputs}"
    elif bundle is not None:
        given, asked = bundle.reference().inputs, "the reference inputs of the bundle"
    else:
        given, asked = _random(where, ports, seed), f"random inputs of the seed {seed}"
    batches = {axes[0] for axes in map(_axes, ports.values()) if axes}
    call = next(iter(batches)) if len(batches) == 1 else None
    precision = bundle.manifest.precision if bundle is not None else _precision(proto)
    carried = bundle is not None and inputs is None
    return Source(where, model, given, asked, precision, call if isinstance(call, int) else None, bundle, carried)


def prepared(proto: onnx.ModelProto) -> bytes:
    """The same model without local functions and Constant nodes, each name given once."""
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    model = ir.from_proto(proto)
    for name in [str(value.name) for value in model.graph.inputs]:
        if name in model.graph.initializers:  # before IR version 4 every initializer was listed as an input as well
            model.graph.inputs.remove(model.graph.initializers[name])
    model.ir_version = max(model.ir_version or 0, 4)
    LiftConstantsToInitializersPass()(model)
    make_unique(model.graph)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def _precision(proto: onnx.ModelProto) -> str:
    """What the graph computes in, as its operators and weights tell."""
    if any(node.op_type in _QUANTIZED for node in proto.graph.node):
        return "int8"
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.value_info)}
    kinds |= {part.i for node in proto.graph.node if node.op_type == "Cast" for part in node.attribute}
    return "fp32" if kinds.isdisjoint(half) else "fp16"


def _axes(port: onnx.ValueInfoProto) -> list[int | None] | None:
    """The lengths of the axes, None for a free one; None where not even their number is known."""
    kind = port.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [axis.dim_value if axis.dim_value > 0 else None for axis in kind.shape.dim]


def _dtype(port: onnx.ValueInfoProto) -> np.dtype[Any]:
    """The type of an input; InputError for what no array of numpy is."""
    kind = port.type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(object)
    if dtype.kind not in "fiub":
        raise InputError(
            f"the input {port.name} is no tensor of numbers",
            why=f"it is {onnx.TensorProto.DataType.Name(kind) if kind else 'of no type of tensors'}",
            fix="cut the model behind it, and bisect the rest",
        )
    return dtype


def _random(where: str, ports: Mapping[str, onnx.ValueInfoProto], seed: int) -> dict[str, Array]:
    """Normal floats, whole numbers of 0 and 1, bytes and flags; a free first axis has RANDOM_BATCH entries."""
    generator, made = np.random.default_rng(seed), {}
    for name, port in ports.items():
        axes, dtype = _axes(port), _dtype(port)
        if axes is None or None in axes[1:]:
            text = (
                "no known axes"
                if axes is None
                else f"[{', '.join('?' if axis is None else str(axis) for axis in axes)}]"
            )
            raise UsageError(
                f"{where} leaves open how large its input {name} is",
                why=f"it is {text}, and only the first axis is taken as {RANDOM_BATCH} where it is open",
                fix="--inputs FILE.npz, with an array for each input by its name",
            )
        shape = [RANDOM_BATCH if axis is None else axis for axis in axes]
        if dtype.kind == "f":
            made[name] = np.asarray(generator.normal(size=shape)).astype(dtype)
        else:
            most = 256 if dtype == np.uint8 else 2
            made[name] = np.asarray(generator.integers(0, most, shape)).astype(dtype)
    return made


def _read(path: Path, ports: Mapping[str, onnx.ValueInfoProto]) -> dict[str, Array]:
    """The arrays in the .npz file at `path`; UsageError where they are not those of the inputs."""
    fix = "numpy.savez(FILE, NAME=array, …) with an array for each input"
    try:
        found = np.load(path, allow_pickle=False)
        arrays = None if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error), fix="check the path") from error
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UsageError(f"{path} is no .npz file of arrays", why=str(error) or None, fix=fix) from error
    if arrays is None:
        raise UsageError(f"{path} is no .npz file", why="it holds one array without a name", fix=fix)
    if arrays.keys() != ports.keys():
        raise UsageError(
            f"{path} has the arrays {', '.join(arrays) or 'of no input'}",
            why=f"the inputs of the model are {', '.join(ports)}",
            fix=fix,
        )
    for name, port in ports.items():
        _check(path, name, arrays[name], _dtype(port), _axes(port))
    counts = {len(array) for array in arrays.values() if array.ndim}
    free = [name for name, port in ports.items() if (_axes(port) or [0])[0] is None]
    if len(free) > 1 and len({len(arrays[name]) for name in free}) > 1:
        raise UsageError(
            f"the arrays in {path} have {' and '.join(map(str, sorted(counts)))} samples",
            fix="as many samples along the first axis of every array",
        )
    return {name: np.ascontiguousarray(arrays[name]) for name in ports}


def _check(path: Path, name: str, array: Array, dtype: np.dtype[Any], axes: list[int | None] | None) -> None:
    fits = axes is None or (
        len(axes) == array.ndim and all(axis in (None, length) for axis, length in zip(axes, array.shape, strict=True))
    )
    if array.dtype != dtype or not fits:
        wanted = "" if axes is None else f" [{', '.join('?' if axis is None else str(axis) for axis in axes)}]"
        raise UsageError(
            f"{name} in {path} is {array.dtype} {list(array.shape)}",
            why=f"the model takes {dtype}{wanted}",
            fix=f"an array of that type and shape: {name}.astype(numpy.{dtype})",
        )
    if not array.size:
        raise UsageError(f"{name} in {path} is empty", fix="at least one sample")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(
            f"{name} in {path} has values that are NaN or Inf",
            why="they make everything behind them NaN, in every runtime",
            fix="an input of finite values",
        )

"""Small networks for the attributes, constants and pairs of types that decide whether an operator is taken.

`variants()` names each as `OPERATOR what=value …`: the tables of `vitdeploy.platforms` are held against these names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
F32, F16 = np.dtype(np.float32), np.dtype(np.float16)
CASTS = tuple(
    np.dtype(kind)
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.uint8, np.int16, np.uint16,
                 np.int32, np.uint32, np.int64, np.uint64, np.bool_, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
)  # fmt: skip
SCATTERS = ("none", "add", "mul", "max", "min")
COORDINATES = """
    half_pixel half_pixel_symmetric pytorch_half_pixel tf_half_pixel_for_nn asymmetric align_corners tf_crop_and_resize
"""
REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"


@dataclass(frozen=True)
class Variant:
    """One small network, named after what makes it differ from others of its operator."""

    name: str
    model: bytes

    @property
    def operator(self) -> str:
        return self.name.split()[0]


class Net:
    """A network in the making, whose tensors are called by names."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def given(self, kind: Any, *shape: int) -> str:
        """An input of the network."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, element(np.dtype(kind)), shape))
        return name

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> str:
        """The first output of a node; arrays become constants, None is an input that is left out."""
        names = ["" if one is None else one if isinstance(one, str) else self.constant(one) for one in inputs]
        results = [f"y{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, results, name=f"probe/{kind}{len(self.nodes)}", **attributes))
        return results[0]

    def model(self, *outputs: str) -> bytes:
        """The file; the types of the outputs are inferred."""
        wanted = outputs or (self.nodes[-1].output[0],)
        values = [helper.make_empty_tensor_value_info(name) for name in wanted]
        graph = helper.make_graph(self.nodes, "probe", self.inputs, values, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        made = onnx.shape_inference.infer_shapes(made, check_type=True)
        for value in made.graph.output:
            if not value.type.tensor_type.elem_type:  # onnx infers nothing for some types
                value.type.tensor_type.elem_type = self.inputs[0].type.tensor_type.elem_type
        if all(value.type.tensor_type.HasField("shape") for value in made.graph.output):
            onnx.checker.check_model(made)
        data: bytes = made.SerializeToString()
        return data


def variants() -> Iterator[Variant]:
    """Every variant, each name once."""
    for made in (
        _pools,
        _convolutions,
        _resizes,
        _shapes,
        _scatters,
        _reductions,
        _quantized,
        _casts,
        _norms,
        _control,
    ):
        yield from made()


def element(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def type_name(dtype: np.dtype[Any]) -> str:
    """ONNX's own name of a type, such as float16."""
    return str(TensorProto.DataType.Name(element(dtype))).lower()


def values(*shape: int, kind: Any = F32) -> np.ndarray:
    """Numbers between -1 and 1 that repeat in every run."""
    return (np.sin(np.arange(int(np.prod(shape)))).reshape(shape)).astype(kind)


def _one(kind: str, *inputs: Any, opset: int = OPSET, outputs: int = 1, **attributes: Any) -> bytes:
    """A network of one node; a tuple (type, *shape) is an input."""
    net = Net(opset)
    net.node(
        kind, *(net.given(*one) if isinstance(one, tuple) else one for one in inputs), outputs=outputs, **attributes
    )
    return net.model(*net.nodes[0].output)


def _words(**attributes: Any) -> str:
    def text(value: Any) -> str:
        return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return " ".join(f"{name}={text(value)}" for name, value in attributes.items())


def _pools() -> Iterator[Variant]:
    x = (F32, 1, 4, 9, 9)
    for kind, ceil, dilation in itertools.product(("MaxPool", "AveragePool", "LpPool"), (0, 1), (1, 2)):
        said = {"ceil_mode": ceil, "dilations": [dilation, dilation]}
        yield Variant(f"{kind} {_words(**said)}", _one(kind, x, kernel_shape=[2, 2], strides=[2, 2], **said))
    for kind, pad in itertools.product(("MaxPool", "AveragePool"), ("SAME_UPPER", "SAME_LOWER", "VALID")):
        said = {"auto_pad": pad}
        yield Variant(f"{kind} {_words(**said)}", _one(kind, x, kernel_shape=[3, 3], strides=[2, 2], **said))
    for ceil, include in itertools.product((0, 1), (0, 1)):
        said = {"ceil_mode": ceil, "count_include_pad": include, "pads": [1, 1, 1, 1]}
        yield Variant(
            f"AveragePool {_words(**said)}", _one("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], **said)
        )
    for kind, rank in itertools.product(("MaxPool", "AveragePool"), (1, 3)):
        yield Variant(f"{kind} axes={rank}", _one(kind, (F32, 1, 4, *[8] * rank), kernel_shape=[2] * rank))
    yield Variant("MaxPool outputs=2", _one("MaxPool", x, kernel_shape=[2, 2], outputs=2))
    yield Variant("MaxPool storage_order=1", _one("MaxPool", x, kernel_shape=[2, 2], storage_order=1))
    for kind in ("GlobalLpPool", "GlobalMaxPool", "GlobalAveragePool"):
        for rank in (1, 2, 3):
            yield Variant(f"{kind} axes={rank}", _one(kind, (F32, 1, 4, *[8] * rank)))


def _convolutions() -> Iterator[Variant]:
    for kind, group, dilation in itertools.product(("Conv", "ConvTranspose"), (1, 2, 4, 16), (1, 2)):
        x, weight = (F32, 1, 16, 9, 9), values(16, 16 // group, 3, 3)
        said = {"group": group, "dilations": [dilation] * 2}
        yield Variant(f"{kind} {_words(**said)}", _one(kind, x, weight, **said))
    for kind, pad in itertools.product(("Conv", "ConvTranspose"), ("SAME_UPPER", "SAME_LOWER", "VALID")):
        data = _one(kind, (F32, 1, 4, 9, 9), values(4, 4, 3, 3), strides=[2, 2], auto_pad=pad)
        yield Variant(f"{kind} auto_pad={pad}", data)
    for kind, rank in itertools.product(("Conv", "ConvTranspose"), (1, 3)):
        yield Variant(f"{kind} axes={rank}", _one(kind, (F32, 1, 4, *[9] * rank), values(4, 4, *[3] * rank)))
    for kind in ("Conv", "ConvTranspose"):
        yield Variant(f"{kind} weight=computed", _one(kind, (F32, 1, 4, 9, 9), (F32, 4, 4, 3, 3)))
    for name, said in (
        ("output_padding=1x1", {"output_padding": [1, 1]}),
        ("output_shape=18x18", {"output_shape": [18, 18]}),
    ):
        data = _one("ConvTranspose", (F32, 1, 4, 9, 9), values(4, 4, 3, 3), strides=[2, 2], **said)
        yield Variant(f"ConvTranspose {name}", data)


def _resizes() -> Iterator[Variant]:
    x, roi = (F32, 1, 4, 8, 8), np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
    for mode, where, factor in itertools.product(("nearest", "linear", "cubic"), COORDINATES.split(), (2.0, 0.7)):
        scales = np.array([1, 1, factor, factor], np.float32)
        said = {"mode": mode, "coordinate_transformation_mode": where}
        crop = roi if where == "tf_crop_and_resize" else None
        yield Variant(f"Resize {_words(**said)} scale={factor}", _one("Resize", x, crop, scales, **said))
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        data = _one("Resize", x, None, np.array([1, 1, 1.5, 1.5], np.float32), nearest_mode=rounding)
        yield Variant(f"Resize nearest_mode={rounding}", data)
    for mode in ("linear", "cubic"):
        data = _one("Resize", x, None, np.array([1, 1, 0.5, 0.5], np.float32), mode=mode, antialias=1)
        yield Variant(f"Resize antialias=1 mode={mode}", data)
    for policy in ("stretch", "not_larger", "not_smaller"):
        sizes = np.array([1, 4, 12, 16])
        data = _one("Resize", x, None, None, sizes, mode="linear", keep_aspect_ratio_policy=policy)
        yield Variant(f"Resize keep_aspect_ratio_policy={policy}", data)
    for coefficient in (-0.5, -0.75):
        data = _one("Resize", x, None, np.array([1, 1, 2, 2], np.float32), mode="cubic", cubic_coeff_a=coefficient)
        yield Variant(f"Resize cubic_coeff_a={coefficient}", data)
    for exclude in (0, 1):
        data = _one("Resize", x, None, np.array([1, 1, 2, 2], np.float32), mode="linear", exclude_outside=exclude)
        yield Variant(f"Resize exclude_outside={exclude}", data)
    names = {19: ("bilinear", "nearest", "bicubic"), 20: ("linear", "nearest", "cubic")}
    for opset, modes in names.items():
        for mode, padding, align in itertools.product(modes, ("zeros", "border", "reflection"), (0, 1)):
            said = {"mode": mode, "padding_mode": padding, "align_corners": align, "opset": opset}
            data = _one("GridSample", x, (F32, 1, 5, 5, 2), **said)
            yield Variant(f"GridSample {_words(**said)}", data)
    volume = _one("GridSample", (F32, 1, 4, 8, 8, 8), (F32, 1, 5, 5, 5, 3), opset=20, mode="linear")
    yield Variant("GridSample axes=3", volume)


def _shapes() -> Iterator[Variant]:
    x = (F32, 1, 4, 8, 8)
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield Variant(f"Pad mode={mode}", _one("Pad", x, np.array([0, 0, 1, 2, 0, 0, 2, 1]), mode=mode))
    yield Variant("Pad pads=negative", _one("Pad", x, np.array([0, 0, -1, -2, 0, 0, 0, 0])))
    yield Variant("Pad axes=2", _one("Pad", x, np.array([1, 1]), np.float32(0), np.array([2])))
    yield Variant("Pad value=1", _one("Pad", x, np.array([0, 0, 1, 2, 0, 0, 2, 1]), np.float32(1)))
    for kind in ("float", "int32", "int64", "bool"):
        dtype = np.dtype({"float": "float32"}.get(kind, kind))
        yield Variant(f"Pad type={kind}", _one("Pad", (dtype, 1, 4, 8, 8), np.array([0, 0, 1, 2, 0, 0, 2, 1])))
    for exclusive, reverse, kind in itertools.product((0, 1), (0, 1), (np.float32, np.int32, np.int64)):
        said = {"exclusive": exclusive, "reverse": reverse}
        data = _one("CumSum", (kind, 2, 8), np.array(1), **said)
        yield Variant(f"CumSum {_words(**said)} type={type_name(np.dtype(kind))}", data)
    for count in (1, 64, 3839, 3840, 3841, 5000):
        yield Variant(f"TopK K={count}", _one("TopK", (F32, 1, 8000), np.array([count]), outputs=2))
    for ordered, largest in itertools.product((0, 1), (0, 1)):
        said = {"sorted": ordered, "largest": largest}
        yield Variant(f"TopK {_words(**said)}", _one("TopK", (F32, 1, 64), np.array([4]), outputs=2, **said))
    yield Variant("TopK K=computed", _one("TopK", (F32, 1, 64), (np.int64, 1), outputs=2))
    for axis in (0, 1, 2):
        yield Variant(f"TopK axis={axis}", _one("TopK", (F32, 8, 8, 8), np.array([4]), outputs=2, axis=axis))
    for kind in (np.float32, np.float16, np.int32, np.int64):
        low, high = np.array(0, kind), np.array(6, kind)
        for what, ends in (("both", (low, high)), ("min", (low,)), ("max", (None, high)), ("none", ())):
            yield Variant(f"Clip ends={what} type={type_name(np.dtype(kind))}", _one("Clip", (kind, 4, 8), *ends))
        computed = _one("Clip", (kind, 4, 8), (kind,), (kind,))
        yield Variant(f"Clip ends=computed type={type_name(np.dtype(kind))}", computed)
    for equation in ("ij,jk->ik", "bhid,bhjd->bhij", "ii->i", "...ij,...jk->...ik", "ij,jk,kl->il", "i,j->ij", "ij->"):
        first = {"ii->i": [(4, 4)], "ij->": [(4, 4)], "bhid,bhjd->bhij": [(1, 2, 4, 4)] * 2, "i,j->ij": [(4,)] * 2}
        shapes = first.get(equation, [(4, 4)] * (equation.count(",") + 1))
        data = _one("Einsum", *((F32, *shape) for shape in shapes), equation=equation)
        yield Variant(f"Einsum equation={equation}", data)
    for mode in ("DCR", "CRD"):
        yield Variant(f"DepthToSpace mode={mode}", _one("DepthToSpace", x, blocksize=2, mode=mode))
    for upper in (0, 1):
        yield Variant(f"Trilu upper={upper}", _one("Trilu", (F32, 8, 8), np.array(1), upper=upper))
    yield Variant("Trilu k=computed", _one("Trilu", (F32, 8, 8), (np.int64,)))
    yield Variant("Slice steps=-1", _one("Slice", x, np.array([-1]), np.array([-9]), np.array([3]), np.array([-1])))
    yield Variant("Slice starts=computed", _one("Slice", x, (np.int64, 1), np.array([8]), np.array([3])))
    yield Variant("Reshape shape=computed", _one("Reshape", x, (np.int64, 2)))
    yield Variant("Reshape allowzero=1", _one("Reshape", (F32, 4, 8), np.array([8, 4]), allowzero=1))
    yield Variant("Split num_outputs=3 uneven", _one("Split", (F32, 1, 8), outputs=3, num_outputs=3, axis=1))
    yield Variant("OneHot depth=4", _one("OneHot", (np.int64, 8), np.array(4), np.array([0, 1], np.float32)))
    yield Variant(
        "GatherND batch_dims=1", _one("GatherND", (F32, 2, 4, 8), np.zeros((2, 3, 1), np.int64), batch_dims=1)
    )
    yield Variant("Gather indices=negative", _one("Gather", (F32, 4, 8), np.array([-1, 0])))
    for kind in (np.int32, np.int64):
        yield Variant(f"Gather indices={type_name(np.dtype(kind))}", _one("Gather", (F32, 4, 8), (kind, 3)))
    for fmod, kind in ((1, np.float32), (0, np.int32), (1, np.int32), (0, np.int64)):
        data = _one("Mod", (kind, 4, 8), (kind, 4, 8), fmod=fmod)
        yield Variant(f"Mod fmod={fmod} type={type_name(np.dtype(kind))}", data)
    yield Variant("NonZero", _one("NonZero", (F32, 4, 8)))


def _scatters() -> Iterator[Variant]:
    for reduction, kind in itertools.product(SCATTERS, (np.float32, np.int32)):
        said = {"reduction": reduction, "type": type_name(np.dtype(kind))}
        rows = _one("ScatterND", (kind, 8, 8), np.array([[1], [2]]), (kind, 2, 8), reduction=reduction)
        yield Variant(f"ScatterND {_words(**said)}", rows)
        places = np.array([[1, 2], [3, 4]])
        data = _one("ScatterElements", (kind, 8, 8), places, (kind, 2, 2), axis=1, reduction=reduction)
        yield Variant(f"ScatterElements {_words(**said)}", data)


def _reductions() -> Iterator[Variant]:
    for name, keep in itertools.product(REDUCTIONS.split(), (0, 1)):
        data = _one(f"Reduce{name}", (F32, 1, 4, 8, 8), np.array([2, -1]), keepdims=keep)
        yield Variant(f"Reduce{name} keepdims={keep}", data)
    for name in REDUCTIONS.split():
        for kind in (np.float16, ml_dtypes.bfloat16, np.int32, np.int64):
            data = _one(f"Reduce{name}", (kind, 1, 4, 8, 8), np.array([1]))
            yield Variant(f"Reduce{name} type={type_name(np.dtype(kind))}", data)
        yield Variant(f"Reduce{name} axes=all", _one(f"Reduce{name}", (F32, 1, 4, 8, 8)))
        yield Variant(f"Reduce{name} axes=none", _one(f"Reduce{name}", (F32, 1, 4), noop_with_empty_axes=1))
        yield Variant(f"Reduce{name} axes=computed", _one(f"Reduce{name}", (F32, 1, 4, 8), (np.int64, 1)))
    for name, last, keep in itertools.product(("ArgMax", "ArgMin"), (0, 1), (0, 1)):
        said = {"select_last_index": last, "keepdims": keep}
        yield Variant(f"{name} {_words(**said)}", _one(name, (F32, 1, 4, 8), axis=2, **said))
    for kind, axis in itertools.product(("Softmax", "LogSoftmax", "Hardmax"), (0, 1, -1)):
        yield Variant(f"{kind} axis={axis}", _one(kind, (F32, 2, 4, 8), axis=axis))
    for order, axis in itertools.product((1, 2), (1, -1)):
        yield Variant(
            f"LpNormalization p={order} axis={axis}", _one("LpNormalization", (F32, 2, 4, 8), p=order, axis=axis)
        )


def _quantized() -> Iterator[Variant]:
    int8, uint8 = np.int8, np.uint8
    for kind, zero in ((int8, 0), (int8, 3), (uint8, 0), (uint8, 128)):
        said = {"zero_point": zero, "type": type_name(np.dtype(kind))}
        yield Variant(f"QuantizeLinear {_words(**said)}", _pair(0.05, np.array(zero, kind)))
        weight = np.arange(256).astype(kind).reshape(16, 16)
        net = Net()
        scale = np.full(16, 0.01, np.float32)
        scaled = net.node("DequantizeLinear", weight, scale, np.full(16, zero, kind), axis=1)
        net.node("MatMul", net.given(F32, 1, 8, 16), scaled)
        yield Variant(f"DequantizeLinear {_words(**said)}", net.model())
    for scale in (0.0, -0.1):
        yield Variant(f"QuantizeLinear scale={scale}", _pair(scale, np.array(0, int8)))
    for axis in (0, 1, -1):
        net = Net()
        x = net.given(F32, 1, 16, 16)
        scale = np.full((1, 16, 16)[axis], 0.05, np.float32)
        zero = np.zeros(len(scale), int8)
        quantized = net.node("QuantizeLinear", x, scale, zero, axis=axis)
        net.node("DequantizeLinear", quantized, scale, zero, axis=axis)
        yield Variant(f"QuantizeLinear axis={axis}", net.model())
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4, np.int16, np.uint16):
        yield Variant(f"QuantizeLinear type={type_name(np.dtype(kind))}", _pair(0.05, np.array(0, kind), opset=21))
    net = Net(21)
    scale = np.full((1, 16, 2), 0.05, np.float32)
    weight = np.arange(256).astype(ml_dtypes.int4).reshape(1, 16, 16)
    scaled = net.node("DequantizeLinear", weight, scale, axis=2, block_size=8)
    net.node("MatMul", net.given(F32, 1, 8, 16), scaled)
    yield Variant("DequantizeLinear block_size=8 type=int4", net.model())
    net = Net()
    x = net.given(F32, 1, 8)
    net.node("QuantizeLinear", x, net.node("ReduceMax", x, keepdims=0), np.array(0, int8))
    net.node("DequantizeLinear", net.nodes[-1].output[0], net.nodes[0].output[0], np.array(0, int8))
    yield Variant("QuantizeLinear scale=computed", net.model())
    for half, (kind, group, channels) in itertools.product(
        (False, True),
        (("MatMul", 1, 16), ("Conv", 1, 3), ("Conv", 1, 16), ("Conv", 16, 16), ("ConvTranspose", 1, 16),
         ("ConvTranspose", 2, 16), ("ConvTranspose", 8, 16), ("ConvTranspose", 16, 16)),
    ):  # fmt: skip
        said = {"group": group, "channels": channels, "type": "float16" if half else "float"}
        yield Variant(f"{kind} int8 {_words(**said)}", _int8(kind, group, channels, F16 if half else F32))


def _pair(scale: float, zero: np.ndarray, opset: int = OPSET) -> bytes:
    net = Net(opset)
    quantized = net.node("QuantizeLinear", net.given(F32, 1, 8), np.float32(scale), zero)
    net.node("DequantizeLinear", quantized, np.float32(scale), zero)
    return net.model()


def _int8(kind: str, group: int, channels: int, dtype: np.dtype[Any]) -> bytes:
    """A product with Q/DQ of its input and scales per channel of its weights."""
    net, matrix, transposed = Net(), kind == "MatMul", kind == "ConvTranspose"
    shape = (1, 8, channels) if matrix else (1, channels, 14, 14)
    scale, zero = np.array(0.05, dtype), np.int8(0)
    x = net.node("DequantizeLinear", net.node("QuantizeLinear", net.given(dtype, *shape), scale, zero), scale, zero)
    outer = channels if transposed else 16
    weight = (channels, 16) if matrix else (outer, (16 if transposed else channels) // group, 3, 3)
    axis = 1 if matrix or transposed else 0
    integers = (127 * values(*weight)).astype(np.int8)
    scales = np.full(weight[axis], 0.01, dtype)
    scaled = net.node("DequantizeLinear", integers, scales, np.zeros(weight[axis], np.int8), axis=axis)
    net.node(kind, x, scaled, **({} if matrix else {"group": group}))
    return net.model()


def _casts() -> Iterator[Variant]:
    for source, target in itertools.product(CASTS, CASTS):
        data = _one("Cast", (source, 4, 8), to=element(target))
        yield Variant(f"Cast {type_name(source)} to {type_name(target)}", data)
    # Between float and float: where only the inside of a network has the type.
    for middle in CASTS:
        net = Net()
        net.node("Cast", net.node("Cast", net.given(F32, 4, 8), to=element(middle)), to=TensorProto.FLOAT)
        yield Variant(f"Cast float through {type_name(middle)}", net.model())


def _norms() -> Iterator[Variant]:
    for stash, axis, dtype in itertools.product((1, 10), (-1, 1), (F32, F16)):
        side = (8,) if axis == -1 else (4, 8)
        said = {"stash_type": stash, "axis": axis, "type": type_name(dtype)}
        scale, bias = np.ones(side, dtype), np.zeros(side, dtype)
        data = _one("LayerNormalization", (dtype, 2, 4, 8), scale, bias, axis=axis, stash_type=stash)
        yield Variant(f"LayerNormalization {_words(**said)}", data)
    for outputs in (2, 3):
        data = _one("LayerNormalization", (F32, 2, 4, 8), np.ones(8, np.float32), outputs=outputs)
        yield Variant(f"LayerNormalization outputs={outputs}", data)
    for approximate, dtype in itertools.product(("none", "tanh"), (F32, F16, np.dtype(ml_dtypes.bfloat16))):
        said = {"approximate": approximate, "type": type_name(dtype)}
        yield Variant(f"Gelu {_words(**said)}", _one("Gelu", (dtype, 2, 8), approximate=approximate))
    for opset, rows in ((18, 2), (21, 4)):
        scale = np.ones(rows, np.float32)
        data = _one("GroupNormalization", (F32, 1, 4, 8, 8), scale, scale, opset=opset, num_groups=2)
        yield Variant(f"GroupNormalization opset={opset}", data)
    for training in (0, 1):
        ones = np.ones(4, np.float32)
        data = _one(
            "BatchNormalization", (F32, 2, 4, 8, 8), *[ones] * 4, outputs=1 + 2 * training, training_mode=training
        )
        yield Variant(f"BatchNormalization training_mode={training}", data)
    for dtype, heads, kinds in itertools.product((F32, F16), (1, 4), (4, 2)):
        groups = heads if kinds == 4 or heads == 1 else 2
        operands = [(dtype, 2, count, 32, 32) for count in (heads, groups, groups)]
        said = {"heads": heads, "kv_heads": groups, "type": type_name(dtype)}
        if heads > 1 or kinds == 4:
            yield Variant(f"Attention {_words(**said)}", _one("Attention", *operands, opset=23))
    for dtype in (F32, F16):
        kind, four = type_name(dtype), [(dtype, 2, 4, 32, 32)] * 3
        three = _one("Attention", *[(dtype, 2, 32, 128)] * 3, opset=23, q_num_heads=4, kv_num_heads=4)
        yield Variant(f"Attention rank=3 type={kind}", three)
        yield Variant(f"Attention mask=float type={kind}", _one("Attention", *four, (dtype, 1, 4, 32, 32), opset=23))
        yield Variant(f"Attention mask=bool type={kind}", _one("Attention", *four, (np.bool_, 1, 1, 32, 32), opset=23))
        for said in ({"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.1}, {"softmax_precision": 1}):
            yield Variant(f"Attention {_words(**said)} type={kind}", _one("Attention", *four, opset=23, **said))
        for head in (8, 20, 64, 264):
            data = _one("Attention", *[(dtype, 2, 4, 32, head)] * 3, opset=23)
            yield Variant(f"Attention head={head} type={kind}", data)


def _control() -> Iterator[Variant]:
    for kind in (np.float32, np.float64, np.int32, np.int64):
        net = Net()
        ends = [net.constant(np.array(end, kind)) for end in (0, 8, 1)]
        net.node("Add", net.given(kind, 8), net.node("Range", *ends))
        yield Variant(f"Range ends=constant type={type_name(np.dtype(kind))}", net.model())
    net = Net()
    x = net.given(F32, 4, 8)
    length = net.node("Gather", net.node("Shape", x), np.array(1), axis=0)
    steps = net.node("Cast", net.node("Range", np.array(0), length, np.array(1)), to=TensorProto.FLOAT)
    net.node("Add", x, steps)
    yield Variant("Range ends=shape type=int64", net.model())
    for kind, said in (
        ("Constant", {"value_floats": [1.0] * 8}),
        ("RandomNormal", {"shape": [8]}),
        ("RandomUniform", {"shape": [8]}),
    ):
        net = Net()
        net.node("Add", net.given(F32, 8), net.node(kind, **said))
        yield Variant(f"{kind} inputs=none", net.model())
    for what in ("constant", "shape", "values"):
        yield Variant(f"If cond={what}", _if(what))
    for what in ("constant", "shape", "values"):
        yield Variant(f"Loop trips={what}", _loop(what))
    for direction in (0, 1):
        yield Variant(f"Scan direction={direction}", _scan(direction))
    for kind, direction in itertools.product(("LSTM", "GRU", "RNN"), ("forward", "reverse", "bidirectional")):
        sides, rows = 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * 8
        data = _one(
            kind, (F32, 5, 1, 8), values(sides, rows, 8), values(sides, rows, 8), hidden_size=8, direction=direction
        )
        yield Variant(f"{kind} direction={direction}", data)


def _if(what: str) -> bytes:
    net = Net()
    x = net.given(F32, 4, 8)
    branches = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [4, 8])
        branches[name] = helper.make_graph([helper.make_node(kind, [x], [value.name])], name, [], [value])
    if what == "constant":
        condition = net.constant(np.array(True))
    elif what == "shape":
        size = net.node("Gather", net.node("Shape", x), np.array(0), axis=0)
        condition = net.node("Equal", size, np.array(4))
    else:
        condition = net.node("Greater", net.node("ReduceSum", x, keepdims=0), np.float32(0))
    net.node("If", condition, **branches)
    return net.model()


def _loop(what: str) -> bytes:
    """Doubles its input so many times."""
    net = Net()
    x = net.given(F32, 4, 8)
    scalar = {name: helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9), ("d", 9))}
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in ("a", "b")]
    nodes = [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Identity", ["c"], ["d"])]
    body = helper.make_graph(nodes, "body", [scalar["i"], scalar["c"], state[0]], [scalar["d"], state[1]])
    if what == "constant":
        trips = net.constant(np.array(3))
    elif what == "shape":
        trips = net.node("Gather", net.node("Shape", x), np.array(0), axis=0)
    else:
        trips = net.node("Cast", net.node("ReduceMax", x, keepdims=0), to=TensorProto.INT64)
    net.node("Loop", trips, np.array(True), x, body=body)
    return net.model()


def _scan(direction: int) -> bytes:
    """Sums rows up one after another."""
    net = Net()
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in ("s", "r", "t", "u")]
    nodes = [helper.make_node("Add", ["s", "r"], ["t"]), helper.make_node("Identity", ["t"], ["u"])]
    body = helper.make_graph(nodes, "body", rows[:2], rows[2:])
    x = net.given(F32, 4, 8)
    net.node("Scan", np.zeros(8, np.float32), x, outputs=2, body=body, num_scan_inputs=1,
             scan_input_directions=[direction])  # fmt: skip
    return net.model(*net.nodes[-1].output)

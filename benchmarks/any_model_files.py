"""The rows of any_model.py that are `.onnx` files, which other exporters wrote of networks of its table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import torch
from any_model_table import Made, Network
from torch import nn

TF2ONNX = Path(__file__).parent.parent / "tests/exporter/onnx_files"
FUSED_ATTENTION = 14
Find = Callable[[str], Network]


def torchscript(network: nn.Module, size: int, opset: int, path: Path) -> None:
    """The exporter that PyTorch had until 2.5, still the default of many tools."""
    axes = {"input": {0: "batch"}, "output": {0: "batch"}}
    names = {"input_names": ["input"], "output_names": ["output"]}
    example = torch.randn(2, 3, size, size)
    for module in network.modules():  # before opset 14 it knows no fused attention
        if opset < FUSED_ATTENTION and hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    torch.onnx.export(network, (example,), path, dynamo=False, opset_version=opset, dynamic_axes=axes, **names)


def dynamo(network: nn.Module, size: int, opset: int, path: Path) -> None:
    """The exporter of today; its weights lie in a file beside."""
    shapes = ({0: torch.export.Dim("batch")},)
    names = {"input_names": ["input"], "output_names": ["output"]}
    example = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.onnx.export(
            network, (example,), path, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False, **names
        )


def in_half(network: nn.Module, size: int, opset: int, path: Path) -> None:
    """All floats in FP16, as converters write them; `single.onnx` computes the same function in FP32."""
    torchscript(network, size, opset, path)
    proto = onnx.load(path)
    for tensor in _float_tensors(proto):
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path.with_name("single.onnx"))
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del proto.graph.value_info[:]
    for tensor in _float_tensors(proto):
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
    onnx.save(proto, path)


def _float_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    constants = (a.t for node in proto.graph.node for a in node.attribute if a.HasField("t"))
    return [one for one in (*proto.graph.initializer, *constants) if one.data_type == onnx.TensorProto.FLOAT]


def by_onnxruntime(network: nn.Module, size: int, opset: int, path: Path) -> None:
    """TorchScript, and what ONNX Runtime writes after its basic optimizations, with no operators of its own."""
    torchscript(network, size, opset, path.with_name("plain.onnx"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(path.with_name("plain.onnx")), options, providers=["CPUExecutionProvider"])


def simplified(network: nn.Module, size: int, opset: int, path: Path) -> None:
    """TorchScript and onnxsim, the way of most recipes."""
    import onnxsim

    torchscript(network, size, opset, path)
    proto, _ = onnxsim.simplify(onnx.load(path))
    onnx.save(proto, path)


WRITERS = {
    "TorchScript": torchscript,
    "dynamo": dynamo,
    "FP16": in_half,
    "ONNX Runtime": by_onnxruntime,
    "onnxsim": simplified,
}


def file_rows(find: Find) -> list[Network]:
    """The rows; `find` gives the network of another row by its name."""

    def from_row(row: Network, folder: Path) -> Made:
        of, writer, opset = row.arguments["of"], WRITERS[row.arguments["writer"]], row.arguments["opset"]
        made, path = find(of).make(find(of), folder), folder / "model.onnx"
        assert made.naive is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer(made.naive, row.size, opset, path)
        single = path.with_name("single.onnx")
        return Made(str(path), {}, _of_file(single) if single.exists() else _renamed(made.outputs))

    rows = [
        Network(f"onnx:{of.partition(':')[2]}, {writer} {opset}", from_row, find(of).size, _of(of, writer, opset))
        for of, writer, opset in (
            ("timm:vit_tiny_patch16_224", "TorchScript", 11),
            ("timm:swin_tiny_patch4_window7_224", "TorchScript", 13),
            ("timm:mobilevit_xxs", "TorchScript", 14),
            ("timm:efficientvit_b0", "TorchScript", 17),
            ("timm:pvt_v2_b0", "dynamo", 18),
            ("timm:convnextv2_atto", "dynamo", 20),
            ("timm:xcit_nano_12_p16_224", "dynamo", 22),
            ("timm:deit3_small_patch16_224", "dynamo", 23),
            ("timm:levit_128s", "FP16", 16),
            ("timm:deit_tiny_distilled_patch16_224", "FP16", 17),
            ("timm:edgenext_xx_small", "ONNX Runtime", 17),
            ("timm:poolformer_s12", "onnxsim", 12),
        )
    ]
    names = ("tf2onnx_classes", "tf2onnx_maps")
    return rows + [Network(f"onnx:{name}", from_tensorflow, 32, {"file": name}) for name in names]


def _of(of: str, writer: str, opset: int) -> Mapping[str, Any]:
    return {"of": of, "writer": writer, "opset": opset}


def _renamed(outputs: Callable[[np.ndarray, bool], dict[str, np.ndarray]]) -> Any:
    def renamed(images: np.ndarray, exact: bool) -> dict[str, np.ndarray]:
        (array,) = outputs(images, exact).values()
        return {"output": array}

    return renamed


def from_tensorflow(row: Network, folder: Path) -> Made:
    """A file of Keras and tf2onnx that the tests have."""
    path = TF2ONNX / f"{row.arguments['file']}.onnx"
    return Made(str(path), {}, _of_file(path, channels_last=True))


def _of_file(path: Path, *, channels_last: bool = False) -> Callable[[np.ndarray, bool], dict[str, np.ndarray]]:
    """What ONNX Runtime makes of a file: without optimizations the original, with them what another rounding gives."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    optimized = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name, kept = plain.get_inputs()[0].name, plain.get_outputs()[0].name

    def outputs(images: np.ndarray, exact: bool) -> dict[str, np.ndarray]:
        fed = np.ascontiguousarray(np.moveaxis(images, 1, -1)) if channels_last else images
        session = plain if exact else optimized
        return {kept: np.concatenate([session.run(None, {name: one[None]})[0] for one in fed])}

    return outputs

"""`.onnx` files of several exporters as sources: right, and as lean as the network exported from PyTorch itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from tests.conftest import examples
from tests.exporter.onnx_networks import SIZE, TF2ONNX, transformer, write
from tests.graph_cases import ops, parsed, run
from vitdeploy import Bundle, export, inspect, load, verify
from vitdeploy.errors import GateError
from vitdeploy.exporter.capture import CAPTURE_OPSET
from vitdeploy.exporter.onnx_import.composites import state_deconvolutions
from vitdeploy.exporter.onnx_import.names import name_nodes
from vitdeploy.exporter.onnx_import.read import read_onnx
from vitdeploy.exporter.onnx_import.shapes import annotated, settled
from vitdeploy.exporter.onnx_import.upgrade import upgraded
from vitdeploy.graph.attention import find_attentions
from vitdeploy.passes.merge_transposes import MergeTransposes

Files = Callable[..., Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Writes the transformer by an exporter, once for each way."""
    folder, known = tmp_path_factory.mktemp("onnx"), {}

    def made(exporter: str, opset: int, how: str = "plain", approximate: str = "none", *, maps: bool = False) -> Path:
        key = (exporter, opset, how, approximate, maps)
        if key not in known:
            path = folder / ("-".join(map(str, key)) + ".onnx")
            known[key] = write(transformer(how, approximate, maps=maps), path, exporter, opset)
        return known[key]

    return made


def images(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def by_onnxruntime(path: Path, fed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: fed})[0]


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def outputs(bundle: Bundle, fed: np.ndarray) -> np.ndarray:
    with load(bundle, runtime="onnxruntime") as session:
        return session(fed)


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Nodes of the transformer when it is exported from PyTorch itself."""
    bundle = export(transformer(), tmp_path_factory.mktemp("lean") / "b", image_size=SIZE)
    return int(bundle.manifest.graph["nodes"])


@pytest.mark.parametrize(
    ("exporter", "opset", "how", "approximate"),
    [
        ("torchscript", 11, "plain", "none"),
        ("torchscript", 13, "plain", "none"),
        ("torchscript", 16, "plain", "tanh"),
        ("torchscript", 17, "scaled", "none"),
        ("torchscript", 18, "plain", "none"),
        ("dynamo", 18, "plain", "none"),
        ("dynamo", 20, "scaled", "none"),
        ("dynamo", 22, "plain", "none"),
        ("dynamo", 23, "scaled", "none"),
    ],
)
def test_every_exporter_and_opset_gives_the_same_lean_graph(
    exporter: str, opset: int, how: str, approximate: str, files: Files, lean: int, tmp_path: Path
) -> None:
    bundle = export(files(exporter, opset, how, approximate), tmp_path / "b")

    fed = images(1)
    with torch.no_grad():
        expected = transformer(how, approximate)(torch.from_numpy(fed)).numpy()
    assert difference(expected, outputs(bundle, fed)) < 1e-5
    graph = ir.load(tmp_path / "b/model.onnx")
    assert len(find_attentions(graph.graph)) == 2
    assert ops(graph)["LayerNormalization"] == 5
    assert ops(graph)["Erf" if approximate == "none" else "Tanh"] == 2
    assert bundle.manifest.graph["nodes"] <= lean + (8 if exporter == "torchscript" or approximate == "tanh" else 2)


@pytest.mark.parametrize("name", ["tf2onnx_classes", "tf2onnx_maps"])
@pytest.mark.parametrize("batch", [1, "dynamic"])
def test_files_of_tf2onnx_take_images_with_the_channels_first(name: str, batch: int | str, tmp_path: Path) -> None:
    file = TF2ONNX / f"{name}.onnx"
    bundle = export(file, tmp_path / "b", batch=batch)

    assert bundle.manifest.inputs[0].shape == ("batch" if batch == "dynamic" else 1, 3, 32, 32)
    for fed in (images(1), images(3)) if batch == "dynamic" else (images(1),):
        expected = by_onnxruntime(file, np.ascontiguousarray(np.moveaxis(fed, 1, -1)))
        with load(bundle, runtime="onnxruntime") as session:
            (found,) = session.run({"image": fed}).values()
        assert difference(expected, found) < 1e-5
    graph = ir.load(tmp_path / "b/model.onnx")
    assert ops(graph)["LayerNormalization"] == 5
    assert len(find_attentions(graph.graph)) == 2
    assert ops(graph)["Erf"] == (3 if name.endswith("maps") else 2)


@pytest.mark.parametrize(("precision", "target"), [("fp16", "portable"), ("fp16", "tensorrt10"), ("int8", "portable")])
@pytest.mark.parametrize("maps", [False, True])
def test_other_precisions_start_from_a_file(
    precision: str, target: str, maps: bool, files: Files, tmp_path: Path
) -> None:
    file = TF2ONNX / f"tf2onnx_{'maps' if maps else 'classes'}.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    given = {"calibration": pixels} if precision == "int8" else {}
    bundle = export(file, tmp_path / "b", precision=precision, target=target, **given)
    assert all(result["passed"] for result in bundle.manifest.parity)
    assert bundle.manifest.model.weights.kind == "onnx"


def test_what_proves_the_bundle_is_said(files: Files, tmp_path: Path) -> None:
    file = files("torchscript", 17)
    bundle = export(file, tmp_path / "b")
    words = f"proven against {file.name}, not against PyTorch"
    report = str(verify(bundle, runtime="onnxruntime"))
    assert words in report
    assert f"fp32 on onnxruntime against {file.name} FP32" in report
    assert words in str(inspect(bundle))
    assert bundle.manifest.model.weights.detail == file.name


def test_a_free_batch_stays_free_and_a_fixed_one_fixed(files: Files, lean: int, tmp_path: Path) -> None:
    file = files("torchscript", 14)
    bundle = export(file, tmp_path / "free", batch="dynamic")
    assert bundle.manifest.graph["nodes"] <= lean + 2
    for count in (1, 3):
        assert difference(by_onnxruntime(file, images(count)), outputs(bundle, images(count))) < 1e-5
    fixed = write(transformer(), tmp_path / "fixed.onnx", "torchscript", 14, batch=2)
    bundle = export(fixed, tmp_path / "two", batch=2)
    assert bundle.manifest.inputs[0].shape == (2, 3, SIZE, SIZE)


def in_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All floats as FP16, as converters write them."""
    half = onnx.TensorProto.FLOAT16
    for port in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            port.type.tensor_type.elem_type = half
    tensors = [*proto.graph.initializer, *(a.t for n in proto.graph.node for a in n.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = half
    return proto


def test_a_file_in_half_precision_is_computed_in_single(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    onnx.save(in_half(onnx.load(files("torchscript", 16))), tmp_path / "half.onnx")
    bundle = export(tmp_path / "half.onnx", tmp_path / "b")
    assert "half.onnx holds floats in float16, the reference is computed in FP32" in caplog.text
    assert bundle.manifest.inputs[0].dtype == bundle.manifest.outputs[0].dtype == "float32"
    fed = images(1)
    with torch.no_grad():
        expected = transformer()(torch.from_numpy(fed)).numpy()
    assert difference(expected, outputs(bundle, fed)) < 5e-3


def test_weights_in_other_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    proto = onnx.load(write(transformer(), tmp_path / "whole.onnx", "torchscript", 17))
    onnx.save(proto, folder / "x.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    bundle = export(folder / "x.onnx", tmp_path / "b")
    assert difference(by_onnxruntime(tmp_path / "whole.onnx", images(1)), outputs(bundle, images(1))) < 1e-5
    assert read_onnx(folder / "x.onnx", 1 << 31).sha256 != read_onnx(tmp_path / "whole.onnx", 1 << 31).sha256


def test_an_exported_bundle_is_a_source_again(tmp_path: Path, files: Files) -> None:
    first = export(files("dynamo", 18), tmp_path / "first")
    second = export(tmp_path / "first/model.onnx", tmp_path / "second")
    assert second.manifest.graph["nodes"] <= first.manifest.graph["nodes"]
    assert difference(outputs(first, images(1)), outputs(second, images(1))) < 1e-5


LOCAL = """<ir_version: 8, opset_import: ["": 17, "mine": 1]>
agraph (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { a = mine.twice (x) y = mine.twice (a) }
<domain: "mine", opset_import: ["": 17]> twice (x) => (y) { y = Add (x, x) }
"""


def test_local_functions_are_part_of_the_graph(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(LOCAL), tmp_path / "f.onnx")
    bundle = export(tmp_path / "f.onnx", tmp_path / "b")
    with load(bundle, runtime="onnxruntime") as session:
        fed = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": fed})["y"], 4 * fed, rtol=1e-6)


NEWER = {
    "GroupNormalization 21": (21, "y = GroupNormalization <num_groups = 2> (x, s, b)"),
    "RMSNormalization": (23, "y = RMSNormalization <axis = -1> (x, w)"),
    "Attention": (23, "y = Attention (x, x, x)"),
    "Attention, causal": (23, "y = Attention <is_causal = 1, scale = 0.3> (x, x, x)"),
    "Swish": (24, "y = Swish (x)"),
    "Gelu at 23": (23, "y = Gelu (x)"),
    "Reshape at 25": (25, "a = Reshape (x, flat) y = Softmax (a)"),
}


@pytest.mark.parametrize("case", NEWER)
def test_newer_operators_are_said_by_their_definition(case: str) -> None:
    opset, body = NEWER[case]
    weights = {
        "s": np.array([1.5, 0.5, 2, 1], np.float32),
        "b": np.array([0.1, -0.2, 0.3, 0], np.float32),
        "w": np.linspace(0.5, 2, 8, dtype=np.float32),
        "flat": np.array([0, -1]),
    }
    used = {name: array for name, array in weights.items() if f" {name})" in body or f" {name}," in body}
    text = f'<ir_version: 11, opset_import: ["": {opset}]> agraph (float[2, 4, 6, 8] x) => (float[N, M] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    if "flat" not in used:
        del proto.graph.output[0].type.tensor_type.shape.dim[:]
        proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in used.items())
    fed = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": fed})  # ONNX Runtime 1.23 reads no opset above 23
    proto.graph.output[0].type.tensor_type.shape.dim.extend(
        onnx.TensorShapeProto.Dimension(dim_value=n) for n in (expected.shape if "flat" not in used else ())
    )

    found = upgraded(proto, "x.onnx")

    assert found.opset_import[0].version == CAPTURE_OPSET
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_allclose(run(annotated(settled(found, "x.onnx"), "x.onnx"), {"x": fed})[0], expected, atol=2e-6)


@settings(max_examples=examples(60), deadline=None)
@given(
    size=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    group=st.sampled_from([1, 2]),
    how=st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape", "output_shape upper"]),
    extra=st.integers(0, 2),
)
def test_transposed_convolutions_say_their_padding(
    size: list[int], kernel: int, stride: int, dilation: int, group: int, how: str, extra: int
) -> None:
    rank = len(size)
    attributes: dict[str, object] = {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group}
    if extra < stride:
        attributes["output_padding"] = [extra] * rank
    if how == "pads":
        attributes["pads"] = [0] * rank + [min(1, kernel - 1)] * rank
    elif how.startswith("output_shape"):
        full = [stride * (n - 1) + dilation * (kernel - 1) + 1 for n in size]
        attributes["output_shape"] = [max(1, length - extra) for length in full]
        attributes.pop("output_padding", None)
        if how.endswith("upper"):
            attributes["auto_pad"] = "SAME_UPPER"
    elif how != "none":
        attributes["auto_pad"] = how
    model = parsed(
        f"agraph (float{[2, 4, *size]} x) => (y) {{ y = ConvTranspose (x, w) }}",
        w=np.random.default_rng(0).standard_normal((4, 2, *[kernel] * rank)).astype(np.float32),
    )
    node = model.graph[0]
    for name, value in attributes.items():
        node.attributes[name] = ir.from_proto(onnx.helper.make_attribute(name, value))
    fed = {"x": np.random.default_rng(1).standard_normal((2, 4, *size)).astype(np.float32)}
    try:
        expected = run(model, fed)[0]
    except Exception:  # such as a padding that leaves nothing: no file has it
        return
    model.graph.outputs[0].shape = ir.Shape(expected.shape)

    state_deconvolutions(model)

    assert model.graph[0].op_type in ("Deconvolution", "ConvTranspose")
    np.testing.assert_allclose(run(model, fed)[0], expected, atol=1e-5)


class Chaos(torch.nn.Module):
    """The logistic map, in which a rounding error grows by a factor of almost two with every step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.stem(images))
        for _ in range(30):
            x = 3.99 * x * (1 - x)
        return x.mean((2, 3))


def test_a_file_that_amplifies_rounding_is_called_ill_conditioned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = write(Chaos().eval(), tmp_path / "chaos.onnx", "torchscript", 17)
    with pytest.raises(GateError, match="chaos itself is ill-conditioned") as caught:
        export(file, tmp_path / "b")
    assert "against chaos.onnx with the optimizations of ONNX Runtime, the same without them" in str(caught.value.why)


def test_a_rewrite_that_makes_a_file_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self: MergeTransposes, model: ir.Model) -> list[str]:
        weight = next(v for v in model.graph.initializers.values() if v.name and "head.bias" in v.name)
        weight.const_value = ir.tensor(weight.const_value.numpy() + 1)  # type: ignore[union-attr]
        return ["head: spoiled"]

    monkeypatch.setattr(MergeTransposes, "rewrite", spoil)
    file = write(transformer(), tmp_path / "x.onnx", "torchscript", 17)
    with pytest.raises(GateError, match=r"the graph of x does not reproduce x\.onnx, whatever the precision") as caught:
        export(file, tmp_path / "b")
    assert "the rewrite merge_transposes makes it wrong" in str(caught.value.why)


def test_nodes_are_named_after_their_modules(files: Files) -> None:
    for exporter in ("torchscript", "dynamo"):
        graph = read_onnx(files(exporter, 18), 1 << 31).graph.graph
        name_nodes(graph)
        names = [str(node.name) for node in graph]
        assert "blocks.1.attn.qkv/MatMul" in names
        assert len(set(names)) == len(names)

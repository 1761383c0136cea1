"""The door: a graph that no runtime should see is refused by name, by every command that would open it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import vitdeploy
from tests.bundles import forge, forge_file, tiny_model, write_tiny_bundle
from tests.conftest import examples
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import BundleError
from vitdeploy.graph.soundness import _without_weights, unsound
from vitdeploy.inspection.inspect import inspect
from vitdeploy.platforms.check import check
from vitdeploy.runtime.backends.openvino_file import check_files
from vitdeploy.runtime.verify import verify

MICROSOFT = "com.microsoft"

Edit = Callable[[onnx.ModelProto], object]


def node(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(found for found in model.graph.node if found.op_type == operator)


def axis(model: onnx.ModelProto) -> onnx.AttributeProto:
    flatten = node(model, "Flatten")
    flatten.attribute.append(helper.make_attribute("axis", 1))
    return flatten.attribute[0]


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Add", ["flat", "loop"], ["loop"]))


def in_circle(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Add", ["pooled", "weight"], ["first"]))
    node(model, "GlobalAveragePool").input[0] = "first"


def with_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def huge(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 20, 1 << 20]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))


def broadcast(model: onnx.ModelProto) -> None:
    for name, shape in (("tall", [30000, 1]), ("wide", [1, 30000])):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * 30000))
    model.graph.node.append(helper.make_node("Add", ["tall", "wide"], ["sum"]))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function(
            "own", "Own", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 17)]
        )
    )


UNSOUND: dict[str, tuple[Edit, str]] = {
    "an operator of another domain": (lambda m: setattr(node(m, "MatMul"), "domain", "evil"), r"evil\.MatMul"),
    "an operator of ONNX Runtime": (
        lambda m: m.graph.node.append(helper.make_node("FusedMatMul", ["flat", "weight"], ["x"], domain=MICROSOFT)),
        r"com\.microsoft\.FusedMatMul",
    ),
    "an unknown operator": (lambda m: setattr(node(m, "Flatten"), "op_type", "Flotten"), "Flotten"),
    "an operator of a later opset": (
        lambda m: m.graph.node.append(helper.make_node("Gelu", ["flat"], ["x"])),
        "opset 17 of ONNX does not define",
    ),
    "an opset from the future": (lambda m: setattr(m.opset_import[0], "version", 900), "opset is 900"),
    "a node that reads itself": (cyclic, "reads loop before it is computed"),
    "nodes in a circle": (in_circle, "reads pooled before it is computed: the graph is cyclic"),
    "nodes out of order": (lambda m: m.graph.node.append(m.graph.node.pop(0)), "cyclic or out of order"),
    "a value that nothing computes": (lambda m: node(m, "MatMul").input.__setitem__(1, "gone"), "gone which nothing"),
    "an output that nothing computes": (lambda m: m.graph.node.pop(), "output logits is computed by nothing"),
    "a value that is computed twice": (
        lambda m: m.graph.node.append(helper.make_node("Relu", ["flat"], ["logits"])),
        "logits is defined twice",
    ),
    "a constant that is computed": (
        lambda m: m.graph.node.append(helper.make_node("Relu", ["flat"], ["weight"])),
        "weight is defined twice",
    ),
    "two constants of one name": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "constants are called"),
    "two inputs of one name": (lambda m: m.graph.input.append(m.graph.input[0]), "inputs are called"),
    "two outputs of one name": (lambda m: m.graph.output.append(m.graph.output[0]), "outputs are called"),
    "a constant that is too short": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", m.graph.initializer[0].raw_data[:-1]),
        "has 47 bytes, not 48",
    ),
    "a constant of absurd size": (lambda m: m.graph.initializer[0].dims.append(1 << 60), "bytes, not"),
    "a constant of a negative size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -3), r"the shape \[-3, 4\]"),
    "a constant of no type": (lambda m: setattr(m.graph.initializer[0], "data_type", 77), "of type 77"),
    "a constant of texts": (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING), "of type STR"),
    "a graph that runs another": (with_loop, "is Loop, which runs a graph of its own"),
    "a function": (function, "functions of its own, the first is Own"),
    "a value of absurd size": (huge, "more than 268,435,456 elements"),
    "a sum of absurd size": (broadcast, "more than 268,435,456 elements"),
    "types that do not fit": (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.INT32), "int32"),
    "an attribute of another type": (
        lambda m: axis(m).__setattr__("type", onnx.AttributeProto.FLOATS),
        "the node .* is no Flatten of ONNX: .*axis",
    ),
    "an attribute that is not of the operator": (
        lambda m: node(m, "Flatten").attribute.append(helper.make_attribute("own", 1)),
        "is no Flatten of ONNX: .*own",
    ),
    "an attribute twice": (
        lambda m: node(m, "Flatten").attribute.append(axis(m)),
        "'axis' appeared multiple times",
    ),
    "an attribute that is missing": (
        lambda m: m.graph.node.append(helper.make_node("Cast", ["flat"], ["x"])),
        "is no Cast of ONNX: .*to",
    ),
    "an input too few": (lambda m: node(m, "MatMul").input.pop(), "is no MatMul of ONNX: .*input size 1"),
    "a terminal's codes in a name": (lambda m: node(m, "MatMul").input.__setitem__(1, "\x1b[2J"), r"\\x1b"),
}


@pytest.mark.parametrize(("edit", "why"), UNSOUND.values(), ids=UNSOUND.keys())
def test_a_graph_that_no_runtime_should_see_is_refused_by_everybody(tmp_path: Path, edit: Edit, why: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    model = onnx.load_from_string(tiny_model())
    edit(model)
    forge_file(bundle, MODEL, model.SerializeToString())
    path = bundle.path
    for open_it in (
        lambda: verify(path, runtime="onnxruntime"),
        lambda: verify(path),
        lambda: vitdeploy.load(path, runtime="openvino"),
        lambda: vitdeploy.load(path, runtime="onnxruntime"),
        lambda: inspect(path),
        lambda: check(path, "tensorrt10"),
    ):
        with pytest.raises(BundleError, match=why):
            open_it()


def test_the_graphs_of_exports_are_sound() -> None:
    assert unsound(onnx.load_from_string(tiny_model())) is None
    assert unsound(onnx.load_from_string(tiny_model(3, pyramid=True))) is None


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(40))
def test_any_order_of_the_nodes_but_those_that_compute_first_is_refused(seed: int) -> None:
    model = onnx.load_from_string(tiny_model())
    nodes = list(model.graph.node)
    random.Random(seed).shuffle(nodes)
    sorted_already = [one.op_type for one in nodes] == [one.op_type for one in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert (unsound(model) is None) == sorted_already


SIZES: dict[str, Callable[[dict], object]] = {
    "a batch of ten millions": lambda d: [d[s][0]["shape"].__setitem__(0, 10**7) for s in ("inputs", "outputs")],
    "images of a million rows": lambda d: d["preprocessing"].update(size=[10**6, 10**6]),
    "an output of 10^18 classes": lambda d: d["outputs"][0]["shape"].__setitem__(1, 10**18),
}


@pytest.mark.parametrize("edit", SIZES.values(), ids=SIZES.keys())
def test_a_manifest_of_absurd_sizes_is_not_opened(tmp_path: Path, edit: Callable[[dict], object]) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    forge(bundle, edit)
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.open(bundle.path)


# The OpenVINO files

LAYER = '<layer id="{id}" name="n{id}" type="{type}" version="{version}">{data}</layer>'


def xml(*layers: str, edges: tuple[tuple[int, int], ...] = (), head: str = '<?xml version="1.0"?>') -> bytes:
    drawn = "".join(f'<edge from-layer="{a}" from-port="0" to-layer="{b}" to-port="0" />' for a, b in edges)
    return f'{head}<net name="x" version="11"><layers>{"".join(layers)}</layers><edges>{drawn}</edges></net>'.encode()


def layer(number: int, kind: str = "Relu", version: str = "opset1", data: str = "") -> str:
    return LAYER.format(id=number, type=kind, version=version, data=data)


def constant(number: int, offset: int, size: int, shape: str = "2") -> str:
    return layer(number, "Const", data=f'<data element_type="f32" shape="{shape}" offset="{offset}" size="{size}" />')


BROKEN = {
    "an entity": (xml(head='<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]>'), "a document type"),
    "no XML": (b"\0\1\2", "not well-formed"),
    "an operation of an extension": (xml(layer(0, "Evil", "extension")), r"extension\.Evil"),
    "a loop": (xml(layer(0, "TensorIterator")), "TensorIterator"),
    "a circle": (xml(layer(0), layer(1), edges=((0, 1), (1, 0))), "in a circle"),
    "an edge to nowhere": (xml(layer(0), edges=((0, 7),)), "names the layer 7"),
    "a layer twice": (xml(layer(0), layer(0)), "number 0"),
    "a constant behind the weights": (xml(constant(0, 4, 8)), "outside of the weights"),
    "a constant at a negative place": (xml(constant(0, -4, 8)), "no place in the weights"),
    "a constant larger than its bytes": (xml(constant(0, 0, 8, "100000, 100000")), "more than its 8 bytes"),
    "a value of absurd size": (
        xml(layer(0, data='<output><port id="0"><dim>1048576</dim><dim>1048576</dim></port></output>')),
        "elements",
    ),
}


@pytest.mark.parametrize(("model", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_openvino_files_that_openvino_should_not_see_are_refused(model: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why):
        check_files(model, b"\0" * 8, "model.xml")


def test_openvino_files_as_they_are_exported_are_taken() -> None:
    convert = pytest.importorskip("vitdeploy.runtime.backends.openvino").OpenVinoBackend.convert
    files = convert(tiny_model())
    check_files(files["model.xml"], files["model.bin"], "model.xml")
    with pytest.raises(BundleError, match="outside of the weights"):
        check_files(files["model.xml"], files["model.bin"][:-1], "model.xml")


def test_what_shapes_are_inferred_of_is_the_model_without_the_values_of_its_weights() -> None:
    model = onnx.load_model_from_string(tiny_model())
    weight = model.graph.initializer.add(name="large", data_type=TensorProto.FLOAT, dims=[2000], doc_string="w")
    weight.raw_data = b"\1" * 8000
    model.metadata_props.add(key="k", value="v")
    before = model.SerializeToString(deterministic=True)
    found = _without_weights(model)
    assert model.SerializeToString(deterministic=True) == before
    weight.raw_data = b""
    assert found == model
    assert found.graph.initializer[-1].HasField("raw_data")

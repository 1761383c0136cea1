"""Exact edits: what an edited model gives for pixels is what the original gives for them prepared, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.serving.cases import LABELS, linear, recipe, weights, write_linear
from vitdeploy.bundle import Manifest
from vitdeploy.errors import BackendError
from vitdeploy.graph.run import run
from vitdeploy.preprocess import Preprocessing, normalise
from vitdeploy.serving.edits import check_edited, gives_probabilities, takes_planes, without_scalars

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_linear(tmp_path_factory.mktemp("edits") / "b", recipe(size=(3, 4))).manifest


def with_recipe(manifest: Manifest, given: Preprocessing) -> Manifest:
    return dataclasses.replace(manifest, preprocessing=given)


def planes_of(pixels: np.ndarray, given: Preprocessing) -> np.ndarray:
    ordered = pixels[..., ::-1] if given.channels == "BGR" else pixels
    return np.ascontiguousarray(np.moveaxis(ordered, -1, 1)).astype(np.float32)


@given(
    st.sampled_from(["RGB", "BGR", "L"]),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 3), min_size=3, max_size=3),
    st.floats(0.5, 70000),
    st.sampled_from(["fp32", "fp16", "int8"]),
)
def test_the_normalisation_in_the_graph_is_that_of_the_recipe(
    manifest: Manifest, channels: str, mean: list[float], std: list[float], scale: float, precision: str
) -> None:
    depth = 1 if channels == "L" else 3
    made = recipe(size=(3, 4), channels=channels, mean=tuple(mean[:depth]), std=tuple(std[:depth]), scale=scale)
    model, about = linear(made, "batch", precision), with_recipe(manifest, made)
    edited = takes_planes(model, about)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, depth)).astype(np.uint8)
    (found,) = run(edited, {"images": planes_of(pixels, made)}, "as_written").values()
    (expected,) = run(model, {"images": normalise(pixels, made)}, "as_written").values()
    np.testing.assert_array_equal(found, expected)
    check_edited(gives_probabilities(edited), model, about)
    assert takes_planes(model, about, normalised=True) == onnx.load_from_string(model).SerializeToString(
        deterministic=True
    ), "what the destination normalises stays as it is"


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_a_graph_that_takes_pixels_reads_planes(channels: str, batch: int | str, tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", recipe(channels=channels), baked=True, batch=batch)
    edited = takes_planes(bundle.read("model.onnx"), bundle.manifest)
    reference = bundle.reference()
    planes = np.ascontiguousarray(np.moveaxis(reference.inputs["images"], -1, 1)).astype(np.float32)
    (found,) = run(edited, {"images": planes}).values()
    np.testing.assert_allclose(found, reference.outputs["logits"], rtol=0, atol=1e-5)
    check_edited(edited, bundle.read("model.onnx"), bundle.manifest)
    assert [node.op_type for node in onnx.load_from_string(edited).graph.node][:2] == ["Transpose", "Transpose"]


def test_several_casts_of_the_pixels_become_one_transpose_and_other_readers_are_refused(tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", baked=True)
    proto = onnx.load_from_string(bundle.read("model.onnx"))
    (cast,) = [node for node in proto.graph.node if node.op_type == "Cast"]
    (reader,) = [node for node in proto.graph.node if cast.output[0] in node.input]
    twin = helper.make_node("Cast", ["images"], ["twin"], name="twin", to=TensorProto.FLOAT)
    place = list(proto.graph.node).index(reader)
    proto.graph.node.insert(place, twin)
    sum_of_both = helper.make_node("Max", [cast.output[0], "twin"], ["both"], name="both")
    proto.graph.node.insert(place + 1, sum_of_both)
    reader.input[0] = "both"
    two = proto.SerializeToString()
    check_edited(takes_planes(two, bundle.manifest), two, bundle.manifest)
    twin.ClearField("attribute")
    del proto.graph.node[place]
    proto.graph.node.insert(place, helper.make_node("Cast", ["images"], ["twin"], name="twin", to=TensorProto.FLOAT16))
    with pytest.raises(BackendError, match="not read by a Cast to float32 alone"):
        takes_planes(proto.SerializeToString(), bundle.manifest)


def test_names_that_are_taken_are_left_alone(manifest: Manifest) -> None:
    names = ("preprocessing_0", "images_normalised", "probabilities", "softmax")
    chain = [helper.make_node("Identity", [a], [b], name=b) for a, b in zip(("images", *names), names, strict=False)]
    shape = ["batch", 3, 3, 4]
    graph = helper.make_graph(
        [
            *chain,
            helper.make_node("Flatten", [names[-1]], ["flat"], name="preprocessing/0"),
            helper.make_node("MatMul", ["flat", "preprocessing_1"], ["logits"], name="head"),
        ],
        "taken",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(weights(3, (3, 4)), "preprocessing_1")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    edited = gives_probabilities(takes_planes(model, manifest))
    check_edited(edited, model, manifest)
    assert onnx.load_from_string(edited).graph.output[0].name == "probabilities_1"


def test_a_reader_inside_of_a_branch_reads_the_prepared_values_too(manifest: Manifest) -> None:
    def branch(name: str, operator: str) -> Any:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["images"], [name])], name, [], [out])

    graph = helper.make_graph(
        [
            helper.make_node("If", ["yes"], ["chosen"], then_branch=branch("a", "Neg"), else_branch=branch("b", "Abs")),
            helper.make_node("Flatten", ["chosen"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "branches",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 3, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(weights(3, (3, 4)), "weight"), numpy_helper.from_array(np.array(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    check_edited(takes_planes(model, manifest), model, manifest)


def test_half_logits_become_probabilities_in_float32(manifest: Manifest) -> None:
    proto = onnx.load_from_string(linear(manifest.recipe, "batch"))
    proto.graph.node[-1].output[0] = "wide"
    proto.graph.node.append(helper.make_node("Cast", ["wide"], ["logits"], to=TensorProto.FLOAT16))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model = proto.SerializeToString()
    edited = gives_probabilities(model)
    assert onnx.load_from_string(edited).graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    check_edited(edited, model, manifest, normalised=True)


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.485, 0.456, 0.407)}, {"std": (0.229, 0.224, 0.226)}, {"scale": 256.0}], ids=str
)
def test_another_normalisation_is_found_out(wrong: dict[str, Any], manifest: Manifest) -> None:
    model = linear(manifest.recipe, "batch")
    edited = takes_planes(model, with_recipe(manifest, manifest.recipe.changed(wrong)))
    for one in (edited, gives_probabilities(edited)):
        with pytest.raises(BackendError, match="other outputs"):
            check_edited(one, model, manifest)


def test_a_graph_that_is_no_longer_valid_is_an_error_of_ours(manifest: Manifest) -> None:
    proto = onnx.load_from_string(linear(manifest.recipe, "batch"))
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(BackendError, match="not valid ONNX"):
        takes_planes(proto.SerializeToString(), manifest)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_an_output_that_is_a_number_gets_an_axis_and_its_readers_read_the_number(kind: int) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["moved"]),
            helper.make_node("Neg", ["sum"], ["sum_number"]),
        ],
        "sums",
        [value("x", kind, ["n", 3])],
        [value("sum", kind, []), value("moved", kind, ["n", 3]), value("sum_number", kind, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    x = np.arange(6, dtype=helper.tensor_dtype_to_np_dtype(kind)).reshape(2, 3)
    expected, found = run(model, {"x": x}), run(without_scalars(model), {"x": x})
    assert {name: one.shape for name, one in found.items()} == {"sum": (1,), "moved": (2, 3), "sum_number": (1,)}
    for name, other in expected.items():
        np.testing.assert_array_equal(found[name].reshape(other.shape), other)

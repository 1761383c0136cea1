"""A bundle whose manifest says something else than its files is refused, although all its hashes are right."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import vitdeploy
from tests.bundles import forge, forge_file, tiny_manifest, tiny_model, write_tiny_bundle
from tests.conftest import examples
from vitdeploy.bundle import MANIFEST, MODEL, Bundle
from vitdeploy.bundle.contradictions import CUSTOM_FAMILY
from vitdeploy.bundle.graph_facts import read_facts
from vitdeploy.bundle.manifest import dump
from vitdeploy.errors import BackendError, BundleError, MissingDependencyError, VitDeployError
from vitdeploy.proof.prove import INT8_FLOOR_DB, bounds_of, prove
from vitdeploy.proof.recorded import record
from vitdeploy.runtime.backends import find_backend

Edit = Callable[[dict[str, Any]], Any]
PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def assert_refused(path: Path) -> str:
    """By verify, by what `auto` and a named runtime load, and by the proof itself; the error of the first."""
    pytest.importorskip("onnxruntime")
    with pytest.raises(BundleError) as refused:
        vitdeploy.verify(path, runtime="onnxruntime")
    assert refused.value.why
    assert refused.value.fix
    with pytest.raises(BundleError):
        vitdeploy.load(path)
    honest = write_tiny_bundle(path.parent / "honest", force=True)
    backend = find_backend("onnxruntime").open(honest)
    with pytest.raises(BundleError):
        prove(Bundle.open(path), backend)
    backend.close()
    return str(refused.value)


def changed(**values: Any) -> Edit:
    """Replaces values by their dotted keys, with two underscores for a dot."""

    def edit(document: dict[str, Any]) -> None:
        for key, value in values.items():
            *parents, last = key.split("__")
            target = document
            for parent in parents:
                target = target[parent]
            target[last] = value

    return edit


def spec(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


IMAGES, LOGITS = spec("images", "float32", "batch", 3, 8, 8), spec("logits", "float32", "batch", 4)

LIES: dict[str, Edit] = {
    "input name": changed(inputs=[{**IMAGES, "name": "pixels"}]),
    "input type": changed(inputs=[{**IMAGES, "dtype": "float16"}]),
    "input of fixed batch": changed(inputs=[spec("images", "float32", 2, 3, 8, 8)]),
    "input of a huge batch": changed(inputs=[spec("images", "float32", 10**9, 3, 8, 8)]),
    "input size": changed(inputs=[spec("images", "float32", "batch", 3, 8, 9)]),
    "input of any size": changed(inputs=[spec("images", "float32", "batch", 3, "h", "w")]),
    "input rank": changed(inputs=[spec("images", "float32", "batch", 3, 8)]),
    "one input more": changed(inputs=[IMAGES, {**IMAGES, "name": "mask"}]),
    "output name": changed(outputs=[{**LOGITS, "name": "scores"}]),
    "output type": changed(outputs=[{**LOGITS, "dtype": "int64"}]),
    "output shape": changed(outputs=[spec("logits", "float32", "batch", 5)]),
    "output of fixed batch": changed(outputs=[spec("logits", "float32", 1, 4)]),
    "one output more": changed(outputs=[LOGITS, {**LOGITS, "name": "selection"}]),
    "opset": changed(opset=20),
    "opset of nothing": changed(opset=0),
    "fewer classes": changed(model__num_classes=3, labels=["ant", "bee", "cat"]),
    "more classes": changed(model__num_classes=1000, labels=[]),
    "no classes": changed(model__num_classes=0, labels=[]),
    "image size": changed(model__image_size=[224, 224]),
    "height only": changed(model__image_size=[9, 8]),
    "preprocessing size": changed(preprocessing__size=[224, 224]),
    "a huge preprocessing size": changed(preprocessing__size=[2**70, 2**70]),
    "both sizes": changed(model__image_size=[16, 16], preprocessing__size=[16, 16]),
    "mean": changed(preprocessing__mean=[0.5, 0.5, 0.5]),
    "deviation": changed(preprocessing__std=[0.5, 0.5, 0.5]),
    "a deviation of nothing": changed(preprocessing__std=[1e-300, 0.2, 0.2]),
    "mode": changed(preprocessing__mode="resize_crop"),
    "interpolation": changed(preprocessing__interpolation="bilinear"),
    "channels": changed(preprocessing__channels="BGR"),
    "fp16": changed(precision="fp16"),
    "int8": changed(precision="int8"),
    "int8 that keeps much": changed(precision="int8", precision_report={"reference_snr_db": 40.0}),
    "int8 that accepts all": changed(
        precision="int8", precision_report={"reference_snr_db": -1000, "missed": {"by": "me"}}
    ),
    "unknown precision": changed(precision="fp64"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_does_not_describe_its_bundle_is_refused(bundle: Bundle, lie: str) -> None:
    forge(bundle, LIES[lie])
    assert_refused(bundle.path)


@pytest.mark.parametrize("said", PRECISIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_is_that_of_the_graph(tmp_path: Path, precision: str, said: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", precision=precision)
    forge(bundle, changed(precision=said, precision_report={"reference_snr_db": 40.0}))
    if said != precision:
        assert f"precision is {said}, and the graph has" in assert_refused(bundle.path)
    else:
        assert vitdeploy.verify(bundle.path, runtime="onnxruntime").passed


@pytest.mark.parametrize("edit", [changed(inputs=[spec("images", "uint8", "batch", 8, 8, 3)]), changed()])
def test_pixels_are_what_the_graph_takes(bundle: Bundle, edit: Edit) -> None:
    """The lie that the graph normalises, with an input that would fit and with the one of the graph."""

    def pixels(document: dict[str, Any]) -> None:
        edit(document)
        document["preprocessing_in_graph"] = True

    forge(bundle, pixels)
    with pytest.raises(BundleError):
        vitdeploy.verify(bundle.path, runtime="onnxruntime")


def test_a_graph_that_normalises_is_said_to(tmp_path: Path) -> None:
    from tests.accuracy.accuracy_cases import write_baked

    bundle = write_baked(tmp_path / "baked")
    assert vitdeploy.verify(bundle.path, runtime="onnxruntime").passed
    forge(bundle, changed(preprocessing_in_graph=False))
    assert "preprocessing_in_graph is false" in assert_refused(bundle.path)
    forge(bundle, changed(preprocessing_in_graph=True, model__image_size=[3, 8]))
    assert "model.image_size is [3, 8]" in assert_refused(bundle.path)


@pytest.mark.parametrize("pyramid", [False, True])
def test_what_the_graph_does_not_show_is_taken_as_it_is(tmp_path: Path, pyramid: bool) -> None:
    """A user's own network has classes that nobody counted, and a pyramid has no logits."""
    bundle = write_tiny_bundle(tmp_path / "b", pyramid=pyramid)
    edits = [changed(model__num_classes=1000, labels=[])] if pyramid else []
    for edit in (*edits, changed(model__num_classes=0, model__family=CUSTOM_FAMILY, labels=[])):
        forge(bundle, edit)
        assert vitdeploy.verify(bundle.path, runtime="onnxruntime").passed


ANY = st.none() | st.booleans() | st.integers(-2, 30) | st.sampled_from([10**400, "float32", "fp16", [], {}, 0.5, "x"])
# What is only written down, and neither shown by the graph nor used by a runtime.
WORDS = {"labels", "target", "tools", "parity", "accuracy", "graph", "created", "precision_report"}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every single value inside a JSON document."""
    if isinstance(value, dict) or (isinstance(value, list) and value):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for key, child in pairs for place in places(child, (*path, key))]
    return [path]


def edit(document: Any, chosen: list[tuple[Any, ...]], data: st.DataObject) -> None:
    """Put anything in one of the chosen places."""
    *parents, last = data.draw(st.sampled_from(chosen))
    for key in parents:
        document = document[key]
    document[last] = data.draw(ANY)


@given(data=st.data())
@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_edited_manifest_is_refused_or_says_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is changed in what the graph shows: a bundle that still passes has what it had."""
    path = tmp_path_factory.getbasetemp() / "edited"
    bundle = Bundle.open(path) if path.exists() else write_tiny_bundle(path)
    pristine = (path / MANIFEST).read_bytes()
    document = json.loads(pristine)
    edit(document, [place for place in places(document) if place[0] not in WORDS], data)
    try:
        (path / MANIFEST).write_bytes(dump(document))
        opened = Bundle.open(path)
        opened.check_graph()
        reference = opened.reference()
        assert reference.preprocessing is not None
        if reference.preprocessing.failure(opened.manifest.preprocessing):
            return
    except BundleError:
        return
    finally:
        (path / MANIFEST).write_bytes(pristine)
    was, now = bundle.manifest, opened.manifest
    assert now.outputs == was.outputs
    assert [item.dtype for item in now.inputs] == [item.dtype for item in was.inputs]
    for key in ("opset", "precision", "preprocessing_in_graph"):
        assert getattr(now, key) == getattr(was, key)
    assert (now.model.image_size, now.preprocessing.size) == (was.model.image_size, was.preprocessing.size)
    assert now.model.num_classes == was.model.num_classes


@given(data=st.data())
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_edited_manifest_is_an_error_without_words(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands anywhere in it: a report, or one of our errors."""
    pytest.importorskip("onnxruntime")
    precision = data.draw(st.sampled_from(PRECISIONS))
    path = tmp_path_factory.getbasetemp() / f"any {precision}"
    if not path.exists():
        bundle = write_tiny_bundle(path, precision=precision)
        report = vitdeploy.verify(bundle, runtime="onnxruntime")
        bundle.update_results(parity=[report.parity.to_dict() | record(report.runtime, report.measured)])
    pristine = (path / MANIFEST).read_bytes()
    document = json.loads(pristine)
    document["reference"] = {"images": ["photograph"] * 3 + ["noise"] * 3, "rounding_db": {"logits": 70.0}}
    edit(document, places(document), data)
    try:
        (path / MANIFEST).write_bytes(dump(document))
        with contextlib.suppress(VitDeployError):
            report = vitdeploy.verify(path, runtime="onnxruntime")
            json.dumps(report.to_dict(), allow_nan=False)
            assert str(report)
    finally:
        (path / MANIFEST).write_bytes(pristine)


@pytest.mark.parametrize("kinds", [[[]], [{}], [None], ["photograph"] * 7, "photograph", {"photograph": 1}, 10**400])
def test_kinds_of_images_that_are_none_choose_no_images(tmp_path: Path, kinds: Any) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", precision="int8")
    forge(bundle, changed(reference={"images": kinds}))
    assert vitdeploy.verify(bundle.path, runtime="onnxruntime").passed


# INT8


@pytest.mark.parametrize("value", [None, "x", "40", [], {}, True, 10**400, -(10**400), 1e308, 7000])
def test_int8_without_a_number_of_decibels_is_refused(tmp_path: Path, value: Any) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", precision="int8")
    for report in ({"reference_snr_db": value}, {"reference_snr_db": value, "missed": {"by": "me"}}):
        forge(bundle, changed(precision_report=report))
        assert "is no number of decibels" in assert_refused(bundle.path)
    forge(bundle, changed(precision_report={}))
    assert "is no number of decibels" in assert_refused(bundle.path)


@pytest.mark.parametrize("accepted", [None, "", {}, [], False, 0])
def test_int8_that_kept_little_has_to_be_accepted(tmp_path: Path, accepted: Any) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", precision="int8")
    below = INT8_FLOOR_DB - 0.1
    forge(bundle, changed(precision_report={"reference_snr_db": below, "missed": accepted}))
    assert "has lost its network" in assert_refused(bundle.path)
    forge(bundle, changed(precision_report={"reference_snr_db": below, "missed": {"reason": "a test"}}))
    assert vitdeploy.verify(bundle.path, runtime="onnxruntime").passed
    forge(bundle, changed(precision_report={"reference_snr_db": INT8_FLOOR_DB}))
    assert vitdeploy.verify(bundle.path, runtime="onnxruntime").passed


def test_int8_is_never_judged_by_nothing() -> None:
    for value in (-60, 0, INT8_FLOOR_DB, 100):
        manifest = tiny_manifest(precision="int8")
        manifest.precision_report.update(reference_snr_db=value, missed="yes")
        bounds = bounds_of(manifest)
        assert bounds.min_snr_db is not None
        assert bounds.min_snr_db == pytest.approx(value, abs=5)


# Files outside the bundle


def external(tensor: TensorProto, location: str, *, marked: bool = True) -> None:
    """Moves the values of a tensor to another file."""
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    if marked:
        tensor.data_location = TensorProto.EXTERNAL


def in_initializer(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def in_attribute(model: onnx.ModelProto) -> TensorProto:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(4, np.float32)))
    model.graph.node.append(node)
    return model.graph.node[-1].attribute[0].t


def in_list(model: onnx.ModelProto) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32))
    model.graph.node.append(helper.make_node("Any", [], ["c"], domain="any", values=[tensor]))
    return model.graph.node[-1].attribute[0].tensors[0]


def in_subgraph(model: onnx.ModelProto) -> TensorProto:
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(np.zeros(4, np.float32), "w")])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner))
    return model.graph.node[-1].attribute[1].g.initializer[0]


def in_function(model: onnx.ModelProto) -> TensorProto:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(4, np.float32)))
    model.functions.append(helper.make_function("any", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))
    return model.functions[0].node[0].attribute[0].t


def in_sparse_values(model: onnx.ModelProto) -> TensorProto:
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.zeros(1, int))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return model.graph.sparse_initializer[0].values


def in_training(model: onnx.ModelProto) -> TensorProto:
    model.training_info.add().initialization.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "t"))
    return model.training_info[0].initialization.initializer[0]


PLACES = [in_initializer, in_attribute, in_list, in_subgraph, in_function, in_sparse_values, in_training]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize(("location", "marked"), [("w.bin", True), ("*/_ORT_MEM_ADDR_/*", True), ("w.bin", False)])
def test_weights_outside_the_bundle_reach_no_runtime(
    bundle: Bundle,
    place: Callable[[onnx.ModelProto], TensorProto],
    location: str,
    marked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = onnx.load_from_string(tiny_model())
    external(place(model), location, marked=marked)
    forge_file(bundle, MODEL, model.SerializeToString())
    path = bundle.path
    for name in ("onnxruntime", "openvino"):
        backend = find_backend(name)
        monkeypatch.setattr(backend, "_load", lambda *_: pytest.fail("a runtime got the model"))
        if backend.available() is None:
            for use in (vitdeploy.verify, vitdeploy.load):
                with pytest.raises(BundleError, match="does not hold all its weights"):
                    use(path, runtime=name)
    for use in (vitdeploy.verify, vitdeploy.load, vitdeploy.inspect, lambda path: vitdeploy.check(path, "tensorrt10")):
        with pytest.raises(BundleError, match="does not hold all its weights"):
            use(path)


@pytest.mark.parametrize("data", [b"text", b"<net/>", b"\xff" * 40, b"\x08"])
def test_a_model_that_is_no_onnx_file_is_an_error_in_words(bundle: Bundle, data: bytes) -> None:
    forge_file(bundle, MODEL, data)
    for use in (vitdeploy.verify, vitdeploy.load, vitdeploy.inspect, lambda path: vitdeploy.check(path, "tensorrt10")):
        with pytest.raises(BundleError, match="is not a valid ONNX model"):
            use(bundle.path)


def unusual(value: onnx.ValueInfoProto) -> bytes:
    model = onnx.load_from_string(tiny_model())
    model.graph.output[0].CopyFrom(value)
    return model.SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        unusual(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)),
        unusual(helper.make_tensor_value_info("logits", TensorProto.STRING, ["batch", 4])),
        unusual(helper.make_tensor_value_info("logits", TensorProto.BFLOAT16, ["batch", 4])),
        unusual(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 0])),
        unusual(helper.make_tensor_value_info("logits", 99, ["batch", 4])),
        unusual(helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, ["batch", 4])),
        unusual(onnx.ValueInfoProto(name="logits")),
    ],
)
def test_a_graph_with_ends_that_no_bundle_has_is_refused(bundle: Bundle, data: bytes) -> None:
    forge_file(bundle, MODEL, data)
    assert_refused(bundle.path)


def test_without_onnx_the_command_that_brings_it_is_said(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for use in (vitdeploy.verify, lambda path: vitdeploy.load(path, runtime="onnxruntime")):
        with pytest.raises(MissingDependencyError, match=r"onnx is not installed(.|\n)*pip install 'vitdeploy\["):
            use(bundle.path)


def test_an_onnx_that_cannot_be_imported_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx.py").write_text("raise RuntimeError('libprotobuf is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnx")
    with pytest.raises(BackendError, match=r"onnx is installed but cannot be imported\n.*libprotobuf is missing"):
        read_facts(tiny_model(), where="here")


# What loaded is not what the manifest says


def test_files_of_openvino_with_another_signature_are_refused(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    bundle = write_tiny_bundle(tmp_path / "b")
    core = openvino.Core()
    openvino.save_model(core.read_model(tiny_model(pyramid=True), b""), bundle.path / "model.xml", False)

    def list_them(document: dict[str, Any]) -> None:
        for name in ("model.xml", "model.bin"):
            data = (bundle.path / name).read_bytes()
            document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    forge(bundle, list_them)
    with pytest.raises(BundleError, match="does not describe what openvino loaded"):
        vitdeploy.load(bundle.path, runtime="openvino")
    assert not vitdeploy.verify(bundle.path, runtime="openvino").passed


def test_a_reference_of_nan_proves_no_model(tmp_path: Path) -> None:
    """With the head negated: every check of numbers is switched off by NaN unless NaN is refused."""
    bundle = write_tiny_bundle(tmp_path / "b", error=np.nan)
    model = onnx.load_from_string(tiny_model())
    weight = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(-weight, "weight"))
    forge_file(bundle, MODEL, model.SerializeToString())
    assert "NaN or Inf" in assert_refused(bundle.path)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_bundles_from_before_hold(name: str, tmp_path: Path) -> None:
    old = Path(shutil.copytree(Path(__file__).parents[1] / "bundle" / "written_by_0_1" / name, tmp_path / name))
    bundle = Bundle.open(old)
    bundle.check_graph()
    assert bundle.reference().preprocessing is None
    assert vitdeploy.verify(old, runtime="onnxruntime").passed
    forge(bundle, changed(opset=18))
    assert "opset is 18, and that of the graph is 17" in assert_refused(old)

"""The model repository, parsed as the server parses it: by the messages of `model_config.proto`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import vitdeploy
from tests.bundles import write_tiny_bundle
from tests.serving.cases import LABELS, SIZE, write_linear
from tests.serving.record import RECORD
from tests.tasks.task_cases import write_network
from vitdeploy.bundle import Bundle, TensorSpec
from vitdeploy.errors import UsageError
from vitdeploy.serving.content import one_line
from vitdeploy.serving.triton import _TYPES, Word, _tensor, render

DEPTH = 3


@pytest.fixture(scope="module")
def messages() -> Any:
    """The class of each message of the recorded description."""
    description = descriptor_pb2.FileDescriptorProto.FromString(
        base64.b64decode(json.loads(RECORD.read_text())["description"])
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(description)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))


def parsed(messages: Any, folder: Path, bundle: Bundle, **options: Any) -> Any:
    """The configuration of a repository that is written for `bundle`."""
    report = vitdeploy.handoff(bundle, folder, to="triton", **options)
    text = (folder / report.name / "config.pbtxt").read_text()
    config = text_format.Parse(text, messages("ModelConfig")())
    assert config.name == report.name, "the server refuses a model whose folder has another name"
    return config


def word(message: Any, field: str) -> str:
    """The name of the value of an enumeration."""
    number = getattr(message, field)
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[number].name


def test_a_free_batch_is_put_together_by_the_server_and_left_out_of_the_shapes(messages: Any, tmp_path: Path) -> None:
    config = parsed(messages, tmp_path / "out", write_linear(tmp_path / "b"))
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "")
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    (image,), (logits,) = config.input, config.output
    assert (image.name, word(image, "data_type"), list(image.dims)) == ("images", "TYPE_FP32", [DEPTH, *SIZE])
    assert (logits.name, word(logits, "data_type"), list(logits.dims)) == ("logits", "TYPE_FP32", [len(LABELS)])
    assert [(group.count, word(group, "kind")) for group in config.instance_group] == [(1, "KIND_AUTO")]
    assert [warm.batch_size for warm in config.model_warmup] == [1, 32]
    assert not config.parameters
    assert parsed(messages, tmp_path / "one", write_linear(tmp_path / "c"), max_batch=1).max_batch_size == 1


def test_a_fixed_batch_is_part_of_the_shapes(messages: Any, tmp_path: Path) -> None:
    config = parsed(messages, tmp_path / "out", write_linear(tmp_path / "b", batch=2))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [2, DEPTH, *SIZE]
    assert list(config.output[0].dims) == [2, len(LABELS)]
    assert [(warm.batch_size, list(warm.inputs["images"].dims)) for warm in config.model_warmup] == [
        (1, [2, DEPTH, *SIZE])
    ]


@pytest.mark.parametrize("batch", ["batch", 2])
@pytest.mark.parametrize("baked", [False, True])
def test_the_server_warms_up_with_the_reference(messages: Any, batch: int | str, baked: bool, tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", batch=batch, baked=baked)
    config = parsed(messages, tmp_path / "out", bundle)
    for warm in config.model_warmup:
        sample = warm.inputs["images"]
        assert word(sample, "data_type") == ("TYPE_UINT8" if baked else "TYPE_FP32")
        data = (tmp_path / "out" / "linear" / "warmup" / sample.input_data_file).read_bytes()
        array = np.frombuffer(data, "u1" if baked else "<f4").reshape(tuple(sample.dims))
        reference = bundle.reference().inputs["images"]
        np.testing.assert_array_equal(array, reference[0] if batch == "batch" else reference[:2])


def test_the_labels_are_one_a_line_in_the_order_of_the_logits(messages: Any, tmp_path: Path) -> None:
    config = parsed(messages, tmp_path / "out", write_linear(tmp_path / "b"))
    lines = (tmp_path / "out" / "linear" / config.output[0].label_filename).read_text().splitlines()
    assert lines == [one_line(label) for label in LABELS]
    nameless = parsed(messages, tmp_path / "nameless", write_linear(tmp_path / "c", labels=()))
    assert nameless.output[0].label_filename == ""
    pyramid = parsed(messages, tmp_path / "pyramid", write_tiny_bundle(tmp_path / "d", pyramid=True))
    assert [(one.name, list(one.dims), one.label_filename) for one in pyramid.output] == [
        ("fine", [3, 4, 4], ""),
        ("coarse", [3, 2, 2], ""),
    ]


def test_an_engine_becomes_a_plan_on_the_gpu(messages: Any, tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"ftrt engine")
    config = parsed(
        messages, tmp_path / "out", write_linear(tmp_path / "b"), engine=tmp_path / "engine", max_batch=16, name="plan"
    )
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 16)
    assert word(config.instance_group[0], "kind") == "KIND_GPU"
    folder = tmp_path / "out" / "plan" / "1"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.plan": b"ftrt engine"}
    assert "docker run --gpus all --rm" in (tmp_path / "out" / "README.md").read_text()


def test_a_bundle_of_openvino_is_served_by_its_backend(messages: Any, tmp_path: Path) -> None:
    """Which fills every call up to `max_batch_size`: a single image must not cost what 32 cost."""
    bundle = write_linear(tmp_path / "b", native=True)
    config = parsed(messages, tmp_path / "out", bundle)
    assert (config.platform, config.backend, config.max_batch_size) == ("", "openvino", 0)
    assert not config.HasField("dynamic_batching")
    assert not config.parameters
    assert list(config.input[0].dims) == [-1, DEPTH, *SIZE]
    assert [(warm.batch_size, list(warm.inputs["images"].dims)) for warm in config.model_warmup] == [
        (1, [1, DEPTH, *SIZE])
    ]
    assert word(config.instance_group[0], "kind") == "KIND_CPU"
    assert sorted(path.name for path in (tmp_path / "out" / "linear" / "1").iterdir()) == ["model.bin", "model.xml"]
    filled = parsed(messages, tmp_path / "filled", bundle, max_batch=4)
    assert filled.max_batch_size == 4
    assert filled.parameters["ENABLE_BATCH_PADDING"].string_value == "YES"
    assert list(filled.input[0].dims) == [DEPTH, *SIZE]
    assert "computes 4 images for each call" in (tmp_path / "filled" / "README.md").read_text()


@pytest.mark.parametrize(
    ("batch", "native", "labelled", "words"),
    [
        ("batch", False, True, "gets the labels. They"),
        ("batch", True, True, "gets the labels, for a call of one image. They"),
        (1, False, True, "gets the labels. They"),
        (2, False, False, "do not ask for classes"),
    ],
)
def test_classes_can_be_asked_for_where_the_server_ranks_those_of_an_image(
    batch: int | str, native: bool, labelled: bool, words: str, messages: Any, tmp_path: Path
) -> None:
    config = parsed(messages, tmp_path / "out", write_linear(tmp_path / "b", batch=batch, native=native))
    assert config.output[0].label_filename == ("labels.txt" if labelled else "")
    assert words in " ".join((tmp_path / "out" / "README.md").read_text().split())


@given(
    st.sampled_from(sorted(_TYPES)),
    st.lists(st.one_of(st.integers(1, 9), st.just("n")), max_size=4),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    st.sampled_from([0, 8]),
)
def test_any_tensor_keeps_its_name_type_and_shape(
    messages: Any, dtype: str, axes: list[int | str], name: str, largest: int
) -> None:
    spec = TensorSpec(name, dtype, ("batch", *axes))
    found = text_format.Parse(render(_tensor(spec, largest)), messages("ModelOutput")())
    expected = [-1 if isinstance(axis, str) else axis for axis in spec.shape][1 if largest else 0 :]
    assert found.name == name
    assert word(found, "data_type").lower().replace("_", "").removeprefix("type").replace("fp", "float") == dtype
    assert list(found.dims) == (expected or [1])
    assert found.HasField("reshape") == (not expected and largest > 0), "a number for each sample"


def test_numbers_without_an_axis_get_one_or_are_refused(messages: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "weight"], ["score"]),
        helper.make_node("ReduceSum", ["score"], ["sum"], keepdims=0),
    ]
    weights = {"weight": np.array([2], np.float32)}
    whole = write_network(tmp_path / "b", nodes, {"score": ("float32",)}, weights, whole="sum", labels=())
    config = parsed(messages, tmp_path / "out", whole)
    assert [(one.name, list(one.dims), one.HasField("reshape")) for one in config.output] == [
        ("score", [-1], False),
        ("sum", [1], False),
    ]
    assert "have not all one batch in front" in (tmp_path / "out" / "README.md").read_text()
    report = vitdeploy.handoff(whole, tmp_path / "again", to="triton")
    assert any(one.startswith("sum has the shape [1]") for one in report.baked)
    (tmp_path / "engine").write_bytes(b"ftrt engine")
    with pytest.raises(UsageError, match="no single numbers, such as the output sum"):
        vitdeploy.handoff(whole, tmp_path / "plan", to="triton", engine=tmp_path / "engine")
    each = write_network(tmp_path / "c", nodes[:2], {"score": ("float32",)}, weights, labels=())
    report = vitdeploy.handoff(each, tmp_path / "each", to="triton")
    assert any(one.startswith("score has the shape [N, 1]") for one in report.differs)


def test_every_kind_of_value_is_read_back(messages: Any) -> None:
    text = render({"name": 'a"\\\n\x07é', "dims": [1, -1], "data_type": Word("TYPE_BOOL")})
    found = text_format.Parse(text, messages("ModelInput")())
    assert (found.name, list(found.dims), word(found, "data_type")) == ('a"\\\n\x07é', [1, -1], "TYPE_BOOL")


def test_kserve_gets_a_document_with_a_name_of_kubernetes(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    vitdeploy.handoff(write_linear(tmp_path / "b"), tmp_path / "out", to="triton", name="LeMe_ViT.x")
    document = yaml.safe_load((tmp_path / "out" / "kserve.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert document["metadata"]["name"] == "leme-vit-x"
    assert document["spec"]["predictor"]["model"]["protocolVersion"] == "v2"

"""Bundles from strangers: what they do to their process is an error here, and nothing else."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import vitdeploy
from tests.bundles import append_to, forge_file, tiny_images, tiny_logits, tiny_model, write_tiny_bundle
from tests.conftest import examples
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, BundleError, UsageError
from vitdeploy.inspection.inspect import inspect
from vitdeploy.runtime import isolated
from vitdeploy.runtime.frames import FrameError, read_frame, write_frame
from vitdeploy.runtime.verify import verify

CPU = ["onnxruntime", "openvino"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.mark.parametrize("runtime", CPU)
def test_it_computes_the_same_numbers_in_a_process_of_its_own(bundle: Bundle, runtime: str) -> None:
    with vitdeploy.load(bundle, runtime=runtime, untrusted=True) as session:
        images = tiny_images(5)
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=1e-5)
        assert [len(found) for found in session.predict(np.zeros((9, 9, 3), np.uint8))] == [4]
        assert len(list(session.map(images))) == 5
        facts = session.describe()
        assert facts["isolated"] is True
        assert facts["backend"] == runtime
    with pytest.raises(BackendError, match="the session is closed"):
        session(images)


def test_verify_takes_the_option_and_the_variable(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(bundle, untrusted=True).runtime["isolated"] is True
    assert "isolated" not in verify(bundle).runtime
    monkeypatch.setenv("VITDEPLOY_UNTRUSTED", "1")
    assert verify(bundle).runtime["isolated"] is True
    assert "isolated" not in verify(bundle, untrusted=False).runtime
    assert main(["verify", str(bundle.path)]) == 0
    found = {graph.runtime: graph.skipped for graph in inspect(bundle).runtimes if graph.runtime in CPU}
    assert found == dict.fromkeys(CPU)
    monkeypatch.setenv("VITDEPLOY_UNTRUSTED", "yes")
    with pytest.raises(UsageError, match="invalid VITDEPLOY_UNTRUSTED: 'yes'"):
        verify(bundle)


def test_benchmark_and_validate_take_it(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--runtime", "onnxruntime", "--rounds", "1", "--warmup", "0", "--untrusted")
    assert main(["benchmark", str(bundle.path), *options]) == 0
    monkeypatch.setenv("VITDEPLOY_UNTRUSTED_GB", "0.02")
    assert main(["benchmark", str(bundle.path), *options]) == 2
    monkeypatch.delenv("VITDEPLOY_UNTRUSTED_GB")
    half = write_tiny_bundle(tmp_path / "half", precision="fp16")
    np.savez(tmp_path / "data.npz", images=tiny_images(4), labels=np.argmax(tiny_logits(tiny_images(4)), axis=1))
    arguments = ("--baseline", str(bundle.path), "--runtime", "onnxruntime", "--logits", str(tmp_path / "logits"))
    assert main(["validate", str(half.path), "--data", str(tmp_path / "data.npz"), *arguments, "--untrusted"]) == 0


def test_errors_of_the_process_arrive_as_they_are(bundle: Bundle) -> None:
    append_to(bundle.path / MODEL)
    with pytest.raises(BundleError, match="is not the file that was exported"):
        vitdeploy.load(bundle, runtime="onnxruntime", untrusted=True)


def chain(length: int) -> bytes:
    """The tiny model behind so many Relu and Neg, which OpenVINO compiles in a time that grows with the square."""
    model = onnx.load_from_string(tiny_model())
    names = ["images", *(f"v{place}" for place in range(length))]
    nodes = [
        helper.make_node(("Relu", "Neg")[place % 2], [names[place]], [names[place + 1]]) for place in range(length)
    ]
    model.graph.node[0].input[0] = names[-1]
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    data: bytes = model.SerializeToString()
    return data


def test_a_runtime_that_does_not_come_back_is_ended(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    forge_file(bundle, MODEL, chain(8000))
    monkeypatch.setenv("VITDEPLOY_UNTRUSTED_SECONDS", "3")
    with pytest.raises(BackendError, match=r"did not come back within 3 s(.|\n)*VITDEPLOY_UNTRUSTED_SECONDS"):
        vitdeploy.load(Bundle.open(bundle.path), runtime="openvino", untrusted=True)


def test_memory_ends_in_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(tiny_model())
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [1], [1 << 28]))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))
    model.graph.node.insert(1, helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0))
    model.graph.node.insert(2, helper.make_node("Add", ["images", "zero"], ["moved"]))
    next(node for node in model.graph.node if node.op_type == "GlobalAveragePool").input[0] = "moved"
    forge_file(bundle, MODEL, model.SerializeToString())
    opened = Bundle.open(bundle.path)
    monkeypatch.setenv("VITDEPLOY_UNTRUSTED_GB", "0.7")
    with pytest.raises(BackendError), vitdeploy.load(opened, runtime="onnxruntime", untrusted=True) as session:
        session(tiny_images(1))
    monkeypatch.setenv("VITDEPLOY_UNTRUSTED_GB", "4")
    with vitdeploy.load(opened, runtime="onnxruntime", untrusted=True) as session:
        assert session(tiny_images(1)).shape == (1, 4)


ENDS = {
    "a crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended\n  why: signal 11"),
    "an end without a word": ("import sys; sys.exit(7)", "ended\n  why: exit code 7"),
    "noise": ("import os; os.write(1, b'\\xff' * 100)", "answered what no runtime answers"),
    "another signature": (
        "import sys; from vitdeploy.runtime.frames import write_frame\n"
        "write_frame(sys.stdout.buffer, {'inputs': 3}, {})",
        "answered what no runtime answers",
    ),
    "an error of a kind that there is not": (
        "import sys; from vitdeploy.runtime.frames import write_frame\n"
        "write_frame(sys.stdout.buffer, {'error': {'kind': 'annotations', 'what': 'x'}}, {})",
        "^x$",
    ),
}


@pytest.mark.parametrize(("program", "why"), ENDS.values(), ids=ENDS.keys())
def test_whatever_the_process_does_is_an_error(
    bundle: Bundle, program: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "import sys; sys.path[:] = {path!r}; 'limit: {limit}'\n"
    monkeypatch.setattr(isolated, "_PROGRAM", head + program.replace("{", "{{").replace("}", "}}"))
    with pytest.raises(BackendError, match=why):
        vitdeploy.load(bundle, runtime="onnxruntime", untrusted=True)


def test_limits_are_numbers(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "-1", "much", "nan", "inf"):
        monkeypatch.setenv("VITDEPLOY_UNTRUSTED_SECONDS", value)
        with pytest.raises(UsageError, match="invalid VITDEPLOY_UNTRUSTED_SECONDS"):
            vitdeploy.load(bundle, runtime="onnxruntime", untrusted=True)


@settings(max_examples=examples(200))
@given(data=st.binary(max_size=60), length=st.integers(0, 2**32 - 1))
def test_bytes_that_are_no_frame_are_refused(data: bytes, length: int) -> None:
    for stream in (data, struct.pack("<I", length) + data, struct.pack("<I", len(data)) + data):
        with pytest.raises(FrameError):
            read_frame(io.BytesIO(stream))


ARRAYS = [
    ["x", "object", [1]],
    ["x", "float32", [-1]],
    ["x", "float32", [1 << 40]],
    ["x", "float32", ["a"]],
    ["x", "float32", [4]],
    ["x"],
    7,
]


@pytest.mark.parametrize("described", ARRAYS, ids=str)
def test_arrays_that_no_bundle_has_are_refused(described: object) -> None:
    import json

    header = json.dumps({"message": {}, "arrays": [described]}).encode()
    with pytest.raises(FrameError):
        read_frame(io.BytesIO(struct.pack("<I", len(header)) + header + b"\0" * 15))


@settings(max_examples=examples(50))
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool"]),
)
def test_frames_carry_arrays(shape: list[int], dtype: str) -> None:
    stream = io.BytesIO()
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    write_frame(stream, {"a": 1}, {"x": array, "y": array})
    stream.seek(0)
    message, arrays = read_frame(stream)
    assert message == {"a": 1}
    assert arrays.keys() == {"x", "y"}
    np.testing.assert_array_equal(arrays["y"], array)
    assert arrays["x"].flags.writeable

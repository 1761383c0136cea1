"""Backends by themselves: what they report, what they refuse, how errors come out."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import tiny_images, tiny_logits, tiny_manifest, tiny_model
from vitdeploy.bundle import MODEL, Bundle, BundleWriter, TensorSpec
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.graph.run import open_session
from vitdeploy.machine.settings import ONNXRUNTIME_EXACT
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.options import Options


@pytest.fixture
def name(runtime: str) -> str:
    return runtime


def test_the_signature_is_reported(name: str) -> None:
    fixed = find_backend(name).load(tiny_model(2))
    assert fixed.inputs == (TensorSpec("images", "float32", (2, 3, 8, 8)),)
    assert fixed.outputs == (TensorSpec("logits", "float32", (2, 4)),)
    dynamic = find_backend(name).load(tiny_model())
    assert isinstance(dynamic.inputs[0].shape[0], str)
    assert dynamic.inputs[0].shape[1:] == (3, 8, 8)


def test_a_model_runs_from_its_bytes(name: str) -> None:
    backend = find_backend(name).load(tiny_model())
    images = tiny_images()
    np.testing.assert_allclose(backend.run({"images": images})["logits"], tiny_logits(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", [b"", b"not a model", tiny_model()[:-30]])
def test_a_file_that_is_no_model_is_refused(name: str, model: bytes) -> None:
    with pytest.raises(BackendError, match=f"{name} cannot load the model\n  why: ."):
        find_backend(name).load(model)


def test_what_a_runtime_raises_becomes_a_backend_error(name: str) -> None:
    backend = find_backend(name).load(tiny_model(2))
    with pytest.raises(BackendError, match=f"{name} failed while it ran the model\n  why: ."):
        backend.run({"images": np.zeros((2, 3, 5, 5), np.float32)})


def test_description_is_plain_json(name: str) -> None:
    import json

    told = find_backend(name).load(tiny_model()).describe()
    assert json.loads(json.dumps(told)) == told
    assert told.keys() >= {"backend", "version", "device", "compute_precision", "threads"}


def test_a_runtime_that_is_told_no_threads_starts_no_more_than_the_containers_quota(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(find_backend(name).__module__)
    if not hasattr(module, "default_threads"):
        pytest.skip("its threads belong to the whole process")
    monkeypatch.setattr(module, "default_threads", lambda: 1)
    backend = find_backend(name).load(tiny_model())
    assert backend.describe()["threads"] == 1
    np.testing.assert_allclose(
        backend.run({"images": tiny_images()})["logits"], tiny_logits(tiny_images()), rtol=0, atol=1e-6
    )
    assert find_backend(name).load(tiny_model(), options=Options(threads=2)).describe()["threads"] == 2


@pytest.mark.parametrize("entries", [(), (ONNXRUNTIME_EXACT,)])
def test_a_session_of_onnxruntime_has_the_entries_of_its_processor(
    monkeypatch: pytest.MonkeyPatch, entries: tuple[tuple[str, str], ...]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    given: list[tuple[str, str]] = []
    options = onnxruntime.SessionOptions
    monkeypatch.setattr(options, "add_session_config_entry", lambda self, *entry: given.append(entry))
    for module in ("vitdeploy.runtime.backends.onnxruntime", "vitdeploy.graph.run"):
        monkeypatch.setattr(f"{module}.exact_entries", lambda: entries)
    find_backend("onnxruntime").load(tiny_model())
    open_session(tiny_model())
    assert [entry for entry in given if entry[0] == ONNXRUNTIME_EXACT[0]] == 2 * list(entries)
    script = find_backend("onnxruntime").stand_alone(Options())
    assert script.count("x64quantprecision") == len(entries)
    compile(script, "reproduce.py", "exec")


_ON_ONE_CORE = """
import os, sys
core = {min(os.sched_getaffinity(0))}
os.sched_setaffinity(0, core)
from tests.bundles import tiny_images, tiny_model
from vitdeploy.runtime.backends import find_backend
found = find_backend(sys.argv[1]).load(tiny_model())
found.run({"images": tiny_images()})
assert all(os.sched_getaffinity(int(thread)) == core for thread in os.listdir("/proc/self/task"))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities on this system")
def test_no_thread_leaves_the_cores_that_the_process_was_given(name: str) -> None:
    words = [sys.executable, "-c", _ON_ONE_CORE, name]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")


def test_openvino_computes_in_single_precision_unless_asked() -> None:
    pytest.importorskip("openvino")
    openvino = find_backend("openvino")
    assert openvino.load(tiny_model()).describe()["compute_precision"] == "fp32"
    asked = openvino.load(tiny_model(), options=Options(compute_precision="bf16")).describe()["compute_precision"]
    assert asked in ("bf16", "fp32"), "fp32 where the CPU has no bf16"


def test_openvino_prefers_its_own_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    openvino = pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("ir")
    with BundleWriter(folder / "b") as writer:
        writer.write_bytes(MODEL, b"never read")
        (folder / "source.onnx").write_bytes(tiny_model())
        openvino.save_model(
            openvino.convert_model(folder / "source.onnx"), writer.path / "model.xml", compress_to_fp16=False
        )
        writer.write_reference(inputs={}, outputs={})
        writer.seal(tiny_manifest())
        bundle = writer.commit()
    backend = find_backend("openvino").open(Bundle.open(bundle.path))
    images = tiny_images()
    np.testing.assert_allclose(backend.run({"images": images})["logits"], tiny_logits(images), rtol=0, atol=1e-6)
    assert backend.inputs[0].name == "images"


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match="there are onnxruntime, openvino"):
        find_backend("caffe")

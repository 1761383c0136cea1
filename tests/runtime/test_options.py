"""One set of names for what one may ask of a runtime; each follows, or says that it cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.bundles import WEIGHT, tiny_images, tiny_logits, tiny_model, write_tiny_bundle
from tests.runtime.conftest import installed
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.session import load

CPU_RUNTIMES = ("onnxruntime", "openvino", "torch")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "option", "value", "why"),
    [
        ("onnxruntime", "compute_precision", "bf16", "precision of the graph's types"),
        ("onnxruntime", "cache", "folder", "compiles nothing"),
        ("onnxruntime", "checkpoint", "weights.pth", "runs the model file"),
        ("openvino", "checkpoint", "weights.pth", "runs the model file"),
        ("torch", "threads", 2, "OMP_NUM_THREADS"),
        ("torch", "compute_precision", "fp16", "FP32 reference"),
        ("torch", "cache", "folder", "compiles nothing"),
    ],
)
def test_what_a_runtime_cannot_follow_it_refuses(bundle: Bundle, name: str, option: str, value: Any, why: str) -> None:
    flag = option.replace("_", "-")
    message = rf"the {name} runtime does not support the option {option}\n  why: .*{why}.*\n.*leave --{flag} "
    with pytest.raises(UsageError, match=message):
        load(bundle, runtime=name, **{option: value})


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"num_requests": 0}, {"compute_precision": "fp8"}])
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**wrong)


@pytest.mark.parametrize("device", ["CPU", "cpu"])
@pytest.mark.parametrize("name", CPU_RUNTIMES)
@pytest.mark.usefixtures("tiny_in_the_zoo")
def test_every_runtime_knows_the_cpu(bundle: Bundle, name: str, device: str) -> None:
    images = tiny_images()
    with load(bundle, runtime=installed(name), device=device) as session:
        assert session.describe()["device"] == "CPU"
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CPU_RUNTIMES)
@pytest.mark.usefixtures("tiny_in_the_zoo")
def test_a_device_that_is_not_here_is_refused_with_what_is(bundle: Bundle, name: str) -> None:
    with pytest.raises(BackendError, match=r"no device TPU(.|\n)*CPU"):
        load(bundle, runtime=installed(name), device="TPU")


def test_onnxruntime_takes_an_execution_provider_by_its_name(bundle: Bundle) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    others = [name for name in onnxruntime.get_available_providers() if name == "AzureExecutionProvider"]
    if not others:
        pytest.skip("this onnxruntime has no second provider that runs anywhere")
    images = tiny_images()
    with load(bundle, runtime="onnxruntime", device=others[0]) as session:
        assert session.describe()["device"] == others[0]
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)


def test_onnxruntime_on_the_cpu_in_place_of_the_device_asked_for_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    make = onnxruntime.InferenceSession

    def fall_back(model: bytes, settings: Any, providers: list[str]) -> Any:
        assert providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return make(model, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(BackendError, match=r"cannot start CUDAExecutionProvider\n.*fell back to the CPU"):
        load(bundle, runtime="onnxruntime", device="GPU")


def test_openvino_spreads_over_devices(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    images = tiny_images()
    with load(bundle, runtime="openvino", device="HETERO:CPU") as session:
        assert session.describe()["device"] == "HETERO:CPU"
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)


def test_openvino_keeps_compiled_models_and_never_mixes_them_up(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    images, cache = tiny_images(), tmp_path / "cache"
    twice = onnx.load_from_string(tiny_model())
    twice.graph.initializer[0].CopyFrom(numpy_helper.from_array(2 * WEIGHT, "weight"))
    for _ in range(2):
        for model, factor in ((tiny_model(), 1), (twice.SerializeToString(), 2)):
            backend = find_backend("openvino").load(model, options=Options(cache=cache))
            logits = backend.run({"images": images})["logits"]
            np.testing.assert_allclose(logits, factor * tiny_logits(images), rtol=0, atol=1e-6)
        assert len([path for path in cache.rglob("*") if path.is_file()]) == 2


def test_models_that_openvino_compiled_long_ago_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    load = find_backend("openvino").load
    load(tiny_model(), options=Options(cache=tmp_path)).close()
    (old,) = tmp_path.glob("*.blob")
    (tmp_path / "letter.txt").write_text("not the cache's")
    os.utime(old, (0, 0))
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "0")
    load(tiny_model(2), options=Options(cache=tmp_path)).close()
    (new,) = tmp_path.glob("*.blob")
    assert new != old
    assert (tmp_path / "letter.txt").exists()
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "plenty")
    with pytest.raises(UsageError, match="VITDEPLOY_CACHE_LIMIT"):
        load(tiny_model(), options=Options(cache=tmp_path))

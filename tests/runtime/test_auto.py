"""`auto`: the fastest runtime that is installed, loads the bundle and gives PyTorch's numbers."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.bundles import failing_after, tiny_images, tiny_logits, tiny_manifest, write_tiny_bundle
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import BackendError, BundleError, GateError, InputError, MissingDependencyError, UsageError
from vitdeploy.runtime import auto
from vitdeploy.runtime.backends import Backend, auto_order, find_backend
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "b")


@pytest.fixture
def two_installed() -> tuple[str, str]:
    """The two fastest runtimes that are installed; skips where there is nothing to choose between."""
    installed = [backend.name for backend in auto_order() if backend.available() is None]
    if len(installed) < 2:
        pytest.skip("needs two runtimes")
    return installed[0], installed[1]


def wrong_by(error: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the runtime `name` add `error` to everything it computes."""
    backend = find_backend(name)
    honest = backend._run

    def run(self: Any, native: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {key: array + np.float32(error) for key, array in honest(self, native, inputs).items()}

    monkeypatch.setattr(backend, "_run", run)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine for every test: building an engine would take minutes."""

    def require(cls: type[Backend]) -> None:
        raise BackendError("there is no NVIDIA GPU here")

    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setattr(find_backend(name), "require", classmethod(require))


def test_the_fastest_comes_first_and_the_reference_not_at_all() -> None:
    assert [backend.name for backend in auto_order()] == [
        "tensorrt",
        "tensorrt_rtx",
        "openvino",
        "onnxruntime",
    ]
    assert all(backend.auto_reason for backend in auto_order())


def test_the_first_that_is_installed_is_taken_and_the_missing_ones_are_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_over = ["tensorrt and tensorrt_rtx (there is no NVIDIA GPU here)"]
    for backend in auto_order():
        if backend.available() is None:
            with load(bundle) as session:
                assert session.backend.name == backend.name
                reason = session.describe()["reason"]
                assert reason.startswith(backend.auto_reason)
                assert all(words in reason for words in passed_over)
        monkeypatch.setitem(sys.modules, backend.package, None)
        if backend.name not in ("tensorrt", "tensorrt_rtx"):
            passed_over.append(f"{backend.name} ({backend.name} is not installed)")
    with pytest.raises(MissingDependencyError, match="pip install"):
        load(bundle)


def test_tensorrt_comes_first_where_a_gpu_has_it_and_gives_the_numbers(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    tensorrt, stand_in = find_backend("tensorrt"), find_backend("onnxruntime")
    monkeypatch.setattr(tensorrt, "require", classmethod(lambda cls: None))

    def proven(cls: type[Backend], bundle: Bundle, options: Options) -> Backend:
        return stand_in.open(bundle, options)

    with monkeypatch.context() as patch:
        patch.setattr(tensorrt, "open", classmethod(proven))
        with load(bundle) as session:
            assert session.reason == "there is a GPU, and it is the one made for it"

    def refuse(cls: type[Backend], bundle: Bundle, options: Options) -> Backend:
        raise BackendError("there is no proven engine", fix="vitdeploy build b")

    monkeypatch.setattr(tensorrt, "open", classmethod(refuse))
    with caplog.at_level(logging.WARNING, "vitdeploy"), load(bundle) as session:
        assert "after tensorrt (there is no proven engine)" in session.reason
    assert "tensorrt is passed over: there is no proven engine; vitdeploy build b" in caplog.text


def test_a_runtime_with_other_numbers_is_passed_over_and_the_reason_kept(
    bundle: Bundle, two_installed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_installed
    wrong_by(0.01, first, monkeypatch)
    with load(bundle) as session:
        assert session.backend.name == second
        assert f"{first} (logits: the relative error is" in session.describe()["reason"]
        images = tiny_images()
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)
    report = verify(bundle)
    assert report.passed
    assert report.runtime["backend"] == second


def test_a_runtime_that_gives_nan_or_breaks_is_passed_over(
    bundle: Bundle, two_installed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_installed
    with monkeypatch.context() as patch:
        wrong_by(float("nan"), first, patch)
        with load(bundle) as session:
            assert session.backend.name == second
            assert "are NaN or Inf" in session.reason

    def broken(*args: Any) -> None:
        raise RuntimeError("illegal instruction")

    for hook in ("_load", "_run"):
        with monkeypatch.context() as patch:
            patch.setattr(find_backend(first), hook, broken)
            with load(bundle) as session:
                assert session.backend.name == second
                assert f"{first} ({first} " in session.reason


def test_where_none_gives_the_numbers_none_is_taken(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", error=0.01)
    with pytest.raises(GateError, match=r"no runtime here reproduces(.|\n)*relative error(.|\n)*vitdeploy verify"):
        load(bundle)
    report = verify(bundle)
    assert not report.passed
    assert "relative error" in report.failures[0]


def test_a_model_that_none_can_load_shows_what_the_first_one_says(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (find_backend("openvino"), find_backend("onnxruntime")):
        monkeypatch.setattr(kind, "_load", failing_after(0, RuntimeError(f"{kind.name} does not know a node")))
    with pytest.raises(BackendError, match=r"openvino cannot load the model\n  why: openvino does not know a node"):
        load(bundle)


@pytest.mark.parametrize("name", [MODEL, "reference.npz"])
def test_an_altered_bundle_is_refused_instead_of_tried_elsewhere(bundle: Bundle, name: str) -> None:
    data = bytearray((bundle.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle.path / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        load(bundle.path)


def test_a_device_that_only_a_later_runtime_has_takes_that_one_and_says_so(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    with caplog.at_level(logging.WARNING, "vitdeploy"), load(bundle, device="CPUExecutionProvider") as session:
        assert session.backend.name == "onnxruntime"
    assert "openvino is passed over: openvino finds no device CPUEXECUTIONPROVIDER here" in caplog.text


@pytest.mark.parametrize("call", [load, verify])
def test_an_option_that_the_fastest_runtime_does_not_support_never_takes_a_slower_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    tensorrt = find_backend("tensorrt")
    monkeypatch.setattr(tensorrt, "require", classmethod(lambda cls: None))
    with pytest.raises(UsageError, match=r"tensorrt runtime does not support the option threads\n.*GPU(.|\n)*another"):
        call(bundle, threads=4)
    with pytest.raises(UsageError, match="tensorrt runtime does not support the option device"):
        call(bundle, device="GPU")


def test_an_option_that_none_follows_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"does not support the option checkpoint\n.*runs the model file"):
        load(bundle, checkpoint="weights.pth")


class Model:
    """What a runtime has loaded: it lives as long as anything holds it."""


class Fake(Backend):
    """A runtime of this test alone; `trouble` is what its runs raise."""

    package = "numpy"
    auto_reason = "it is made up"
    trouble: type[BaseException] | None = None
    natives: ClassVar[list[weakref.ref[Model]]] = []
    alive_at_load: ClassVar[list[int]] = []

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        cls.alive_at_load.append(sum(native() is not None for native in Fake.natives))
        native = Model()
        Fake.natives.append(weakref.ref(native))
        spec = tiny_manifest()
        return cls(native, spec.inputs, spec.outputs)

    def _run(self, native: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self.trouble is not None:
            try:
                raise OSError("the device is gone")
            except OSError as cause:
                raise self.trouble("no luck") from cause
        return {"logits": tiny_logits(inputs["images"])}

    def _facts(self) -> dict[str, Any]:
        return {"version": "1", "device": "none", "compute_precision": "fp32", "threads": 1}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[BaseException] | None], None]:
    """Makes two made-up runtimes the only ones, of which the first raises this when it runs."""
    Fake.natives.clear()
    Fake.alive_at_load.clear()

    def play(trouble: type[BaseException] | None) -> None:
        kinds = [
            type("First", (Fake,), {"name": "first", "trouble": trouble}),
            type("Second", (Fake,), {"name": "second"}),
        ]
        monkeypatch.setattr(auto, "auto_order", lambda: kinds)

    return play


@pytest.mark.parametrize("trouble", [RuntimeError, MemoryError, BackendError, GateError])
def test_what_a_runtime_loaded_is_freed_before_the_next_one_loads(
    bundle: Bundle, fakes: Callable[[type[BaseException]], None], trouble: type[BaseException]
) -> None:
    fakes(trouble)
    with load(bundle) as session:
        assert session.backend.name == "second"
        assert Fake.alive_at_load == [0, 0], "the first model, held by the error that is kept"
        assert "no luck" in session.reason or "failed while it ran" in session.reason


@pytest.mark.parametrize("trouble", [UsageError, KeyboardInterrupt, SystemExit, InputError])
def test_an_error_that_ends_the_search_holds_nothing_that_was_loaded(
    bundle: Bundle, fakes: Callable[[type[BaseException]], None], trouble: type[BaseException]
) -> None:
    fakes(trouble)
    with pytest.raises(trouble, match="no luck") as caught:
        load(bundle)
    assert caught.value.__cause__ is not None
    assert [native() for native in Fake.natives] == [None]


def test_an_error_in_the_comparison_itself_frees_the_model_too(
    bundle: Bundle, fakes: Callable[[type[BaseException] | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes(None)

    def prove(bundle: Bundle, runner: Backend) -> None:
        held = [runner._native]  # as a variable of any frame may
        raise MemoryError(f"no room for {len(held)} outputs")

    monkeypatch.setattr(auto, "prove", prove)
    with pytest.raises(MemoryError, match="no room") as caught:
        load(bundle)
    assert caught.traceback
    assert [native() for native in Fake.natives] == [None]


def test_the_frames_of_an_error_that_the_caller_handles_are_left_alone(
    bundle: Bundle, fakes: Callable[[type[BaseException]], None]
) -> None:
    fakes(RuntimeError)

    def broken() -> None:
        evidence = "still here"
        raise ValueError(len(evidence))

    kept = None
    try:
        broken()
    except ValueError as error:
        load(bundle).close()
        kept = error.__traceback__
    assert kept is not None
    assert kept.tb_next is not None
    assert kept.tb_next.tb_frame.f_locals["evidence"] == "still here"

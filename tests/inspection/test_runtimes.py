"""`doctor` runs a small model on every device that ONNX Runtime names before it says that the device works."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vitdeploy.errors import BackendError
from vitdeploy.inspection import doctor as doctor_module
from vitdeploy.inspection import runtimes
from vitdeploy.inspection.doctor import doctor
from vitdeploy.inspection.doctor_report import DoctorReport, Machine, Package
from vitdeploy.inspection.probe_python import probe_python
from vitdeploy.machine.gpus import Gpu
from vitdeploy.machine.hardware import Cpu, Jetson
from vitdeploy.runtime.backends import find_backend, onnxruntime_trial

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NO_KERNEL = (
    "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"  # ORT's words
)
ort = pytest.importorskip("onnxruntime")


def board(sm: int, jetpack: str) -> Machine:
    name = {87: "NVIDIA Jetson Orin Nano Developer Kit", 110: "NVIDIA Jetson AGX Thor Developer Kit"}[sm]
    cpu = Cpu("aarch64", name, 6, {})
    return Machine(cpu, (), None, None, Jetson(name, None, jetpack), {"version": "3.12.3"})


def answers(trials: dict[str, dict[str, Any]]) -> Any:
    """A stand-in for the Pythons that are asked: onnxruntime names the devices of `trials`, which end as they say."""

    def probe(name: str, code: str, *arguments: str, **_: Any) -> dict[str, Any]:
        if code is runtimes.BACKENDS:
            return {"names": ["onnxruntime"]}
        if code is runtimes.TRIAL:
            return trials[arguments[1]]
        return {"version": "1.31.1", "devices": list(trials), "tried": True}

    return probe


def test_the_model_is_a_product_and_a_sum_and_its_answer_is_right() -> None:
    model = onnx.load_model_from_string(onnxruntime_trial.TINY_MODEL)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add"]
    x = np.asarray(onnxruntime_trial.INPUT)
    assert (x @ x + x).tolist() == [list(row) for row in onnxruntime_trial.OUTPUT]


def test_the_cpu_runs_it_for_real() -> None:
    (package,) = [found for found in runtimes.find_runtimes() if found.name == "onnxruntime"]
    assert CPU in package.devices
    assert not package.problem
    assert "AzureExecutionProvider" not in package.devices, "it computes on a server"


def test_a_provider_that_is_not_there_is_no_cpu_in_disguise() -> None:
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(BackendError, match="neither MatMul nor Add"),
    ):
        find_backend("onnxruntime").try_device(CUDA)


class Session:
    """A stand-in for a session of a provider that loads and then computes `answer`, or fails with it."""

    answer: Any = None

    def __init__(self, model: bytes, settings: Any, *, providers: list[str], enable_fallback: int) -> None:
        assert enable_fallback == 0
        assert settings.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        assert settings.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        assert providers == [CUDA]

    def run(self, outputs: None, inputs: dict[str, Any]) -> list[Any]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return [np.asarray(self.answer)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (onnxruntime_trial.OUTPUT, None),
        (((8.01, 12.0), (18.0, 26.02)), None),
        (((0.0, 0.0), (0.0, 0.0)), "it computes"),
        (RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {NO_KERNEL}"), "no kernel image"),
    ],
)
def test_what_a_provider_computes_decides(answer: Any, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "InferenceSession", type("Fake", (Session,), {"answer": answer}))
    if said is None:
        onnxruntime_trial.try_provider(CUDA)
        assert np.allclose(answer, onnxruntime_trial.OUTPUT, rtol=1e-2)
        return
    with pytest.raises(BackendError, match=said):
        onnxruntime_trial.try_provider(CUDA)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider whose library does not load ends in the words about the CPU; the linker says which one it lacks."""
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    lacks = "libcublasLt.so.13: cannot open shared object file: No such file or directory"

    def load(path: str) -> None:
        raise OSError(lacks)

    fallback = RuntimeError("graph nodes are assigned to the default CPU EP, but fallback has been disabled")
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ort, "InferenceSession", type("Fake", (Session,), {"answer": fallback}))
    monkeypatch.setattr(onnxruntime_trial.ctypes, "CDLL", load)
    with pytest.raises(BackendError, match=r"libcublasLt\.so\.13"):
        onnxruntime_trial.try_provider(CUDA)
    (finding,) = runtimes.failing_devices(board(87, "7.2"), (Package("onnxruntime", "1.31.1", failing={CUDA: lacks}),))
    assert finding.fix.startswith("install libcublasLt.so.13")


@pytest.mark.parametrize(
    ("sm", "jetpack", "advice"),
    [
        (87, "6.2.1", "https://pypi.jetson-ai-lab.io/jp6/cu126"),
        (87, "7.2", "CMAKE_CUDA_ARCHITECTURES=87"),
        (110, "7.1", "CMAKE_CUDA_ARCHITECTURES=110"),
    ],
)
def test_a_wheel_for_other_gpus_is_told_with_what_to_install(
    sm: int, jetpack: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "probe_python", answers({CUDA: {"problem": "it fails", "why": NO_KERNEL}, CPU: {}}))
    found = runtimes.find_runtimes()
    assert found[0].devices == (CPU,)
    assert found[0].failing == {CUDA: NO_KERNEL}
    here = board(sm, jetpack)
    (finding,) = runtimes.failing_devices(here, found)
    assert (finding.kind, finding.why) == ("optional", NO_KERNEL)
    assert f"compute capability {sm // 10}.{sm % 10}" in finding.fix
    rows = doctor_module._known_bad(here, (), found, doctor_module.TensorRt(Package("tensorrt"), None, ()))
    assert [advice in row.fix for row in rows if row.what.startswith("onnxruntime")] == [True]


def test_a_wheel_that_works_on_the_board_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "probe_python", answers({CUDA: {}, CPU: {}}))
    found = runtimes.find_runtimes()
    assert found == (Package("onnxruntime", "1.31.1", (CUDA, CPU)),)
    rows = doctor_module._known_bad(board(87, "6.2"), (), found, doctor_module.TensorRt(Package("tensorrt"), None, ()))
    assert not [row for row in rows if "CUDA provider" in row.what]
    assert runtimes.failing_devices(board(87, "6.2"), found) == []


def test_a_device_that_crashes_or_hangs_takes_only_itself_along(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = probe_python("onnxruntime", "import os, signal; os.abort()", doing="trial of a small model")
    hang = probe_python("onnxruntime", "import time; time.sleep(60)", seconds=0.5, doing="trial of a small model")
    trials = {CUDA: crash, "TensorrtExecutionProvider": hang, CPU: {}}
    monkeypatch.setattr(runtimes, "probe_python", answers(trials))
    (package,) = runtimes.find_runtimes()
    assert (package.devices, package.problem) == ((CPU,), None)
    assert package.failing == {
        CUDA: "it ends with SIGABRT",
        "TensorrtExecutionProvider": "the trial of a small model had not finished after 0 seconds",
    }


def test_a_runtime_without_a_working_device_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "probe_python", answers({CPU: {"problem": "wrong", "why": "it computes 0"}}))
    (package,) = runtimes.find_runtimes()
    assert (package.version, package.why) == (None, f"{CPU}: it computes 0")
    assert str(package.problem).startswith("onnxruntime runs no model")


def test_the_report_says_which_devices_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("onnxruntime", "1.31.1", (CPU,), failing={CUDA: NO_KERNEL})
    monkeypatch.setattr(doctor_module, "find_runtimes", lambda: (package,))
    report = doctor(tmp_path, architecture="aarch64")
    assert isinstance(report, DoctorReport)
    with_gpu = dataclasses.replace(report, machine=dataclasses.replace(report.machine, gpus=(Gpu("Orin", 87),)))
    assert f"1.31.1 ({CPU}, not {CUDA})" in str(with_gpu)
    assert f"onnxruntime 1.31.1 runs no model on {CUDA}" in str(report)
    assert report.to_dict()["runtimes"][0]["failing"] == {CUDA: NO_KERNEL}

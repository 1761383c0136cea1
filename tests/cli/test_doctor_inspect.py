"""`vitdeploy doctor` and `vitdeploy inspect` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from vitdeploy.cli import main
from vitdeploy.inspection import doctor
from vitdeploy.inspection.doctor import DoctorReport, Finding, Machine, Package, TensorRt
from vitdeploy.inspection.report import differences
from vitdeploy.machine.gpus import Gpu
from vitdeploy.machine.hardware import Cpu, Jetson

CPU = Cpu("aarch64", "Orin", 6, {"FP16": {"asimdhp": True}, "INT8": {"i8mm": False}})
MISSING = Package("onnxruntime", problem="onnxruntime is not installed", fix="pip install onnxruntime")
PRESENT = Package("onnxruntime", "1.23.0", ("CPUExecutionProvider",))


def report(runtime: Package, *findings: Finding) -> DoctorReport:
    return DoctorReport(
        machine=Machine(
            cpu=CPU,
            gpus=(Gpu("Orin", 87, 7620),),
            driver="540.4.0",
            cudart="12.6",
            jetson=Jetson("NVIDIA Jetson Orin Nano", "36.4.3", "6.2"),
            python={
                "version": "3.10.12",
                "executable": "/usr/bin/python3",
                "virtual_environment": True,
                "hides_system_packages": True,
            },
        ),
        base=(Package("numpy", "1.26.4"),),
        runtimes=(runtime,),
        tensorrt=TensorRt(Package("tensorrt", problem="tensorrt is not installed"), "10.3.0", ("3.10",)),
        compiler=Package("TensorRT for RTX", problem="tensorrt-rtx-cu12-libs is not installed"),
        export=(Package("torch", problem="torch is not installed"),),
        findings=findings,
    )


@pytest.mark.parametrize(("runtime", "code"), [(PRESENT, 0), (MISSING, 1)])
def test_doctor_tells_by_its_exit_code_whether_anything_can_run(
    runtime: Package, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "doctor", lambda: report(runtime))
    assert main(["doctor", "--json"]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["usable_runtimes"] == (["onnxruntime"] if code == 0 else [])
    assert main(["doctor"]) == code
    assert ("NO RUNTIME IS USABLE" in capsys.readouterr().out) == (code == 1)


def test_doctor_names_everything_it_found() -> None:
    finding = Finding("known bad", "tensorrt 10.3.0: slow: INT8", "FP16", "not fused", "NVIDIA/TensorRT#4167")
    text = str(report(PRESENT, finding))
    for part in (
        "asimdhp",
        "no i8mm",
        "JetPack 6.2, L4T 36.4.3",
        "compute capability 8.7, 7620 MiB",
        "driver 540.4.0, libcudart 12.6",
        "without the system's packages",
        "1.23.0 (CPUExecutionProvider)",
        "libnvinfer 10.3.0, Python binding is not installed",
        "TensorRT for RTX tensorrt-rtx-cu12-libs is not installed",
        "known bad: tensorrt 10.3.0: slow: INT8",
        "  why: not fused",
        "  try: FP16",
        "  see: NVIDIA/TensorRT#4167",
        "a bundle can run here with: onnxruntime",
    ):
        assert part in text


def test_inspect_shows_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_bundle(tmp_path / "b").path
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for part in ("SEEDED RANDOM", "input images", "float32 [batch, 3, 8, 8]", "weights float", "GlobalAveragePool"):
        assert part in text
    assert main(["inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["model"]["name"] == "tiny"
    assert document["graph"]["nodes"] == 3
    assert {runtime["runtime"] for runtime in document["runtimes"]} == {"onnxruntime", "openvino"}


def test_inspect_of_two_shows_only_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_tiny_bundle(tmp_path / "a").path, write_tiny_bundle(tmp_path / "b", 2, pyramid=True).path
    assert main(["inspect", str(one), str(other)]) == 0
    text = capsys.readouterr().out
    assert "float32 [batch, 3, 8, 8]" in text
    assert "float32 [2, 3, 8, 8]" in text
    assert "GlobalAveragePool" in text
    assert "interpolation" not in text
    assert main(["inspect", str(one), str(other), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["differences"]["signature"]["output fine"] == ["-", "float32 [2, 3, 4, 4]"]
    assert len(document["bundles"]) == 2


def test_a_bundle_does_not_differ_from_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_tiny_bundle(tmp_path / "a").path)
    assert main(["inspect", path, path]) == 0
    assert "no difference" in capsys.readouterr().out


def test_differences_keep_what_only_one_side_has() -> None:
    found = differences({"x": {"a": "1", "b": "2"}, "y": {"c": "3"}}, {"x": {"a": "1", "b": "5"}, "z": {"d": "4"}})
    assert found == {"x": {"b": ("2", "5")}, "y": {"c": ("3", "-")}, "z": {"d": ("-", "4")}}


def test_no_bundle_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "there is no bundle" in capsys.readouterr().err

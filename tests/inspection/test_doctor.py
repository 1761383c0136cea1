"""The examination of a machine, most of them described by a folder of files."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy.errors import MissingDependencyError
from vitdeploy.inspection import doctor as doctor_module
from vitdeploy.inspection import runtimes as runtimes_module
from vitdeploy.inspection.doctor import doctor
from vitdeploy.inspection.doctor_report import Machine, Package, TensorRt
from vitdeploy.inspection.probe_python import probe_python
from vitdeploy.machine import gpus
from vitdeploy.machine import hardware as machine
from vitdeploy.machine.gpus import Gpu
from vitdeploy.machine.hardware import Cpu, Jetson
from vitdeploy.platforms.known_bad import FAILS, KNOWN_BAD, SLOW, WRONG, Circumstances, matching_rows
from vitdeploy.platforms.versions import version_matches

ORIN_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
DPKG = """Package: libc6
Status: install ok installed
Version: 2.35-0ubuntu3.8

Package: nvidia-jetpack
Status: install ok installed
Priority: standard
Version: 6.2.1+b38
Description: NVIDIA Jetpack Meta Package

Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: libnvinfer8
Status: deinstall ok config-files
Version: 8.6.2.3-1+cuda12.2
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """The files of a Jetson Orin Nano with JetPack 6.2.1."""
    write(tmp_path / "proc/cpuinfo", f"processor\t: 0\nFeatures\t: {ORIN_FEATURES}\n\nprocessor\t: 1\nFeatures\t: fp\n")
    write(tmp_path / "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    write(
        tmp_path / "etc/nv_tegra_release",
        "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64",
    )
    write(tmp_path / "var/lib/dpkg/status", DPKG)
    write(tmp_path / "usr/lib/python3.10/dist-packages/tensorrt/__init__.py", "")
    for name in ("libnvinfer.so.10", "libnvinfer.so.10.3.0"):
        write(tmp_path / "usr/lib/aarch64-linux-gnu" / name, "")
    return tmp_path


def no_children(name: str, code: str, *arguments: str, seconds: float = 0) -> dict[str, object]:
    """Every package missing but numpy, Pillow and onnxruntime."""
    if code is runtimes_module.BACKENDS:
        return {"names": ["onnxruntime", "openvino"]}
    if name in ("numpy", "PIL", "onnxruntime"):
        return {"version": "1.26.4"}
    return {"problem": f"{name} is not installed", "fix": f"pip install {name}"}


def test_a_jetson_is_recognised_from_its_files(orin: Path) -> None:
    assert machine.read_jetson(orin) == Jetson("NVIDIA Jetson Orin Nano Developer Kit", "36.4.4", "6.2.1")
    cpu = machine.read_cpu(orin, "aarch64")
    assert (cpu.name, cpu.cores) == ("NVIDIA Jetson Orin Nano Developer Kit", 2)
    assert cpu.features["FP16"] == {"asimdhp": True}
    assert cpu.features["INT8"] == {"asimddp": True, "i8mm": False}
    assert cpu.features["bf16"] == {"bf16": False}
    assert cpu.features["FP32"] == {"sve": False}


def test_an_ordinary_computer_is_no_jetson(tmp_path: Path) -> None:
    write(tmp_path / "proc/device-tree/model", "Raspberry Pi 5 Model B")
    assert machine.read_jetson(tmp_path) is None
    assert machine.read_jetson(tmp_path / "empty") is None


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.2.1", "5.1"),
        ("35.6.0", "5.1"),
        ("35.1.0", None),
        ("36.3.0", "6.0"),
        ("36.4.0", "6.1"),
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("38.2.1", "7.0"),
        ("38.4.0", "7.1"),
        ("39.2", "7.2"),
        ("39.2.0", "7.2"),
        ("39.2.1", "7.2.1"),
        ("37.1", None),
        (None, None),
    ],
)
def test_without_the_meta_package_l4t_tells_the_jetpack(l4t: str | None, jetpack: str | None) -> None:
    assert machine.jetpack_of_l4t(l4t) == jetpack


def test_only_installed_debian_packages_count(orin: Path) -> None:
    assert machine.debian_version("libnvinfer10", orin) == "10.3.0.30-1+cuda12.5"
    assert machine.debian_version("libnvinfer8", orin) is None
    assert machine.debian_version("libnvinfer", orin) is None


def test_x86_features_come_from_the_flags(tmp_path: Path) -> None:
    write(
        tmp_path / "proc/cpuinfo", "processor : 0\nmodel name : Xeon\nflags : fpu avx2 avx512f avx512_vnni amx_bf16\n"
    )
    cpu = machine.read_cpu(tmp_path, "x86_64")
    assert (cpu.name, cpu.vnni, cpu.bf16, cpu.saturates) == ("Xeon", True, True, False)
    assert cpu.features["INT8"] == {"AVX-VNNI": False, "AVX512-VNNI": True, "AMX-INT8": False}
    write(tmp_path / "proc/cpuinfo", "processor : 0\nmodel name : Old\nflags : fpu avx2\n")
    old = machine.read_cpu(tmp_path, "x86_64")
    assert (old.vnni, old.bf16, old.saturates) == (False, False, True)
    assert not machine.read_cpu(tmp_path, "aarch64").saturates


def test_nvidia_smi_is_read_also_where_it_knows_little() -> None:
    text = "NVIDIA H200, 9.0, 143771\nOrin (nvgpu), [N/A], [N/A]\nNVIDIA-SMI has failed\n"
    assert gpus.parse_nvidia_smi(text) == (Gpu("NVIDIA H200", 90, 143771), Gpu("Orin (nvgpu)", None, None))


def test_the_driver_library_is_the_second_source() -> None:
    assert gpus.parse_cuda_devices('[{"name": "Orin", "sm": 87}]') == (Gpu("Orin", 87),)
    assert gpus.parse_cuda_devices("") == ()
    assert gpus.parse_cuda_devices('{"name": 3}') == ()


def test_the_kernel_module_is_the_last_source(tmp_path: Path) -> None:
    write(tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA L4\nIRQ: 1\n")
    write(
        tmp_path / "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
    )
    assert gpus.read_gpus(tmp_path) == (Gpu("NVIDIA L4", None),)
    assert machine.driver_version(tmp_path) == "580.95.05"


def test_a_probe_that_fails_or_takes_too_long_gives_nothing() -> None:
    assert machine.run_probe(["/no/such/command"]) == ""
    assert machine.run_probe([sys.executable, "-c", "print(1); raise SystemExit(3)"]) == ""
    assert machine.run_probe([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.2) == ""


@pytest.mark.parametrize(("setting", "hidden"), [("false", True), ("true", False)])
def test_a_virtual_environment_says_whether_it_sees_the_system(setting: str, hidden: bool, tmp_path: Path) -> None:
    write(tmp_path / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = {setting}\n")
    assert machine.hides_system_packages(tmp_path) is hidden
    assert machine.hides_system_packages(tmp_path / "none") is False


def test_a_crash_a_hang_and_an_import_error_are_findings() -> None:
    assert (
        probe_python("numpy", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")["why"] == "it ends with SIGILL"
    )
    assert probe_python("numpy", "import time; time.sleep(60)", seconds=0.2)["problem"] == "numpy hangs"
    missing = probe_python("no_such_package", "import no_such_package")
    assert missing == {"problem": "no_such_package is not installed", "fix": "pip install no_such_package"}
    broken = probe_python("numpy", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    assert broken["problem"] == "numpy is installed but cannot be imported"
    assert "libcudart.so.12" in broken["why"]
    assert probe_python("numpy", "print('noise'); print('{\"version\": \"2\"}')") == {"version": "2"}


def test_a_file_in_the_working_folder_is_not_taken_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "numpy.py", "raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    assert "problem" not in probe_python(
        "numpy", "import json, numpy; print(json.dumps({'version': numpy.__version__}))"
    )


def test_a_jetson_in_a_closed_environment_is_told_what_to_type(orin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "probe_python", no_children)
    monkeypatch.setattr(runtimes_module, "probe_python", no_children)
    monkeypatch.setattr(doctor_module, "describe_python", lambda: {"version": "3.10.12", "hides_system_packages": True})
    report = doctor(orin, architecture="aarch64")
    assert report.usable == ("onnxruntime",)
    assert report.tensorrt.library == "10.3.0"
    assert report.tensorrt.system_pythons == ("3.10",)
    binding = next(finding for finding in report.findings if "TensorRT" in finding.what)
    assert (binding.kind, "hides" in binding.what) == ("missing", True)
    assert binding.fix.startswith("python3.10 -m venv --system-site-packages .venv")
    named = {finding.issue for finding in report.findings}
    assert {"NVIDIA/TensorRT#4723", "NVIDIA/TensorRT#4167"} <= named
    assert not {"NVIDIA/TensorRT#4742", "NVIDIA/TensorRT#3575", "NVIDIA/TensorRT#4837"} & named
    assert json.loads(json.dumps(report.to_dict()))["machine"]["jetson"]["jetpack"] == "6.2.1"


def machine_with(python: str, *, hides: bool = False, jetson: bool = True) -> Machine:
    board = Jetson("NVIDIA Jetson AGX Orin", "36.4.3", "6.2") if jetson else None
    gpus = () if jetson else (Gpu("NVIDIA L4", 89),)
    return Machine(
        Cpu("aarch64", "", 8, {}), gpus, None, None, board, {"version": python, "hides_system_packages": hides}
    )


ABSENT = Package("tensorrt", problem="tensorrt is not installed", fix="pip install tensorrt")


@pytest.mark.parametrize(
    ("here", "tensorrt", "fix"),
    [
        (machine_with("3.11.2"), TensorRt(ABSENT, "10.3.0", ("3.10",)), "python3.10 -m venv --system-site-packages"),
        (machine_with("3.10.12", hides=True), TensorRt(ABSENT, "10.3.0", ("3.10",)), "python3.10 -m venv --system-"),
        (machine_with("3.10.12"), TensorRt(ABSENT, "10.3.0", ()), "sudo apt-get install python3-libnvinfer"),
        (machine_with("3.10.12"), TensorRt(ABSENT, None, ()), "sudo apt-get install nvidia-jetpack"),
        (machine_with("3.12.1", jetson=False), TensorRt(ABSENT, None, ()), "pip install tensorrt"),
    ],
)
def test_what_brings_tensorrt_depends_on_what_is_there(here: Machine, tensorrt: TensorRt, fix: str) -> None:
    assert doctor_module._missing_tensorrt(here, tensorrt).fix.startswith(fix)


NO_WHEELS = MissingDependencyError("tensorrt-rtx-cu12-libs", needed_for="it", extra="nvidia")


@pytest.mark.parametrize(
    ("missing", "gpus", "wheels", "said"),
    [
        (
            NO_WHEELS,
            (),
            True,
            "`vitdeploy check BUNDLE --compile` and the runtime tensorrt_rtx need\n"
            "  try: pip install 'vitdeploy[nvidia]'",
        ),
        (NO_WHEELS, (), False, ""),
        (None, (), True, ""),
        (None, (Gpu("NVIDIA H100", 90),), True, "optional: TensorRT for RTX does not serve it\n"),
    ],
)
def test_nvidias_compiler_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch,
    missing: MissingDependencyError | None,
    gpus: tuple[Gpu, ...],
    wheels: bool,
    said: str,
) -> None:
    monkeypatch.setattr(doctor_module.rtx, "unavailable", lambda: missing)
    monkeypatch.setattr(doctor_module.rtx, "has_wheels", lambda: wheels)
    compiler = doctor_module._compiler()
    runtime = Package("tensorrt_rtx", problem="TensorRT for RTX does not serve it", fix="--runtime tensorrt")
    here = dataclasses.replace(machine_with("3.11.2", jetson=False), gpus=gpus)
    present = (Package("onnxruntime", "1.0"), runtime)
    bound = TensorRt(Package("tensorrt", "10.3.0"), None, ())
    findings = doctor_module._missing(here, (), present, bound, compiler, ())
    assert (compiler.problem is None) is (missing is None)
    assert said in "\n".join(map(str, findings))
    assert bool(said) is bool(findings)


def test_nothing_usable_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, code: str, *arguments: str, seconds: float = 0) -> dict[str, object]:
        names = {"names": ["onnxruntime"]} if code is runtimes_module.BACKENDS else None
        return names or {"problem": f"{name} is not installed", "fix": f"pip install {name}"}

    monkeypatch.setattr(doctor_module, "probe_python", nothing)
    monkeypatch.setattr(runtimes_module, "probe_python", nothing)
    report = doctor(tmp_path, architecture="x86_64")
    assert report.usable == ()
    assert any(
        finding.what == "pillow is not installed" and finding.fix == "pip install pillow" for finding in report.findings
    )


def test_this_machine_is_examined_without_importing_anything_heavy() -> None:
    code = (
        "import sys; from vitdeploy.inspection.doctor import doctor; report = doctor();"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'numpy', 'PIL'} & set(sys.modules);"
        "print(*report.usable); print(*heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usable, heavy = done.stdout.split("\n")[:2]
    pytest.importorskip("onnxruntime")
    assert "onnxruntime" in usable.split()
    assert heavy == ""


@pytest.mark.parametrize(
    ("version", "conditions", "holds"),
    [
        ("10.3.0.30", "==10.3.*", True),
        ("10.30.0", "==10.3.*", False),
        ("10.2.0.19", "==10.2.0", True),
        ("10.2.1", "==10.2.0", False),
        ("10.5.0", ">=10.4,<10.6", True),
        ("10.6.0", ">=10.4,<10.6", False),
        ("10.4", ">=10.4.0", True),
        ("8.5.2.2-1+cuda11.4", "<8.6", True),
        ("2026.4.1-22982-e213a147257", "==2026.4.*", True),
        ("2.4.6", ">=2.0", True),
        ("1.24.4", "<=1.24.4", True),
        ("1.24.5", "<=1.24.4", False),
        ("6.2.1", ">=6,<7", True),
        ("7.2", "<7", False),
        ("7.0", "<7", False),
        ("1.0", "!=1.0.0", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_number_by_number(version: str, conditions: str, holds: bool) -> None:
    assert version_matches(version, conditions) is holds


def test_every_row_is_complete_and_can_be_evaluated() -> None:
    for row in KNOWN_BAD:
        assert row.effect in (WRONG, FAILS, SLOW)
        assert row.package in ("tensorrt", "onnxruntime", "openvino", "numpy", "nvidia-modelopt")
        assert row.affects
        assert row.symptom
        assert row.advice
        assert row.source
        version_matches("1.0", row.versions)
        version_matches("6.0", row.jetpack)
        if row.issue:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", row.issue), row.issue
        else:
            assert row.source != "issue thread"


def issues(**circumstances: object) -> set[str]:
    return {row.issue for row, _ in matching_rows(Circumstances(**circumstances))}  # type: ignore[arg-type]


def test_rows_apply_only_under_their_conditions() -> None:
    versions = {"tensorrt": "10.16.1.11"}
    assert {"NVIDIA/TensorRT#4837", "NVIDIA/TensorRT#4748"} <= issues(versions=versions, sm=(120,))
    assert "NVIDIA/TensorRT#4837" not in issues(versions=versions, sm=(89,))
    assert "NVIDIA/TensorRT#3575" in issues(versions={"tensorrt": "8.6.2"}, sm=(87,), jetson=True)
    assert "NVIDIA/TensorRT#3575" not in issues(versions={"tensorrt": "8.6.1"}, sm=(86,))
    assert issues(versions={}) == set()


def test_the_processor_decides_about_saturating_int8() -> None:
    def rows(architecture: str, vnni: bool) -> list[str]:
        versions = {"onnxruntime": "1.31.1", "openvino": "2026.4.1"}
        here = Circumstances(versions, architecture=architecture, properties={"vnni": vnni})
        return [row.package for row, _ in matching_rows(here) if row.lacks == "vnni"]

    assert rows("x86_64", vnni=False) == ["onnxruntime", "openvino", "onnxruntime"], "wrong numbers, then no session"
    assert rows("x86_64", vnni=True) == []
    assert rows("aarch64", vnni=False) == []


def test_wrong_numbers_come_first() -> None:
    here = Circumstances({"tensorrt": "8.6.2"}, sm=(87,), jetson=True, jetpack="6.0", architecture="aarch64")
    effects = [row.effect for row, _ in matching_rows(here)]
    assert effects == sorted(effects, key=(WRONG, FAILS, SLOW).index)
    assert {WRONG, SLOW} <= set(effects)


def test_rows_of_jetpack_7_apply_to_its_boards_only() -> None:
    container = "Jonah-May-OSS/wyoming-whisper-trt#1038"
    assert container in issues(versions={"tensorrt": "10.11.0.33"}, sm=(87,), jetson=True, jetpack="7.2")
    assert container not in issues(versions={"tensorrt": "10.11.0.33"}, sm=(87,), jetson=True, jetpack="6.2")
    eleven = {"tensorrt": "11.2.0"}
    assert "ultralytics/ultralytics#24735" in issues(versions=eleven, sm=(87,), jetson=True, jetpack="7.2")
    assert "ultralytics/ultralytics#24735" not in issues(versions=eleven, sm=(110,), jetson=True, jetpack="7.0")
    assert "NVIDIA/TensorRT#4820" in issues(versions={"tensorrt": "10.13.3"}, sm=(110,), jetson=True, jetpack="7.1")


def test_a_quantizer_is_named_where_it_is_installed() -> None:
    assert "onnxsim/onnxsim#1742" in issues(versions={"nvidia-modelopt": "0.47.0"})
    assert issues(versions={"onnx": "1.22.0"}) == set()


def test_sensors_of_energy_are_named_or_it_is_said_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    rail = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    for folder, files in (
        (zone, {"name": "package-0", "energy_uj": "100", "max_energy_range_uj": "1000"}),
        (rail, {"in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "900"}),
    ):
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    report = doctor(tmp_path, architecture="x86_64")
    assert report.machine.energy == (
        "RAPL package-0 (the processor's packages, without memory)",
        "INA3221 VDD_IN (the whole module)",
    )
    assert "INA3221 VDD_IN (the whole module)" in str(report)
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    report = doctor(tmp_path, architecture="x86_64")
    assert report.machine.energy == ("INA3221 VDD_IN (the whole module)",)
    (finding,) = (one for one in report.findings if "RAPL" in one.what)
    assert (finding.kind, finding.fix) == ("optional", f"sudo chmod a+r {zone / 'energy_uj'}")

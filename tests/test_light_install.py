"""What a device has: numpy, Pillow, one runtime and this package. No torch, no onnx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import LABELS, write_tiny_bundle
from tests.packaging.conftest import require_index
from vitdeploy.runtime.backends import find_backend

ROOT = Path(__file__).resolve().parent.parent
ABSENT = (
    "torch",
    "onnx_ir",
    "onnxscript",
    "onnxsim",
    "threadpoolctl",
    "openvino",
    "safetensors",
    "tensorrt",
    "polygraphy",
)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh environment with `vitdeploy[onnxruntime]`, installed from a copy."""
    folder = tmp_path_factory.mktemp("device")
    # A copy, because an install leaves its build folders beside the sources.
    shutil.copytree(ROOT / "vitdeploy", folder / "source" / "vitdeploy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    venv.create(folder / "env", with_pip=True, symlinks=os.name != "nt")
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    run = subprocess.run([*install, f"{folder / 'source'}[onnxruntime]"], capture_output=True, text=True, check=False)
    if run.returncode:
        require_index(programs / "python", folder / "probe")
    assert run.returncode == 0, run.stderr
    return programs


def command(device: Path, *words: str, folder: Path) -> str:
    """What a program of the device prints, run where nothing of the repository can be imported."""
    path = f"{device}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PATH": path}
    run = subprocess.run(
        [str(device / words[0]), *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_a_device_verifies_and_predicts_without_torch(device: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util, json, vitdeploy;"
        f"print(json.dumps([vitdeploy.__file__, [n for n in {ABSENT!r} if importlib.util.find_spec(n)]]))"
    )
    place, present = json.loads(command(device, "python", "-c", code, folder=tmp_path))
    assert Path(place).is_relative_to(device.parent)
    assert present == []

    write_tiny_bundle(tmp_path / "b")
    report = json.loads(command(device, "vitdeploy", "verify", "b", "--json", folder=tmp_path))
    assert report["passed"]
    assert report["runtime"]["backend"] == "onnxruntime"
    assert "openvino is not installed" in report["runtime"]["reason"]

    Image.fromarray(np.full((20, 30, 3), 7, np.uint8)).save(tmp_path / "image.png")
    told = json.loads(command(device, "vitdeploy", "predict", "b", "image.png", "--json", folder=tmp_path))
    (image,) = told["images"]
    assert sorted(prediction["label"] for prediction in image["predictions"]) == sorted(LABELS)

    code = (
        "import numpy, vitdeploy; session = vitdeploy.load('b');"
        "print(len(list(session.map(numpy.zeros((20, 3, 8, 8), numpy.float32)))))"
    )
    assert command(device, "python", "-c", code, folder=tmp_path).strip() == "20"


@pytest.mark.slow
def test_a_device_is_told_what_an_export_needs(device: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [str(device / "vitdeploy"), "export", "lemevit_tiny"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "pip install 'vitdeploy[export]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_base_install_names_nothing_but_numpy_and_pillow() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("needs tomllib")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(name.partition(">")[0] for name in project["dependencies"]) == ["numpy", "pillow"]


def test_every_runtime_brings_what_reads_a_graph() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("needs tomllib")
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for backend in (find_backend(name) for name in ("onnxruntime", "openvino", "tensorrt")):
        assert "onnx" in [name.partition(">")[0] for name in extras[backend.extra]], backend.name

"""Every Python that is promised installs what `constraints.txt` says, and runs what the README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import LABELS, write_tiny_bundle
from tests.packaging.conftest import ROOT, Distributions, Environment, require_index, tracked_copy
from tests.packaging.interpreters import PROMISED, find


def interpreter(version: str) -> Path:
    """The interpreter, or a test that is skipped."""
    path = find(version)
    if path is None:
        pytest.skip(f"there is no Python {version} here")
    return path


def light(environment: Environment, wheel: Path, folder: Path, changed: dict[str, str]) -> dict[str, str]:
    """Installs what a device has, by `constraints.txt` but for the versions that `changed` names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if re.split("[=;]", line)[0] not in changed]
    own = folder / "constraints.txt"
    own.write_text("\n".join([*kept, *(f"{name}=={version}" for name, version in changed.items())]))
    environment.install("-c", str(own), f"{wheel}[onnxruntime]")
    listed = json.loads(environment.run("python", "-m", "pip", "list", "--format", "json"))
    return {package["name"].lower(): package["version"] for package in listed}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "changed"), [*((version, {}) for version in PROMISED), ("3.10", {"numpy": "1.26.4"})]
)
def test_the_wheel_in_an_empty_environment_is_a_device(
    version: str, changed: dict[str, str], distributions: Distributions, tmp_path: Path
) -> None:
    """With numpy 1.26, which the packages of JetPack 6 are built for, too."""
    environment = Environment(interpreter(version), tmp_path)
    installed = light(environment, distributions.wheel, tmp_path, changed)
    assert {name: installed[name] for name in changed} == changed
    assert not {"torch", "openvino", "onnxsim", "scipy"} & set(installed)

    report = json.loads(environment.run("vitdeploy", "doctor", "--json"))
    assert "onnxruntime" in report["usable_runtimes"]
    write_tiny_bundle(tmp_path / "b")
    told = json.loads(environment.run("vitdeploy", "verify", "b", "--json"))
    assert told["passed"]
    assert told["runtime"]["backend"] == "onnxruntime"
    Image.fromarray(np.full((20, 30, 3), 7, np.uint8)).save(tmp_path / "image.png")
    found = json.loads(environment.run("vitdeploy", "predict", "b", "image.png", "--json"))
    assert sorted(one["label"] for one in found["images"][0]["predictions"]) == sorted(LABELS)
    (tmp_path / "vitdeploy.toml").write_text("[verify]\nruntime = 'ort'\n")
    if version == "3.10":  # which has no reader of TOML
        environment.run("vitdeploy", "verify", "b", code=2)
        environment.install(f"{distributions.wheel}[config]")
    assert environment.run("vitdeploy", "verify", "b").endswith("passed\n")


@pytest.mark.slow
@pytest.mark.parametrize("version", PROMISED)
def test_the_first_command_of_the_readme_runs_on_every_variant(version: str, tmp_path: Path) -> None:
    """PyTorch to a verified bundle; the environment takes 3 to 7 GB, where torch comes with CUDA."""
    python = interpreter(version)
    require_index(python, tmp_path / "probe")
    clone = tracked_copy(tmp_path / "clone")
    run = subprocess.run(
        ["bash", "scripts/demo.sh"],
        cwd=clone,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed\n" in run.stdout
    first = next(line for line in run.stdout.splitlines() if "%  " in line)
    assert first.split() == ["81.07%", "SeaLake"]
    used = subprocess.run([clone / ".venv/bin/python", "--version"], capture_output=True, text=True, check=True).stdout
    assert used.startswith(f"Python {version}.")

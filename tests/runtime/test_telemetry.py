"""No runtime leaves an identifier of the user or a store of usage data behind, or sends any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
# What turns its telemetry off for another reason.
_OTHERWISE = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "GITHUB_ACTIONS", "TF_BUILD")


def left(home: Path, *arguments: str, **variables: str) -> list[str]:
    """The files below an empty home folder after a run of Python."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in _OTHERWISE}
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", ["verify --runtime onnxruntime", "verify --runtime openvino", "inspect", "doctor"])
def test_a_command_leaves_nothing_in_the_users_home(command: str, tmp_path: Path) -> None:
    if "openvino" in command:
        pytest.importorskip("openvino")
    bundle = [] if command == "doctor" else [str(write_tiny_bundle(tmp_path / "bundle").path)]
    assert left(tmp_path / "home", "-m", "vitdeploy", *command.split(), *bundle) == []


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_an_import_after_ours_leaves_nothing(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    assert left(tmp_path / "home", "-c", f"import vitdeploy, {package}") == []


def test_the_processes_of_a_benchmark_leave_nothing_either(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    options = ("--runtime", "onnxruntime", "--rounds", "1", "--warmup", "0", "--seconds", "0.01")
    assert left(tmp_path / "home", "-m", "vitdeploy", "benchmark", str(bundle.path), *options) == []


def test_a_value_of_the_users_own_stays(tmp_path: Path) -> None:
    code = "import os, vitdeploy, sys; sys.exit(os.environ['ORT_DISABLE_TELEMETRY'] != '0')"
    assert left(tmp_path / "home", "-c", code, ORT_DISABLE_TELEMETRY="0") == []

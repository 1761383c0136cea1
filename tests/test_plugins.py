"""A package from outside adds a runtime, a target and a pass; every command works with them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import SOURCE
from vitdeploy.errors import PluginError, UsageError
from vitdeploy.registry import Registry

ENTRY_POINTS = """[vitdeploy.backends]
sample = vitdeploy_sample:SampleBackend
[vitdeploy.targets]
sample-board = vitdeploy_sample:TARGET
[vitdeploy.passes]
sample_count = vitdeploy_sample:NameNodes
"""


def wheel(folder: Path, name: str, modules: dict[str, str], entry_points: str) -> Path:
    """A wheel of a few files: what `pip install` takes."""
    about = f"{name}-1.0.dist-info"
    files = {
        **modules,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": entry_points,
    }
    record = io.StringIO()
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        csv.writer(record).writerow([path, f"sha256={digest}", len(text.encode())])
    record.write(f"{about}/RECORD,,\n")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**files, f"{about}/RECORD": record.getvalue()}.items():
            archive.writestr(member, text)
    return path


def install(folder: Path, file: Path) -> Path:
    """The folder that the wheel was installed to."""
    target = folder / "site"
    command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target), str(file)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sample package is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    source = (Path(__file__).parent / "plugin" / "vitdeploy_sample.py").read_text()
    return install(folder, wheel(folder, "vitdeploy_sample", {"vitdeploy_sample.py": source}, ENTRY_POINTS))


def python(site: Path, code: str, folder: Path) -> Any:
    """What a fresh interpreter that sees the installed package prints as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


COMMANDS = """
import contextlib, io, json
from vitdeploy.cli import main

def run(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words, "--json"])
    return code, json.loads(out.getvalue())

export = ["export", "model.py:build", "--image-size", "16", "--target", "sample-board", "--labels", "labels.txt"]
print(json.dumps({
    "export": run(*export, "-o", "bundle"),
    "verify": run("verify", "bundle"),
    "asked": run("verify", "bundle", "--runtime", "sample"),
    "predict": run("predict", "bundle", "data/a/0.png", "--runtime", "sample"),
    "validate": run("validate", "bundle", "--data", "data", "--baseline", "bundle", "--runtime", "onnxruntime,sample"),
    "benchmark": run("benchmark", "bundle", "--runtime", "sample", "--rounds", "1", "--warmup", "0"),
    "inspect": run("inspect", "bundle"),
    "doctor": run("doctor"),
    "int8": run(*export, "-o", "int8", "--int8", "--calibration", "data"),
    "manifest": json.load(open("bundle/manifest.json")),
    "quantized": json.load(open("int8/manifest.json")),
}))
"""


def test_every_command_works_with_a_runtime_and_a_target_from_outside(site: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SOURCE)
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg"))
    rng = np.random.default_rng(0)
    for label in "abcdefg":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    found = python(site, COMMANDS, tmp_path)
    codes = {name: found[name][0] for name in found if name not in ("manifest", "quantized")}
    # The baseline guesses, since the network is untrained: that is a failure of the validation, and not of the runtime.
    assert codes == {**dict.fromkeys(codes, 0), "validate": 1}

    manifest = found["manifest"]
    assert (manifest["target"], manifest["opset"]) == ("sample-board", 19)
    assert set(manifest["files"]) == {"model.onnx", "reference.npz", "sample.txt", "sbom.cdx.json"}
    assert [report["runtime"] for report in manifest["parity"]] == ["sample", "onnxruntime"]
    assert any(record["pass"] == "sample_count" and record["changes"] for record in manifest["graph"]["passes"])
    assert [report["runtime"] for report in found["quantized"]["parity"]] == ["sample", "onnxruntime"]

    assert found["verify"][1]["runtime"]["backend"] == "sample", "its rank puts it first in auto"
    assert found["asked"][1]["passed"]
    assert len(found["predict"][1]["images"][0]["predictions"]) == 5
    compared = found["validate"][1]["runs"]
    assert [run["backend"] for run in compared] == ["sample"]
    assert found["benchmark"][1]["candidates"][0]["runtime"] == "sample"
    executed = {graph["runtime"]: graph for graph in found["inspect"][1]["runtimes"]}
    assert executed["sample"]["operators"]["MatMul"] > 0
    runtimes = {package["name"]: package for package in found["doctor"][1]["runtimes"]}
    assert runtimes["sample"]["devices"] == ["CPU", "ABACUS"]
    assert "sample" in found["doctor"][1]["usable_runtimes"]


def test_a_package_that_is_broken_is_named_and_harms_no_other(tmp_path: Path) -> None:
    points = "[vitdeploy.backends]\nbroken = vitdeploy_broken:Missing\n"
    file = wheel(tmp_path, "vitdeploy_broken", {"vitdeploy_broken.py": "import no_such_module\n"}, points)
    code = """
import json
from vitdeploy.runtime.backends import backend_names, find_backend
from vitdeploy.errors import PluginError
try:
    find_backend("broken")
except PluginError as error:
    told = error.lines()
print(json.dumps([backend_names(), find_backend("onnxruntime").name, told]))
"""
    names, fine, told = python(install(tmp_path, file), code, tmp_path)
    assert names[-1] == "broken"
    assert fine == "onnxruntime"
    assert "vitdeploy_broken" in told[0]
    assert "no_such_module" in told[1]
    assert "pip" in told[2]


def test_a_name_that_is_taken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = "[vitdeploy.test]\nours = vitdeploy_rival:THING\n"
    site = install(tmp_path, wheel(tmp_path, "vitdeploy_rival", {"vitdeploy_rival.py": "THING = 1\n"}, points))
    monkeypatch.syspath_prepend(str(site))
    taken: Registry[int] = Registry("vitdeploy.test", kind="thing", option="--thing", kept={"ours": 2})
    with pytest.raises(PluginError, match=r"vitdeploy_rival announces a thing called 'ours'(.|\n)*pip uninstall"):
        taken.find("ours")
    free: Registry[int] = Registry("vitdeploy.test", kind="thing", option="--thing", kept={"other": 2})
    assert free.names() == ("other", "ours")
    assert (free.find("ours"), free.find("other"), free.announced()) == (1, 2, (1,))
    with pytest.raises(UsageError, match=r"no thing called 'our'(.|\n)*--thing ours"):
        free.find("our")


def test_the_documented_groups_are_those_that_are_read() -> None:
    from vitdeploy import registry, targets
    from vitdeploy.runtime import backends
    from vitdeploy.serving import destinations

    groups = {backends._BACKENDS.group, destinations._DESTINATIONS.group, targets._TARGETS.group}
    assert all(f"`{group}`" in str(registry.__doc__) for group in groups)

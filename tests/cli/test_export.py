"""`vitdeploy export` as a user types it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.bundle.test_sbom import schema_errors
from tests.rows import TARGETS
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.sbom import SBOM
from vitdeploy.cli import main
from vitdeploy.exporter.reference import DIFFICULT
from vitdeploy.preprocess import preprocess_batch


def load_source(path: Path) -> torch.nn.Module:
    namespace: dict[str, object] = {}
    exec(path.read_text(), namespace)
    model = namespace["build"]()  # type: ignore[operator]
    return model.eval()  # type: ignore[no-any-return]


def test_the_bundle_holds_everything_a_device_needs(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle.check_files()
    manifest = bundle.manifest
    assert set(manifest.files) == {"model.onnx", "reference.npz", "sbom.cdx.json"}
    assert manifest.model.weights.kind == "module"
    assert manifest.model.image_size == (16, 24)
    assert (manifest.precision, manifest.target, manifest.opset) == ("fp16", "portable", 17)
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs] == [("images", "float32", (1, 3, 16, 24))]
    assert [(spec.name, spec.dtype) for spec in manifest.outputs] == [("logits", "float32")]
    assert {"torch", "onnx", "onnxsim", "onnxruntime", "vitdeploy"} <= set(manifest.tools)
    assert manifest.parity[0]["passed"] is True
    assert manifest.precision_report["snr_db"] >= 45
    assert any(record["changes"] for record in manifest.graph["passes"])


def test_the_bill_of_materials_is_of_this_bundle(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    text = (tiny_bundle / SBOM).read_bytes()
    assert schema_errors(text) is None
    document = json.loads(text)
    model = document["metadata"]["component"]
    hashes = {one["name"]: one["hashes"][0]["content"] for one in model["components"]}
    assert hashes == {name: record.sha256 for name, record in manifest.files.items() if name != SBOM}
    libraries = {one["name"]: one["version"] for one in document["components"] if one["type"] == "library"}
    assert libraries == manifest.tools
    (torch,) = [one for one in document["components"] if one["name"] == "torch"]
    assert torch["licenses"]
    assert document["metadata"]["timestamp"] == manifest.created


def test_the_reference_is_what_pytorch_says(tiny_bundle: Path, model_file: Path) -> None:
    reference = Bundle.open(tiny_bundle).reference()
    with torch.no_grad():
        expected = load_source(model_file)(torch.from_numpy(reference.inputs["images"])).numpy()
    np.testing.assert_allclose(reference.outputs["logits"], expected, rtol=0, atol=1e-6)


def test_what_ships_holds_standard_operators_only(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "model.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [opset.domain for opset in model.opset_import] == [""]
    assert len(model.functions) == 0
    assert "ConvTranspose" not in {node.op_type for node in model.graph.node}


@pytest.mark.usefixtures("one_capture")
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_exports_a_users_own_model(target: str, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    source = f"{model_file}:build"
    assert main(["export", source, "--image-size", "16", "--target", target, "--batch", "dynamic", "-o", str(out)]) == 0
    manifest = Bundle.open(out).manifest
    assert manifest.opset == TARGETS[target].opset
    assert manifest.inputs[0].shape[0] == "batch"
    assert ("model.xml" in manifest.files) == (target == "openvino")
    assert main(["verify", str(out)]) == 0


def test_json_is_one_object_on_standard_output(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"{model_file}:build", "--image-size", "16", "--json", "-o", str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["precision"] == "fp32"
    assert summary["parity"][0]["passed"] is True
    assert "capturing the graph" in err


def test_what_a_users_module_prints_does_not_spoil_the_json(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = tmp_path / "loud.py"
    loud.write_text(model_file.read_text() + "\nprint('loading my weights')\n")
    assert main(["export", f"{loud}:build", "--image-size", "16", "--json", "-o", str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == "Tiny"
    assert "loading my weights" in err


def test_an_existing_bundle_needs_force_and_an_export_is_deterministic(
    tiny_bundle: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    command = ["export", f"{model_file}:build", "--image-size", "16x24", "--fp16", "-o", str(out)]
    before = (out / "manifest.json").read_bytes()
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert (out / "manifest.json").read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert (out / "manifest.json").read_bytes() != before  # it is a new one, of another time
    assert (out / "model.onnx").read_bytes() == (tiny_bundle / "model.onnx").read_bytes()


def test_images_can_be_the_reference(model_file: Path, tmp_path: Path, shared: Path) -> None:
    photos = sorted((shared / "data/kodak").glob("0[1-3].png"))
    out = tmp_path / "b"
    arguments = ["--image-size", "32", "--batch", "2", "--reference", *map(str, photos), "-o", str(out)]
    assert main(["export", f"{model_file}:build", *arguments]) == 0
    bundle = Bundle.open(out)
    images, kinds = bundle.reference().inputs["images"], bundle.manifest.reference["images"]
    assert images.shape == (12, 3, 32, 32)  # three photographs, the difficult ones, and one more for whole batches
    np.testing.assert_array_equal(images[:3], preprocess_batch(photos, bundle.manifest.preprocessing))
    assert kinds == ["given"] * 3 + list(DIFFICULT) + ["given"]


def test_ctrl_c_leaves_nothing_behind(model_file: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(model_file.read_text() + "\nimport time\nprint('started', flush=True)\ntime.sleep(30)\n")
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "vitdeploy", "export", f"{slow}:build", "--image-size", "16", "-o", "out/b"]
    # A shell that runs the tests in the background has them ignore the signal, and Python would go on ignoring it.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    assert process.stderr is not None
    assert "started\n" in iter(process.stderr.readline, "")
    assert [path.name for path in work.iterdir()] == ["out"]  # it was at work
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(work.iterdir()) == []


def test_the_summary_names_the_hardest_image(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", f"{model_file}:build", "--image-size", "32", "--fp16", "-o", str(tmp_path / "b")]
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    bundle = Bundle.open(tmp_path / "b")
    each = [value for run in bundle.manifest.parity for values in run["images"]["torch"].values() for value in values]
    assert summary["hardest"]["snr_db"] == min(each)
    assert summary["hardest"]["image"] in (*DIFFICULT, "photograph")

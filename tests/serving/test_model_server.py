"""The configuration of OpenVINO Model Server, held against its documented keys, and the folder that it names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.serving.cases import write_linear

# "Model Configuration Options" of the page on its parameters, as they stand in a config.json.
KEYS = {
    *("name", "base_path", "shape", "batch_size", "layout", "model_version_policy", "plugin_config", "nireq"),
    *("target_device", "stateful", "idle_sequence_cleanup", "max_sequence_number", "low_latency_transformation"),
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("baked", [False, True])
def test_the_configuration_names_the_folder_of_the_model(native: bool, baked: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vitdeploy.handoff(write_linear(tmp_path / "b", native=native, baked=baked), out, to="openvino-model-server")
    for file, root in (("config.json", "/models"), ("config.kserve.json", "/mnt/models")):
        document = json.loads((out / file).read_text())
        assert list(document) == ["model_config_list"]
        ((key, config),) = [item for one in document["model_config_list"] for item in one.items()]
        assert key == "config"
        assert set(config) <= KEYS
        assert config["base_path"] == f"{root}/{config['name']}"
        assert config.get("layout") == ({"images": "NHWC"} if baked else None)
        versions = [path.name for path in (out / config["name"]).iterdir()]
        assert versions == ["1"]
    names = sorted(path.name for path in (out / "linear" / "1").iterdir())
    assert names == (["model.bin", "model.xml"] if native else ["model.onnx"])


def test_the_server_computes_in_fp32_as_a_session_does(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    bundle = write_linear(tmp_path / "b")
    vitdeploy.handoff(bundle, tmp_path / "out", to="openvino-model-server")
    (one,) = json.loads((tmp_path / "out" / "config.json").read_text())["model_config_list"]
    file = tmp_path / "out" / one["config"]["name"] / "1" / "model.onnx"
    compiled = openvino.Core().compile_model(file, "CPU", one["config"]["plugin_config"])
    images = bundle.reference().inputs["images"]
    with vitdeploy.load(bundle, runtime="openvino") as session:
        np.testing.assert_array_equal(compiled(images)["logits"], session(images))


def test_kserve_gets_a_runtime_and_a_service_that_uses_it(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    vitdeploy.handoff(write_linear(tmp_path / "b"), tmp_path / "out", to="ovms")
    runtime, service = yaml.safe_load_all((tmp_path / "out" / "kserve.yaml").read_text())
    model = service["spec"]["predictor"]["model"]
    assert (runtime["kind"], service["kind"]) == ("ServingRuntime", "InferenceService")
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert "--config_path=/mnt/models/config.kserve.json" in runtime["spec"]["containers"][0]["args"]

"""The folder of a model for OpenVINO Model Server, its configuration, and the same for KServe.

Keys: the pages "Model Server Parameters" and "Batch, Shape and Layout" of the server's documentation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vitdeploy.bundle import MODEL
from vitdeploy.serving.arithmetic import OPENVINO_FP32, integers_overflow, openvino_is_told
from vitdeploy.serving.content import Content, Destination, File, Request, label_lines
from vitdeploy.serving.kserve import inference_service

CONFIG = "config.json"

_RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: openvino-model-server
spec:
  containers:
    - name: kserve-container
      image: openvino/model_server:latest
      args:
        - --config_path=/mnt/models/config.kserve.json
        - --port=8001
        - --rest_port=8888
      ports:
        - containerPort: 8888
          protocol: TCP
  protocolVersions: [v2, grpc-v2]
  supportedModelFormats:
    - name: openvino
      version: "1"
---
"""


def write(request: Request) -> Content:
    """The folder that is mounted at /models, and read from `config.json`."""
    name = request.name
    model = request.native or {MODEL: File(request.model, "the bundle's model")}
    files = {f"{name}/1/{path}": file for path, file in model.items()}
    files[CONFIG] = _config(request, "/models")
    files["config.kserve.json"] = _config(request, "/mnt/models")
    files["kserve.yaml"] = inference_service(request, "openvino-model-server", "openvino", _RUNTIME)
    if request.manifest.labels:
        files["labels.txt"] = label_lines(request)
    return Content(
        files=files,
        start=[
            'docker run --rm -p 9000:9000 -p 8000:8000 -v "$PWD":/models openvino/model_server:latest \\\n'
            f"  --config_path /models/{CONFIG} --port 9000 --rest_port 8000",
        ],
        differs=list(_differs(request)),
        told=list(_told(request)),
    )


def _config(request: Request, root: str) -> File:
    one: dict[str, Any] = {"name": request.name, "base_path": f"{root}/{request.name}"}
    one["plugin_config"] = dict([OPENVINO_FP32])
    if request.manifest.preprocessing_in_graph:
        one["layout"] = {request.manifest.inputs[0].name: "NHWC"}
    text = json.dumps({"model_config_list": [{"config": one}]}, indent=2)
    return File(f"{text}\n".encode(), f"the configuration, for the folder at {root}")


def _differs(request: Request) -> Iterator[str]:
    if request.manifest.preprocessing is not None:
        yield (
            "Images that are sent encoded (JPEG, PNG) are decoded by the server into B, G, R and resized by OpenCV; "
            "send arrays that were prepared as above."
        )
    yield from integers_overflow(request.manifest, "the server")


def _told(request: Request) -> Iterator[str]:
    first = request.manifest.inputs[0].shape[0]
    if isinstance(first, str):
        yield "The batch is free: each request may bring another number of images, and the model is not loaded anew."
    else:
        yield f"Each request brings {first} image{'s' if first > 1 else ''}, for the batch of the model is fixed."
    yield openvino_is_told()
    if request.manifest.labels:
        yield "The server returns logits and knows no labels: `labels.txt` is for the client."
    yield (
        "`kserve.yaml` serves the same folder under KServe, from a volume claim `models` that holds it. It was not "
        "tried in a cluster."
    )


MODEL_SERVER = Destination("OpenVINO Model Server", write)

"""The InferenceService of KServe beside a model repository."""

from __future__ import annotations

import json
import re

from vitdeploy.serving.content import File, Request


def inference_service(request: Request, runtime: str, format_name: str, before: str = "") -> File:
    """A YAML file; the model comes from a volume claim `models`, into which the folder is copied.

    runtime      name of the ServingRuntime
    format_name  of the model, one that the runtime names
    before       documents that come first
    """
    # A name of Kubernetes is a DNS label; a text of JSON is one of YAML.
    name = re.sub(r"[^a-z0-9-]+", "-", request.name.lower())[:60].strip("-") or "model"
    text = f"""{before}apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {json.dumps(name)}
spec:
  predictor:
    model:
      runtime: {runtime}
      protocolVersion: v2
      modelFormat:
        name: {format_name}
      storageUri: "pvc://models/"
"""
    return File(text.encode(), "an InferenceService of KServe")

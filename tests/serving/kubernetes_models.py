"""Reads documents as the models of Kubernetes and KServe; a key that these do not have ends it with an error:

python kubernetes_models.py kserve.yaml
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import kserve
import kubernetes.client
import yaml

KINDS = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("batch/v1", "Job"): "V1Job",
}
SIMPLE = {"str": str, "int": int, "bool": bool, "object": object}
CONTAINER = re.compile(r"(list\[|dict\(str, )(.+)[\])]", re.IGNORECASE)


def read(value: Any, kind: str, where: str) -> Any:
    """The value as its model, which refuses what has to be there and is not; ValueError for a key of no model."""
    if inner := CONTAINER.fullmatch(kind.replace("Dict[str", "dict(str")):
        if inner[1].lower() == "list[":
            return [read(one, inner[2], f"{where}[{index}]") for index, one in enumerate(value)]
        return {key: read(one, inner[2], f"{where}.{key}") for key, one in value.items()}
    if kind in SIMPLE:
        if not isinstance(value, SIMPLE[kind]):
            raise ValueError(f"{where} is {value!r}, and no {kind}")
        return value
    model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind)
    names = {word: name for name, word in model.attribute_map.items()}
    if unknown := value.keys() - names.keys():
        raise ValueError(f"{where} has no {', '.join(unknown)}")
    words = {names[key]: (one, f"{where}.{key}") for key, one in value.items()}
    return model(**{name: read(one, model.openapi_types[name], place) for name, (one, place) in words.items()})


if __name__ == "__main__":
    with Path(sys.argv[1]).open() as stream:
        documents = list(yaml.safe_load_all(stream))
    for document in documents:
        read(document, KINDS[document["apiVersion"], document["kind"]], document["kind"])
    print(*(document["kind"] for document in documents))

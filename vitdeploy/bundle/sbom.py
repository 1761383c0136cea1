"""What a bundle was made of and with, as a software bill of materials: CycloneDX 1.6, in JSON.

It is written at the export, where the packages are installed that it names with their licences.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any
from urllib.parse import quote

from vitdeploy.bundle.manifest import FileRecord, JsonObject, Manifest, TensorSpec

SBOM = "sbom.cdx.json"  # the ending by which scanners know the format

_MODEL_REF = "model"
_WEIGHTS_REF = "weights"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "vitdeploy.cyclonedx")
_LONGEST_NAME = 100  # characters; a longer licence field holds the licence itself


def bill_of_materials(manifest: Manifest, files: Mapping[str, FileRecord]) -> bytes:
    """The bill of a bundle with these `files`, complete but for the manifest and the bill itself.

    The model with its card, its files and the origin of its weights; and the packages of `manifest.tools`, of scope
    `excluded` because a device needs none of them to run the model. The serial number follows from the contents.
    """
    tools = [_package(name, version) for name, version in sorted(manifest.tools.items())]
    made_of = [_weights(manifest)] if manifest.model.weights.kind != "random" else []
    document: JsonObject = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [_writer(manifest)]},
            "component": _model(manifest, files),
        },
        "components": [*made_of, *tools],
        "dependencies": [
            {"ref": _MODEL_REF, "dependsOn": [one["bom-ref"] for one in made_of]},
            *({"ref": one["bom-ref"]} for one in (*made_of, *tools)),
        ],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True))
    return (json.dumps({"serialNumber": serial.urn, **document}, indent=2) + "\n").encode()


def declared_licenses(package: str) -> list[JsonObject]:
    """The licences that an installed package declares, as CycloneDX writes them; empty where it declares none."""
    try:
        declared = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return []
    given = {key: [str(value).strip() for value in declared.get_all(key) or []] for key in _LICENSE_FIELDS}
    expression, field, classifiers = (given[key] for key in _LICENSE_FIELDS)
    if expression and expression[0]:
        return [{"expression": expression[0], "acknowledgement": "declared"}]
    # The last part of `License :: OSI Approved :: MIT License`; `OSI Approved` alone says nothing.
    named = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License ::") and line.count("::") > 1]
    if not named:
        named = [text for text in field if text and "\n" not in text and len(text) <= _LONGEST_NAME]
    return [{"license": {"name": name, "acknowledgement": "declared"}} for name in dict.fromkeys(named)]


_LICENSE_FIELDS = ("License-Expression", "License", "Classifier")


def _package(name: str, version: str) -> JsonObject:
    url = _package_url(name, version)
    component = {"type": "library", "bom-ref": url, "name": name, "version": version, "scope": "excluded", "purl": url}
    licenses = declared_licenses(name)
    return {**component, "licenses": licenses} if licenses else component


def _package_url(name: str, version: str) -> str:
    """The address of a package of PyPI, see https://github.com/package-url/purl-spec."""
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{quote(version, safe='')}"


def _writer(manifest: Manifest) -> JsonObject:
    version = manifest.tools.get("vitdeploy")
    return {"type": "application", "name": "vitdeploy", **({"version": version} if version else {})}


def _weights(manifest: Manifest) -> JsonObject:
    weights = manifest.model.weights
    hashes = {"hashes": [_hash(weights.sha256)]} if weights.sha256 else {}
    described = f"the trained weights: {weights.kind}"
    return {"type": "data", "bom-ref": _WEIGHTS_REF, "name": weights.detail, "description": described, **hashes}


def _model(manifest: Manifest, files: Mapping[str, FileRecord]) -> JsonObject:
    facts = {
        "precision": manifest.precision,
        "target": manifest.target,
        "opset": manifest.opset,
        "weights": f"{manifest.model.weights.kind}, {manifest.model.weights.detail}",
        "preprocessing": _text(manifest.to_dict()["preprocessing"]),
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL_REF,
        "name": manifest.model.name,
        "description": f"exported in {manifest.precision} for {manifest.target}",
        "properties": [{"name": f"vitdeploy:{key}", "value": str(value)} for key, value in facts.items()],
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(record.sha256)]}
            for name, record in sorted(files.items())
        ],
        "modelCard": _card(manifest),
    }


def _card(manifest: Manifest) -> JsonObject:
    task, datasets = _task(manifest), _datasets(manifest)
    parameters = {
        **({"task": task} if task else {}),
        "architectureFamily": manifest.model.family,
        "modelArchitecture": manifest.model.name,
        **({"datasets": datasets} if datasets else {}),
        "inputs": _formats(manifest.inputs),
        "outputs": _formats(manifest.outputs),
    }
    card: JsonObject = {"modelParameters": parameters}
    kept = manifest.precision_report.get("snr_db")
    if isinstance(kept, (int, float)):
        kind = f"signal-to-noise ratio in dB, {manifest.precision} against {manifest.against} in FP32"
        card["quantitativeAnalysis"] = {"performanceMetrics": [{"type": kind, "value": f"{kept:g}"}]}
    if manifest.model.weights.kind == "random":
        limits = [f"the weights are seeded random ({manifest.model.weights.detail}): the predictions mean nothing"]
        card["considerations"] = {"technicalLimitations": limits}
    return card


def _task(manifest: Manifest) -> str | None:
    """What the network does, where its outputs show it."""
    logits = next((spec for spec in manifest.outputs if spec.name == "logits"), None)
    if manifest.graph.get("strides"):
        return "feature extraction"
    if logits is None:
        return None
    return {2: "classification", 4: "segmentation"}.get(len(logits.shape))


def _datasets(manifest: Manifest) -> list[JsonObject]:
    """The images that INT8 was calibrated on."""
    calibration = manifest.precision_report.get("calibration")
    if not isinstance(calibration, Mapping):
        return []
    what = f"{calibration.get('images')} images that set the ranges of INT8, by the method {calibration.get('method')}"
    return [{"type": "dataset", "name": "calibration", "description": what}]


def _formats(specs: Iterable[TensorSpec]) -> list[JsonObject]:
    return [{"format": str(spec)} for spec in specs]


def _hash(sha256: str) -> JsonObject:
    return {"alg": "SHA-256", "content": sha256}


def _text(value: Any) -> str:
    return "none" if value is None else json.dumps(value, separators=(",", ":"))

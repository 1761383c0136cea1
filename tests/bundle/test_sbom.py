"""The bill of materials: valid by the official schema, true, and the same for the same bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from email.message import Message
from importlib import metadata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import tiny_manifest
from tests.conftest import examples
from vitdeploy.bundle import FileRecord, Manifest, TensorSpec, WeightsRecord
from vitdeploy.bundle.sbom import bill_of_materials, declared_licenses

FILES = {"model.onnx": FileRecord("1" * 64, 12), "reference.npz": FileRecord("2" * 64, 34)}


def schema_errors(text: bytes) -> object:
    """What the official schema of CycloneDX 1.6 has against a bill; None for a valid one."""
    schema = pytest.importorskip("cyclonedx.schema", reason="cyclonedx-python-lib is not installed")
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    return validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text.decode())


def bill(manifest: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bill_of_materials(manifest, FILES))
    return document


def with_weights(kind: str, detail: str, sha256: str | None) -> Manifest:
    manifest = tiny_manifest()
    return replace(manifest, model=replace(manifest.model, weights=WeightsRecord(kind, detail, sha256)))


def test_the_schema_refuses_what_is_no_bill() -> None:
    text = bill_of_materials(tiny_manifest(), FILES)
    assert schema_errors(text) is None
    assert schema_errors(text.replace(b'"SHA-256"', b'"SHA-257"')) is not None
    assert schema_errors(text.replace(b'"modelCard"', b'"modelCart"')) is not None


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
MANIFESTS = st.builds(
    lambda weights, tools, precision, spec, report, pixels: replace(
        with_weights(*weights),
        tools=tools,
        precision=precision,
        outputs=(spec,),
        precision_report=report,
        graph={"strides": pixels},
    ),
    st.tuples(st.sampled_from(["random", "checkpoint", "module", "onnx"]), WORDS, st.sampled_from([None, "ab" * 32])),
    st.dictionaries(st.sampled_from(["torch", "onnx-ir", "numpy", "not-installed.Here_at_all"]), WORDS),
    st.sampled_from(["fp32", "fp16", "int8"]),
    st.builds(TensorSpec, st.sampled_from(["logits", "features"]), st.just("float32"), st.just(("batch", 4, 8, 8))),
    st.fixed_dictionaries({}, optional={"snr_db": st.floats(0, 200), "calibration": st.just({"images": 3})}),
    st.sampled_from([{}, {"p2": 4}]),
)


@settings(max_examples=examples(40))
@given(MANIFESTS)
def test_every_bill_is_valid_by_the_official_schema(manifest: Manifest) -> None:
    assert schema_errors(bill_of_materials(manifest, FILES)) is None


def test_a_bill_names_the_model_its_files_and_what_it_was_made_with() -> None:
    manifest = replace(with_weights("checkpoint", "eurosat.safetensors", "3" * 64), tools={"torch": "2.13.0+cpu"})
    document = bill(manifest)
    model = document["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "tiny")
    assert {one["name"]: one["hashes"][0]["content"] for one in model["components"]} == {
        name: record.sha256 for name, record in FILES.items()
    }
    card = model["modelCard"]["modelParameters"]
    assert (card["task"], card["architectureFamily"]) == ("classification", "tests")
    assert card["inputs"] == [{"format": "images float32 [batch, 3, 8, 8]"}]
    weights, torch = document["components"]
    assert (weights["name"], weights["hashes"]) == (
        "eurosat.safetensors",
        [{"alg": "SHA-256", "content": "3" * 64}],
    )
    assert (torch["purl"], torch["scope"]) == ("pkg:pypi/torch@2.13.0%2Bcpu", "excluded")
    assert document["metadata"]["timestamp"] == manifest.created
    known = {one["bom-ref"] for one in document["components"]} | {"model"}
    assert {one["ref"] for one in document["dependencies"]} == known


def test_random_weights_are_a_limitation_and_no_component() -> None:
    document = bill(replace(tiny_manifest(), tools={}))
    assert document["components"] == []
    (limit,) = document["metadata"]["component"]["modelCard"]["considerations"]["technicalLimitations"]
    assert "seeded random" in limit


def test_the_same_bundle_has_the_same_bill_and_another_one_another_serial_number() -> None:
    manifest = tiny_manifest()
    assert bill_of_materials(manifest, FILES) == bill_of_materials(manifest, dict(reversed(FILES.items())))
    others = [bill(manifest), bill(replace(manifest, created="2026-01-01T00:00:00Z"))]
    others += [json.loads(bill_of_materials(manifest, {**FILES, "model.onnx": FileRecord("4" * 64, 12)}))]
    assert len({one["serialNumber"] for one in others}) == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License-Expression": "Apache-2.0 AND MIT", "License": "other"}, ["expression:Apache-2.0 AND MIT"]),
        ({"License": "BSD-3-Clause"}, ["BSD-3-Clause"]),
        ({"License": "MIT\n\nPermission", "Classifier": "License :: OSI Approved :: MIT License"}, ["MIT License"]),
        ({"License": "x" * 300}, []),
        ({"Classifier": "License :: OSI Approved"}, []),
        ({"Classifier": "Programming Language :: Python :: 3"}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_licences_are_those_that_a_package_declares(
    fields: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = Message()
    for key, value in fields.items():
        declared[key] = value
    monkeypatch.setattr(metadata, "metadata", lambda name: declared)
    found = declared_licenses("a-package")
    names = [f"expression:{one['expression']}" if "expression" in one else one["license"]["name"] for one in found]
    assert names == expected


def test_a_package_that_is_not_here_declares_nothing() -> None:
    assert declared_licenses("no-such-package-anywhere") == []

"""The schema of manifests admits what is read, refuses what is not, and has the fields of the records."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import tiny_manifest
from tests.conftest import ROOT, examples
from tests.schemas.forms import Place, places, problems, schema_at, valid
from vitdeploy.bundle.manifest import (
    SELF_HASH,
    FileRecord,
    Manifest,
    ModelRecord,
    TensorSpec,
    WeightsRecord,
    dump,
    parse,
)
from vitdeploy.errors import BundleError
from vitdeploy.preprocess import Preprocessing

# What was measured, whose form differs from version to version: a reader takes any JSON there.
RECORDS = ("reference", "parity", "accuracy", "graph", "precision_report")
RECORD_OF = {
    ("contents",): Manifest,
    ("contents", "model"): ModelRecord,
    ("contents", "model", "weights"): WeightsRecord,
    ("contents", "preprocessing"): Preprocessing,
    ("tensor",): TensorSpec,
}


def written(manifest: Manifest) -> Any:
    return json.loads(dump(manifest.to_dict()))


def is_read(document: Any) -> bool:
    """Whether a document is taken as a manifest once it has its own hash."""
    try:
        Manifest.from_dict(parse(dump(document), where="here"), where="here")
    except BundleError:
        return False
    return True


def tracked() -> list[Path]:
    command = ["git", "ls-files", "*manifest.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / line for line in done.stdout.splitlines()]


@pytest.mark.parametrize("keys", RECORD_OF, ids=lambda keys: keys[-1])
def test_the_properties_are_the_fields(keys: tuple[str, ...]) -> None:
    part, fields = schema_at("manifest", *keys), dataclasses.fields(RECORD_OF[keys])
    assert set(part["properties"]) == {field.name for field in fields}
    needed = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert set(part["required"]) == needed


def test_the_properties_of_a_file_are_the_fields() -> None:
    part = schema_at("manifest", "contents", "files")["additionalProperties"]
    assert set(part["properties"]) == set(part["required"]) == {field.name for field in dataclasses.fields(FileRecord)}


def test_every_manifest_of_the_repository_has_the_form() -> None:
    found = tracked()
    if not found:
        pytest.skip("this is no clone of the repository")
    assert {str(path): problems("manifest", json.loads(path.read_text())) for path in found} == {
        str(path): [] for path in found
    }


def full_manifest() -> Any:
    """A manifest with every key that a reader looks at."""
    document = written(tiny_manifest())
    document["model"]["weights"]["sha256"] = "0" * 64
    document["files"] = {
        "model.onnx": {"sha256": "1" * 64, "bytes": 1},
        "extra/a.bin": {"sha256": "2" * 64, "bytes": 0},
    }
    return document


DOCUMENT = full_manifest()
PLACES = [place for place in places("manifest", DOCUMENT) if place.path[:1] and place.path[0] not in RECORDS]
VALUES = ("a word", "", 7, -1, 0.5, None, True, [], {}, ["a word"], [7, 7])


def test_the_whole_manifest_is_read_and_has_the_form() -> None:
    assert is_read(DOCUMENT)
    assert problems("manifest", DOCUMENT) == []


def put(document: Any, place: Place, value: Any) -> Any:
    changed = copy.deepcopy(document)
    holder = changed
    for step in place.path[:-1]:
        holder = holder[step]
    holder[place.path[-1]] = value
    return changed


@settings(max_examples=examples(400))
@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_what_has_the_form_is_read(place: Place, value: Any) -> None:
    changed = put(DOCUMENT, place, value)
    if valid("manifest", changed) and place.path[0] != SELF_HASH:
        # These depend on another key: a schema does not say that labels are as many as classes.
        apart = ("preprocessing_in_graph", "image_inputs", "labels", "num_classes", "mean", "std")
        assert is_read(changed) or any(key in apart for key in place.path)


@settings(max_examples=examples(400))
@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_what_is_read_has_the_form(place: Place, value: Any) -> None:
    changed = put(DOCUMENT, place, value)
    if is_read(changed) and place.path not in (("precision",), (SELF_HASH,)):  # the graph is what judges the precision
        assert problems("manifest", changed) == []


@settings(max_examples=examples(100))
@given(st.data())
def test_a_key_that_is_needed_is_needed_by_both(data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([place for place in PLACES if place.required]))
    key = data.draw(st.sampled_from(sorted(place.required)))
    changed = copy.deepcopy(DOCUMENT)
    holder = changed
    for step in place.path:
        holder = holder[step]
    del holder[key]
    assert not valid("manifest", changed)
    assert not is_read(changed)


@pytest.mark.parametrize("name", ["../up", ".hidden", "manifest.json", "model.sig", "a b", "a//b", "a" * 201, "/root"])
def test_both_refuse_a_name_that_no_file_of_a_bundle_has(name: str) -> None:
    changed = copy.deepcopy(DOCUMENT)
    changed["files"][name] = changed["files"]["model.onnx"]
    assert not valid("manifest", changed)
    assert not is_read(changed)

"""Reading bundles: never anything but the files of their manifest."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bundles import (
    LABELS,
    failing_after,
    forge,
    tiny_images,
    tiny_logits,
    tiny_manifest,
    tiny_model,
    write_tiny_bundle,
)
from tests.conftest import examples
from vitdeploy.bundle import MANIFEST, MODEL, REFERENCE, Bundle, TensorSpec, WeightsRecord
from vitdeploy.bundle.manifest import Manifest, dump
from vitdeploy.errors import BundleError, UsageError


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


# Reading


def test_what_was_written_is_what_is_opened(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.path)
    assert replace(opened.manifest, files={}, created="") == replace(tiny_manifest(), created="")
    assert set(opened.manifest.files) == {MODEL, REFERENCE}
    assert opened.read(MODEL) == tiny_model()
    reference = opened.reference()
    np.testing.assert_array_equal(reference.inputs["images"], tiny_images())
    np.testing.assert_array_equal(reference.outputs["logits"], tiny_logits(tiny_images()))
    opened.check_files()


def test_the_manifest_is_json_with_the_documented_keys(bundle: Bundle) -> None:
    document = json.loads((bundle.path / MANIFEST).read_text())
    assert document["schema_version"] == 1
    assert document["model"]["weights"] == {"kind": "random", "detail": "seed 0", "sha256": None}
    assert document["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert document["files"][MODEL]["bytes"] == len(tiny_model())
    assert document.keys() >= {"precision", "target", "opset", "preprocessing", "labels", "outputs", "tools", "created"}


def test_results_are_replaced_and_everything_else_kept(bundle: Bundle) -> None:
    def add_unknown_keys(document: dict[str, Any]) -> None:
        document["later"] = {"field": [1, 2.5, None]}
        document["model"]["nickname"] = "t"

    forge(bundle, add_unknown_keys)
    opened = Bundle.open(bundle.path)
    opened.update_results(parity=[{"runtime": "onnxruntime", "passed": True}])
    opened.update_results(accuracy=[{"top1": 0.5}])
    document = json.loads((bundle.path / MANIFEST).read_text())
    assert document["parity"] == [{"runtime": "onnxruntime", "passed": True}]
    assert document["accuracy"] == [{"top1": 0.5}]
    assert document["later"] == {"field": [1, 2.5, None]}
    assert document["model"]["nickname"] == "t"
    assert Bundle.open(bundle.path).manifest == opened.manifest
    assert opened.manifest.model.weights.kind == "random"
    assert sorted(path.name for path in bundle.path.iterdir()) == [MANIFEST, MODEL, REFERENCE]


def test_results_of_a_wrong_type_are_refused_and_nothing_changes(bundle: Bundle) -> None:
    before = (bundle.path / MANIFEST).read_bytes()
    with pytest.raises(BundleError, match="parity"):
        bundle.update_results(parity=["passed"])  # type: ignore[list-item]
    assert (bundle.path / MANIFEST).read_bytes() == before


def test_a_full_disk_while_results_are_written_keeps_the_old_manifest(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle.path / MANIFEST).read_bytes()
    monkeypatch.setattr(os, "fsync", failing_after(0, OSError(errno.ENOSPC, "no space")))
    with pytest.raises(BundleError, match="disk is full"):
        bundle.update_results(accuracy=[{}])
    assert (bundle.path / MANIFEST).read_bytes() == before
    assert sorted(path.name for path in bundle.path.iterdir()) == [MANIFEST, MODEL, REFERENCE]


@pytest.mark.parametrize("name", [MANIFEST, MODEL, REFERENCE])
def test_a_flipped_byte_is_detected_wherever_it_is(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    original = path.read_bytes()
    positions = {*range(0, len(original), max(1, len(original) // 97)), 0, len(original) - 1}
    for position in sorted(positions):
        for mask in (0x01, 0x20, 0xFF):
            data = bytearray(original)
            data[position] ^= mask
            path.write_bytes(data)
            with pytest.raises(BundleError):
                Bundle.open(bundle.path).check_files()
            if name != MANIFEST:
                with pytest.raises(BundleError, match=name):
                    Bundle.open(bundle.path).read(name)
    path.write_bytes(original)
    Bundle.open(bundle.path).check_files()


@pytest.mark.parametrize("name", [MANIFEST, MODEL, REFERENCE])
def test_a_truncated_file_is_detected(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BundleError):
        Bundle.open(bundle.path).check_files()


@pytest.mark.parametrize("name", [MODEL, REFERENCE])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(bundle.path)


def test_what_is_not_a_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        Bundle.open(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"cannot be reached\n.*too long"):
        Bundle.open(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file; a bundle is a folder"):
        Bundle.open(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match=r"is not a bundle\n.*no manifest.json\n.*vitdeploy export wrote"):
        Bundle.open(tmp_path / "folder")


def test_a_file_of_a_bundle_or_the_folder_around_it_leads_to_the_bundle(bundle: Bundle) -> None:
    for place in (bundle.path / MODEL, bundle.path.parent):
        with pytest.raises(BundleError) as error:
            Bundle.open(place)
        assert error.value.fix is not None
        assert error.value.fix.endswith(f": {bundle.path}")


def test_a_newer_schema_asks_for_an_upgrade(bundle: Bundle) -> None:
    forge(bundle, lambda document: document.update(schema_version=2, model="something else"))
    with pytest.raises(BundleError, match=r"newer vitdeploy\n.*schema is 2.*\n.*pip install --upgrade vitdeploy"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "..",
        ".",
        "",
        "a//b",
        "C:\\x",
        ".hidden",
        "a\x00b",
        "~/x",
        "x" * 300,
        MANIFEST,
    ],
)
def test_a_path_that_could_lead_out_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.path.parent / "secret").write_bytes(b"")
    record = {"sha256": "0" * 64, "bytes": 0}
    forge(bundle, lambda document: document["files"].update({name: record}))
    with pytest.raises(BundleError, match="cannot be a file of a bundle"):
        Bundle.open(bundle.path)


def test_a_link_out_of_the_bundle_is_refused(bundle: Bundle) -> None:
    outside = bundle.path.parent / "outside.onnx"
    (bundle.path / MODEL).rename(outside)
    (bundle.path / MODEL).symlink_to(outside)
    with pytest.raises(BundleError, match=r"leads out of the bundle\n.*outside\.onnx\n.*replace the link with a copy"):
        Bundle.open(bundle.path)


def test_a_link_to_a_whole_bundle_is_fine(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.path)
    Bundle.open(tmp_path / "link").check_files()


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("model", None, "manifest.model should be an object"),
        ("opset", "17", "manifest.opset should be of type int"),
        ("opset", True, "manifest.opset should be of type int"),
        ("precision", 32, "manifest.precision should be of type str"),
        ("labels", ["one"], "1 labels for 4 classes"),
        ("labels", "abcd", "manifest.labels should be a list"),
        ("inputs", [], "inputs is empty"),
        ("inputs", [{"name": "x", "dtype": "float32", "shape": []}], "an input has no batch axis"),
        ("inputs", [{"name": "x", "dtype": "float32", "shape": [0, 3]}], r"inputs\[0\]: shape"),
        ("inputs", [{"name": "x", "dtype": "object", "shape": [1]}], "dtype 'object'"),
        ("outputs", [{"name": "x", "dtype": "float32", "shape": [1.5]}], r"shape\[0\] should be of type int or str"),
        ("outputs", [{"name": "x", "dtype": "float32", "shape": [1]}] * 2, "outputs has two tensors of one name"),
        ("preprocessing", {"mode": "squash"}, "invalid preprocessing mode 'squash'"),
        ("preprocessing", {"size": [1, 2, 3]}, "manifest.preprocessing.size should have 2 entries"),
        ("preprocessing", {"std": [0, 1, 1]}, "invalid preprocessing std"),
        ("files", {MODEL: {"sha256": "beef", "bytes": 1}}, "sha256 is not 64 hexadecimal digits"),
        ("files", {MODEL: {"sha256": "0" * 64}}, r"files.model.onnx.bytes is missing"),
        ("tools", {"torch": 2}, "manifest.tools.torch should be of type str"),
        ("parity", {}, "manifest.parity should be a list"),
        ("graph", [], "manifest.graph should be an object"),
    ],
)
def test_a_manifest_with_a_wrong_value_says_which_key(bundle: Bundle, key: str, value: Any, complaint: str) -> None:
    forge(bundle, lambda document: document.update({key: value}))
    with pytest.raises(BundleError, match=complaint):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("key", ["model", "precision", "target", "opset", "preprocessing", "inputs", "outputs"])
def test_a_manifest_without_a_key_says_which(bundle: Bundle, key: str) -> None:
    forge(bundle, lambda document: document.pop(key))
    with pytest.raises(BundleError, match=f"manifest.{key} is missing"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": NaN}', b"[" * 100_000, b"9" * 5_000]
)
def test_a_manifest_that_is_not_a_json_object_is_damaged(bundle: Bundle, text: bytes) -> None:
    (bundle.path / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest of .* is damaged"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("number", [b"1e999", b"NaN", b"-Infinity"])
def test_a_manifest_holds_finite_numbers_only(bundle: Bundle, number: bytes) -> None:
    (bundle.path / MANIFEST).write_bytes(b'{"schema_version": 1, "graph": {"seconds": ' + number + b"}}")
    with pytest.raises(BundleError, match=f"{number.decode()} is not a JSON number"):
        Bundle.open(bundle.path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["..", "/", "model.onnx", "random", "float32", "0" * 64, "x" * 300, 10**400, -1, 0]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


@given(data=st.data())
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_to_a_manifest_gives_anything_but_a_bundle_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    if not path.exists():
        write_tiny_bundle(path)
    pristine = (path / MANIFEST).read_bytes()
    try:
        document = json.loads(pristine)
        for _ in range(data.draw(st.integers(1, 3))):
            *parents, last = data.draw(st.sampled_from(places(document)[1:]))
            target = document
            for key in parents:
                target = target[key]
            if data.draw(st.booleans()):
                target[last] = data.draw(JSON)
            else:
                del target[last]
        (path / MANIFEST).write_bytes(dump(document))
        with contextlib.suppress(BundleError):
            opened = Bundle.open(path)
            opened.check_files()
            assert opened.reference().inputs
    finally:
        (path / MANIFEST).write_bytes(pristine)


@given(text=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_in_place_of_a_manifest_give_anything_but_a_bundle_error(
    text: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.mkdir(exist_ok=True)
    (path / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError):
        Bundle.open(path)


def test_a_file_that_the_manifest_does_not_list_is_not_read(bundle: Bundle) -> None:
    (bundle.path / "model.xml").write_text("<net/>")
    with pytest.raises(BundleError, match=r"has no model\.xml"):
        bundle.read("model.xml")


# Records


def test_records_refuse_nonsense_when_they_are_made() -> None:
    with pytest.raises(ValueError, match="not one of random, checkpoint, module"):
        WeightsRecord("trained", "")
    with pytest.raises(ValueError, match="dtype"):
        TensorSpec("x", "float", (1,))
    with pytest.raises(ValueError, match="3 labels for 4 classes"):
        replace(tiny_manifest(), labels=LABELS[:3])


def test_a_signature_admits_what_fits_it() -> None:
    dynamic, fixed = TensorSpec("x", "float32", ("batch", 3)), TensorSpec("x", "float32", (2, 3))
    assert dynamic.admits((7, 3))
    assert fixed.admits((2, 3))
    assert not dynamic.admits((0, 3))
    assert not dynamic.admits((7, 4))
    assert not fixed.admits((1, 3))
    assert not fixed.admits((2, 3, 1))


def test_a_manifest_survives_json() -> None:
    manifest = tiny_manifest(batch=2)
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())), where="here") == manifest

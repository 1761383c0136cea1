"""`auto` proves a bundle once on a machine: the same bundle, runtime and settings are not proven again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import forge, write_tiny_bundle
from vitdeploy.bundle import MANIFEST, Bundle
from vitdeploy.bundle import bundle as bundle_module
from vitdeploy.caches import Cache
from vitdeploy.errors import BundleError, GateError
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.runtime.backends import auto_order, find_backend
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify

NAME = "onnxruntime"


class Calls:
    """How often the runtime computed, and by how much it errs."""

    count = 0
    error = 0.0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """ONNX Runtime alone, with a counter in it."""
    pytest.importorskip(NAME)
    for other in auto_order():
        if other.name != NAME:
            monkeypatch.setattr(other, "auto_rank", None)
    backend, found = find_backend(NAME), Calls()
    honest = backend._run

    def run(self: Any, native: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found.count += 1
        return {key: array + np.float32(found.error) for key, array in honest(self, native, inputs).items()}

    monkeypatch.setattr(backend, "_run", run)
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "b")


def proofs(calls: Calls, bundle: Bundle, **options: Any) -> int:
    """How many calls it takes to load the bundle."""
    before = calls.count
    with load(bundle.path, **options) as session:
        assert session.backend.name == NAME
    return calls.count - before


def test_a_bundle_is_proven_once_and_by_verify_always(calls: Calls, bundle: Bundle) -> None:
    once = proofs(calls, bundle)
    assert once > 0
    assert proofs(calls, bundle) == 0
    before = calls.count
    assert verify(bundle.path).passed
    assert calls.count == before + once


@pytest.mark.parametrize("what", ["options", "manifest", "variable", "processor", "instructions", "version"])
def test_whatever_numbers_depend_on_makes_another_proof(
    calls: Calls, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    once, options = proofs(calls, bundle), dict[str, Any]()
    if what == "options":
        options["threads"] = 7
    elif what == "manifest":
        (bundle.path / MANIFEST).write_bytes((bundle.path / MANIFEST).read_bytes() + b"\n")
    elif what == "variable":
        monkeypatch.setenv("ORT_SOMETHING", "1")
    elif what in ("processor", "instructions"):
        cpu = read_cpu()
        other = replace(cpu, name="another") if what == "processor" else replace(cpu, features={"INT8": {"NEW": True}})
        monkeypatch.setattr("vitdeploy.runtime.remembered.read_cpu", lambda: other)
    else:
        monkeypatch.setattr("vitdeploy.runtime.remembered.__version__", "9.9")
    assert proofs(calls, bundle, **options) == once
    assert proofs(calls, bundle, **options) == 0


def test_a_graph_is_parsed_once(calls: Calls, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, honest = [], bundle_module.read_facts
    monkeypatch.setattr(
        bundle_module, "read_facts", lambda data, where: parsed.append(where) or honest(data, where=where)
    )
    for count in (1, 1):
        proofs(calls, bundle)
        assert len(parsed) == count
    assert verify(bundle.path).passed
    assert len(parsed) > 1


def test_a_graph_that_its_manifest_does_not_describe_is_refused_each_time(calls: Calls, bundle: Bundle) -> None:
    forge(bundle, lambda document: document.update(opset=20))
    for _ in range(2):
        with pytest.raises(BundleError, match="does not describe its model"):
            load(bundle.path)


def test_what_does_not_hold_is_not_remembered(calls: Calls, bundle: Bundle) -> None:
    calls.error = 1.0
    for _ in range(2):
        with pytest.raises(GateError, match="no runtime here reproduces"):
            load(bundle.path)
    (note,) = Cache("proofs").folder.glob("*.json")
    assert "graph" in json.loads(note.read_text())  # which is sound
    calls.error = 0.0
    assert proofs(calls, bundle) > 0


def test_a_note_that_says_something_else_counts_for_nothing(calls: Calls, bundle: Bundle) -> None:
    once = proofs(calls, bundle)
    for note in Cache("proofs").folder.glob("*.json"):
        note.write_bytes(b"\xff{}")
    assert proofs(calls, bundle) == once
    assert proofs(calls, bundle) == 0


def test_a_file_that_was_altered_after_the_proof_is_refused(calls: Calls, bundle: Bundle) -> None:
    proofs(calls, bundle)
    model = bundle.path / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        load(bundle.path)


def test_where_nothing_can_be_written_it_is_proven_each_time(
    calls: Calls, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert proofs(calls, bundle) == proofs(calls, bundle) > 0


def test_a_runtime_of_engines_is_proven_each_time(
    calls: Calls, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_backend(NAME), "proves_exports", False)
    assert proofs(calls, bundle) == proofs(calls, bundle) > 0

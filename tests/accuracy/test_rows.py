"""The store of rows: what it gives back, and how it stays within the limit of its cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.accuracy.rows import RowStore
from vitdeploy.tasks.task import Field

FIELDS = {"logits": Field("float32", (4,))}


def rows(count: int = 3) -> dict[str, Any]:
    return {f"key {index}": {"logits": np.full(4, index, np.float32)} for index in range(count)}


def test_rows_are_given_back_by_their_identity(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "logits")
    assert store.read({"model": 1}, FIELDS) == {}
    store.add({"model": 1}, rows())
    found = store.read({"model": 1}, FIELDS)
    assert list(found) == ["key 0", "key 1", "key 2"]
    np.testing.assert_array_equal(found["key 2"]["logits"], [2, 2, 2, 2])
    assert store.read({"model": 2}, FIELDS) == {}
    assert not list((tmp_path / "logits").glob("*.lock"))


def test_rows_that_nobody_asked_for_again_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "0")
    store = RowStore(tmp_path)
    for number in range(3):
        store.add({"model": number}, rows())
    assert all(store.read({"model": number}, FIELDS) for number in range(3)), "they were used a moment ago"
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    assert store.read({"model": 1}, FIELDS), "which counts as use"
    store.add({"model": 2}, rows(5))
    assert [len(store.read({"model": number}, FIELDS)) for number in range(3)] == [0, 3, 5]

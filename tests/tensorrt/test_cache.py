"""The engine cache: an engine is found for its own key, unaltered, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitdeploy.errors import BackendError
from vitdeploy.tensorrt.cache import EngineCache, EngineKey

KEY = EngineKey("0" * 64, "10.3.0", "Orin", 87, {"batch": [1, 8, 32]})
REFERENCE, OTHER = "a" * 64, "b" * 64


def keep(cache: EngineCache, key: EngineKey = KEY, workaround: str = "") -> None:
    cache.store(key, b"code", reference=REFERENCE, workaround=workaround, seconds=1.0)


def test_the_cache_finds_what_was_stored_for_the_same_key_only(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.find(KEY) is None
    keep(cache)
    assert cache.find(KEY) == b"code"
    for field, value in (("model", "1" * 64), ("tensorrt", "10.4.0"), ("gpu", "Thor"), ("sm", 110), ("options", {})):
        other = EngineKey(**{**vars(KEY), field: value})
        assert cache.find(other) is None
        assert other.name != KEY.name


def test_an_engine_without_its_own_sidecar_does_not_count(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    keep(cache)
    sidecar = cache.folder / f"{KEY.name}.json"
    whole = json.loads(sidecar.read_text())
    for wrong in ({**whole, "key": {**whole["key"], "model": "1" * 64}}, {**whole, "engine_sha256": "0" * 64}, []):
        sidecar.write_text(json.dumps(wrong))
        assert cache.find(KEY) is None
    sidecar.write_text("{")
    assert cache.find(KEY) is None
    sidecar.unlink()
    assert cache.find(KEY) is None


def test_an_engine_is_proven_on_the_references_that_it_was_seen_to_reproduce(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    keep(cache)
    assert cache.find(KEY) == cache.find(KEY, reference=REFERENCE) == b"code"
    assert cache.find(KEY, reference=OTHER) is None
    cache.add_reference(KEY, OTHER)
    assert cache.find(KEY, reference=REFERENCE) == cache.find(KEY, reference=OTHER) == b"code"
    keep(cache)
    assert cache.find(KEY, reference=OTHER) is None, "another engine has to be seen again"


def test_an_engine_remembers_what_made_it_right(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.workaround(KEY) == ""
    keep(cache)
    assert cache.workaround(KEY) == ""
    keep(cache, workaround="defuse")
    assert cache.workaround(KEY) == "defuse"


def test_the_latest_options_are_those_of_the_last_engine_of_the_same_model_here(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.latest_options(KEY) is None
    for number in (1, 2):
        keep(cache, EngineKey(**{**vars(KEY), "options": {"n": number}}))
    keep(cache, EngineKey(**{**vars(KEY), "model": "1" * 64, "options": {"n": 4}}))
    nonsense = {"references_sha256": [REFERENCE], "key": {**vars(KEY), "options": {"n": 5}}, "built": "9999"}
    cache.write_report(KEY, nonsense)
    unproven = {**nonsense, "references_sha256": "nothing"}
    (cache.folder / "unproven.json").write_text(json.dumps(unproven))
    assert cache.latest_options(KEY) == {"n": 2}
    assert cache.latest_options(EngineKey(**{**vars(KEY), "tensorrt": "10.4.0"})) is None


def test_reports_are_read_back_and_nonsense_is_none(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.read_report(KEY) is None
    path = cache.write_report(KEY, {"passed": False})
    assert cache.read_report(KEY) == {"passed": False}
    path.write_text("[1")
    assert cache.read_report(KEY) is None


def test_a_write_that_fails_leaves_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EngineCache(tmp_path / "engines")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BackendError, match="No space left"):
        keep(cache)
    assert list(cache.folder.iterdir()) == []


def test_a_folder_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="others can write there"):
        EngineCache(folder)

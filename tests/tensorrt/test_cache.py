"""The engine cache: an engine is found for its own key, unaltered, or not at all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from vitdeploy.errors import BackendError
from vitdeploy.tensorrt.cache import EngineCache, EngineKey

KEY = EngineKey("0" * 64, "10.3.0", "Orin", 87, {"batch": [1, 8, 32]})
REFERENCE, OTHER = "a" * 64, "b" * 64


def keep(cache: EngineCache, key: EngineKey = KEY, workaround: str = "") -> None:
    cache.store(key, b"code", {"passed": True}, reference=REFERENCE, workaround=workaround, seconds=1.0)


def test_the_cache_finds_what_was_stored_for_the_same_key_only(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.find(KEY) is None
    keep(cache)
    assert cache.find(KEY) == b"code"
    for field, value in (
        ("model", "1" * 64),
        ("tensorrt", "10.4.0"),
        ("gpu", "Thor"),
        ("sm", 110),
        ("uuid", "0"),
        ("options", {}),
    ):
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
    cache.add_reference(KEY, b"another", OTHER)
    assert cache.find(KEY, reference=OTHER) is None, "what was seen was another engine"
    cache.add_reference(KEY, b"code", OTHER)
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
    cache.write_report(cache.attempt(KEY), nonsense)
    unproven = {**nonsense, "references_sha256": "nothing"}
    (cache.folder / "unproven.json").write_text(json.dumps(unproven))
    assert cache.latest_options(KEY) == {"n": 2}
    assert cache.latest_options(EngineKey(**{**vars(KEY), "tensorrt": "10.4.0"})) is None


def test_reports_are_read_back_with_where_the_engine_is_now_and_nonsense_is_none(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.read_report(KEY) is None
    keep(cache)
    moved = EngineCache(cache.folder.rename(tmp_path / "moved"))
    report = moved.read_report(KEY)
    assert report is not None
    assert report["passed"]
    assert Path(report["engine"]).read_bytes() == b"code"
    assert Path(report["engine"]).parent == tmp_path / "moved"
    moved.files(KEY).report.write_text("[1")
    assert moved.read_report(KEY) is None


def test_a_write_that_fails_leaves_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EngineCache(tmp_path / "engines")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BackendError, match="No space left"):
        keep(cache)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("tidied", [True, False], ids=["an error", "the end of the process"])
def test_whatever_ends_a_store_the_engine_that_was_proven_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tidied: bool
) -> None:
    """Every write is the last one once; without tidying up, as when the power goes."""
    cache = EngineCache(tmp_path / "engines")
    keep(cache)
    cache.write_log(KEY, "what the second builder said")
    if not tidied:
        monkeypatch.setattr(cache, "_remove_others", lambda *given: None)
    whole, written, outcomes = os.fsync, [0], []
    for last in range(6):
        written[0] = 0

        def sync(descriptor: int, last: int = last) -> None:
            written[0] += 1
            if written[0] > last:
                raise KeyboardInterrupt
            whole(descriptor)

        monkeypatch.setattr("os.fsync", sync)
        try:
            cache.store(KEY, b"other", {"passed": True}, reference=OTHER, workaround="", seconds=1.0)
        except KeyboardInterrupt:
            assert cache.find(KEY, reference=REFERENCE) == b"code"
            report = cache.read_report(KEY)
            assert report is not None
            assert Path(report["engine"]).read_bytes() == b"code"
            outcomes.append("stopped")
        else:
            assert cache.find(KEY, reference=OTHER) == b"other"
            outcomes.append("stored")
    assert outcomes == ["stopped"] * 4 + ["stored"] * 2


def test_a_new_engine_takes_the_place_of_all_that_belonged_to_the_old_one(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    keep(cache)
    old = cache.files(KEY)
    cache.kernels_file(KEY, "a GPU").write_bytes(b"kernels")
    cache.write_log(KEY, "said")
    cache.store(KEY, b"other", {}, reference=OTHER, workaround="", seconds=1.0)
    new = cache.files(KEY)
    assert new.log.read_text() == "said"
    assert old.engine != new.engine
    assert len(list(cache.folder.iterdir())) == 4, "engine, log, report, sidecar"


def test_engines_that_nobody_used_for_long_make_room_for_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "0.35")
    cache = EngineCache(tmp_path / "engines")
    keys = [EngineKey(**{**vars(KEY), "options": {"n": number}}) for number in range(3)]
    for age, key in zip((900, 800, 700), keys, strict=True):
        cache.store(key, bytes(100_000), {}, reference=REFERENCE, workaround="", seconds=1.0)
        for path in cache.folder.glob(f"{key.name}.*"):
            os.utime(path, (time.time() - age,) * 2)
    assert cache.find(keys[0]) is not None, "which counts as use"
    cache.store(KEY, bytes(100_000), {}, reference=REFERENCE, workaround="", seconds=1.0)
    assert [cache.find(key) is not None for key in (*keys, KEY)] == [True, False, True, True]
    for path in cache.folder.iterdir():
        os.utime(path, (time.time() - 600,) * 2)
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "0")
    small = EngineCache(tmp_path / "engines")
    with small.lock(keys[0]):
        small.store(KEY, b"code", {}, reference=REFERENCE, workaround="", seconds=1.0)
        assert [small.find(key) is not None for key in (*keys, KEY)] == [True, False, False, True]


def test_a_folder_of_another_user_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root in a container over a folder of the host: its permissions are right, and chmod would not help."""
    folder = tmp_path / "engines"
    folder.mkdir(mode=0o700)
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    with pytest.raises(BackendError, match=f"belongs to the user {owner} and not to you") as caught:
        EngineCache(folder)
    assert f"docker run --user {owner}" in str(caught.value.fix)
    assert "chmod" not in str(caught.value.fix)


def test_a_sidecar_leads_to_no_other_place(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    keep(cache)
    sidecar = cache.folder / f"{KEY.name}.json"
    document = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**document, "engine_sha256": "/../../elsewhere"}))
    assert cache.find(KEY) is None
    assert cache.files(KEY) == cache.attempt(KEY)


def test_a_folder_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="others can write there"):
        EngineCache(folder)

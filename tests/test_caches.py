"""Caches within their limits: what was not used for longest goes, what somebody holds or just used stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from vitdeploy.caches import DEFAULT_LIMIT, KINDS, LIMIT, Cache, cache_limit, caches
from vitdeploy.errors import UsageError
from vitdeploy.locks import locked

A, B, C = "a" * 32, "b" * 32, "c" * 32


def write(path: Path, size: int, age: float) -> Path:
    """A file that was last used `age` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    when = time.time() - age
    os.utime(path, (when, when))
    if path.parent.name in (A, B, C):
        os.utime(path.parent, (when, when))
    return path


def engines(folder: Path, *ages: float, size: int = 1000) -> list[str]:
    """Engines of one kilobyte each, in files of their own; their names."""
    names = [chr(ord("a") + index) * 32 for index in range(len(ages))]
    for name, age in zip(names, ages, strict=True):
        write(folder / f"{name}.0123456789abcdef.engine", size - 10, age)
        write(folder / f"{name}.json", 10, age)
    return names


def limited(monkeypatch: pytest.MonkeyPatch, limit: str, name: str, folder: Path) -> Cache:
    monkeypatch.setenv(LIMIT, limit)
    return Cache(name, folder)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", DEFAULT_LIMIT),
        ("none", None),
        ("500M", 500 << 20),
        ("20G", 20 << 30),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("1T", 1 << 40),
        ("64", 64 << 20),
        ("0", 0),
    ],
)
def test_the_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch, text: str, limit: int | None) -> None:
    monkeypatch.setenv(LIMIT, text)
    assert cache_limit() == limit


@pytest.mark.parametrize("text", ["much", "-1", "10 elephants", "1e9", "G"])
def test_what_is_no_size_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(UsageError, match=LIMIT) as caught:
        Cache("engines")
    assert "10G" in str(caught.value.fix)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = engines(tmp_path, 300, 900, 600)
    cache = limited(monkeypatch, "0.002", "engines", tmp_path)  # 2097 bytes
    assert cache.evict() == [names[1]]
    assert [entry.name for entry in cache.entries()] == [names[2], names[0]]
    assert cache.evict() == []


def test_reading_counts_as_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = engines(tmp_path, 300, 900, 600)
    cache = limited(monkeypatch, "0.002", "engines", tmp_path)
    cache.touch(tmp_path / f"{names[1]}.json")
    assert cache.evict() == [names[2]]


def test_what_was_just_written_stays_whatever_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = engines(tmp_path, 900, 1, 600)
    cache = limited(monkeypatch, "0", "engines", tmp_path)
    assert cache.evict(keep=[names[0]]) == [names[2]]
    assert {entry.name for entry in cache.entries()} == {names[0], names[1]}, "named, and used a second ago"


def test_what_another_process_holds_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = engines(tmp_path, 900, 800)
    code = f"""
import sys
from pathlib import Path
from vitdeploy.caches import Cache
with Cache("engines", Path({str(tmp_path)!r})).lock({names[0]!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    cache = limited(monkeypatch, "0", "engines", tmp_path)
    assert cache.evict() == [names[1]]
    assert cache.clear() == (0, 0, 1)
    process.communicate()
    assert cache.clear() == (1, 1000, 0)
    assert list(tmp_path.iterdir()) == []


def test_two_do_not_tidy_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines(tmp_path, 900, 800)
    cache = limited(monkeypatch, "0", "engines", tmp_path)
    with locked(tmp_path / ".tidying.lock"):
        assert cache.evict() == []
    assert len(cache.evict()) == 2


def test_what_was_used_since_it_was_listed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = engines(tmp_path, 900)
    cache = limited(monkeypatch, "0", "engines", tmp_path)
    listed = cache.entries()
    cache.touch(tmp_path / f"{names[0]}.json")
    monkeypatch.setattr(cache, "entries", lambda: listed)
    assert cache.evict() == []


def test_files_of_other_names_are_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {
        "engines": [f"{A}.json", f".{A}.engine.1a2b", "timing-10.3.0-0123.cache", ".timing-10.3.0-0123.cache.1a2b"],
        "logits": [f"{B}/identity.json", f"{B}/1.npz"],
        "latency": [f"{C}.json", f".{C}.json.1a2b"],
        "proofs": [f"{C}.json", f".{C}.json.1a2b"],
        "compiled": ["123.blob", "kernel.cl_cache"],
    }
    assert mine.keys() == KINDS.keys()
    for name, files in mine.items():
        folder = tmp_path / name
        for file in files:
            write(folder / file, 10, 900)
        others = [write(folder / other, 10, 900) for other in ("thesis.tex", "photos/one.jpg", f"{A}x", "notes.json")]
        cache = limited(monkeypatch, "0", name, folder)
        assert cache.to_dict()["bytes"] == 10 * len(files), name
        cache.evict()
        assert cache.entries() == [], name
        assert all(other.exists() for other in others), name
        assert sum(path.is_file() for path in folder.rglob("*")) == len(others), name


def test_what_another_program_reads_counts_as_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO does not say which of its files it took; the file system does."""
    for name, read in (("1.blob", 300), ("2.blob", 900)):
        path = write(tmp_path / name, 10, 1000)
        os.utime(path, (time.time() - read, time.time() - 1000))
    cache = limited(monkeypatch, "0.00001", "compiled", tmp_path)
    assert cache.evict() == ["2.blob"]


def test_links_are_removed_and_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = write(tmp_path / "home" / "precious", 10, 900)
    (tmp_path / "logits").mkdir()
    (tmp_path / "logits" / A).symlink_to(precious.parent)
    assert limited(monkeypatch, "0", "logits", tmp_path / "logits").clear().entries == 1
    assert precious.exists()
    assert not (tmp_path / "logits" / A).is_symlink()


def test_a_folder_that_is_not_there_is_an_empty_cache(tmp_path: Path) -> None:
    cache = Cache("latency", tmp_path / "none")
    assert (cache.entries(), cache.evict(), cache.clear()) == ([], [], (0, 0, 0))
    assert not (tmp_path / "none").exists()


def test_a_folder_that_nothing_can_be_removed_from_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engines(tmp_path, 900)
    cache = limited(monkeypatch, "0", "engines", tmp_path)

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    assert cache.evict() == []
    assert cache.clear().in_use == 1
    assert "Permission denied" in caplog.text


def test_the_caches_are_those_below_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert [(cache.name, cache.folder) for cache in caches()] == [
        (name, tmp_path / "vitdeploy" / name) for name in ("engines", "logits", "latency", "proofs")
    ]
    with pytest.raises(UsageError, match="no cache called"):
        Cache("thoughts")


@settings(max_examples=examples(40))
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    limit=st.integers(0, 9000),
    kept=st.sets(st.integers(0, 5)),
)
def test_it_gets_within_its_limit_by_the_fewest_oldest_entries(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], order: object, limit: int, kept: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    ages = [100.0 + 50 * index for index in range(len(sizes))]
    order.shuffle(ages)  # type: ignore[attr-defined]
    names = [f"{index:032x}" for index in range(len(sizes))]
    for name, size, age in zip(names, sizes, ages, strict=True):
        write(folder / f"{name}.json", size, age)
    cache = Cache("latency", folder)
    cache.limit = limit
    removed = cache.evict(keep=[names[index] for index in kept if index < len(names)])
    left = sum(entry.bytes for entry in cache.entries())
    free = [name for index, name in enumerate(names) if index not in kept]
    assert left <= limit or removed == sorted(free, key=lambda name: -ages[names.index(name)])
    assert removed == sorted(free, key=lambda name: -ages[names.index(name)])[: len(removed)], "the oldest first"
    if removed:
        assert left + sizes[names.index(removed[-1])] > limit, "no more than needed"

"""`vitdeploy cache` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitdeploy.cli import main
from vitdeploy.locks import locked

A, B = "a" * 32, "b" * 32


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VITDEPLOY_CACHE_LIMIT", raising=False)
    for name, size in ((f"engines/{A}.engine", 2 << 20), (f"engines/{B}.json", 7), (f"logits/{A}/1.npz", 5)):
        path = tmp_path / "vitdeploy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return tmp_path / "vitdeploy"


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, object]]:
    assert main(["cache", "--json", *arguments]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["caches"]}


def test_every_cache_is_shown_with_its_size_and_limit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["cache", "entries", "size", "limit", "folder", "what"]
    assert lines[2].split()[:7] == ["engines", "2", "2.0", "MiB", "10", "GiB", str(home / "engines")]
    assert [line.split()[0] for line in lines[2:]] == ["engines", "logits", "latency", "proofs"]
    found = listed(capsys)
    assert found["engines"]["bytes"] == (2 << 20) + 7
    assert (found["logits"]["entries"], found["latency"]["entries"]) == (1, 0)
    assert found["engines"]["limit_bytes"] == 10 << 30


def test_a_cache_without_a_limit_says_so(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "none")
    assert listed(capsys)["engines"]["limit_bytes"] is None
    assert main(["cache"]) == 0
    assert "  none  " in capsys.readouterr().out


def test_one_cache_is_cleared_and_the_others_stay(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "--clear", "engines")
    assert list(found) == ["engines"]
    assert found["engines"]["cleared"] == {"entries": 2, "bytes": (2 << 20) + 7, "in_use": 0}
    assert list((home / "engines").iterdir()) == []
    assert (home / "logits" / A / "1.npz").exists()


def test_all_caches_are_cleared_where_none_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cleared engines: 2 entries, 2.0 MiB",
        "cleared logits: 1 entries, 5 B",
        "cleared latency: 0 entries, 0 B",
        "cleared proofs: 0 entries, 0 B",
    ]
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_what_is_in_use_stays_and_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(home / "engines" / f"{A}.lock"):
        assert main(["cache", "--clear", "engines"]) == 0
    assert capsys.readouterr().out == "cleared engines: 1 entries, 7 B; 1 stay, since they are in use\n"
    assert (home / "engines" / f"{A}.engine").exists()


def test_a_folder_of_the_users_own_has_engines_and_compiled_models(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in (f"{A}.engine", "42.blob", "letter.txt"):
        (folder / name).write_bytes(b"xyz")
    found = listed(capsys, "--cache", str(folder))
    assert {name: row["entries"] for name, row in found.items()} == {"engines": 1, "compiled": 1}
    listed(capsys, "--cache", str(folder), "--clear")
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(("arguments", "names"), [(["thoughts"], "latency"), (["logits", "--cache", "x"], "compiled")])
def test_an_unknown_name_is_refused_with_the_known_ones(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], names: str
) -> None:
    assert main(["cache", "--clear", *arguments]) == 2
    said = capsys.readouterr().err
    assert f"no cache called {arguments[0]}" in said
    assert names in said
    assert "vitdeploy cache --clear engines" in said
    assert (home / "engines" / f"{A}.engine").exists()


def test_an_invalid_limit_is_said_in_words(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE_LIMIT", "plenty")
    assert main(["cache"]) == 2
    assert "VITDEPLOY_CACHE_LIMIT=10G" in capsys.readouterr().err

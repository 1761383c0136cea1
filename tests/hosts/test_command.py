"""`vitdeploy fleet` as it is typed, what it shows meanwhile, and the table of devices in the repository."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import vitdeploy
from tests.bundles import write_tiny_bundle
from vitdeploy.cli import main, whole_parser
from vitdeploy.errors import UsageError
from vitdeploy.hosts import live
from vitdeploy.hosts.outcome import Asked, Outcome
from vitdeploy.hosts.table_entry import write_entries

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
ASKED = Asked("benchmark", "0" * 64, "nano", ("vitdeploy",))
MEASURED = {
    "created": "2026-11-29T00:00:00Z",
    "vitdeploy": "0.1.0",
    "machine": {"settings": {"processor": "Cortex-A78AE"}, "before": {"load_average": 0.1}},
    "candidates": [
        {
            "runtime": "onnxruntime",
            "batch": 1,
            "settings": {"version": "1.2", "device": "CPU", "threads": "automatic"},
            "latency_ms": {"p50": 1.5, "p90": 2.0, "p99": 3.25},
            "images_per_second": 600.0,
        }
    ],
}


def test_all_behind_the_dashes_belongs_to_the_devices() -> None:
    parse = whole_parser().parse_args
    words = ["fleet", "verify", "b", "--hosts", "f", "--only", "x,y"]
    found = parse([*words, "--", "--json", "-q", "--", "x"])
    assert (found.options, found.json, found.only) == (["--json", "-q", "--", "x"], False, ["x", "y"])
    assert parse([*words, "--json"]).options == []
    assert parse([*words, "--"]).options == []
    with pytest.raises(UsageError, match="has no option --threads"):
        parse([*words, "--threads", "2"])
    with pytest.raises(UsageError, match="does not take"):
        parse([*words, "another"])


def test_without_asyncssh_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "fleet.toml").write_text("[hosts.a]\naddress = 'x'")
    bundle = write_tiny_bundle(tmp_path / "b").path
    assert main(["fleet", "verify", str(bundle), "--hosts", str(tmp_path / "fleet.toml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["try"] == "pip install 'vitdeploy[fleet]'"


def test_a_running_loop_is_refused_with_what_to_type() -> None:
    code = (
        "import asyncio, vitdeploy\n"
        "async def ask(): vitdeploy.fleet('verify', 'b', 'f')\n"
        "try: asyncio.run(ask())\n"
        "except vitdeploy.UsageError as error: print(error.fix)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "await asyncio.to_thread(vitdeploy.fleet, …)"


def test_a_log_gets_a_line_for_each_host(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vitdeploy"), live.Live("verify of b", ["one", "two"]) as shown:
        shown.note("one", "connecting")
        shown.end(Outcome("one", "passed", ASKED))
        shown.end(Outcome("two", "unreachable", ASKED, what="cannot connect to two"))
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "one: passed",
        "two: unreachable: cannot connect to two",
    ]


def test_a_terminal_gets_one_table(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with caplog.at_level(logging.INFO, "vitdeploy"), live.Live("verify of b", ["one", "[red]two"]) as shown:
        shown.note("one", "copying 40 %")
        shown.tick()
        shown.end(Outcome("one", "passed", ASKED))
    assert "copying 40 %" in screen.getvalue()
    assert "[red]two" in screen.getvalue()
    assert "1 of 2 hosts" in screen.getvalue()
    assert caplog.records == []


def test_an_entry_is_of_a_board_and_a_bundle_and_replaces_the_one_before(tmp_path: Path) -> None:
    problems = pytest.importorskip("tests.schemas.forms").problems
    bundle = vitdeploy.Bundle.open(write_tiny_bundle(tmp_path / "b").path)
    good = Outcome("secret-name", "passed", ASKED, board="Jetson Orin Nano", result=MEASURED)
    broken = Outcome("broken", "passed", ASKED, result={**MEASURED, "candidates": [{}]})
    failed = Outcome("failed", "failed", ASKED)
    for _ in range(2):
        (path,) = write_entries(tmp_path / "table", bundle, [good, broken, failed])
    assert [one.name for one in (tmp_path / "table").iterdir()] == [path.name]
    assert path.name == f"jetson-orin-nano-tiny-{bundle.manifest_sha256[:16]}.json"
    entry = json.loads(path.read_text())
    assert problems("device", entry) == []
    assert "secret-name" not in path.read_text()
    assert entry["runs"][0]["p99_ms"] == 3.25
    script = [sys.executable, str(BENCHMARKS / "device_table.py"), str(path.parent)]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert "| Jetson Orin Nano | tiny fp32 | 3x8x8 | onnxruntime 1.2 | 1 | 1.5 | 3.25 | 600 |" in printed


def test_every_file_of_the_table_of_devices_has_the_form_of_its_schema() -> None:
    problems = pytest.importorskip("tests.schemas.forms").problems
    for path in (BENCHMARKS / "devices").iterdir():
        if path.name != "README.md":
            entry = json.loads(path.read_text())
            assert problems("device", entry) == [], path.name
            assert path.name.endswith(f"-{entry['manifest_sha256'][:16]}.json")

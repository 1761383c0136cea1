"""`vitdeploy benchmark`: what it prints and writes, and what it refuses. Real processes, a tiny bundle, two rounds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.latency.worker import Worker
from vitdeploy.machine.hardware import read_board

pytest.importorskip("onnxruntime")

FAST = ("--runtime", "onnxruntime", "--rounds", "2", "--warmup", "0")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


def run(*command: object) -> int:
    try:
        return main(["benchmark", *(str(part) for part in command)])
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def test_a_table_and_a_csv(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "result.csv"
    assert run(bundle, *FAST, "--batch", "1,4", "--csv", table) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("tiny")] == [
        ["tiny", "onnxruntime", "1"],
        ["tiny", "onnxruntime", "4"],
    ]
    assert "loading" in err
    assert "loading" not in out
    with table.open() as lines:
        assert [line["batch"] for line in csv.DictReader(lines)] == ["1", "4"]
    assert list(tmp_path.iterdir()) == [table]


def test_json_is_one_object_that_a_later_run_takes_as_its_baseline(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, *FAST, "--json") == 0
    text = capsys.readouterr().out
    document = json.loads(text)
    assert document["candidates"][0]["calls"] >= 2
    before = tmp_path / "before.json"
    before.write_text(text)

    assert run(bundle, *FAST, "--baseline", before, "--json") == 0
    ratio = json.loads(capsys.readouterr().out)["candidates"][0]["ratio"]
    assert ratio["value"] > 0
    assert not ratio["paired"]

    assert run(bundle, *FAST, "--baseline", before, "--threads", "1") == 2
    err = capsys.readouterr().err
    assert "threads was automatic and is 1" in err
    assert "--allow-different" in err
    assert run(bundle, *FAST, "--baseline", before, "--threads", "1", "--allow-different") == 0
    assert "compared all the same: onnxruntime: threads was automatic and is 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--batch", "0"], "positive numbers"),
        (["--batch", "1;8"], "positive numbers"),
        (["--batch", ""], "positive numbers"),
        (["--runtime", "onnxrt"], "onnxruntime"),
        (["--runtime", ","], "nothing to measure"),
        (["--seconds", "0"], "--seconds 10"),
        (["--seconds", "-3"], "--seconds 10"),
        (["--rounds", "0"], "--rounds 20"),
        (["--baseline", "yesterday.json"], "with the output of --json"),
        (["--csv", "no/such/folder.csv"], "no/such is not a writable folder"),
        (["--csv", "."], "it is a folder"),
        (["--device-table", f"{__file__}/table"], "test_benchmark.py is not a writable folder"),
    ],
)
def test_bad_options_get_a_message_and_start_nothing(
    bundle: Path,
    arguments: list[str],
    hint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Worker, "__init__", lambda *_: pytest.fail("a process was started"))
    assert run(bundle, *arguments) == 2
    err = capsys.readouterr().err
    assert hint in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_this_device_is_added_to_a_table_once_for_each_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = pytest.importorskip("tests.schemas.forms").problems
    other, table = write_tiny_bundle(tmp_path / "other", precision="fp16").path, tmp_path / "new" / "table"
    for _ in range(2):
        assert run(bundle, other, *FAST, "--batch", "1,2", "--device-table", table, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
    entries = {entry["precision"]: entry for entry in (json.loads(path.read_text()) for path in table.iterdir())}
    assert {"fp32", "fp16"} == entries.keys()
    for path, precision in ((bundle, "fp32"), (other, "fp16")):
        entry, own = entries[precision], [one for one in printed["candidates"] if one["bundle"] == str(path)]
        assert problems("device", entry) == []
        assert entry["manifest_sha256"] == Bundle.open(path).manifest_sha256
        assert entry["inputs"] == Bundle.open(path).manifest.to_dict()["inputs"]
        assert entry["device"] == (read_board() or printed["machine"]["settings"]["processor"])
        figures = [(run["batch"], run["p50_ms"], run["images_per_second"]) for run in entry["runs"]]
        assert figures == [(one["batch"], one["latency_ms"]["p50"], one["images_per_second"]) for one in own]
        assert [batch for batch, *_ in figures] == [1, 2]


def test_an_interrupted_run_is_not_added(
    bundle: Path, tmp_path: Path, interrupt: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(3)
    assert run(bundle, *FAST, "--rounds", "9", "--device-table", tmp_path / "table") == 130
    assert "the run was interrupted" in capsys.readouterr().err
    assert not (tmp_path / "table").exists()


def test_a_fixed_batch_cannot_be_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = write_tiny_bundle(tmp_path / "fixed", batch=2).path
    assert run(fixed, *FAST, "--batch", "8") == 2
    assert "it was exported for batches of exactly 2" in capsys.readouterr().err


def test_what_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "nowhere", *FAST, "--json") == 2
    assert "there is no bundle" in json.loads(capsys.readouterr().out)["error"]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C at turn number `turns`, counted from zero; the warm-up is one."""

    def after(turns: int) -> None:
        left, turn = [turns], Worker.turn

        def take(self: Worker, calls: int) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return turn(self, calls)

        monkeypatch.setattr(Worker, "turn", take)

    return after


def test_an_interrupt_prints_what_was_measured(
    bundle: Path, interrupt: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(4)
    assert run(bundle, *FAST, "--rounds", "1000", "--json") == 130
    document = json.loads(capsys.readouterr().out)
    assert document["interrupted"] is True
    assert document["rounds"] == 3


def test_an_interrupt_before_the_first_round_says_that_nothing_was(
    bundle: Path, interrupt: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(1)
    assert run(bundle, *FAST, "--csv", tmp_path / "result.csv") == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing was measured" in err
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_cannot_be_written_is_printed_all_the_same(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert run(bundle, *FAST, "--csv", tmp_path / "result.csv", "--json") == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["rounds"] == 2
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []

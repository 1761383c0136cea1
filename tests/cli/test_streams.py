"""The exit code is the command's own and `--json` prints one object, whatever the standard streams are."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import write_tiny_bundle
from vitdeploy.cli import COMMANDS, main

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
VITDEPLOY = f"{shlex.quote(sys.executable)} -m vitdeploy"
PASSED, FAILED = "verify passed, but its output could not be written", "verify failed with exit code 1, and its output"

# How the shell opens standard output, and what the system calls the reason.
SINKS = [
    pytest.param("{} >/dev/full", "No space left on device", id="full"),
    pytest.param("{} >&-", "standard output is closed", id="closed"),
    pytest.param("{{ {}; }} > >(exec true)", "Broken pipe", id="no reader"),
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle `good`, and `bad`, which does not reproduce its reference."""
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(folder / "good")
    write_tiny_bundle(folder / "bad", error=1.0)
    return folder


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash, with what it really leaves on its streams."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("options", ["", " --json"])
@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 1), ("nowhere", 2)])
@pytest.mark.parametrize(("line", "reason"), SINKS)
def test_an_output_that_cannot_be_written_keeps_the_exit_code(
    line: str, reason: str, name: str, code: int, options: str, bundles: Path
) -> None:
    command = f"{VITDEPLOY} verify {name} --runtime onnxruntime{options}"
    if "exec true" in line:  # the reader is gone before anything is written
        command = f"sleep 0.2; {command}"
    done = shell(line.format(command), bundles)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "defect" not in done.stderr
    if code < 2:
        assert f"{reason}\n" in done.stderr
        assert (PASSED if code == 0 else FAILED) in done.stderr
    else:
        assert "error: there is no bundle at nowhere" in done.stderr
        assert ("could not be written" in done.stderr) == bool(options)


@pytest.mark.parametrize("options", ["--version", "verify --help", "models"])
def test_help_and_lists_whose_reader_leaves_are_quiet_at_the_end(options: str, tmp_path: Path) -> None:
    done = shell(f"set -o pipefail; {VITDEPLOY} {options} | head -0; {VITDEPLOY} {options} >/dev/full", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is done, but its output could not be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("sink", ["2>/dev/full", "2>&-", "2>&- <&-"])
@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 1), ("nowhere", 2)])
def test_a_standard_error_that_takes_nothing_changes_nothing(sink: str, name: str, code: int, bundles: Path) -> None:
    done = shell(f"{VITDEPLOY} verify {name} --runtime onnxruntime --json {sink}", bundles)
    assert done.returncode == code
    told = json.loads(done.stdout)  # one object, and nothing that was meant for standard error
    assert told.get("passed", told.get("exit_code")) == {0: True, 1: False, 2: 2}[code]


def test_all_streams_closed(bundles: Path) -> None:
    before = {path: path.read_bytes() for path in bundles.rglob("*") if path.is_file()}
    codes = [
        shell(f"{VITDEPLOY} verify {name} --runtime onnxruntime >&- 2>&- <&-", bundles).returncode
        for name in ("good", "bad", "nowhere")
    ]
    assert codes == [0, 1, 2]
    assert {path: path.read_bytes() for path in bundles.rglob("*") if path.is_file()} == before


def test_a_path_that_the_encoding_of_the_output_lacks_is_printed_all_the_same(bundles: Path, tmp_path: Path) -> None:
    for name in (b"caf\xc3\xa9", b"not-utf8-\xff"):
        (tmp_path / os.fsdecode(name)).symlink_to(bundles / "good")
    done = shell(f"for b in ./*; do PYTHONIOENCODING=ascii {VITDEPLOY} inspect $b || exit; done", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "caf\\xe9" in done.stdout


LINES = [
    "--json",
    "nonsense --json",
    "--json verify good",
    "verify --json",
    "verify good --json --nonsense",
    "verify good --js --threads many",
    "verify good --json --runtime",
    "export m --json --batch 0",
    "export m --json --set a={[]:1}",
    f"export m --json --set a={'(' * 5000}",
    f"export m --json --preprocessing mean={'-' * 100000}1",
    "check good --target nothing --json",
    "predict good nowhere.png --json",
    *(f"{module.__name__.rpartition('.')[2]} --json --nonsense" for module in COMMANDS),
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:40])
def test_every_failure_is_one_json_object(
    line: str, bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundles)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert list(told) == ["error", "why", "try", "exit_code"]
    assert told["exit_code"] == 2
    assert told["try"]
    assert "\n" not in told["error"]
    assert f"error: {told['error']}\n" in err
    assert f"  try: {told['try']}\n" in err
    assert "Traceback" not in err
    assert "defect" not in err


@pytest.mark.parametrize(
    ("error", "code", "what", "fix"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was left behind", "run the same command again"),
        (KeyboardInterrupt("stopped"), 130, "stopped", "run the same command again"),
        (MemoryError(), 2, "out of memory", "more memory"),
        (KeyError("x"), 2, "unexpected KeyError: 'x'", "--verbose"),
        (BrokenPipeError(32, "Broken pipe"), 2, "unexpected BrokenPipeError", "--verbose"),
        (RecursionError("deep"), 2, "unexpected RecursionError: deep", "--verbose"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"], ["--verbose"], ["--verbose", "--json"]])
def test_what_nobody_expects_is_told_in_the_same_form(
    error: BaseException,
    code: int,
    what: str,
    fix: str,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        print("half a result")
        raise error

    monkeypatch.setattr("vitdeploy.inspection.doctor.doctor", fail)
    assert main(["doctor", *options]) == code
    out, err = capsys.readouterr()
    assert f"error: {what}" in err
    assert ("Traceback" in err) == ("--verbose" in options and "unexpected" in what)
    if "--json" in options:
        told = json.loads(out)
        assert told["error"].startswith(what)
        assert "--verbose" in options or fix in told["try"]
    else:
        assert out == "half a result\n"


def test_what_a_metric_prints_is_not_the_result(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def figure(outputs, targets):\n    print('half way')\n    return 1.0\n")
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4))
    options = f"--runtime onnxruntime --baseline {bundles}/good --logits logits --no-record --json"
    write_tiny_bundle(tmp_path / "half", precision="fp16")
    done = shell(f"{VITDEPLOY} validate half --data data.npz --metric mine.py:figure {options}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
    assert "half way" in done.stderr


def test_a_signal_ends_a_command_with_130(bundles: Path) -> None:
    code = (
        "import sys, time, vitdeploy.inspection.doctor as d;"
        "d.doctor = lambda: (print('x', file=sys.stderr), time.sleep(60));"
        "from vitdeploy.cli import main; sys.exit(main(['doctor', '--json']))"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert json.loads(out)["exit_code"] == 130
        assert "Traceback" not in err

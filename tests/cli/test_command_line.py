"""The command line answers as its users' other tools do: help, what was meant, quiet, a log file, colours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vitdeploy
from tests.bundles import write_tiny_bundle
from vitdeploy.cli import COMMANDS, colour, main, whole_parser
from vitdeploy.cli.parser import command_parsers, name_of

NAMES = [name_of(module) for module in COMMANDS]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def called(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        return code, *capsys.readouterr()

    return called


@pytest.mark.parametrize("words", [(), ("-q",), ("help",), ("--help",), ("-h",)])
def test_help_is_what_one_gets_without_a_command(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert all(f"\n    {name} " in out for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_is_that_of_its_option(run: Run, name: str) -> None:
    assert run("help", name) == run(name, "--help")
    assert run("help", name)[1].startswith(f"usage: vitdeploy {name} ")


def test_the_version_has_a_short_option(run: Run) -> None:
    assert run("-V") == run("--version") == (0, f"vitdeploy {vitdeploy.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "what", "offer"),
    [
        (("expotr", "x"), "there is no command 'expotr'", "vitdeploy export"),
        (("help", "chek"), "there is no command 'chek'", "vitdeploy check"),
        (("benchmrk",), "there is no command 'benchmrk'", "vitdeploy benchmark"),
        (("zzz",), "there is no command 'zzz'", "vitdeploy help"),
        (("export", "x", "--imge-size", "64"), "vitdeploy export has no option --imge-size", "--image-size"),
        (("export", "x", "--fp61"), "vitdeploy export has no option --fp61", "--fp16"),
        (("verify", "b", "--runtme=ort"), "vitdeploy verify has no option --runtme", "--runtime"),
        (("verify", "b", "--zzz"), "vitdeploy verify has no option --zzz", "vitdeploy verify --help"),
        (("verify", "a", "b"), "vitdeploy verify does not take 'b'", "vitdeploy verify --help"),
        (("verify",), "the following arguments are required: BUNDLE", "vitdeploy verify --help"),
        (("completion", "bsh"), "shell cannot be 'bsh'", "bash"),
        (("--versoin",), "vitdeploy has no option --versoin", "--version"),
        (("export", "x", "--batch", "0"), "invalid batch '0'", "vitdeploy export --help"),
        (("export", "x", "--fp16", "--int8"), "not allowed with argument", "vitdeploy export --help"),
    ],
)
def test_what_was_mistyped_gets_what_was_meant(run: Run, words: tuple[str, ...], what: str, offer: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    first, *rest = err.splitlines()
    assert first.startswith("error: ")
    assert what in first
    assert rest[-1].startswith(f"  try: {offer}")
    assert all(line.startswith(("  why: ", "  try: ")) for line in rest)


def test_an_error_of_usage_is_one_object_too(run: Run) -> None:
    code, out, _ = run("verify", "b", "--runtme", "ort", "--json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["error"]) == (2, 2, "vitdeploy verify has no option --runtme")
    assert told["try"].startswith("--runtime")


def test_common_options_stand_before_the_command_or_behind_it() -> None:
    for words in (["-q", "--log-file", "f", "doctor"], ["doctor", "-q", "--log-file", "f"]):
        args = whole_parser().parse_args(words)
        assert (args.quiet, args.log_file) == (True, Path("f"))
    for name, parser in command_parsers(whole_parser()).items():
        assert {"-v", "-q", "--log-file", "--config"} <= set(parser._option_string_actions), name


def test_quiet_leaves_the_result_warnings_and_errors(run: Run, tmp_path: Path) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "b").path)
    benchmark = ("benchmark", bundle, "--runtime", "onnxruntime", "--rounds", "1", "--warmup", "0")
    assert run(*benchmark)[2] != ""
    code, out, err = run(*benchmark, "--quiet")
    assert (code, err) == (0, "")
    assert "onnxruntime" in out
    assert run("-q", "verify", "nowhere")[2].startswith("error: ")


def test_a_log_file_gets_every_step_behind_what_it_has(run: Run, tmp_path: Path) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "b").path)
    file = tmp_path / "log.txt"
    file.write_text("before\n")
    words = ("benchmark", bundle, "--runtime", "onnxruntime", "--rounds", "1", "--warmup", "0")
    _, _, loud = run(*words)
    code, _, err = run(*words, "-q", "--log-file", str(file))
    assert (code, err) == (0, "")
    run("verify", "nowhere", "--log-file", str(file))
    first, *lines = file.read_text().splitlines()
    assert first == "before"
    stamped = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line)]
    assert f"vitdeploy benchmark {bundle}" in stamped[0]
    assert loud.splitlines()[0] in file.read_text()
    assert any("ERROR" in line and "error: " in line and "nowhere" in line for line in stamped)


def test_a_log_file_that_cannot_be_written_is_an_error(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "file"):
        code, out, err = run("doctor", "--log-file", str(path))
        assert (code, out) == (2, "")
        assert err.startswith(f"error: cannot write {path}\n")


def test_colours_are_for_terminals_and_can_be_switched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "b").path)
    words = ("verify", bundle, "--runtime", "onnxruntime")
    assert "\x1b" not in "".join(run(*words)[1:])
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;32mpassed\x1b[0m\n" in run(*words)[1]
    assert run("verify", "nowhere")[2].startswith("\x1b[1;31merror:\x1b[0m ")
    assert "\x1b" not in run(*words, "--json")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(run("verify", "nowhere")[1:])


def test_a_terminal_gets_colours_a_pipe_and_a_dumb_terminal_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, terminal: bool) -> None:
            self.terminal = terminal

        def isatty(self) -> bool:
            return self.terminal

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert [colour.wanted(Stream(True)), colour.wanted(Stream(False)), colour.wanted(None)] == [True, False, False]
    monkeypatch.setenv("TERM", "dumb")
    assert not colour.wanted(Stream(True))


@pytest.mark.parametrize("text", ["3 of 4 passed", "xpassed", "it failed", ""])
def test_only_the_line_that_is_the_answer_is_coloured(text: str) -> None:
    assert colour.verdicts(text) == text
    assert "\x1b" in colour.verdicts(f"{text}\npassed: no drop")
    assert "\x1b" in colour.verdicts("failed: 1 drop is above 0.1 points")


def test_help_loads_nothing_heavy() -> None:
    """What takes `--help` beyond its 0.4 s are libraries, and a time is no test."""
    script = "import sys; from vitdeploy.cli import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stderr
    assert "'vitdeploy.cli'" in loaded
    for heavy in ("numpy", "PIL", "onnx", "torch", "onnxruntime", "openvino"):
        assert f"'{heavy}'" not in loaded

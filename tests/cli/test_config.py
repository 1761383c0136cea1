"""`vitdeploy.toml`: defaults of options, and errors for whatever is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from vitdeploy.cli import main, whole_parser
from vitdeploy.cli.config import NEVER_FOUND, Config
from vitdeploy.cli.parser import command_parsers, peek
from vitdeploy.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(text: str, words: list[str], precision: str | None = None) -> dict[str, object]:
    """The options of a command line where the file of defaults has this text and is named."""
    Path("named.toml").write_text(text)
    config = Config.find(Path("named.toml"))
    assert config is not None
    parser = whole_parser()
    for one in (None, precision):
        config.apply(parser, peek(words)[0], one)
    return vars(parser.parse_args(words))


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ('[export]\ntarget = "tensorrt10"', ["export", "m"], {"target": "tensorrt10"}),
        ('[export]\ntarget = "tensorrt10"', ["export", "m", "--target", "openvino"], {"target": "openvino"}),
        ('[export]\nprecision = "int8"', ["export", "m", "--fp16"], {"precision": "fp16"}),
        ("[export]\nfp16 = true", ["export", "m"], {"precision": "fp16"}),
        ("[export]\nfp16 = false", ["export", "m"], {"precision": "fp32"}),
        ("[export]\nbatch = 4\nimage-size = '32x64'", ["export", "m"], {"batch": 4, "image_size": (32, 64)}),
        ("[export]\nignored-scope = ['a.*', 'b']", ["export", "m"], {"ignored_scope": ["a.*", "b"]}),
        ("[export]\nignored-scope = 'a'", ["export", "m", "--ignore", "b"], {"ignored_scope": ["a", "b"]}),
        ("[export]\ngoal = 'masks=25'", ["export", "m"], {"goals": [("masks", 25.0)]}),
        (
            "[export]\npreprocessing = 'mode=stretch,mean=0.5'",
            ["export", "m"],
            {"preprocessing": [("mode", "stretch"), ("mean", 0.5)]},
        ),
        ("[export]\nset = ['a=1', 'b=x']", ["export", "m"], {"set": [("a", 1), ("b", "x")]}),
        ("[validate]\ndata = 'photos'\nmax-drop = 0.5", ["validate", "b"], {"data": Path("photos"), "max_drop": 0.5}),
        (
            "[validate]\nruntime = 'onnxruntime,openvino'\ndata='d'",
            ["validate", "b"],
            {"runtime": ["onnxruntime", "openvino"]},
        ),
        ("[verify]\nuntrusted = true", ["verify", "b"], {"untrusted": True}),
        ("[build]\ntf32 = true", ["build", "b"], {"tf32": True}),
        ("[build]\ntf32 = true", ["build", "b", "--no-tf32"], {"tf32": False}),
        ("quiet = true", ["doctor"], {"quiet": True}),
        ("log-file = 'a.txt'", ["doctor", "--log-file", "b.txt"], {"log_file": Path("b.txt")}),
        ("log-file = 'a.txt'", ["--log-file", "b.txt", "doctor"], {"log_file": Path("b.txt")}),
        ("[doctor]\njson = true", ["doctor"], {"json": True}),
        ("[verify]\nthreads = 2", ["doctor"], {"json": False}),
    ],
)
def test_the_file_says_defaults_and_the_command_line_wins(
    text: str, words: list[str], expected: dict[str, object]
) -> None:
    found = parsed(text, words)
    assert {key: found[key] for key in expected} == expected


def test_a_precision_has_a_table_of_its_own() -> None:
    text = "[export]\nbatch = 2\n[export.int8]\nsamples = 500\n[export.fp16]\nbatch = 8"
    assert parsed(text, ["export", "m", "--int8"], "int8")["samples"] == 500
    assert parsed(text, ["export", "m", "--int8"], "int8")["batch"] == 2
    halves = parsed(text, ["export", "m", "--fp16"], "fp16")
    assert (halves["samples"], halves["batch"]) == (None, 8)


def test_paths_are_relative_to_the_file(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "named.toml").write_text("[export]\ncalibration = 'photos'\nlabels = '/etc/labels'")
    config = Config.find(Path("sub/named.toml"))
    assert config is not None
    parser = whole_parser()
    config.apply(parser, "export", None)
    args = parser.parse_args(["export", "m"])
    assert (args.calibration, args.labels) == (Path("sub/photos"), Path("/etc/labels"))


@pytest.mark.parametrize(
    ("text", "offer"),
    [
        ("[export]\ntraget = 'x'", "target"),
        ("[exprot]\ntarget = 'x'", "[export]"),
        ("traget = 'x'", "[export]"),
        ("[export]\nbatch = 0", "--batch"),
        ("[export]\nbatch = 'many'", "--batch"),
        ("[export]\nnum-classes = 1.5", "--num-classes"),
        ("[export]\ntarget = true", 'target = "…"'),
        ("[export]\ntarget = ['a']", 'target = "…"'),
        ("[export]\nforce = 'yes'", "true, or leave it out"),
        ("[export]\nint8 = 'yes'", "true, or leave it out"),
        ("[export]\nhelp = true", "leave it out"),
        ("[export]\nzzz = 'x'", "leave it out"),
        ("[export.int4]\nsamples = 3", "[export.int8]"),
        ("[verify.int8]\nthreads = 3", "[export.int8]"),
        ("[export", "mend vitdeploy.toml"),
        ("config = 'other.toml'", "[export]"),
    ],
)
def test_what_is_no_option_is_an_error_in_words(text: str, offer: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("vitdeploy.toml").write_text(text)
    assert main(["export", "nothing-of-this-name", "--json"]) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert "vitdeploy.toml" in told["error"]
    assert offer in told["try"]
    assert "Traceback" not in err


@pytest.mark.parametrize("key", NEVER_FOUND)
def test_what_is_trusted_has_to_be_typed_or_in_a_file_that_is_named(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = next(
        name for name, one in command_parsers(whole_parser()).items() if f"--{key}" in one._option_string_actions
    )
    Path("vitdeploy.toml").write_text(f"[{command}]\n{key} = 'x'")
    rest = {"validate": ["b", "--data", "d"], "export": ["m"]}.get(command, ["b"])
    assert main([command, *rest]) == 2
    err = capsys.readouterr().err
    assert "only lies in the current folder" in err
    assert f"--config vitdeploy.toml, if you trust it, or --{key}" in err
    named = Config.find(Path("vitdeploy.toml"))
    assert named is not None
    assert named.apply(whole_parser(), command, None) == [key]


def test_a_run_says_what_it_took_from_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_tiny_bundle(here / "b").path)
    Path("vitdeploy.toml").write_text("[verify]\nruntime = 'ort'\nthreads = 1")
    assert main(["verify", bundle, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["runtime"]["backend"] == "onnxruntime"
    assert json.loads(out)["runtime"]["threads"] == 1
    assert "defaults of vitdeploy.toml: runtime, threads\n" in err


def test_a_broken_file_keeps_nobody_from_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    Path("vitdeploy.toml").write_bytes(b"\xff[")
    for words in (["--version"], ["export", "--help"], ["help", "export"], ["completion", "bash"], []):
        assert main(words) == 0, words
    assert main(["doctor"]) == 2
    assert "it is not UTF-8" in capsys.readouterr().err


def test_a_file_that_is_named_has_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    for path in ("nowhere.toml", ".", "pipe"):
        assert main(["doctor", "--config", path]) == 2
        assert f"there is no file {path}\n" in capsys.readouterr().err
    for path in ("a\0b", "a" * 300):
        assert main(["doctor", "--config", path]) == 2
        assert "unexpected" not in capsys.readouterr().err
    assert Config.find(None) is None
    Path("vitdeploy.toml").mkdir()
    assert Config.find(None) is None
    with pytest.raises(UsageError, match="there is no file"):
        Config.find(Path("vitdeploy.toml"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["export", "m", "--config", "c"], ("export", Path("c"))),
        (["--config", "c", "export", "m"], ("export", Path("c"))),
        (["-q", "--log-file", "export", "verify"], ("verify", None)),
        (["--config=c", "doctor"], ("doctor", Path("c"))),
        ([], ("", None)),
        (["doctor", "--config"], ("", None)),
    ],
)
def test_command_and_file_are_known_before_the_line_is_parsed(
    words: list[str], expected: tuple[str, Path | None]
) -> None:
    assert peek(words) == expected

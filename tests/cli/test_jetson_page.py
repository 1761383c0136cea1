"""docs/jetson.md: its commands parse, its code compiles, its table is the table of platforms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vitdeploy.cli import _parser
from vitdeploy.export.targets import TARGETS
from vitdeploy.validation.capabilities import BOARDS, PLATFORMS, dotted

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "jetson.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
LINES = [line.removeprefix("ExecStartPre=") for _, block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"(\S*/)?vitdeploy ", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    _, name, *rest = shlex.split(command)
    assert _parser().parse_args([name, *rest]).command == name


def test_the_page_shows_the_whole_way() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} == {"export", "check", "doctor", "verify", "predict"}


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_its_python_compiles_and_uses_what_is_public(code: str) -> None:
    import vitdeploy

    compile(code, "docs/jetson.md", "exec")
    for name in re.findall(r"vitdeploy\.(\w+)", code):
        assert name in vitdeploy.__all__


def test_its_table_is_the_data() -> None:
    row = r"^\| \d[^|]* \| [^|]* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| `--target (\w+)` \| `(.*)` \|$"
    rows = re.findall(row, PAGE, re.MULTILINE)
    assert len(rows) == 5
    for tensorrt, cuda, python, target, name in rows:
        platform = PLATFORMS[name]
        assert (dotted(platform.oldest), platform.cuda, platform.python) == (tensorrt, cuda, python)
        assert target in TARGETS
    assert all(f"`{board}`" in PAGE for board in BOARDS)

"""Every block of code in README, CONTRIBUTING and docs is one that runs: commands parse, programs fit, files load."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vitdeploy
from tests.docs.pages import BLOCKS, PAGES, ROOT, Block, called, calls, commands, script
from vitdeploy.cli import COMMANDS, whole_parser

NAMES = {module.__name__.rpartition(".")[2] for module in COMMANDS}
EXTRAS = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
# First words of commands, so that what is no command does not pass as one.
PROGRAMS = """
. apt-get bash cat cd cmake cp docker echo export git head jetson_clocks journalctl make mkdir model_signing mv nvpmodel
openssl pip pre-commit python python3 rm scp set sh ssh sudo systemctl test torchrun tr trtexec unzip useradd vitdeploy
"""
INSTRUCTIONS = "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM LABEL RUN USER VOLUME WORKDIR"


def check_shell(block: Block) -> None:
    """A shell takes it, every program in it is known, and every command of vitdeploy can be typed as it stands."""
    typed = script(block)
    syntax = subprocess.run(["bash", "-n"], input=typed, capture_output=True, text=True)
    assert syntax.returncode == 0, syntax.stderr
    found = commands(typed)
    assert found, "no command in it: a block of output is ```text"
    for words in found:
        check_command(words)


def check_command(words: list[str]) -> None:
    """One command of a shell."""
    program = Path(words[0]).name or words[0]
    assert program in PROGRAMS.split(), f"{program} is no program that the pages use: a block of output is ```text"
    for at, word in enumerate(words):
        if Path(word).name == "vitdeploy" and (at == 0 or NAMES & set(words[at + 1 : at + 2])):
            assert parses(words[at + 1 :]), " ".join(words)
        for extras in re.findall(r"^vitdeploy\[([\w,]+)\]", word):
            assert set(extras.split(",")) <= EXTRAS, word
        if re.match(r"(scripts|examples|benchmarks|tests)/.*\.(py|sh|png)$", word):
            assert (ROOT / word.partition(":")[0]).is_file(), word
    if program in ("python", "python3") and words[1:2] == ["-m"] and words[2].startswith("tests."):
        assert importlib.util.find_spec(words[2]), words[2]


def parses(words: list[str]) -> bool:
    """Whether the command line takes it."""
    try:
        whole_parser().parse_args(words)
    except vitdeploy.VitDeployError:
        return False
    except SystemExit as done:  # --help and --version
        return not done.code
    return True


def check_python(block: Block) -> None:
    """It compiles, it imports what exists, and every name, argument and attribute of vitdeploy in it exists."""
    tree = ast.parse(block.text)
    for name in re.findall(r"\bvitdeploy\.(\w+)", block.text):
        assert name in (*vitdeploy.__all__, "schemas"), name  # a module that is public as it is
    for name, call in calls(block.text):
        bind(getattr(vitdeploy, name), call)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vitdeploy":
            module = importlib.import_module(str(node.module))
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []
    made = dict(results(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in made:
            assert node.attr in members(made[node.value.id]), f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in made:
                bind(getattr(made[owner.id], node.func.attr), node, bound=True)


def bind(function: Callable[..., Any], call: ast.Call, *, bound: bool = False) -> None:
    """TypeError where a call does not fit a function; a method takes what it is called on first."""
    keywords = {word.arg: None for word in call.keywords if word.arg is not None}
    inspect.signature(function).bind(*([None] if bound else []), *call.args, **keywords)


def results(tree: ast.AST) -> Iterator[tuple[str, type]]:
    """The names that a program gives to what public functions return, with its class."""
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(node.targets[0], node.value)]
        elif isinstance(node, ast.With):
            pairs = [(item.optional_vars, item.context_expr) for item in node.items]
        for target, value in pairs:
            if isinstance(target, ast.Name) and (name := called(value)):
                kind = getattr(vitdeploy, str(inspect.signature(getattr(vitdeploy, name)).return_annotation), None)
                if isinstance(kind, type):
                    yield target.id, kind


def members(kind: type) -> set[str]:
    """What an object of a class has, the fields that only annotations and `__init__` name included."""
    annotated = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
    return {*dir(kind), *annotated, *re.findall(r"\bself\.(\w+)\b", inspect.getsource(kind))}


def check_toml(block: Block) -> None:
    """It loads."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is part of Python from 3.11 on")
    import tomllib

    assert tomllib.loads(block.text)


def check_json(block: Block) -> None:
    """It loads."""
    assert json.loads(block.text)


def check_yaml(block: Block) -> None:
    """It loads, and what it runs is right as well."""
    yaml = pytest.importorskip("yaml")

    def scripts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from [inner] if key == "run" else scripts(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from scripts(inner)

    loaded = yaml.safe_load(block.text)
    assert isinstance(loaded, dict)
    for text in scripts(loaded):
        check_shell(Block(block.page, "sh", text, block.line))


def check_ini(block: Block) -> None:
    """It loads; of a unit of systemd, a service says what it starts."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(block.text)
    assert parser.sections()
    if parser.has_section("Service"):
        assert parser.has_option("Service", "ExecStart")
    for key, value in re.findall(r"^(Exec\w+)=(.*)$", block.text, re.MULTILINE):
        words = value.split()
        assert words, key
        assert Path(words[0].lstrip("-@:+!")).is_absolute(), f"{key}: systemd wants the whole path"
        if Path(words[0]).name == "vitdeploy":
            check_command(words)


def check_dockerfile(block: Block) -> None:
    """Instructions that exist, from an image that is named with its tag, and shells that take what they run."""
    lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= set(INSTRUCTIONS.split())
    assert re.match(r"(ARG .*|FROM [^\s:]+(:\S+| AS .*))$", lines[0])
    for line in lines:
        if line.startswith("RUN "):
            check_shell(Block(block.page, "sh", line.removeprefix("RUN ").lstrip(), block.line))


def check_output(block: Block) -> None:
    """Output alone: a command in it would not be held against anything."""
    assert not re.search(r"^\s*(\$ |(sudo )?(\S*/)?vitdeploy \w)", block.text, re.MULTILINE)


CHECKS: dict[str, Callable[[Block], None]] = {
    "": check_shell,
    "bash": check_shell,
    "console": check_shell,
    "dockerfile": check_dockerfile,
    "ini": check_ini,
    "json": check_json,
    "python": check_python,
    "sh": check_shell,
    "text": check_output,
    "toml": check_toml,
    "yaml": check_yaml,
}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_what_it_says(block: Block) -> None:
    assert block.language in CHECKS, f"{block} is ```{block.language}, which nothing here checks"
    assert block.text.strip()
    CHECKS[block.language](block)


def test_no_fence_is_missed() -> None:
    assert len(BLOCKS) > 60
    fences = {page: len(re.findall(r"^ *(?:```|~~~)", path.read_text(), re.MULTILINE)) for page, path in PAGES.items()}
    assert {page: 2 * sum(block.page == page for block in BLOCKS) for page in PAGES} == fences


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("", "vitdeploy exprot lemevit_tiny"),
        ("sh", "echo bundle && ~/venv/bin/vitdeploy verify bundle --nonsense"),
        ("console", "$ vitdeploy verify a b c\nerror: no"),
        ("sh", "sudo docker run image /opt/bin/vitdeploy build bundle --fp16"),
        ("sh", "pip install 'vitdeploy[nothing]'"),
        ("sh", "python examples/missing.py"),
        ("sh", "if true; then echo"),
        ("", "bundle   lemevit"),
        ("text", "$ vitdeploy doctor"),
        ("python", "import vitdeploy\nvitdeploy.exprot('a')"),
        ("python", "import vitdeploy\nvitdeploy.verify('a', runtimes='b')"),
        ("python", "import vitdeploy\nwith vitdeploy.load('a') as session:\n    session.guess('b')"),
        ("python", "import vitdeploy\nsession = vitdeploy.load('a')\nsession.predict('b', best=1)"),
        (
            "python",
            "import vitdeploy\nreport = vitdeploy.verify('a')\nreport.pased",
        ),
        ("python", "from vitdeploy.passes.base import Nothing"),
        ("python", "x ="),
        ("json", "{1}"),
        ("yaml", "jobs:\n  run: vitdeploy verify bundle --nonsense"),
        ("ini", "[Service]\nExecStart=/usr/bin/vitdeploy predict"),
        ("ini", "[Service]\nUser=me"),
        ("dockerfile", "FROM image:1\nRUM ls"),
    ],
)
def test_the_checks_find_what_they_look_for(language: str, text: str) -> None:
    with pytest.raises((AssertionError, TypeError, AttributeError, SyntaxError, ValueError)):
        CHECKS[language](Block("page.md", language, text, 1))

"""The layers of the package: every import looks down, lazy ones too, and no files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import vitdeploy

ROOT = Path(__file__).resolve().parent.parent / "vitdeploy"

# From the bottom up. A package imports from itself and from the lines above its own, which stand lower in the house.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    (
        "argument_types",
        "files",
        "junit",
        "locks",
        "progress",
        "registry",
        "schemas",
        "statistics",
        "table",
        "toml_reader",
        "user_code",
    ),
    ("caches",),
    ("machine",),
    ("preprocess",),
    ("graph",),
    ("bundle",),
    ("signing",),
    ("data", "models"),
    ("tasks",),
    ("targets",),
    ("platforms",),
    ("passes",),
    ("proof",),
    ("runtime",),
    ("tensorrt",),
    ("quantize",),
    ("exporter",),
    ("accuracy", "costs", "divergence", "inspection", "latency"),
    ("hosts", "reporting", "search", "serving"),
    ("cli",),
)
# The public face, which belongs to no layer: whoever asks it for a name imports the module that has it.
FACE = ("__init__", "__main__")


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root` by its dotted name without that of the package; `x` for `x/__init__.py`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, package: str, known: Mapping[str, Path], homes: Mapping[str, str]) -> Iterator[str]:
    """The modules of `package` that a file imports, anywhere in it but for the type checker alone.

    `homes` says where the names are that `package` itself imports when they are first used.
    """
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} has a relative import, which this reads as none"
            assert node.level == 0, f"{path} has a relative import, which this reads as none"
            face = homes if node.module == package else {}
            whole = [face.get(alias.name, f"{node.module}.{alias.name}") for alias in node.names]
            names = [one if one.removeprefix(f"{package}.") in known else node.module for one in whole]
        for name in names:
            if name.startswith(f"{package}."):
                yield name.removeprefix(f"{package}.")


def graph_of(root: Path, package: str, homes: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Each module with the modules that it imports."""
    known = modules(root)
    found = {name: dict.fromkeys(imports(path, package, known, homes or {})) for name, path in known.items()}
    return {name: [other for other in found[name] if other in known and other != name] for name in known}


def upward(graph: Mapping[str, list[str]], layers: tuple[tuple[str, ...], ...]) -> list[str]:
    """The imports that do not look down, in words; a package that no layer names is one too."""
    height = {name: level for level, names in enumerate(layers) for name in names}
    found = []
    for name, others in graph.items():
        package = name.partition(".")[0]
        if name in FACE:
            continue
        if package not in height:
            found.append(f"{name} is in no layer")
            continue
        for other in others:
            below = other.partition(".")[0]
            if below != package and below not in FACE and height.get(below, len(layers)) >= height[package]:
                found.append(f"{name} imports {other}")
    return found


def circles(graph: Mapping[str, list[str]]) -> list[list[str]]:
    """Sets of modules that reach each other (Tarjan, Depth-first search and linear graph algorithms, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = []
            while not component or component[-1] != name:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_every_import_of_the_package_looks_down() -> None:
    assert upward(graph_of(ROOT, "vitdeploy", vitdeploy._HOME), LAYERS) == []


def test_no_files_of_the_package_import_each_other_in_a_circle() -> None:
    graph = graph_of(ROOT, "vitdeploy", vitdeploy._HOME)
    assert sum(map(len, graph.values())) > 300, "the imports are really read"
    assert circles(graph) == []


def test_every_layer_names_something_that_is_there() -> None:
    there = {name.partition(".")[0] for name in modules(ROOT)} - set(FACE) - {"vitdeploy"}
    assert {name for names in LAYERS for name in names} == there


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A package of three layers: `low`, `middle` of two files, `high`."""
    files = {
        "low.py": "import json\n",
        "middle/__init__.py": "",
        "middle/one.py": "from house.low import json\n",
        "middle/two.py": "from house.middle import one\n",
        "high.py": "from house.middle.two import one\n",
    }
    for name, text in files.items():
        (tmp_path / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "house" / name).write_text(text)
    return tmp_path / "house"


HOUSE = (("low",), ("middle",), ("high",))


def test_the_checks_pass_a_house_that_is_in_order(made_up: Path) -> None:
    graph = graph_of(made_up, "house")
    assert graph["high"] == ["middle.two"]
    assert graph["middle.two"] == ["middle.one"]
    assert (upward(graph, HOUSE), circles(graph)) == ([], [])


@pytest.mark.parametrize(
    "line",
    ["from house.high import x", "import house.high", "def f():\n    from house import high"],
)
def test_an_import_that_looks_up_is_found_wherever_it_stands(made_up: Path, line: str) -> None:
    (made_up / "low.py").write_text(line + "\n")
    graph = graph_of(made_up, "house")
    assert upward(graph, HOUSE) == ["low imports high"]
    assert circles(graph) == [["high", "low", "middle.one", "middle.two"]]


def test_a_name_that_the_package_gives_out_later_counts_as_the_module_that_has_it(made_up: Path) -> None:
    (made_up / "low.py").write_text("from house import __version__, wish\n")
    assert upward(graph_of(made_up, "house", {"wish": "house.high"}), HOUSE) == ["low imports high"]
    assert upward(graph_of(made_up, "house", {"wish": "house.low"}), HOUSE) == []


def test_a_relative_import_is_refused(made_up: Path) -> None:
    for line in ("from . import high", "from .high import x"):
        (made_up / "low.py").write_text(line + "\n")
        with pytest.raises(AssertionError, match="relative import"):
            graph_of(made_up, "house")


def test_a_circle_inside_one_package_is_found(made_up: Path) -> None:
    (made_up / "middle" / "one.py").write_text("def f():\n    from house.middle.two import g\n")
    graph = graph_of(made_up, "house")
    assert upward(graph, HOUSE) == []
    assert circles(graph) == [["middle.one", "middle.two"]]


def test_what_only_the_type_checker_imports_does_not_count(made_up: Path) -> None:
    (made_up / "low.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.high import x\n"
    )
    assert upward(graph_of(made_up, "house"), HOUSE) == []


def test_a_package_without_a_layer_is_named(made_up: Path) -> None:
    (made_up / "attic.py").write_text("")
    assert upward(graph_of(made_up, "house"), HOUSE) == ["attic is in no layer"]

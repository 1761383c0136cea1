"""Every error that a user can meet says what to do next."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "vitdeploy").rglob("*.py"))}


def error_classes() -> dict[str, ast.ClassDef]:
    """VitDeployError and all that derive from it, by name."""
    classes = [node for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found: dict[str, ast.ClassDef] = {}
    while True:
        new = {
            one.name: one
            for one in classes
            if one.name == "VitDeployError"
            or {base.id for base in one.bases if isinstance(base, ast.Name)} & set(found)
        }
        if new.keys() == found.keys():
            return found
        found = new


ERRORS = error_classes()


def has_init(error: ast.ClassDef) -> bool:
    """Whether a class writes its own message; its call of the base class is what has the fix."""
    return error.name != "VitDeployError" and any(
        isinstance(node, ast.FunctionDef) and node.name == "__init__" for node in error.body
    )


def calls(tree: ast.AST, where: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Every call that makes an error's message, with the name of the function or class around it."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        inside = node.name if named else where  # type: ignore[attr-defined]
        if isinstance(node, ast.ClassDef) and node.name in ERRORS and has_init(node):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                    yield node.name, call
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ERRORS and not has_init(ERRORS[name]):
                yield where, node
        yield from calls(node, inside)


def may_be_none(value: ast.expr) -> bool:
    """Whether an expression is None in a branch that one can see."""
    if isinstance(value, ast.IfExp):
        return may_be_none(value.body) or may_be_none(value.orelse)
    if isinstance(value, ast.BoolOp):
        return may_be_none(value.values[-1])
    return isinstance(value, ast.Constant) and not value.value


def without_fix(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Calls that pass no fix, or None or an empty one."""
    return [
        (where, call)
        for where, call in calls(tree)
        if not any(key.arg == "fix" and not may_be_none(key.value) for key in call.keywords)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_error_says_what_to_do_next(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    lacking = [f"{name}:{call.lineno} in {where}: {ast.unparse(call)}" for where, call in without_fix(SOURCES[path])]
    assert not lacking, "errors without fix=:\n" + "\n".join(lacking)


def test_the_rule_finds_what_it_looks_for() -> None:
    assert {"UsageError", "BuildError", "MissingDependencyError"} <= set(ERRORS)
    assert sum(1 for tree in SOURCES.values() for _ in calls(tree)) > 200
    for source, count in (
        ("def f():\n  raise UsageError('no')", 1),
        ("def f():\n  return errors.BundleError('no', why='x')", 1),
        ("raise UsageError('no', fix='a' if x else None)", 1),
        ("raise UsageError('no', fix=', '.join(names) or None)", 1),
        ("raise UsageError('no', fix='')", 1),
        ("raise UsageError('no', fix=names or 'this')", 0),
        ("raise ValueError('no')", 0),
    ):
        assert len(without_fix(ast.parse(source))) == count, source
    own = "class BuildError(BackendError):\n  def __init__(self):\n    super().__init__('no'{})"
    assert [len(without_fix(ast.parse(own.format(fix)))) for fix in ("", ", fix='x'")] == [1, 0]

"""The docstrings of the public names say all that the reference made of them shows."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import vitdeploy

for package in ("onnx", "onnx_ir"):
    pytest.importorskip(package, reason="the exporter is imported for its docstrings")

FUNCTIONS = [name for name in vitdeploy.__all__ if inspect.isfunction(getattr(vitdeploy, name))]
CLASSES = [name for name in vitdeploy.__all__ if inspect.isclass(getattr(vitdeploy, name))]
RECORDS = [name for name in CLASSES if dataclasses.is_dataclass(getattr(vitdeploy, name))]


def section(docstring: str | None, title: str) -> list[str]:
    """The names that a section of a docstring in Google's style explains, in order."""
    found = re.search(rf"^{title}:\n((?: {{4}}.*\n|\n)+)", f"{inspect.cleandoc(docstring or '')}\n", re.MULTILINE)
    return re.findall(r"^ {4}(\w+): \S", found[1], re.MULTILINE) if found else []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_explains_its_arguments_its_result_and_its_errors(name: str) -> None:
    function = getattr(vitdeploy, name)
    assert section(function.__doc__, "Args") == list(inspect.signature(function).parameters)
    assert "\nReturns:\n" in inspect.cleandoc(function.__doc__)
    for error in section(function.__doc__, "Raises"):
        assert issubclass(getattr(vitdeploy, error), vitdeploy.VitDeployError)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_explains_its_fields(name: str) -> None:
    kind = getattr(vitdeploy, name)
    fields = [field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")]
    assert section(kind.__doc__, "Attributes") == fields


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_and_its_public_methods_have_docstrings(name: str) -> None:
    kind = getattr(vitdeploy, name)
    assert kind.__doc__
    own = [value for key, value in vars(kind).items() if not key.startswith("_")]
    methods = [value for value in own if isinstance(value, (classmethod, staticmethod, property)) or callable(value)]
    assert [method for method in methods if not method.__doc__] == []


def test_the_lists_hold_what_there_is() -> None:
    assert {"export", "load", "validate"} <= set(FUNCTIONS)
    assert {"Manifest", "Int8Options", "Preprocessing"} <= set(RECORDS)
    assert len(FUNCTIONS) + len(CLASSES) == len(vitdeploy.__all__)

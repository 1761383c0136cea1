"""`file.py:function` and `package.module:function`: a user's own code, whose errors are the user's to read."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from vitdeploy.errors import UsageError, VitDeployError
from vitdeploy.exporter.torch_network import own_frames

FORM = "path/to/file.py:function"


def call_function(source: str, arguments: Mapping[str, Any]) -> Any:
    """What the function returns for `arguments`.

    The folder of the file is put at the front of the path for imports, and stays there: forward may import, too.
    Raises UsageError for a file or function that is not there, and for whatever the user's code raises, with the line.
    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise UsageError(f"{source!r} names no function", fix=FORM)
    if place.endswith(".py"):
        namespace = _theirs(place, lambda: _load(Path(place)))
    else:
        namespace = _theirs(place, lambda: _import(place))
    function = getattr(namespace, name, None)
    if not callable(function):
        others = [key for key, value in vars(namespace).items() if inspect.isfunction(value) and key[0] != "_"]
        raise UsageError(
            f"{place} has no function {name!r}", why=f"it has {', '.join(others)}" if others else None, fix=FORM
        )
    _check_arguments(source, function, arguments)
    return _theirs(f"{name} of {place}", lambda: function(**arguments))


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", fix=f"check the path: ls {path.parent}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = namespace
    spec.loader.exec_module(namespace)
    return namespace


def _import(name: str) -> ModuleType:
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")) or importlib.util.find_spec(top) is None:
        raise UsageError(f"there is no module {name}", why="it is neither a file nor importable", fix=FORM)
    return importlib.import_module(name)


def _check_arguments(source: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """UsageError where the function does not take what `--set` gives it, or needs more."""
    try:
        signature = inspect.signature(function)
        signature.bind(**arguments)
    except ValueError:  # a function that does not tell what it takes
        return
    except TypeError as error:
        takes = ", ".join(str(parameter) for parameter in signature.parameters.values()) or "no arguments"
        raise UsageError(
            f"{source} cannot be called: {error}", why=f"it takes {takes}", fix="--set NAME=VALUE for each argument"
        ) from None


def _theirs(what: str, run: Callable[[], Any]) -> Any:
    """What `run` gives; UsageError with the file and line for whatever the user's code raises in it."""
    try:
        return run()
    except VitDeployError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        else:
            own = own_frames(traceback.extract_tb(error.__traceback__))
            where = f"{own[-1].filename}:{own[-1].lineno}" if own else "its code"
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise UsageError(
            f"{what} raises {type(error).__name__}: {message}", why=f"at {where}", fix="repair it, and run it again"
        ) from error

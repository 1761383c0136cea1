"""A user's own code, `file.py:function` or `package.module:function`, whose errors are the user's to read. Light."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from vitdeploy.errors import UsageError, VitDeployError

FORM = "path/to/file.py:function"

Result = TypeVar("Result")

_OURS = f"{Path(__file__).parent}{os.sep}"
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]


def find_function(source: str) -> Callable[..., Any]:
    """The function that `source` names.

    The folder of the file is put at the front of the path for imports, and stays there: the function may import, too.
    Raises UsageError for a file or function that is not there, and for whatever the user's code raises when it is
    imported, with the line.
    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise UsageError(f"{source!r} names no function", fix=FORM)
    if place.endswith(".py"):
        namespace = call_theirs(place, lambda: _load(Path(place)))
    else:
        namespace = call_theirs(place, lambda: _import(place))
    function = getattr(namespace, name, None)
    if not callable(function):
        others = [key for key, value in vars(namespace).items() if inspect.isfunction(value) and key[0] != "_"]
        raise UsageError(
            f"{place} has no function {name!r}", why=f"it has {', '.join(others)}" if others else None, fix=FORM
        )
    found: Callable[..., Any] = function
    return found


def call_theirs(what: str, run: Callable[[], Result]) -> Result:
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


def own_frames(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The frames of the user's own code, the innermost last; installed packages only where there are no others."""
    frames = [frame for frame in stack if not frame.filename.startswith((_OURS, _STANDARD_LIBRARY, "<"))]
    return [frame for frame in frames if "site-packages" not in frame.filename] or frames


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

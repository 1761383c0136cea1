"""The types of the arguments of public functions, held against their annotations before anything is done."""

from __future__ import annotations

import errno
import functools
import inspect
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vitdeploy.errors import InputError, UsageError, shell

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Words of annotations by the types that they admit; those of paths are `os.PathLike` too.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "None": (type(None),),
    "str": (str,),
    "Path": (str, os.PathLike),
    "int": (numbers.Integral,),
    "float": (numbers.Real,),
    "Mapping": (Mapping,),
    "Iterable": (Iterable,),
}
# Names of unions, some with members that the function itself tells apart.
_ALIASES = {
    "Array": "ndarray",
    "DataSource": "str | Path | Dataset | Iterable",
    "NDArray": "ndarray",
}
_OPEN = ("Any", "Callable", "ImageLike", "MetricFunction", "Module", "Targets")
# Of a path that leads to nothing, which whoever reads or writes there says in their own words.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_IN_WORDS = {
    "None": "None",
    "str": "a text",
    "Path": "a path",
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "Iterable": "an iterable",
    "Mapping": "a mapping",
    "Sequence": "a list",
    "tuple": "a tuple",
    "ndarray": "an array of numpy",
}


def checked_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, which raises UsageError for an argument of another type than its annotation, or an impossible path.

    What annotations say is read from their text: built-in types, paths, sequences of them, mappings and names of
    classes; any other name admits everything.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            annotation = signature.parameters[name].annotation
            if isinstance(annotation, str):
                _check(value, annotation, name, function.__name__)
        return function(*args, **kwargs)

    return checked


def check_fields(instance: Any) -> None:
    """Raises UsageError for a field of a dataclass that is of another type than its annotation."""
    for field in fields(instance):
        _check(getattr(instance, field.name), str(field.type), field.name, type(instance).__name__)


def check_path(path: str | os.PathLike[str], name: str) -> None:
    """Raises UsageError for what no system has as the name of a file, and for a path that cannot be followed.

    Whether there is something at its end is not asked. A relative path in a deleted folder leads nowhere.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise UsageError(f"{name} is bytes", why="paths are texts here", fix=f"os.fsdecode({name})")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} {text!r} is not a path", why=error.reason, fix="give the path of a file") from error
    if "\0" in text:
        raise UsageError(f"{name} {text!r} is not a path", why="it has a NUL in it", fix="give the path of a file")
    if not Path(text).is_absolute():
        check_working_folder()
    try:
        Path(text).stat()
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return
        shorter = "give a shorter path"
        permissions = f"check the permissions of its folder: ls -ld {shell(Path(text).parent)}"
        raise UsageError(
            f"{name} {text} cannot be reached",
            why=error.strerror,
            fix=shorter if error.errno == errno.ENAMETOOLONG else permissions,
        ) from error


def check_working_folder() -> None:
    """Raises UsageError where the working folder was deleted, so that no relative path leads anywhere."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            "there is no working folder", why="it was deleted or moved away", fix="cd to a folder that exists"
        ) from error


def _check(value: Any, annotation: str, name: str, function: str) -> None:
    members = [one for member in _split(annotation, "|") for one in _split(_ALIASES.get(_name(member), member), "|")]
    for member in members:
        if _admits(value, member):
            if isinstance(value, (str, os.PathLike)) and "Path" in members:
                check_path(value, name)
            for one, inner in _items(value, member):
                _check(one, inner, f"an item of {name}", function)
            return
    words = list(dict.fromkeys(_IN_WORDS.get(_name(one), _name(one)) for one in members))
    words = [word for word in words if word != _IN_WORDS["str"] or "Path" not in members]
    error = InputError if {"Iterable", "ndarray"} & set(members) else UsageError
    raise error(
        f"{function}: {name} is of the type {type(value).__name__}",
        why=f"it may be {', '.join(words[:-1])}{' or ' if words[1:] else ''}{words[-1]}",
        fix=f"give {words[0]}",
    )


def _admits(value: Any, member: str) -> bool:
    word = _name(member)
    if word in _OPEN:
        return True
    if word == "Sequence":
        return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if word == "tuple" and isinstance(value, (tuple, list)):
        return "..." in member or len(value) == len(_split(_inner(member), ","))
    if word == "bool":
        return type(value).__name__ in ("bool", "bool_")
    if word == "Literal":
        return repr(value) in _split(_inner(member).replace('"', "'"), ",")
    if word in ("int", "float") and (isinstance(value, bool) or not _fits(value, word)):
        return False
    if word == "Iterable" and getattr(value, "ndim", 1) == 0:
        return False
    if word in _KINDS:
        return isinstance(value, _KINDS[word])
    return any(kind.__name__ == word for kind in type(value).__mro__)


def _items(value: Any, member: str) -> Iterator[tuple[Any, str]]:
    """What is in a value of a member of the union, each with its own annotation; of a mapping the keys."""
    inner = _split(_inner(member), ",")
    if _name(member) in ("Sequence", "Mapping") or inner[-1] == "...":
        yield from ((one, inner[0]) for one in value)
    elif _name(member) == "tuple":
        yield from zip(value, inner, strict=True)


def _fits(value: Any, word: str) -> bool:
    """Whether a number is one of 64 bits: no count is larger, and Python's own integers have no end."""
    try:
        number = float(value)
        return word == "float" or (math.isfinite(number) and abs(value) < 1 << 63)
    except (TypeError, ValueError, OverflowError):
        return False


def _name(member: str) -> str:
    return member.partition("[")[0].rpartition(".")[2]


def _inner(member: str) -> str:
    return member.partition("[")[2].rpartition("]")[0]


def _split(text: str, separator: str) -> list[str]:
    """The parts of an annotation between separators that no bracket is around."""
    parts, depth = [""], 0
    for character in re.sub(r"\s+", " ", text):
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]

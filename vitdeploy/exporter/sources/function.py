"""`file.py:function` and `package.module:function`: the user's own code that makes a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.user_code import call_theirs, find_function


def find_call(source: str, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """The call of the function with `arguments`.

    Raises UsageError for a file or function that is not there, and for arguments that it does not take; the call does
    for whatever the user's code raises, with the line.
    """
    function = find_function(source)
    _check_arguments(source, function, arguments)
    place, _, name = source.rpartition(":")
    return lambda: call_theirs(f"{name} of {place}", lambda: function(**arguments))


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

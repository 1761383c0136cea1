"""JSON Schemas (2020-12) of the manifest and of what each command prints with `--json`; one file for each.

A schema is called after its command, `manifest`, `device` or `error`; the number at the end of its `$id` is its
version. What several of them share stands in `common.schema.json`. Needs only the standard library.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vitdeploy.errors import UsageError

JsonObject = dict[str, Any]

_FOLDER = Path(__file__).resolve().parent
_SUFFIX = ".schema.json"
_COMMON = "common"
_URN = "urn:vitdeploy:schema:"
_DEFINITIONS = "#/$defs/"


def names() -> tuple[str, ...]:
    """The names that `schema` takes, sorted."""
    found = {path.name.removesuffix(_SUFFIX) for path in _FOLDER.glob(f"*{_SUFFIX}")}
    return tuple(sorted(found - {_COMMON}))


def schema(name: str) -> JsonObject:
    """One schema as JSON values, with everything it refers to under its own `$defs`.

    Raises UsageError for a name that is not among `names`.
    """
    known = names()
    if name not in known:
        close = get_close_matches(str(name), known, n=3)
        raise UsageError(
            f"there is no schema called {name!r}",
            why=f"there are {', '.join(known)}",
            fix=" or ".join(f"vitdeploy schema {one}" for one in close) or "vitdeploy schema, which lists them",
        )
    document = _read(name)
    document.pop("$defs", None)
    definitions: JsonObject = {}
    whole: JsonObject = _inlined(document, name, name, definitions)
    return {**whole, "$defs": dict(sorted(definitions.items()))} if definitions else whole


def _inlined(part: Any, home: str, root: str, definitions: JsonObject) -> Any:
    """`part` of the file `home` as it stands in the schema `root`, whose `definitions` get what it refers to."""
    if isinstance(part, list):
        return [_inlined(item, home, root, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    found = {key: _inlined(value, home, root, definitions) for key, value in part.items()}
    if isinstance(reference := part.get("$ref"), str):
        document, _, name = reference.partition(_DEFINITIONS)
        owner = document.removeprefix(_URN).partition(":")[0] or home
        key = name if owner in (root, _COMMON) else f"{owner}.{name}"
        if key not in definitions:
            definitions[key] = {}  # it may refer to itself
            definitions[key] = _inlined(_read(owner)["$defs"][name], owner, root, definitions)
        found["$ref"] = _DEFINITIONS + key
    return found


def _read(name: str) -> JsonObject:
    document: JsonObject = json.loads((_FOLDER / f"{name}{_SUFFIX}").read_text(encoding="utf-8"))
    return document

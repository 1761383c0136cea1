"""Documents held against their schemas, and the places of a document that a schema has a word about."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from vitdeploy.cli.streams import Printed
from vitdeploy.schemas import schema

Path = tuple[str | int, ...]
SIMPLE = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "null": type(None)}


@functools.cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schema(name))


def valid(name: str, document: Any) -> bool:
    return bool(validator(name).is_valid(document))


def problems(name: str, document: Any) -> list[str]:
    """Where a document has another form than its schema, in words; of a choice the branch that is nearest."""
    return [_words(error) for error in validator(name).iter_errors(document)]


def _words(error: Any) -> str:
    while error.context:
        error = max(error.context, key=lambda one: (len(one.absolute_path), one.validator != "const"))
    return f"{error.json_path}: {error.message[:300]}"


def checked(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The `run` of a command, which fails where it prints JSON of another form than its schema."""

    @functools.wraps(run)
    def checking(args: argparse.Namespace) -> int:
        code = run(args)
        if getattr(args, "json", False) and isinstance(sys.stdout, Printed):
            found = problems(args.command, json.loads(sys.stdout.text()))
            assert not found, f"the JSON of {args.command} has another form than its schema: {'; '.join(found)}"
        return code

    return checking


class Place(NamedTuple):
    """An object or value of a document, and what its schema fixes there.

    required  keys that may not be missing
    closed    whether no other key may be added
    types     JSON types that a simple value may have; empty where anything may stand
    """

    path: Path
    required: frozenset[str]
    closed: bool
    types: frozenset[str]


def places(name: str, document: Any) -> Iterator[Place]:
    """Every place of a valid document, with all that the branches of its schema that it takes say of it."""
    whole = schema(name)
    yield from _places(whole, whole.get("$defs", {}), document, ())


def _places(part: Any, definitions: Mapping[str, Any], value: Any, path: Path) -> Iterator[Place]:
    parts = list(_applying(part, definitions, value))
    keys = {key for one in parts for key in one.get("properties", {})}
    if isinstance(value, dict):
        required = frozenset(key for one in parts for key in one.get("required", ()))
        closed = any(
            one.get("additionalProperties") is False or one.get("unevaluatedProperties") is False for one in parts
        )
        yield Place(path, required & value.keys(), closed, frozenset())
        for key, inner in value.items():
            below = [one["properties"][key] for one in parts if key in one.get("properties", {})]
            rest = [one["additionalProperties"] for one in parts if "additionalProperties" in one]
            yield from _places({"allOf": below if key in keys else rest}, definitions, inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            below = [one["items"] for one in parts if index >= len(one.get("prefixItems", ())) and "items" in one]
            below += [one["prefixItems"][index] for one in parts if index < len(one.get("prefixItems", ()))]
            yield from _places({"allOf": below}, definitions, inner, (*path, index))
    else:
        yield Place(path, frozenset(), False, _types(parts, value))


def _applying(part: Any, definitions: Mapping[str, Any], value: Any) -> Iterator[Mapping[str, Any]]:
    """`part` and every schema that it applies to `value` at the same place."""
    if not isinstance(part, dict):
        return
    yield part
    for one in part.get("allOf", ()):
        yield from _applying(one, definitions, value)
    if "$ref" in part:
        yield from _applying(definitions[part["$ref"].removeprefix("#/$defs/")], definitions, value)
    for choice in ("anyOf", "oneOf"):
        for one in part.get(choice, ()):
            if Draft202012Validator({**one, "$defs": definitions}).is_valid(value):
                yield from _applying(one, definitions, value)


def _types(parts: list[Mapping[str, Any]], value: Any) -> frozenset[str]:
    stated = []
    for one in parts:
        if "type" in one:
            stated.append({one["type"]} if isinstance(one["type"], str) else set(one["type"]))
        for values in ([one["const"]] if "const" in one else [], one.get("enum", ())):
            if values:
                kinds = {kind for kind, types in SIMPLE.items() for known in values if type(known) is types}
                stated.append(kinds)
    return frozenset(set.intersection(*stated)) if stated else frozenset()

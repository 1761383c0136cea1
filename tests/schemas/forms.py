"""Documents held against their schemas, and the places of a document that a schema has a word about."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from vitdeploy.cli.streams import Printed
from vitdeploy.schemas import schema

Path = tuple[str | int, ...]
KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
Kinds = frozenset[str]
ANY: Kinds = frozenset(KINDS)


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


def read(text: str) -> Any:
    """The document of a text; ValueError for NaN and Inf, which are no JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    return json.loads(text, parse_constant=refuse)


def checked(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The `run` of a command, which fails where it prints JSON of another form than its schema."""

    @functools.wraps(run)
    def checking(args: argparse.Namespace) -> int:
        code = run(args)
        if getattr(args, "json", False) and isinstance(sys.stdout, Printed):
            found = problems(args.command, read(sys.stdout.text()))
            assert not found, f"the JSON of {args.command} has another form than its schema: {'; '.join(found)}"
        return code

    return checking


def schema_at(name: str, *keys: str) -> dict[str, Any]:
    """The part of a schema under some keys; each is a definition, or a property of an object or of a list's objects."""
    whole = schema(name)
    definitions = whole.get("$defs", {})
    part: dict[str, Any] = whole
    for key in keys:
        known: dict[str, Any] = _followed(part, definitions).get("properties", {})
        part = _followed(known[key] if key in known else definitions[key], definitions)
    return part


def _followed(part: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """What a part stands for: without references, lists and the choice of null."""
    while True:
        chosen = [one for one in part.get("anyOf", ()) if one.keys() != {"type"} and one.get("type") != "null"]
        if "$ref" in part:
            part = definitions[part["$ref"].removeprefix("#/$defs/")]
        elif isinstance(part.get("items"), dict):
            part = part["items"]
        elif len(chosen) == 1 and "properties" not in part:
            (part,) = chosen
        else:
            return part


class Place(NamedTuple):
    """A value of a document, and what its schema fixes there.

    required  keys that may not be missing
    closed    whether no other key may be added
    kinds     JSON types that may stand here, of a value that is no object
    """

    path: Path
    required: frozenset[str]
    closed: bool
    kinds: Kinds = ANY


def places(name: str, document: Any) -> list[Place]:
    """Every place of a valid document."""
    whole = schema(name)
    return list(_places(whole, whole.get("$defs", {}), document, ()))


def _places(part: Any, definitions: Mapping[str, Any], value: Any, path: Path) -> Iterator[Place]:
    parts = list(_applying(part, definitions, value))
    if isinstance(value, dict):
        closed = any(False in (one.get("additionalProperties"), one.get("unevaluatedProperties")) for one in parts)
        required = {key for one in parts for key in one.get("required", ())}
        required |= {key for one in parts for given in value for key in one.get("dependentRequired", {}).get(given, ())}
        yield Place(path, frozenset(required & value.keys()), closed)
        for key, inner in value.items():
            below = [one["properties"][key] for one in parts if key in one.get("properties", {})]
            below = below or [one["additionalProperties"] for one in parts if "additionalProperties" in one]
            yield from _places({"allOf": below}, definitions, inner, (*path, key))
    elif isinstance(value, list):
        yield Place(path, frozenset(), False, _kinds(part, definitions))
        for index, inner in enumerate(value):
            below = [one["items"] for one in parts if index >= len(one.get("prefixItems", ())) and "items" in one]
            below += [one["prefixItems"][index] for one in parts if index < len(one.get("prefixItems", ()))]
            yield from _places({"allOf": below}, definitions, inner, (*path, index))
    else:
        yield Place(path, frozenset(), False, _kinds(part, definitions))


def _applying(part: Any, definitions: Mapping[str, Any], value: Any) -> Iterator[Mapping[str, Any]]:
    """`part` and every schema that has to hold for `value` at the same place: of a choice the only branch that does."""
    if not isinstance(part, dict):
        return
    yield part
    for one in part.get("allOf", ()):
        yield from _applying(one, definitions, value)
    if "$ref" in part:
        yield from _applying(definitions[part["$ref"].removeprefix("#/$defs/")], definitions, value)
    for choice in ("anyOf", "oneOf"):
        taken = [
            one
            for one in part.get(choice, ())
            if Draft202012Validator({"allOf": [one], "$defs": definitions}).is_valid(value)
        ]
        if len(taken) == 1:
            yield from _applying(taken[0], definitions, value)


def _kinds(part: Any, definitions: Mapping[str, Any]) -> Kinds:
    """The JSON types that a schema lets stand."""
    if not isinstance(part, dict):
        return ANY
    found = ANY
    if "type" in part:
        found &= {part["type"]} if isinstance(part["type"], str) else set(part["type"])
        found |= {"integer"} if "number" in found else set()
    values = [part["const"]] if "const" in part else part.get("enum")
    if values is not None:
        found &= {kind for kind, types in KINDS.items() for value in values if type(value) in types}
    if "$ref" in part:
        found &= _kinds(definitions[part["$ref"].removeprefix("#/$defs/")], definitions)
    for one in part.get("allOf", ()):
        found &= _kinds(one, definitions)
    for choice in ("anyOf", "oneOf"):
        if choice in part:
            found &= frozenset().union(*(_kinds(one, definitions) for one in part[choice]))
    return found


class Spoiled(NamedTuple):
    """A document with one change that its schema does not admit, and what was changed in words."""

    document: Any
    what: str


def spoil(document: Any, place: Place, choose: Callable[[list[Any]], Any]) -> Spoiled | None:
    """A copy with one change at `place`: a key less, a key more, or a value of another type; None for none to make."""
    changed = copy.deepcopy(document)
    whole = {"": changed}
    holder: Any = whole
    for step in ("", *place.path)[:-1]:
        holder = holder[step]
    last = ("", *place.path)[-1]
    value = holder[last]
    where = "/".join(map(str, place.path)) or "the document"
    if isinstance(value, dict):
        keys = [*sorted(place.required), *([None] if place.closed else [])]
        if not keys:
            return None
        key = choose(keys)
        if key is None:
            value["unheard_of"] = 1
            return Spoiled(changed, f"{where} with one key more")
        del value[key]
        return Spoiled(changed, f"{where} without {key}")
    others = {"string": "a word", "number": 1.5, "boolean": True, "null": None, "array": [], "object": {}}
    kinds = [kind for kind in others if kind not in place.kinds]
    if not kinds:
        return None
    holder[last] = others[choose(kinds)]
    return Spoiled(whole[""], f"{where} is {holder[last]!r} and was {value!r}")

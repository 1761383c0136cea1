"""The files of the schemas: valid, described, complete, and of the same words as the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.schemas.forms import schema_at
from vitdeploy import schemas
from vitdeploy.bundle import manifest
from vitdeploy.caches import KINDS
from vitdeploy.cli import COMMANDS, main
from vitdeploy.errors import UsageError
from vitdeploy.hosts.fleet import VERBS
from vitdeploy.hosts.outcome import STATUSES
from vitdeploy.latency import baseline
from vitdeploy.platforms import report as platforms
from vitdeploy.preprocess import recipe
from vitdeploy.proof.parity import BOUNDS
from vitdeploy.tasks.choose import TASKS
from vitdeploy.tasks.metric import Metric
from vitdeploy.tensorrt.rtx.compiler import BUILT, CRASHED, FAILED, REFUSED, TIMED_OUT

FOLDER = Path(schemas.__file__).parent
FILES = sorted(FOLDER.glob("*.json"))
STATES = (BUILT, REFUSED, FAILED, CRASHED, TIMED_OUT)
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(inner)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_a_valid_schema_in_one_form(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    Draft202012Validator.check_schema(document)
    assert text == json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    name = path.name.removesuffix(".schema.json")
    assert re.fullmatch(rf"urn:vitdeploy:schema:{name}:[1-9]\d*", document["$id"])
    assert list(document)[:4] == ["$schema", "$id", "title", "description"]
    assert document["$schema"] == DIALECT


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_property_is_described_by_a_sentence(path: Path) -> None:
    described = [
        (key, one.get("description", ""))
        for part in parts(json.loads(path.read_text(encoding="utf-8")))
        if {"type", "properties"} <= {*part}  # a branch without a type repeats some
        for key, one in part["properties"].items()
    ]
    assert [key for key, text in described if not re.fullmatch(r"[A-Za-z].*\.", text) or len(text) > 140] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_key_that_is_required_is_a_property(path: Path) -> None:
    found = [
        part for part in parts(json.loads(path.read_text(encoding="utf-8"))) if {"properties", "required"} <= {*part}
    ]
    assert [key for part in found for key in part["required"] if key not in part["properties"]] == []


@pytest.mark.parametrize("name", schemas.names())
def test_a_schema_needs_no_other_file(name: str) -> None:
    whole = schemas.schema(name)
    Draft202012Validator.check_schema(whole)
    references = {part["$ref"] for part in parts(whole) if "$ref" in part}
    assert references == {f"#/$defs/{key}" for key in whole.get("$defs", {})}


def test_no_name_of_a_definition_has_two_meanings() -> None:
    common = json.loads((FOLDER / "common.schema.json").read_text(encoding="utf-8"))["$defs"]
    own = {path: json.loads(path.read_text(encoding="utf-8")).get("$defs", {}) for path in FILES}
    assert [path.name for path, found in own.items() if "common" not in path.name and found.keys() & common] == []


def test_every_common_definition_is_used() -> None:
    common = json.loads((FOLDER / "common.schema.json").read_text(encoding="utf-8"))["$defs"]
    used = {key for name in schemas.names() for key in schemas.schema(name).get("$defs", {})}
    assert [key for key in common if key not in used] == []


def test_every_command_with_json_has_a_schema_and_no_other_has(capsys: pytest.CaptureFixture[str]) -> None:
    able = []
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        main([name, "--help"])
        if "--json" in capsys.readouterr().out.partition("options:")[2]:
            able.append(name)
    assert len(able) >= 14
    assert sorted([*able, "device", "error", "manifest"]) == list(schemas.names())


def test_an_unknown_name_has_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match="try: vitdeploy schema manifest"):
        schemas.schema("manifst")
    with pytest.raises(UsageError, match="which lists them"):
        schemas.schema("zzz")
    with pytest.raises(UsageError, match="there is no schema called 'common'"):
        schemas.schema("common")


def test_the_command_lists_the_names_and_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines[2:]) == schemas.names()
    assert main(["schema", "verify"]) == 0
    assert json.loads(capsys.readouterr().out) == schemas.schema("verify")


def test_the_version_is_that_of_the_format() -> None:
    for name, version in (("manifest", manifest.SCHEMA_VERSION), ("benchmark", baseline.SCHEMA_VERSION)):
        document = schemas.schema(name)
        assert document["$id"] == f"urn:vitdeploy:schema:{name}:{version}"
        assert document["properties"]["schema_version"]["const"] == version


def test_the_package_has_the_files() -> None:
    project = (FOLDER.parent.parent / "pyproject.toml").read_text()
    (line,) = re.findall(r"^vitdeploy = (\[.*\])$", project, re.MULTILINE)
    patterns = json.loads(line)
    assert "schemas/*.json" in patterns
    assert {path for pattern in patterns for path in FOLDER.parent.glob(pattern)} >= set(FILES)


PREPROCESSING = ("manifest", "contents", "preprocessing")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (("manifest", "precision"), BOUNDS),
        (("manifest", "tensor", "dtype"), manifest.DTYPES),
        (("manifest", "contents", "model", "weights", "kind"), manifest.WEIGHT_KINDS),
        (("export", "weights"), manifest.WEIGHT_KINDS),
        (("verify", "run", "weights"), manifest.WEIGHT_KINDS),
        ((*PREPROCESSING, "mode"), recipe.MODES),
        ((*PREPROCESSING, "interpolation"), recipe.INTERPOLATIONS),
        ((*PREPROCESSING, "channels"), recipe.CHANNELS),
        (("cache", "caches", "name"), KINDS),
        (("validate", "report", "task"), (*TASKS, Metric.name)),
        (("check", "findings", "level"), (platforms.BLOCKS, platforms.WARNS)),
        (("check", "compiled", "state"), STATES),
        (("fleet", "verb"), VERBS),
        (("fleet", "hosts", "status"), STATUSES),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_words_are_those_of_the_code(where: tuple[str, ...], words: Any) -> None:
    assert schema_at(*where)["enum"] == list(words)

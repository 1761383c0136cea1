"""`vitdeploy targets`: what there is, as the rows say it."""

from __future__ import annotations

import json

import pytest

from tests.rows import TARGETS
from vitdeploy.cli import main
from vitdeploy.platforms.boards import PLATFORMS


def test_every_target_is_listed_with_what_its_row_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    first, _, second = capsys.readouterr().out.partition("\n\n")
    header, _, *lines = first.splitlines()
    assert header.split()[:3] == ["target", "opset", "INT8"]
    told = {line.split()[0]: line for line in lines}
    assert list(told) == list(TARGETS)
    for name, target in TARGETS.items():
        integers = "none" if target.int8 is None else "int8" if target.int8.activation.signed else "uint8"
        assert told[name].split()[1:3] == [str(target.opset), integers]
        assert target.description in told[name]
    header, _, *lines = second.splitlines()
    assert header.split() == ["board", "target", "jetpack", "tensorrt", "cuda", "python"]
    assert [line.split()[0] for line in lines] == [row.name for row in PLATFORMS.values() if row.jetpack]
    assert "jetson-orin-nano-jp6           tensorrt10  6.1, " in second


def test_json_has_every_field_of_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["targets"]}
    assert set(rows) == set(TARGETS)
    assert rows["onnxruntime"]["int8"]["activation"] == {"signed": False, "symmetric": False}
    assert all(row["source"] and row["opset"] >= 17 for row in rows.values())


def test_every_board_stands_for_the_generation_of_its_tensorrt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    boards = {row["board"]: row for row in json.loads(capsys.readouterr().out)["boards"]}
    assert set(boards) == {row.name for row in PLATFORMS.values() if row.jetpack}
    for row in boards.values():
        assert row["target"] == f"tensorrt{row['tensorrt'].partition('.')[0]}"
        assert row["source"]

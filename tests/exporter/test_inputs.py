"""Inputs by name, shape and type: what is asked for, what example inputs show, and which are images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitdeploy.errors import UsageError
from vitdeploy.exporter.inputs import InputSpec, made_values, parse_input, specs_of, with_images
from vitdeploy.exporter.request import ExportRequest


@pytest.mark.parametrize(
    ("text", "spec", "batch"),
    [
        ("images=1x3x224x224", InputSpec("images", (3, 224, 224)), 1),
        ("ids=4x77:int64", InputSpec("ids", (77,), "int64"), 4),
        ("x=batchx13x64x64:uint8", InputSpec("x", (13, 64, 64), "uint8"), "dynamic"),
        ("flag=1:bool", InputSpec("flag", (), "bool"), 1),
        ("x=1x3xHx32", InputSpec("x", (3, 0, 32), free=(None, "h", None)), 1),
        ("x=nxL:int32", InputSpec("x", (0,), "int32", free=("l",)), "dynamic"),
    ],
)
def test_an_input_is_read(text: str, spec: InputSpec, batch: int | str) -> None:
    assert parse_input(text) == (spec, batch)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("images", "NAME=SHAPE"),
        ("=1x3", "NAME=SHAPE"),
        ("x=", "NAME=SHAPE"),
        ("x=1x3x-Hx32", "a word where its length is free"),
        ("x=1x0x3", "NAME=SHAPE"),
        ("x=-1x3", "NAME=SHAPE"),
        ("x=0x3", "invalid batch 0"),
        ("x=1x3:float8", "float32, int64"),
        ("x=1x3.5", "NAME=SHAPE"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match="invalid") as caught:
        parse_input(text)
    assert words in str(caught.value)


def test_the_first_maps_are_images_and_others_of_their_shape() -> None:
    specs = [InputSpec("ids", (7,), "int64"), *(InputSpec(name, (3, 8, 8)) for name in "ab"), InputSpec("c", (4, 8, 8))]
    assert [spec.name for spec in with_images(specs) if spec.image] == ["a", "b"]
    assert not any(spec.image for spec in with_images([InputSpec("x", (3, 8, 8), "uint8")]))


def test_examples_show_the_inputs() -> None:
    examples = {"a": np.zeros((2, 3, 8, 8), np.float32), "b": np.zeros((2,), np.int64)}
    assert specs_of(examples) == (InputSpec("a", (3, 8, 8)), InputSpec("b", (), "int64"))


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ({"a": np.zeros((2, 3), np.float32), "b": np.zeros((1, 3), np.float32)}, "batches of 1, 2"),
        ({"a": np.zeros((), np.float32)}, "no batch axis"),
        ({"a": np.zeros((2, 3), np.complex64)}, "is complex64"),
    ],
)
def test_examples_that_are_no_batch_are_refused(examples: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        specs_of(examples)
    assert words in str(caught.value)


def test_made_values_are_of_the_type_and_begin_with_zeros() -> None:
    for dtype in ("float32", "int64", "bool", "uint8"):
        values = made_values(InputSpec("x", (5, 2), dtype), 4, seed=1)
        assert values.shape == (4, 5, 2)
        assert values.dtype == np.dtype(dtype)
        assert not values[0].any()
        assert values[1:].any()


@pytest.mark.parametrize(
    ("inputs", "batch", "fixed"),
    [
        (["x=1x3"], None, 1),
        (["x=1x3"], 4, 4),
        (["x=4x3", "y=1x2"], None, 4),
        (["x=batchx3", "y=1x2"], None, None),
        (["x=4x3"], 4, 4),
        ([], "dynamic", None),
    ],
)
def test_the_batch_is_that_of_the_inputs(
    inputs: list[str], batch: int | str | None, fixed: int | None, tmp_path: Path
) -> None:
    request = ExportRequest("lemevit_tiny", tmp_path / "b", inputs=inputs, batch=batch)
    assert request.fixed_batch == fixed


@pytest.mark.parametrize(
    ("inputs", "batch", "words"),
    [
        (["x=4x3", "y=2x3"], None, "batches of 2 and 4"),
        (["x=4x3"], "dynamic", "batches of 4 and dynamic"),
        (["x=1x3", "x=1x4"], None, "given twice"),
    ],
)
def test_inputs_that_contradict_each_other_are_refused(
    inputs: list[str], batch: int | str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        ExportRequest("lemevit_tiny", tmp_path / "b", inputs=inputs, batch=batch)
    assert words in str(caught.value)

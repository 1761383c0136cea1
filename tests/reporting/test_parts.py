"""The parts that a page is made of: escaping, figures in words, and files that are not what they say."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.errors import UsageError
from vitdeploy.reporting import documents
from vitdeploy.reporting.documents import Names
from vitdeploy.reporting.findings import Interval, Key, Speed
from vitdeploy.reporting.layers import _blocks
from vitdeploy.reporting.markup import element, join, markup, table
from vitdeploy.reporting.plots import latencies
from vitdeploy.reporting.report import _read
from vitdeploy.reporting.wording import speed_in_words, speedup

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"))


class Reader(HTMLParser):
    """The elements, attributes and texts of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(text=TEXTS, title=TEXTS)
def test_what_is_written_is_what_is_read(text: str, title: str) -> None:
    found = Reader(element("p", text, element("b", text), title=title))
    assert found.tags == [("p", {"title": title}), ("b", {})]
    assert found.text == text + text


def test_markup_is_not_escaped_twice() -> None:
    inner = element("i", "a & b")
    assert markup(inner) == inner == "<i>a &amp; b</i>"
    assert join([inner, "<"]) == "<i>a &amp; b</i>&lt;"
    assert element("td", None, class_=None) == "<td></td>"


def test_a_table_says_what_is_unknown() -> None:
    found = Reader(table("c", ["name", "value"], [["a", None], ["b", 0]]))
    assert found.text == "cnamevaluea–b0"


@given(st.floats(0.01, 100), st.floats(0.5, 1), st.floats(1, 2))
def test_a_speed_in_words_says_faster_only_where_the_whole_interval_does(value: float, low: float, high: float) -> None:
    ratio = Interval(value, value * low, value * high)
    told = speed_in_words(Speed(Key("b", "r"), 1, "int8", {"p50": 1.0}, [1.0], [1.0], 1.0, None, {}, ratio))
    assert ("x faster" in told) == (value * high < 1)
    assert ("x slower" in told) == (value * low > 1)
    turned = speedup(ratio)
    assert turned.low is not None
    assert turned.value is not None
    assert turned.high is not None
    assert turned.low <= turned.value <= turned.high


def test_the_noise_of_a_block_is_the_sum_of_that_of_its_layers(made: Path) -> None:
    document = json.loads((made / "sensitivity.json").read_text())
    for part, snr in zip(document["parts"], (20.0, 20.0, 20.0, None), strict=True):
        part |= {"snr_db": snr, "share": None}
    found = documents.sensitivity_of(document)
    assert [one.share for one in found.costs] == [pytest.approx(1 / 3)] * 3 + [None]
    assert [one.block for one in found.costs[:2]] == ["stages.0.0"] * 2
    assert found.told[0] == "All in INT8 together keep 33.0 dB."
    blocks = Reader(_blocks(found.costs)).text
    assert "stages.0.066.67" in blocks
    assert "33.33" in blocks


def test_times_of_very_different_length_have_a_scale_of_plain_numbers() -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    speeds = [
        Speed(Key("b", "r"), 1, "int8", {"p50": ms, "p90": 2 * ms}, [ms, 2 * ms], [ms], 1.0, None, {})
        for ms in (0.05, 40.0)
    ]
    found = Reader(latencies("plot", "times", speeds))
    assert "mathdefault" not in found.text
    assert "0.1" in found.text
    assert "100" in found.text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "1", True, [1]])
def test_only_a_finite_number_is_one(value: Any) -> None:
    assert documents.number(value) is None


def test_bundles_are_called_by_their_folders_unless_two_are_the_same(tmp_path: Path) -> None:
    names = Names([tmp_path / "a", tmp_path / "b"])
    assert [names.of(tmp_path / "a"), names.of(tmp_path / "x" / "c")] == ["a", "c"]
    twins = Names([tmp_path / "one" / "a", tmp_path / "two" / "a"])
    assert twins.of(tmp_path / "two" / "a") == str(tmp_path / "two" / "a")


READERS = {
    "validate": lambda document: documents.accuracy_of(document, Names([])),
    "benchmark": lambda document: documents.latency_of(document, Names([])),
    "sensitivity": documents.sensitivity_of,
    "optimize": documents.tried_of,
}
VALUES = st.sampled_from([None, "x", -1, 0, 1.5, math.nan, [], {}, [None], {"a": 1}, True])


def spoiled(value: Any, place: int, other: Any) -> tuple[Any, int]:
    """The document with its `place`-th value replaced, counted from the root down; and what is left of `place`."""
    if place == 0:
        return other, -1
    place -= 1
    if isinstance(value, dict | list):
        copy = dict(value) if isinstance(value, dict) else list(value)
        for key in list(copy) if isinstance(copy, dict) else range(len(copy)):
            copy[key], place = spoiled(copy[key], place, other)  # type: ignore[index]
            if place < 0:
                break
        return copy, place
    return value, place


@given(command=st.sampled_from(sorted(READERS)), place=st.integers(0, 300), other=VALUES)
def test_a_spoiled_file_is_read_or_refused_with_advice(made: Path, command: str, place: int, other: Any) -> None:
    document, _ = spoiled(json.loads((made / f"{command}.json").read_text()), place, other)
    (made / "spoiled.json").write_text(json.dumps(document))
    told: UsageError | None = None
    found = None
    try:
        found = _read(made / "spoiled.json", command, READERS[command])
    except UsageError as error:
        told = error
    assert (told is None) != (found is None)
    assert told is None or told.fix

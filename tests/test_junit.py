"""The JUnit XML of a run, held against the rules of the two schemas that are in use, and what the commands write."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.accuracy.accuracy_cases import labels_of, noisy, photos, write_folder, write_variant
from tests.bundles import write_tiny_bundle
from tests.conftest import examples
from vitdeploy.cli import main
from vitdeploy.junit import Case, junit

COUNT, TIME, TEXT = r"\d+", r"\d+\.\d{3}", r"(?s).*"
DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"  # without a zone, which the schema of Ant does not take


class Rule(NamedTuple):
    """What junit-10.xsd of Jenkins and JUnit.xsd of Ant both allow: attributes, those there must be, and children."""

    attributes: dict[str, str]
    required: set[str]
    children: tuple[str, ...]


RULES = {
    "testsuites": Rule(
        {"name": TEXT, "time": TIME, "tests": COUNT, "failures": COUNT, "errors": COUNT}, set(), ("testsuite",)
    ),
    "testsuite": Rule(
        {"name": TEXT, "tests": COUNT, "failures": COUNT, "errors": COUNT, "skipped": COUNT, "time": TIME}
        | {"timestamp": DATE},
        {"name", "tests", "failures", "errors", "time", "timestamp"},
        ("testcase",),
    ),
    "testcase": Rule(
        {"name": TEXT, "classname": TEXT, "time": TIME},
        {"name", "classname", "time"},
        ("skipped", "error", "failure"),
    ),
    "skipped": Rule({"message": TEXT}, set(), ()),
    "error": Rule({"message": TEXT, "type": TEXT}, {"type"}, ()),
    "failure": Rule({"message": TEXT, "type": TEXT}, {"type"}, ()),
}


def suite_of(text: str) -> ElementTree.Element:
    """The suite of a document that keeps every rule, with counts that are those of its cases."""
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    for element in root.iter():
        rule = RULES[element.tag]
        assert rule.required <= element.attrib.keys() <= rule.attributes.keys()
        wrong = {name: value for name, value in element.items() if not re.fullmatch(rule.attributes[name], value)}
        assert wrong == {}
        assert {child.tag for child in element} <= set(rule.children)
    (suite,) = root
    cases = list(suite)
    assert all(len(case) <= 1 for case in cases), "a case has one end"
    for holder in (root, suite):
        assert int(holder.attrib["tests"]) == len(cases)
        assert int(holder.attrib["failures"]) == len(list(suite.iter("failure")))
        assert int(holder.attrib["errors"]) == len(list(suite.iter("error")))
        assert holder.attrib["time"] == f"{sum(float(case.attrib['time']) for case in cases):.3f}"
    assert int(suite.attrib["skipped"]) == len(list(suite.iter("skipped")))
    return suite


def ends(suite: ElementTree.Element) -> dict[tuple[str, str], str]:
    """How each case ended, by subject and gate."""
    return {(case.attrib["classname"], case.attrib["name"]): case[0].tag if len(case) else "" for case in suite}


ANY = st.text(st.characters(), max_size=20)
WHY = st.none() | ANY
ENDS = st.sampled_from(("failure", "skipped", "error"))
CASES = st.lists(
    st.tuples(ANY, ANY, ENDS, WHY).map(lambda drawn: Case(drawn[0], drawn[1], **{drawn[2]: drawn[3]})),
    min_size=1,
    max_size=5,
)


@given(cases=CASES, seconds=st.floats(0, 1e6))
@settings(max_examples=examples(100))
def test_whatever_a_name_or_a_message_holds_the_document_keeps_the_rules(cases: list[Case], seconds: float) -> None:
    suite = suite_of(junit("validate", cases, seconds))
    for case, element in zip(cases, suite, strict=True):
        told = next((why for why in (case.failure, case.skipped, case.error) if why is not None), None)
        assert (len(element) == 1) == (told is not None)
        if told is not None and told.isascii() and told.isprintable():
            assert element[0].text == (told or None)
            assert element[0].attrib["message"] == told


def test_characters_that_xml_does_not_have_are_replaced_and_others_kept() -> None:
    suite = suite_of(junit("verify", [Case("a\0b\ud800", "<&\"'> é", failure="one\ntwo \x1b[1m")], 1.5))
    (case,) = suite
    assert (case.attrib["classname"], case.attrib["name"]) == ("a\ufffdb\ufffd", "<&\"'> é")
    assert case[0].attrib["message"] == "one"
    assert case[0].text == "one\ntwo \ufffd[1m"
    ended = junit("verify", [Case("a", "b")], 0, datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
    assert suite_of(ended).attrib["timestamp"] == "2026-01-02T03:04:05"


def test_the_rules_find_what_they_look_for() -> None:
    good = junit("verify", [Case("a", "b", failure="c"), Case("a", "d")], 1)
    assert ends(suite_of(good)) == {("a", "b"): "failure", ("a", "d"): ""}
    for old, new in (
        ('tests="2"', 'tests="3"'),
        ('failures="1"', 'failures="0"'),
        ('time="1.000"', 'time="1e3"'),
        ('classname="a"', 'class="a"'),
        ("<failure", '<failure line="1"'),
        ("<testcase", "<testcase><properties/></testcase><testcase"),
    ):
        assert old in good
        with pytest.raises((AssertionError, KeyError)):
            suite_of(good.replace(old, new))


Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command in a folder with bundles `fp32`, `int8` and `data`; its exit code."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiny_bundle(tmp_path / "fp32")
    write_variant(tmp_path / "int8", noisy(), precision="int8")
    images = photos(40)
    write_folder(tmp_path / "data", images, labels_of(images))
    return lambda *words: main([*words, "--runtime", "onnxruntime", "--junit", "out.xml", "--json"])


INT8, FP32 = "int8 on onnxruntime", "fp32 on onnxruntime"


def test_validate_has_a_case_for_each_bundle_and_gate(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("validate", "int8", "fp32", "--data", "data", "--no-record")
    assert run(*words, "--max-drop", "1") == 1
    suite = suite_of(Path("out.xml").read_text())
    assert ends(suite) == {
        (FP32, "is a sound baseline"): "",
        (INT8, "gives finite outputs"): "",
        (INT8, "drops at most 1 points"): "failure",
    }
    (failure,) = suite.iter("failure")
    assert [failure.attrib["message"]] == json.loads(capsys.readouterr().out)["failures"]
    assert run(*words, "--max-drop", "90") == 0
    assert set(ends(suite_of(Path("out.xml").read_text())).values()) == {""}
    assert run(*words) == 0
    assert len(suite_of(Path("out.xml").read_text())) == 2


def test_a_broken_baseline_is_the_failure_of_its_own_case(run: Run) -> None:
    images = photos(40)
    for old in Path("data").iterdir():
        old.rename(f"{old}.was")
    write_folder(Path("shuffled"), images, np.random.default_rng(0).permutation(labels_of(images)))
    assert run("validate", "int8", "fp32", "--data", "shuffled", "--max-drop", "90") == 1
    found = ends(suite_of(Path("out.xml").read_text()))
    assert found[FP32, "is a sound baseline"] == "failure"
    assert found[INT8, "drops at most 90 points"] == ""


def test_an_error_is_in_the_file_in_the_place_of_an_earlier_result(run: Run) -> None:
    assert run("verify", "fp32") == 0
    assert set(ends(suite_of(Path("out.xml").read_text())).values()) == {""}
    assert run("validate", "int8", "fp32", "--data", "gone") == 2
    suite = suite_of(Path("out.xml").read_text())
    assert ends(suite) == {("vitdeploy validate", "can be judged"): "error"}
    assert "there is no file or folder gone" in str(suite[0][0].text)
    assert [path.name for path in Path().iterdir() if "partial" in path.name] == []


def test_verify_has_a_case_for_each_thing_that_it_holds(run: Run) -> None:
    assert run("verify", "int8") == 1
    found = ends(suite_of(Path("out.xml").read_text()))
    assert found == {
        (INT8, "has the inputs and outputs of its manifest"): "",
        (INT8, "gives the outputs of PyTorch"): "failure",
        (INT8, "gives what it gave at its export"): "",
    }


def test_benchmark_has_a_case_for_each_candidate(run: Run) -> None:
    few = ("--rounds", "8", "--warmup", "0")
    assert run("benchmark", "fp32", "int8", *few, "--max-slowdown", "1000000") == 0
    gate = "takes at most 1e+06 times the baseline"
    names = [f"{name} on onnxruntime, batch 1" for name in ("fp32", "int8")]
    assert ends(suite_of(Path("out.xml").read_text())) == {(name, gate): "" for name in names}


def test_too_few_rounds_judge_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("benchmark", "fp32", "int8", "--rounds", "2", "--warmup", "0", "--max-slowdown", "1000000") == 1
    suite = suite_of(Path("out.xml").read_text())
    assert "too few for an interval" in next(suite.iter("failure")).attrib["message"]
    assert json.loads(capsys.readouterr().out)["passed"] is False

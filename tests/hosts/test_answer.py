"""What the end of a command on a device means, and what is read of results whose form nobody promises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from vitdeploy.hosts.answer import Ended, judge, parse
from vitdeploy.hosts.outcome import STATUSES, Asked, Figures, Outcome, TroubleError, clean, figures_of
from vitdeploy.hosts.report import FleetReport

VERBS = ("build", "verify", "benchmark", "validate")
FAILURE = {"error": "no", "why": None, "try": None, "exit_code": 2}


def ended(answer: Any, code: int | None = 0, signal: str | None = None) -> Ended:
    return Ended(code, signal, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), b"")


@pytest.mark.parametrize(
    ("verb", "end", "status"),
    [
        ("verify", ended({"passed": True}), "passed"),
        ("verify", ended({"passed": False, "failures": []}, 1), "failed"),
        ("verify", ended(FAILURE, 2), "error"),
        ("verify", ended({**FAILURE, "exit_code": 1}, 1), "failed"),
        ("verify", ended({**FAILURE, "try": "vitdeploy build b --rebuild"}, 2), "stale engine"),
        ("verify", ended({**FAILURE, "try": "`vitdeploy build b --rebuild` on this machine"}, 1), "stale engine"),
        ("build", ended({**FAILURE, "try": "vitdeploy build b --rebuild"}, 2), "error"),
        ("verify", ended({**FAILURE, "try": "vitdeploy builder"}, 2), "error"),
    ],
)
def test_an_answer_is_a_result_or_a_failure_of_the_device(verb: str, end: Ended, status: str) -> None:
    assert judge(verb, end).status == status


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (ended(b"", None), "connection lost"),
        (ended(b'{"passed": true}', None), "connection lost"),
        (ended(b""), "no result"),
        (ended(b"[1]"), "no result"),
        (ended(b'{"passed": NaN}'), "no result"),
        (ended(b'{"passed": 1e999}'), "no result"),
        (ended(b"\xff\xfe"), "no result"),
        (ended(b"[" * 100_000), "no result"),
        (ended(b'{"a": ' + b"1" * 5000 + b"}"), "no result"),
        (ended(b'{"a": ' + b"1" * 400 + b"}"), "no result"),
        (ended(FAILURE, 0), "no result"),
        (ended({"error": 5}, 2), "no result"),
        (ended({**FAILURE, "try": 5}, 2), "no result"),
        (ended({"passed": True}, None, "KILL"), "no result"),
        (ended({"passed": True}, 130), "no result"),
        (ended(b"", 127), "no vitdeploy"),
        (ended(b"", 126), "no vitdeploy"),
    ],
)
def test_what_is_no_answer_is_told_with_what_to_do(end: Ended, status: str) -> None:
    with pytest.raises(TroubleError) as caught:
        judge("verify", end)
    assert caught.value.status == status
    assert caught.value.what
    assert caught.value.fix


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 62), 1 << 62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
KNOWN = (
    *("passed", "failures", "parity", "outputs", "snr_db", "runtime", "backend", "version", "device", "product"),
    *("tensorrt", "unproven", "candidates", "latency_ms", "p50", "settings", "batch", "runs", "top1", "drop", "name"),
)
RESULTS = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KNOWN), inner, max_size=6)
)


@settings(max_examples=examples(150))
@given(st.sampled_from(VERBS), st.dictionaries(st.sampled_from(KNOWN), RESULTS, max_size=6), st.integers(0, 1))
def test_whatever_a_result_holds_there_is_a_row_for_it(verb: str, result: dict[str, Any], code: int) -> None:
    judged = judge(verb, ended(result, code))
    one = Outcome("nano", judged.status, Asked(verb, "0" * 64, "nano", ()), judged.what, judged.why, result=result)
    shown = str(FleetReport(verb, "b", "0" * 64, "fleet.toml", (one,)))
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert one.passed == (code == 0)
    assert Outcome.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@settings(max_examples=examples(100))
@given(JSON)
def test_what_is_read_back_is_an_outcome_or_refused(document: Any) -> None:
    asked = Asked("verify", "0" * 64, "nano", ("vitdeploy",))
    good = Outcome("nano", STATUSES[0], asked).to_dict()
    for key in good:
        try:
            found = Outcome.from_dict({**good, key: document})
        except (ValueError, TypeError):
            continue
        assert found.status in STATUSES
    with pytest.raises(ValueError, match="other keys"):
        Outcome.from_dict(document)


@given(st.binary())
def test_no_output_raises(output: bytes) -> None:
    found = parse(output)
    assert found is None or isinstance(found, dict)


@given(st.text())
def test_a_clean_text_is_one_printable_line(text: str) -> None:
    shown = clean(text, 40)
    assert shown.isprintable()
    assert len(shown) <= 40


@pytest.mark.parametrize(
    ("verb", "result", "expected"),
    [
        (
            "verify",
            {
                "runtime": {"backend": "onnxruntime", "version": "1.2", "device": "CPU"},
                "parity": {"outputs": [{"snr_db": 70.0}, {"snr_db": 64.26}, {"snr_db": None}]},
            },
            Figures("CPU", "onnxruntime 1.2", "64.3 dB"),
        ),
        ("verify", {"parity": {"outputs": [{"snr_db": None, "passed": True}]}}, Figures("", "", "no error")),
        (
            "build",
            {"product": "TensorRT", "tensorrt": "10.3", "device": "Orin", "parity": {"outputs": [{"snr_db": 51}]}},
            Figures("Orin", "TensorRT 10.3", "51.0 dB"),
        ),
        ("build", {"parity": None, "unproven": "no GPU"}, Figures("", "", "not proven")),
        (
            "benchmark",
            {
                "candidates": [
                    {"runtime": "a", "batch": 1, "latency_ms": {"p50": 9.0}},
                    {"runtime": "b", "batch": 8, "latency_ms": {"p50": 2.345}, "settings": {"version": "3"}},
                ]
            },
            Figures("", "b 3", "2.35 ms, batch 8"),
        ),
        (
            "validate",
            {"runs": [{"name": "tiny on ort", "top1": 93.6, "drop": 0.1}]},
            Figures("", "tiny on ort", "93.60 % top-1, drop 0.10"),
        ),
        ("validate", {"runs": [{"name": "seg", "drop": 0.1}]}, Figures("", "seg", "drop 0.10")),
    ],
)
def test_the_figures_are_those_of_the_result(verb: str, result: dict[str, Any], expected: Figures) -> None:
    assert figures_of(verb, result) == expected

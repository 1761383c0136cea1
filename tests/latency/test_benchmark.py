"""Benchmarks: turns, candidates, baselines, refusals. No time decides a test: clocks and workers are made up."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import write_tiny_bundle
from tests.latency.fake_benchmark import MILLISECONDS, FakeWorker, run
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, MissingDependencyError, UsageError
from vitdeploy.latency.baseline import Earlier, Own, find_baseline
from vitdeploy.latency.measurement import Turn
from vitdeploy.latency.turns import interleave, warm_up
from vitdeploy.runtime.backends import backend_names

pytestmark = pytest.mark.usefixtures("machine")


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "fixed", batch=2)


# Taking turns


def turns_of(clock: Clock, log: list[str], *, seconds: float = 1.0) -> list[Callable[[], str]]:
    def turn(name: str) -> Callable[[], str]:
        def take() -> str:
            clock.now += seconds
            log.append(name)
            return name

        return take

    return [turn(name) for name in "abcd"]


def test_every_round_gives_each_candidate_one_turn_in_a_new_order() -> None:
    log: list[str] = []
    results = list(interleave(turns_of(Clock(), log), seconds=None, rounds=60))
    assert results == [list("abcd")] * 60  # sorted back, whatever the order was
    orders = ["".join(log[i : i + 4]) for i in range(0, len(log), 4)]
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(set(orders)) > 15
    assert set(Counter(order[0] for order in orders)) == set("abcd")


def test_a_round_is_finished_when_the_time_is_over() -> None:
    clock, log = Clock(), []
    assert len(list(interleave(turns_of(clock, log), seconds=10.0, rounds=None, clock=clock))) == 3
    assert len(log) == 12


def test_rounds_and_seconds_stop_at_what_comes_first_after_one_round() -> None:
    clock = Clock()
    assert len(list(interleave(turns_of(clock, []), seconds=1000.0, rounds=5, clock=clock))) == 5
    assert len(list(interleave(turns_of(clock, []), seconds=8.0, rounds=5, clock=clock))) == 2
    assert len(list(interleave(turns_of(clock, []), seconds=0.001, rounds=5, clock=clock))) == 1


def test_warming_up_takes_its_time_and_says_how_many_calls_make_a_turn() -> None:
    clock, asked = Clock(), []

    def turn(calls: int) -> Turn:
        asked.append(calls)
        clock.now += 0.3
        return Turn([0.004 * calls], 0.004, None)

    assert warm_up(turn, 1.0, clock) == 12
    assert asked == [1, 1, 1, 1]
    assert warm_up(turn, 0.0, clock) == 12
    assert len(asked) == 5


@pytest.mark.parametrize(("seconds", "calls"), [(3.0, 1), (0.05, 1), (0.02, 2), (1e-6, 1000)])
def test_a_turn_has_at_least_one_call_and_not_too_many(seconds: float, calls: int) -> None:
    assert warm_up(lambda _: Turn([seconds], seconds, None), 0.0, Clock()) == calls


# Candidates


def test_candidates_are_every_bundle_on_every_runtime_with_every_batch(bundles: list[Bundle]) -> None:
    report = run(bundles, runtime=["onnxruntime", "openvino"], batch=[1, 8], threads=3)
    assert [(Path(one.bundle).name, one.runtime, one.batch) for one in report.measurements] == [
        (name, runtime, batch) for name in ("one", "two") for runtime in MILLISECONDS for batch in (1, 8)
    ]
    assert {str(options) for *_, options in FakeWorker.started} == {"{'threads': 3}"}
    assert all(len(one.rounds) == 12 for one in report.measurements)
    assert FakeWorker.alive == 0


def test_auto_is_found_out_once_and_measured_under_its_name(bundles: list[Bundle]) -> None:
    report = run(bundles[0], batch=[1, 4])
    assert [start[1:3] for start in FakeWorker.started] == [("auto", 1), ("openvino", 1), ("openvino", 4)]
    assert [one.runtime for one in report.measurements] == ["openvino", "openvino"]
    assert FakeWorker.alive == 0


def test_all_leaves_out_what_cannot_run_and_says_so(bundles: list[Bundle]) -> None:
    report = run(bundles[0], runtime="all", batch=[1, 2])
    assert {one.runtime for one in report.measurements} == set(MILLISECONDS)
    left_out = {skip["runtime"]: skip["reason"] for skip in report.skipped}
    assert left_out.keys() == set(backend_names()) - set(MILLISECONDS)
    assert left_out["torch"] == "torch is not installed"
    assert [start[1] for start in FakeWorker.started].count("torch") == 1
    assert "torch is not installed" in str(report)


def test_a_runtime_that_was_asked_for_is_not_left_out(bundles: list[Bundle]) -> None:
    with pytest.raises(MissingDependencyError):
        run(bundles[0], runtime=["openvino", "torch"])
    assert FakeWorker.alive == 0


def test_nothing_that_runs_is_an_error(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWorker, "missing", backend_names())
    with pytest.raises(BackendError, match=r"no runtime of this(.|\n)*onnxruntime is not installed(.|\n)*doctor"):
        run(bundles[0], runtime="all")


def test_the_batch_of_a_fixed_bundle_is_its_own(fixed: Bundle, bundles: list[Bundle]) -> None:
    assert [one.batch for one in run([fixed, bundles[0]], runtime="openvino").measurements] == [2, 1]
    FakeWorker.started.clear()
    with pytest.raises(UsageError, match=r"cannot be measured with batch 8\n.*exactly 2\n.*--batch 2, or .*dynamic"):
        run(fixed, runtime="openvino", batch=[2, 8])
    assert FakeWorker.started == []


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"seconds": 0}, "invalid seconds"),
        ({"seconds": float("nan")}, "invalid seconds"),
        ({"seconds": float("inf")}, "invalid seconds"),
        ({"rounds": 0}, "invalid rounds 0"),
        ({"warmup": -1}, "invalid warmup"),
        ({"batch": 0}, "invalid batch 0"),
        ({"batch": []}, "nothing to measure"),
        ({"runtime": "onnxrt"}, "onnxruntime"),
        ({"threads": 0}, "invalid threads: 0"),
        ({"compute_precision": "fp8"}, "fp8"),
        ({"baseline": "yesterday"}, "no baseline 'yesterday'"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    bundles: list[Bundle], wrong: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        run(bundles[0], **wrong)
    assert FakeWorker.started == []


# Ratios


def test_the_first_runtime_is_the_baseline_of_one_bundle(bundles: list[Bundle]) -> None:
    report = run(bundles[0], runtime=["onnxruntime", "openvino"])
    assert report.baseline == "onnxruntime"
    # Every third round takes twice as long for both: paired, that changes nothing.
    assert [ratio and ratio[:3] for ratio in report.ratios] == [(1.0, 1.0, 1.0), pytest.approx((0.5, 0.5, 0.5))]


def test_the_first_bundle_is_the_baseline_of_several_on_each_runtime(bundles: list[Bundle]) -> None:
    report = run(bundles, runtime=["onnxruntime", "openvino"], batch=[1, 8])
    assert report.baseline == str(bundles[0].path)
    assert [ratio and ratio.value for ratio in report.ratios] == pytest.approx([1.0] * 8)


def test_a_single_candidate_has_no_baseline(bundles: list[Bundle]) -> None:
    report = run(bundles[0], runtime="openvino", batch=[1, 8])
    assert report.baseline is None
    assert report.ratios == [None, None]
    assert "ratio" not in str(report)


def test_a_runtime_or_a_bundle_may_be_chosen_as_the_baseline(bundles: list[Bundle]) -> None:
    names = [str(bundle.path) for bundle in bundles]
    report = run(bundles, runtime=["onnxruntime", "openvino"], baseline="openvino")
    assert [ratio and ratio.value for ratio in report.ratios] == pytest.approx([2.0, 1.0, 2.0, 1.0])
    assert find_baseline(names[1], names, backend_names()) == Own(names[1], None)
    with pytest.raises(UsageError, match="baseline openvino is not among the candidates"):
        run(bundles[0], runtime="onnxruntime", baseline="openvino")


@pytest.fixture
def earlier(bundles: list[Bundle], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    document = run(bundles[0], runtime=["onnxruntime", "openvino"]).to_dict()
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(document))
    return path, document


def test_an_earlier_run_under_the_same_settings_compares(
    earlier: tuple[Path, dict[str, Any]], bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MILLISECONDS, "openvino", 3.0)
    report = run(bundles[1], runtime="openvino", baseline=earlier[0])
    assert report.differences == []
    (ratio,) = report.ratios
    assert ratio is not None
    assert ratio.value == pytest.approx(1.5)
    assert not ratio.paired
    assert ratio.low <= 1.5 <= ratio.high


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda machine: machine.update(governor="powersave"), "governor was performance and is powersave"),
        (lambda machine: machine.update(power_mode="15W (0)"), r"power_mode was unknown and is 15W \(0\)"),
        (lambda machine: setattr(FakeWorker, "version", "1.1"), "openvino: version was 1.0 and is 1.1"),
    ],
)
def test_an_earlier_run_under_other_settings_is_refused_unless_told_to(
    earlier: tuple[Path, dict[str, Any]],
    bundles: list[Bundle],
    machine: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:
    monkeypatch.setattr(FakeWorker, "version", "1.0")
    change(machine)
    with pytest.raises(UsageError, match=rf"different settings\n.*{words}(.|\n)*--allow-different"):
        run(bundles[0], runtime="openvino", baseline=earlier[0])
    assert FakeWorker.alive == 0
    report = run(bundles[0], runtime="openvino", baseline=earlier[0], allow_different=True)
    assert len(report.differences) == 1
    assert report.ratios[0] is not None
    assert f"compared all the same: {report.differences[0]}" in str(report)


def test_more_callers_are_another_setting(earlier: tuple[Path, dict[str, Any]], bundles: list[Bundle]) -> None:
    with pytest.raises(UsageError, match="callers was 1 and is 4"):
        run(bundles[0], runtime="openvino", baseline=earlier[0], num_requests=4)


def test_an_earlier_run_of_other_batches_does_not_compare(
    earlier: tuple[Path, dict[str, Any]], bundles: list[Bundle]
) -> None:
    with pytest.raises(UsageError, match=r"no candidate to compare(.|\n)*on onnxruntime with batch 1"):
        run(bundles[0], runtime="openvino", batch=8, baseline=earlier[0])
    report = run(bundles[0], runtime="openvino", batch=[8, 1], baseline=earlier[0])
    assert report.ratios[0] is None
    assert report.ratios[1] is not None


def test_an_earlier_run_of_several_bundles_compares_by_their_names(
    earlier: tuple[Path, dict[str, Any]], bundles: list[Bundle]
) -> None:
    path, document = earlier
    twice = copy.deepcopy(document["candidates"])
    for candidate in twice:
        candidate["bundle"] = "/elsewhere/two"
        candidate["image_seconds"] = [10 * seconds for seconds in candidate["image_seconds"]]
    document["candidates"] += twice
    path.write_text(json.dumps(document))
    report = run(bundles, runtime="openvino", baseline=path)
    assert [ratio and ratio.value for ratio in report.ratios] == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda document: "not json", "not JSON"),
        (lambda document: "[1, 2]", "not the JSON of a benchmark"),
        (lambda document: json.dumps({**document, "schema_version": 99}), "newer vitdeploy"),
        (lambda document: json.dumps({**document, "machine": None}), "not the JSON of a benchmark"),
        (lambda document: json.dumps({**document, "candidates": [{"bundle": "b"}]}), "not the JSON of a benchmark"),
        (
            lambda document: json.dumps(
                {**document, "candidates": [{**document["candidates"][0], "image_seconds": [0]}]}
            ),
            "positive numbers",
        ),
    ],
)
def test_a_file_that_is_no_earlier_run_is_refused(
    earlier: tuple[Path, dict[str, Any]], spoil: Callable[[dict[str, Any]], str], complaint: str
) -> None:
    path, document = earlier
    path.write_text(spoil(document))
    with pytest.raises(UsageError, match=complaint):
        Earlier.read(path)


# Stopping


def test_an_interrupted_benchmark_reports_its_complete_rounds(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeWorker, "stop_after", 5)  # the first is the warm-up
    report = run(bundles, runtime="openvino", rounds=100, on_interrupt="report")
    assert FakeWorker.alive == 0
    assert [len(one.rounds) for one in report.measurements] == [4, 4]
    assert report.to_dict()["interrupted"] is True
    assert "INTERRUPTED" in str(report)


@pytest.mark.parametrize(("stop_after", "on_interrupt"), [(0, "report"), (1, "report"), (5, "raise")])
def test_an_interrupt_goes_on_where_nothing_was_measured_or_no_report_is_wanted(
    stop_after: int, on_interrupt: str, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeWorker, "stop_after", stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(bundles, runtime="openvino", rounds=100, on_interrupt=on_interrupt)
    assert FakeWorker.alive == 0


# For real


def test_a_real_run_needs_no_framework_in_the_process_that_asks(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = write_tiny_bundle(tmp_path / "b")
    code = (
        "import sys, vitdeploy; "
        f"report = vitdeploy.benchmark({str(bundle.path)!r}, runtime='onnxruntime', batch=3, rounds=2, warmup=0); "
        "one = report.measurements[0]; print(len(one.rounds), one.batch, one.settings['compute_precision'] != '', "
        "[name for name in ('torch', 'onnx', 'onnxruntime', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "2 3 True []\n", done.stderr

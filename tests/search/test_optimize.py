"""`vitdeploy optimize` as one would type it, on a small network; which forms are faster is told instead of timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.costs.networks import write_data, write_network
from vitdeploy import Bundle, verify
from vitdeploy.cli import main
from vitdeploy.costs.trials import Int8Trial
from vitdeploy.quantize import pipeline
from vitdeploy.quantize.latency import Group, LatencyReport
from vitdeploy.search import bench, graphs, steps
from vitdeploy.search.bench import Bench, Int8Bench
from vitdeploy.search.front import dominates
from vitdeploy.search.plan import INT8, Plan, Trial
from vitdeploy.search.study import JOURNAL
from vitdeploy.statistics import Ratio

pytest.importorskip("optuna")
pytest.importorskip("onnxruntime")

GROUPS = (("graph/MatMul_1", "graph/MatMul_2"), ("graph/MatMul",), ("graph/MatMul_3",))
FEW = ("--samples", "20", "--images", "20", "--threads", "1", "--minutes", "5")

Run = Callable[..., tuple[int, dict[str, Any]]]


def ratio(value: float) -> Ratio:
    return Ratio(value, value - 0.01, value + 0.01, paired=True)


def told(whole: float, groups: Sequence[Sequence[str]] = GROUPS) -> LatencyReport:
    """INT8 takes `whole` of the time of FP32, and each group 0.9 of the time without it."""
    return LatencyReport({}, tuple(Group(tuple(nodes), ratio(0.9)) for nodes in groups), ratio(whole))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_network(tmp_path / "net.onnx", "channel")
    write_data(tmp_path / "data.npz", 60)
    return tmp_path


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 takes half of the time of FP32, and a little more with each group in float."""
    monkeypatch.setattr(bench, "int8_latency", lambda *arguments: told(0.7))
    measured = Bench.trial

    def timed(self: Bench, plan: Plan, *rest: Any) -> Trial:
        value = 0.5 + 0.1 * len(plan.floats) if plan.precision == INT8 else 1.0
        return replace(measured(self, plan, *rest), ratio=ratio(value))

    monkeypatch.setattr(Bench, "trial", timed)
    monkeypatch.setattr(graphs, "timed_again", lambda trials, *rest: list(trials))


@pytest.fixture
def run(files: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def go(*words: str) -> tuple[int, dict[str, Any]]:
        command = ["optimize", "net.onnx", "--data", "data.npz", "--runtime", "ort", "-o", "front", *FEW, *words]
        code = main([*command, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert code < 2, found
        return code, found

    return go


@pytest.mark.usefixtures("faster")
def test_what_is_best_becomes_verified_bundles(run: Run, files: Path) -> None:
    code, found = run("--trials", "6", "--keep", "2")
    assert code == 0
    tried = [trial for trial in found["trials"] if trial["plan"]["precision"] == INT8]
    assert len(tried) == 6
    assert {trial["by"] for trial in tried} == {"greedy", "optuna"}
    assert len({json.dumps(trial["plan"]) for trial in found["trials"]}) == len(found["trials"])
    assert {point["precision"] for point in found["points"]} >= {"fp32", "int8"}
    assert sum(point["precision"] == INT8 for point in found["points"]) <= 2
    assert found["chosen"] in {point["path"] for point in found["points"]}
    for point in found["points"]:
        assert verify(point["path"], runtime="onnxruntime").passed
        assert point["drop_low"] <= point["drop"] <= point["drop_high"]
        assert point["milliseconds"] > 0
    assert found["images"] == {"trials": 60, "bundles": 60}  # DATA has no 64 that do not calibrate
    best = [point for point in found["points"] if point["front"]]
    assert best
    for point in found["points"]:
        values = (point["ratio"], point["drop"])
        others = [(other["ratio"], other["drop"]) for other in found["points"]]
        assert point["front"] is not any(dominates(other, values) for other in others)


@pytest.mark.usefixtures("faster")
def test_a_session_in_bfloat16_is_tried_where_the_processor_has_it(run: Run) -> None:
    pytest.importorskip("openvino")
    code, found = run("--runtime", "ov", "--trials", "1", "--search", "greedy")
    assert code == 0
    tried = [trial for trial in found["trials"] if trial["plan"]["compute_precision"] == "bf16"]
    left_out = [note for note in found["notes"] if "bf16 was left out: fp32 is computed here all the same" in note]
    assert len(tried) + len(left_out) == 1
    assert len([point for point in found["points"] if point["plan"]["compute_precision"]]) == len(tried)


@pytest.mark.parametrize(
    ("hint", "faster_by_hint", "keeps_db"),
    [("bf16", True, 44.0), ("bf16", True, 18.0), ("bf16", False, 44.0), (None, False, 44.0)],
)
def test_int8_is_computed_in_less_where_fp32_is_faster_so_and_right(
    run: Run, monkeypatch: pytest.MonkeyPatch, hint: str | None, faster_by_hint: bool, keeps_db: float
) -> None:
    pytest.importorskip("openvino")
    asked: list[str | None] = []

    def latency(origin: object, runtime: str, threads: object, compute_precision: str | None) -> LatencyReport:
        asked.append(compute_precision)
        return told(0.7)

    monkeypatch.setattr(bench, "int8_latency", latency)
    monkeypatch.setattr(graphs, "HINTS", () if hint is None else (hint,))
    monkeypatch.setattr(graphs, "_computes", lambda backend: object())  # whatever this processor makes of a hint
    measured = Bench.trial

    def timed(self: Bench, plan: Plan, *rest: Any) -> Trial:
        value = 0.5 + 0.1 * len(plan.floats) if plan.precision == INT8 else 1.0
        value *= 0.8 if plan.compute_precision and faster_by_hint else 1.0
        found = replace(measured(self, plan, *rest), ratio=ratio(value))
        return replace(found, snr_db=keeps_db) if plan.compute_precision and plan.precision != INT8 else found

    monkeypatch.setattr(Bench, "trial", timed)
    monkeypatch.setattr(graphs, "timed_again", lambda trials, *rest: list(trials))
    code, found = run("--runtime", "ov", "--search", "greedy", "--keep", "2")
    assert code == 0
    tried = [trial["plan"] for trial in found["trials"] if trial["plan"]["precision"] == INT8]
    lossy = keeps_db < 35
    computed = hint if faster_by_hint and not lossy else None
    precisions = [plan["compute_precision"] for plan in tried]
    assert set(precisions) == ({None, hint} if faster_by_hint and lossy else {computed})
    assert precisions.count(hint) <= 2 or not lossy  # of the best plans alone
    assert asked == [computed]  # what INT8 saves is timed with the rest computed like that
    points = [point["plan"] for point in found["points"] if point["plan"]["precision"] == INT8]
    assert points
    assert {plan["compute_precision"] for plan in points} <= set(precisions)
    assert (hint in {plan["compute_precision"] for plan in points}) is faster_by_hint or hint is None
    chosen = next(point for point in found["points"] if point["path"] == found["chosen"])
    named = chosen["plan"]["compute_precision"]
    assert ("computed in" in found["verdict"]) is (named is not None)
    assert named is None or f"{found['chosen']} computed in {named}: x" in found["verdict"]
    assert run("--runtime", "ov", "--search", "greedy", "--keep", "2")[1]["trials"] == found["trials"]


@pytest.mark.usefixtures("faster")
def test_the_groups_of_a_plan_are_in_float_in_its_bundle(run: Run) -> None:
    _, found = run("--trials", "4", "--search", "greedy")
    mixed = [point for point in found["points"] if point["plan"]["floats"]]
    assert mixed
    for point in mixed:
        names = {name.split(" and ")[0] for name in point["plan"]["floats"]}
        inside = {nodes for nodes in GROUPS if nodes[0] in names}
        in_float = Bundle.open(point["path"]).manifest.precision_report["float"]
        assert {node for nodes in inside for node in nodes} <= set(in_float)
        assert not {node for nodes in GROUPS if nodes not in inside for node in nodes} & set(in_float)


@pytest.mark.usefixtures("faster")
def test_a_bundle_is_the_graph_that_was_tried_and_nothing_is_calibrated_twice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("calibrated twice")

    build, tried = Int8Trial.build, list[set[bytes]]()

    def noted(self: Int8Trial, nodes: Sequence[str]) -> ir.Model:
        made = build(self, nodes)
        tried.append({value.const_value.numpy().tobytes() for value in made.graph.initializers.values()})
        return made

    monkeypatch.setattr(pipeline, "calibrate", forbidden)
    monkeypatch.setattr(Int8Trial, "build", noted)
    _, found = run("--trials", "4", "--search", "greedy")
    paths = [point["path"] for point in found["points"] if point["precision"] == INT8]
    assert paths
    for path in paths:
        shipped = {numpy_helper.to_array(one).tobytes() for one in onnx.load(f"{path}/model.onnx").graph.initializer}
        assert shipped in tried


def test_bundles_are_those_of_export_from_one_capture(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.exporter import preparation

    capture, captures = preparation.captured, list[int]()

    def counted(*arguments: Any) -> Any:
        captures.append(1)
        return capture(*arguments)

    monkeypatch.setattr(preparation, "captured", counted)
    monkeypatch.setattr(bench, "int8_latency", lambda *arguments: told(1.2))
    _, found = run()
    assert len(captures) == 2  # a network may change for FP16 before it is captured
    assert {point["precision"] for point in found["points"]} == {"fp32", "fp16"}
    for point in found["points"]:
        path = files / f"plain-{point['precision']}"
        words = ["export", "net.onnx", "--precision", point["precision"], "--target", "onnxruntime"]
        assert main([*words, "-o", str(path)]) == 0
        shipped = Bundle.open(point["path"]).read("model.onnx")
        assert shipped == Bundle.open(path).read("model.onnx")


def test_where_int8_is_not_faster_nothing_is_calibrated(run: Run, monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    monkeypatch.setattr(bench, "int8_latency", lambda *arguments: told(1.2))

    def forbidden(*arguments: object) -> None:
        raise AssertionError("calibrated for nothing")

    monkeypatch.setattr(bench, "Int8Trial", forbidden)
    code, found = run()
    assert code == 0
    assert not [trial for trial in found["trials"] if trial["plan"]["precision"] == INT8]
    assert any(
        "INT8 is not faster than FP32 on onnxruntime here (x1.20 of the time)" in note for note in found["notes"]
    )


@pytest.mark.usefixtures("faster")
def test_what_takes_turns_once_more_decides_which_plan_becomes_a_bundle(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its trial the plan with most groups in float was slowest; in turns it is the fastest."""
    asked: list[Plan] = []
    loaded: list[str] = []

    def again(trials: Sequence[Trial], fp32: Any, load: Callable[[Plan], Any], inputs: Any) -> list[Trial]:
        for trial in trials:
            asked.append(trial.plan)
            backend = load(trial.plan)
            loaded.append(backend.describe()["backend"])
            backend.close()
        return [replace(trial, ratio=ratio(0.9 - 0.1 * len(trial.plan.floats))) for trial in trials]

    monkeypatch.setattr(graphs, "timed_again", again)
    code, found = run("--trials", "3", "--search", "greedy", "--keep", "1")
    assert code == 0
    assert loaded == ["onnxruntime"] * len(asked)
    assert len({len(plan.floats) for plan in asked}) > 1
    (chosen,) = (point["plan"] for point in found["points"] if point["plan"]["precision"] == INT8)
    assert len(chosen["floats"]) == max(len(plan.floats) for plan in asked)


@pytest.mark.usefixtures("faster")
def test_the_bundles_of_the_front_are_within_the_minutes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they would take longer than there is, the search has a third of it."""
    monkeypatch.setattr(steps, "closing_seconds", lambda *arguments: 1e6)
    clock = [0.0]
    monkeypatch.setattr(steps, "now", lambda: clock[0])
    whole = Int8Bench.trial

    def timed(self: Int8Bench, plan: Plan, by: str) -> Trial:
        clock[0] += 30.0
        return whole(self, plan, by)

    monkeypatch.setattr(Int8Bench, "trial", timed)
    _, found = run("--minutes", "6")
    tried = [trial for trial in found["trials"] if trial["plan"]["precision"] == INT8]
    assert len(tried) == 5  # at 0, 30, 60, 90 and 120 s


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (("--size", "0.000001"), "MB, allowed are 1e-06"),
        (("--latency", "0"), "ms, allowed are 0"),
    ],
)
def test_a_wish_that_nothing_keeps_fails_and_shows_the_front(wish: tuple[str, ...], words: str, run: Run) -> None:
    code, found = run("--trials", "1", *wish)
    assert code == 1
    assert found["passed"] is False
    assert found["chosen"] is None
    assert words in found["verdict"]
    assert found["points"]


@pytest.mark.usefixtures("faster")
def test_a_search_goes_on_where_it_was_interrupted(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Plan] = []
    whole = Int8Bench.trial

    def interrupted(self: Int8Bench, plan: Plan, by: str) -> Any:
        if len(tries) == 2:
            raise KeyboardInterrupt
        tries.append(plan)
        return whole(self, plan, by)

    monkeypatch.setattr(Int8Bench, "trial", interrupted)
    assert main(["optimize", "net.onnx", "--data", "data.npz", "--runtime", "ort", "-o", "front", *FEW]) == 130
    kept = {path: path.stat().st_mtime_ns for path in (files / "front").rglob("model.onnx")}
    again: list[Plan] = []

    def counted(self: Int8Bench, plan: Plan, by: str) -> Any:
        again.append(plan)
        return whole(self, plan, by)

    monkeypatch.setattr(Int8Bench, "trial", counted)
    code, found = run("--trials", "4")
    assert code == 0
    assert not set(again) & set(tries)
    assert len(again) == 2
    assert {Plan.from_dict(trial["plan"]) for trial in found["trials"]} >= {*tries, *again}
    assert kept
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.usefixtures("faster")
def test_without_labels_the_ratio_to_noise_is_judged(run: Run, files: Path) -> None:
    write_data(files / "data.npz", 60, labels=False)
    code, found = run("--trials", "2")
    assert code == 0
    assert all(point["drop"] is None for point in found["points"])
    assert any(point["snr_db"] is not None for point in found["points"] if point["precision"] == INT8)
    code, found = run("--trials", "2", "--max-drop", "1")
    assert code == 1
    assert "an unknown number of points" in found["verdict"]


@pytest.mark.usefixtures("faster")
def test_the_table_names_the_front_and_what_was_chosen(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["optimize", "net.onnx", "--data", "data.npz", "--runtime", "ort", "-o", "front", *FEW, "--trials", "2"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "->" in text
    assert "INT8 searched: greedy" in text
    assert text.strip().splitlines()[-1].startswith("front/")


BAD = {
    "an unknown runtime": (("--runtime", "nothing"), "there is no runtime called 'nothing'"),
    "a runtime that is a reference": (("--runtime", "torch"), "plans are not tried on torch"),
    "no data": (("--data", "nowhere"), "nowhere"),
    "no time": (("--minutes", "0"), "invalid --minutes 0"),
    "endless time": (("--minutes", "inf"), "invalid --minutes inf"),
    "another search": (("--search", "random"), "--search cannot be 'random'"),
    "another method": (("--method", "best"), "there is no range method called 'best'"),
    "a negative drop": (("--max-drop", "-1"), "invalid --max-drop -1"),
    "a drop that is no number": (("--max-drop", "nan"), "invalid --max-drop nan"),
    "a negative latency": (("--latency", "-1"), "invalid --latency -1"),
    "an infinite size": (("--size", "inf"), "invalid --size inf"),
    "a file as the folder": (("-o", "net.onnx"), "net.onnx is a file"),
    "somebody's folder": (("-o", "other", "--force"), "other is not the folder of a search"),
    "no network": (("--num-classes", "3"), "num-classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_and_leaves_what_was_there(
    case: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = BAD[case]
    (files / "other").mkdir()
    (files / "other" / "mine.txt").write_text("mine")
    code = main(["optimize", "net.onnx", "--data", "data.npz", "--runtime", "ort", "-o", "front", *FEW, *words])
    text = capsys.readouterr().err
    assert code == 2, text
    assert message in text
    assert (files / "other" / "mine.txt").read_text() == "mine"
    assert not (files / "front" / JOURNAL).exists()


@pytest.mark.usefixtures("faster")
def test_a_folder_of_another_search_is_refused_and_begun_anew_by_force(
    run: Run, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--trials", "1", "--search", "greedy")[0] == 0
    other = ["optimize", "net.onnx", "--data", "data.npz", "--runtime", "ort", "-o", "front", *FEW, "--seed", "1"]
    assert main(other) == 2
    assert "is of another search" in capsys.readouterr().err
    assert main([*other[:-2], "--method", "minmax"]) == 2
    assert "methods" in capsys.readouterr().err
    write_network(files / "net.onnx")
    assert main(other[:-2]) == 2
    assert "network: " in capsys.readouterr().err  # the bundles in the folder are of the network before
    bundles = sorted((files / "front").iterdir())
    assert main(["optimize", "nowhere.onnx", *other[2:], "--force"]) == 2
    assert sorted((files / "front").iterdir()) == bundles  # nothing is lost to a mistake
    write_network(files / "net.onnx", "channel")
    capsys.readouterr()
    code, found = run("--trials", "1", "--search", "greedy", "--seed", "1", "--force")
    assert code == 0
    assert len([trial for trial in found["trials"] if trial["plan"]["precision"] == INT8]) == 1


def test_a_bench_measures_no_loss_of_fp32_against_itself(files: Path) -> None:
    from vitdeploy.costs.origin import open_source
    from vitdeploy.quantize.options import Int8Options
    from vitdeploy.runtime.backends import find_backend
    from vitdeploy.runtime.options import Options
    from vitdeploy.search.judge import Judge

    asked = {"source": str(files / "net.onnx"), "precision": "int8", "target": "onnxruntime"}
    origin = open_source(str(files / "data.npz"), Int8Options(samples=20), 30, asked)
    kind, options = find_backend("onnxruntime"), Options(threads=1)
    import onnx_ir as ir

    fp32 = kind.load(ir.to_proto(origin.graph).SerializeToString(), options=options)
    judge = Judge(fp32, origin.samples, origin.labels, origin.scores)
    found = Bench(kind, options, fp32, judge, judge).trial(Plan(), "fixed", fp32, 1.0)
    assert judge.images == 30
    assert found.snr_db > 150
    assert found.drop is not None
    assert (found.drop.lost, found.drop.won, found.drop.total) == (0, 0, 30)

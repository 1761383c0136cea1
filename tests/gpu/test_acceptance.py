"""The acceptance run, as far as a machine without a GPU can: its plan, its bookkeeping, its table, its imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import acceptance, measure
from tests.gpu.plan import FAMILIES, Step, fits, plan, remaining
from tests.tensorrt.conftest import world as world
from tests.tensorrt.fake_tensorrt import World
from tests.transformer import damaged_weight, write_bundle

ROOT = acceptance.ROOT
sys.path.insert(0, str(ROOT / "benchmarks"))
import tensorrt_table  # noqa: E402

ALL = [f"{model}-{precision}" for model in FAMILIES for precision in ("fp32", "fp16", "int8")]


def test_the_plan_covers_every_bundle_and_begins_with_what_matters_most() -> None:
    steps = plan(ALL, torch=True)
    assert [step.name for step in steps[:2]] == ["tensorrt-lemevit_tiny-fp16", "eager-lemevit_tiny-fp16"]
    built = [f"{step.model}-{step.precision}" for step in steps if step.kind == "tensorrt"]
    assert sorted(built) == sorted(ALL), "each once"
    kinds = [(step.kind, step.precision) for step in steps]
    assert kinds.index(("tensorrt", "int8")) > max(i for i, kind in enumerate(kinds) if kind == ("tensorrt", "fp16"))
    assert kinds.index(("tensorrt", "fp32")) > max(i for i, kind in enumerate(kinds) if kind == ("tensorrt", "int8"))
    assert len({step.name for step in steps}) == len(steps)


def test_what_is_not_there_is_not_planned() -> None:
    steps = plan(["lemevit_tiny-fp16", "saevit_xs-fp32"], torch=False)
    assert [step.name for step in steps] == ["tensorrt-lemevit_tiny-fp16", "tensorrt-saevit_xs-fp32"]


def test_the_bundles_of_fp16_and_their_neighbours_fit_into_the_time() -> None:
    """By what is expected before anything is measured, half of the 25 minutes is left for the rest."""
    steps = plan(ALL, torch=True)
    first = [step for step in steps if step.kind == "eager" or (step.kind, step.precision) == ("tensorrt", "fp16")]
    assert steps[: len(first)] == first
    assert sum(step.seconds for step in first) < 12 * 60


def test_a_run_goes_on_where_it_was_and_tries_failures_again(tmp_path: Path) -> None:
    steps, results = plan(ALL[:4], torch=False), tmp_path / "r.json"
    asked: list[str] = []

    def run(step: Step) -> dict[str, Any]:
        asked.append(step.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"error": "crashed"} if len(asked) == 2 else {"runs": []}

    with pytest.raises(KeyboardInterrupt):
        acceptance.carry_out(steps, run, results, 10_000, {"gpu": "H200"})
    kept = json.loads(results.read_text())
    assert list(kept["steps"]) == asked[:2], "written after every step"
    left = remaining(steps, kept["steps"])
    assert [step.name for step in left] == [step.name for step in steps if step.name != asked[0]]
    acceptance.carry_out(left, lambda step: {"runs": []}, results, 10_000, {})
    assert not remaining(steps, json.loads(results.read_text())["steps"])


def test_steps_that_do_not_fit_are_left_out_and_shorter_ones_after_them_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [Step("tensorrt", "a", "fp16", (1,), 75), Step("eager", "a", "fp16", (1,), 20)]
    document = acceptance.carry_out(steps, lambda step: {"runs": []}, tmp_path / "r.json", 40, {})
    assert list(document["steps"]) == ["eager-a-fp16-b1"]
    assert "no time for tensorrt-a-fp16" in capsys.readouterr().out
    assert fits(steps[0], 0, 40, 0.5), "where earlier steps took half of what was expected, it does fit"


def test_a_step_that_crashes_or_hangs_is_an_error_in_the_results() -> None:
    environment = dict(os.environ)
    assert acceptance.result_of([sys.executable, "-c", "raise SystemExit(3)"], environment) == {"error": "exit code 3"}
    assert "no JSON" in acceptance.result_of([sys.executable, "-c", "print('x')"], environment)["error"]
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert "not done after" in acceptance.result_of(hangs, environment, 0.5)["error"]
    found = acceptance.result_of([sys.executable, "-c", "print('noise'); print('{\"runs\": []}')"], environment)
    assert found == {"runs": []}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(measure, "FEWEST", 5)


@pytest.mark.usefixtures("quick")
def test_a_step_builds_proves_and_measures(world: World, tmp_path: Path) -> None:
    world.inspection = json.dumps({"Layers": [], "Bindings": []})
    bundle = write_bundle(tmp_path / "lemevit_tiny-fp16", half=True)
    found = measure.main(["tensorrt", str(bundle.path), str(tmp_path / "work"), "1,8"])
    assert found["build"]["passed"]
    assert [run["batch"] for run in found["runs"]] == [1, 8]
    for run in found["runs"]:
        assert 0 < run["p50_ms"] <= run["p99_ms"]
        assert run["images_per_second"] > 0
        assert run["device_p50_ms"] > 0, "the recorded graph alone"
    assert found["session"]["cuda_graph"] == "replayed"
    assert found["inspector"] == {"Layers": [], "Bindings": []}
    json.dumps(found)


@pytest.mark.usefixtures("quick")
def test_a_wrong_engine_is_not_measured(world: World, tmp_path: Path) -> None:
    world.miscompile = damaged_weight("head.weight")
    bundle = write_bundle(tmp_path / "b")
    found = measure.main(["tensorrt", str(bundle.path), str(tmp_path / "work"), "1"])
    assert not found["build"]["passed"]
    assert "runs" not in found
    row = tensorrt_table.table({"steps": {"tensorrt-x-fp32": found}}).splitlines()[-1]
    assert "FAILED: logits: the relative error" in row
    assert "(first at head)" in row


def document() -> dict[str, Any]:
    run = {"batch": 8, "calls": 9, "p50_ms": 2.0, "p90_ms": 2.5, "p99_ms": 3.0, "images_per_second": 4000.0}
    build = {
        "passed": True,
        "workaround": "defuse",
        "parity": {"outputs": [{"snr_db": 58.3}, {"snr_db": 61.0}]},
        "fusion": {"attention": [{"fused": True}, {"fused": False}], "attention_fused": 1},
    }
    return {
        "date": "2026-11-20T10:00:00",
        "machine": {"gpu": "NVIDIA H200, 550", "versions": {"tensorrt": "8.6.1"}},
        "steps": {
            "tensorrt-m-fp16": {"build": build, "runs": [{**run, "device_p50_ms": 1.5}], "memory_bytes": 5e8},
            "eager-m-fp16": {"torch": "2.9", "runs": [{**run, "p50_ms": 8.0}]},
            "compile-m-fp16-b8": {"error": "not done after 420 s"},
        },
    }


def test_the_table_is_made_from_the_results() -> None:
    lines = tensorrt_table.table(document()).splitlines()
    assert lines[0].startswith("2026-11-20; NVIDIA H200, 550, TensorRT 8.6.1, torch 2.9.")
    assert lines[4] == "| m, TensorRT FP16 | 8 | 2.00 | 3.00 | 4000 | 1.50 | 0.25 | 58, defuse | 1 of 2 | 500 |"
    assert lines[5] == "| m, torch eager FP16 | 8 | 8.00 | 3.00 | 4000 | - | 1.00 | - | - | - |"
    assert "FAILED: not done after 420 s" in lines[6]
    assert {line.count("|") for line in lines[2:]} == {len(tensorrt_table.HEADER) + 1}


def test_the_table_stands_between_its_marks() -> None:
    page = "# Benchmarks\n\ntext\n"
    once = tensorrt_table.with_table(page, "| a |")
    assert tensorrt_table.with_table(once, "| b |") == once.replace("| a |", "| b |")
    assert once.startswith(page)


def test_the_docs_hold_the_table_of_the_results_that_are_checked_in() -> None:
    if not tensorrt_table.RESULTS.exists():
        pytest.skip("nothing was measured on a GPU yet")
    made = tensorrt_table.table(json.loads(tensorrt_table.RESULTS.read_text()))
    assert made in tensorrt_table.PAGE.read_text()


def test_without_a_gpu_a_step_says_so_and_nothing_else() -> None:
    """In a process of its own, as the run starts it."""
    words = [sys.executable, "-m", "tests.gpu.measure", "tensorrt", "nowhere", "nowhere", "1"]
    found = acceptance.result_of(words, {**os.environ, "PYTHONPATH": str(ROOT)})
    assert set(found) == {"error"}


def test_bundles_are_cut_and_joined_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, work = tmp_path / "parts", tmp_path / "work"
    monkeypatch.setattr(acceptance, "FAMILIES", ())
    monkeypatch.setattr(acceptance, "PART_BYTES", 3000)
    write_bundle(parts / "bundles" / "m-fp16", half=True)
    acceptance.pack(parts, None)
    assert len(list(parts.glob("bundles_??"))) > 1
    (work / "kit").mkdir(parents=True)
    (work / "kit" / "env.sh").write_text('export PYTHONPATH="/kit/site" KIT=1\n')
    environment = acceptance.unpack(parts, work)
    assert environment["KIT"] == "1"
    assert environment["PYTHONPATH"] == f"/kit/site:{ROOT}"
    assert (work / "bundles" / "m-fp16" / "manifest.json").exists()


def test_the_packed_runtime_imports_up_to_the_call_of_cuda() -> None:
    """With the kit of pack_tensorrt.sh, unpacked where VITDEPLOY_TENSORRT_KIT says: its imports, and CUDA's refusal."""
    kit = os.environ.get("VITDEPLOY_TENSORRT_KIT")
    if not kit:
        pytest.skip("VITDEPLOY_TENSORRT_KIT names no unpacked kit")
    environment = acceptance.kit_environment(Path(kit))
    done = subprocess.run(
        ["python3.11", "-m", "tests.gpu.measure", "probe"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["tensorrt"].startswith("8.6")
    assert found["build"] is True
    assert found["builder"] == "there" or "CUDA initialization failure" in found["builder"]

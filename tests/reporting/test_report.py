"""`vitdeploy report` as a user types it: what the page says, and what it refuses."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.bundles import write_tiny_bundle
from tests.reporting.conftest import EVIL
from tests.tasks.task_cases import scenes, write_data, write_segmenter
from vitdeploy.cli import main

INT8 = f"int8{EVIL}"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output and standard error of `vitdeploy report`."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["report", *words, "--quiet"])
        return code, *capsys.readouterr()

    return call


def text_of(path: Path) -> str:
    """What a page says, without its style."""
    page = path.read_text(encoding="utf-8").partition("<body>")[2]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_whole_page_has_every_part_and_its_figures(made: Path) -> None:
    text = text_of(made / "report.html")
    checked = json.loads((made / "validate.json").read_text())
    (lost,) = checked["runs"]
    assert lost["drop"] > 0, "the images are chosen so that answers change"
    sentence = f"drop {lost['drop']:.2f} points (95 %: {lost['drop_low']:.2f} to {lost['drop_high']:.2f})"
    assert sentence in text
    assert "the baseline of the accuracy" in text
    titles = (
        "Summary, Accuracy against latency, Accuracy lost, What is taken for what, Images whose answer changed, Latency"
    )
    for title in f"{titles}, What each layer costs, What optimize tried, What is in the bundles".split(", "):
        assert title in text
    assert "because of <script>window.ran=1<b>" in text
    assert f"vitdeploy report fp32 '{INT8}' --data data --runtime onnxruntime --baseline fp32" in text
    assert "To add it" not in text


def test_flipped_images_are_there_with_both_answers(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    (lost,) = json.loads((made / "validate.json").read_text())["runs"]
    shown = re.findall(r'<img src="data:image/jpeg;base64,[^"]+" alt="([^"]*)"', page)
    assert len(shown) == min(48, len(lost["flipped"]))
    told = {html.unescape(one) for one in shown}
    expected = {
        f"{one['image']}: {one['label']}, answered {one['baseline']} before and {one['run']} after"
        for one in lost["flipped"]
    }
    assert told <= expected


def test_no_folder_of_the_machine_is_on_the_page(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert str(made) not in page
    assert "/somebody/secret" not in page
    assert str(Path.home()) not in page


def test_a_page_of_bundles_alone_says_what_to_type_for_the_rest(place: Path, run: Run) -> None:
    code, out, _ = run("fp32", INT8, "-o", "alone.html", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["verdicts"] == []
    present = {one["name"]: one["present"] for one in document["sections"]}
    absent = ["front", "accuracy", "latency", "sensitivity", "tried"]
    assert [name for name in present if not present[name]] == absent
    text = text_of(place / "alone.html")
    assert f"vitdeploy report fp32 '{INT8}' --data DATA -o report.html" in text
    assert f"vitdeploy report fp32 '{INT8}' --seconds 10 -o report.html" in text
    assert "svg" not in text
    assert document["bytes"] == (place / "alone.html").stat().st_size


def test_earlier_runs_give_the_same_figures_without_the_images(place: Path, run: Run) -> None:
    code, out, err = run(
        "fp32", INT8, "--validation", "validate.json", "--benchmark", "benchmark.json", "-o", "earlier.html"
    )
    assert (code, err) == (0, "")
    (lost,) = json.loads((place / "validate.json").read_text())["runs"]
    text = text_of(place / "earlier.html")
    assert f"drop {lost['drop']:.2f} points" in text
    assert f"drop {lost['drop']:.2f} points" in out
    assert "A file of an earlier run does not hold the confusions" in text
    assert "data:image" not in (place / "earlier.html").read_text()
    assert lost["flipped"][0]["image"].rpartition("/")[2] in text


def test_the_manifests_stay_as_they_are(made: Path) -> None:
    for name in ("fp32", INT8):
        assert json.loads((made / name / "manifest.json").read_text())["accuracy"] == []


def test_figures_that_are_not_finite_are_shown_as_unknown(place: Path, run: Run) -> None:
    checked = json.loads((place / "validate.json").read_text())
    for run_of in checked["runs"]:
        run_of |= {"drop": float("nan"), "drop_low": None, "drop_high": float("inf"), "snr_db": None}
    (place / "odd.json").write_text(json.dumps(checked))
    costs = json.loads((place / "sensitivity.json").read_text())
    for part in costs["parts"]:
        part |= {"snr_db": float("nan"), "drop": None, "ms": float("-inf"), "reasons": []}
    (place / "rows.json").write_text(json.dumps(costs))
    code, out, err = run(
        "fp32", INT8, "--validation", "odd.json", "--benchmark", "benchmark.json", "--sensitivity", "rows.json",
        "-o", "odd.html",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "drop unknown" in out
    assert not re.search(r"\bnan\b|\binf\b", text_of(place / "odd.html"))


def test_a_bundle_without_a_report_of_its_precision_is_shown(place: Path, run: Run) -> None:
    write_tiny_bundle(place / "plain", precision="int8")
    code, _, err = run("plain", "-o", "plain.html")
    assert (code, err) == (0, "")
    assert "The manifest names no layer that stayed in float" in text_of(place / "plain.html")


def test_segmentations_have_the_drop_of_each_class(place: Path, run: Run) -> None:
    images, masks = scenes()[:2]
    write_segmenter(place / "seg32")
    write_segmenter(place / "seg16", noise=0.3, precision="fp16")
    data = write_data(place / "scenes", images, masks)
    code, _, err = run("seg16", "--baseline", "seg32", "--data", str(data), "--runtime", "onnxruntime",
                       "--seconds", "0.2", "-o", "seg.html")  # fmt: skip
    assert (code, err) == (0, "")
    text = text_of(place / "seg.html")
    assert "points of mIoU" in text
    assert "Drop of each class" in text
    assert "agreement with the baseline" in text
    assert "Images whose answer changed" not in text


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["fp32", "-o", "report.html"], "report.html exists", "--force"),
        (["fp32", "-o", "nowhere/x.html"], "cannot write", "another path"),
        (["fp32", "-o", "data"], "cannot write data", "another path"),
        (["nowhere", "-o", "x.html"], "nowhere", ""),
        (["fp32", "--validation", "nowhere.json", "-o", "x.html"], "cannot read nowhere.json", "validate"),
        (["fp32", "--validation", "damaged.json", "-o", "x.html"], "damaged.json is not JSON", "validate"),
        (["fp32", "--validation", "benchmark.json", "-o", "x.html"], "looks like that of benchmark", "--benchmark"),
        (["fp32", "--benchmark", "validate.json", "-o", "x.html"], "looks like that of validate", "--validation"),
        (["fp32", "--sensitivity", "optimize.json", "-o", "x.html"], "looks like that of optimize", "--optimize"),
        (["fp32", "--optimize", "sensitivity.json", "-o", "x.html"], "looks like that of sensitivity", "--sensitivity"),
        (["fp32", "--optimize", "empty.json", "-o", "x.html"], "empty.json is not what optimize prints", "optimize"),
        (
            ["fp32", "--sensitivity", "list.json", "-o", "x.html"],
            "list.json is not what sensitivity prints",
            "sensitivity",
        ),
        (["other", "--validation", "validate.json", "-o", "x.html"], "is about other bundles", "validate"),
        (["other", "--benchmark", "benchmark.json", "-o", "x.html"], "is about other bundles", "benchmark"),
        (["fp32", "--data", "data", "--validation", "validate.json", "-o", "x.html"], "exclude each other", "--data"),
        (["fp32", "--seconds", "1", "--benchmark", "benchmark.json", "-o", "x.html"], "exclude each other", "out"),
        (["fp32", "--seconds", "nan", "-o", "x.html"], "seconds is nan", "--seconds 10"),
        (["fp32", "--seconds", "0", "-o", "x.html"], "seconds is 0", "--seconds 10"),
        (["fp32", "--samples", "5", "-o", "x.html"], "--samples", "--data"),
        (["fp32", INT8, "--data", "nowhere", "-o", "x.html"], "nowhere", ""),
        (["fp32", "other", "-o", "x.html"], "not the same network", "alone"),
        (["fp32", INT8, "--data", "bare", "--task", "x", "-o", "x.html"], "--task", ""),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    words: list[str], what: str, fix: str, place: Path, run: Run
) -> None:
    (place / "damaged.json").write_text('{"task": ')
    (place / "empty.json").write_text("{}")
    (place / "list.json").write_text("[3]")
    write_tiny_bundle(place / "other", pyramid=True)
    before = (place / "report.html").read_bytes()
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert what in err
    assert fix in err
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert not (place / "x.html").exists()
    assert (place / "report.html").read_bytes() == before


def test_images_without_labels_are_refused_or_compared_by_their_features(place: Path, run: Run) -> None:
    np.savez(place / "bare.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    code, _, err = run("fp32", INT8, "--baseline", "fp32", "--data", "bare.npz", "--runtime", "onnxruntime",
                       "-o", "bare.html", "--benchmark", "benchmark.json")  # fmt: skip
    if code == 0:
        assert "cosine similarity" in text_of(place / "bare.html")
    else:
        assert code == 2
        assert "labels" in err
        assert not (place / "bare.html").exists()


def test_force_replaces_a_page(place: Path, run: Run) -> None:
    before = (place / "report.html").read_bytes()
    assert run("fp32", "-o", "report.html", "--force")[0] == 0
    assert (place / "report.html").read_bytes() != before


def test_without_matplotlib_the_extra_is_named_before_anything_is_measured(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("vitdeploy.reporting.report.validate", None)
    code, _, err = run("fp32", INT8, "--data", "data", "-o", "x.html")
    assert code == 2
    assert "matplotlib is not installed" in err
    assert "pip install 'vitdeploy[report]'" in err
    assert not (place / "x.html").exists()


def test_from_python_it_is_a_function_that_tells_what_it_wrote(place: Path) -> None:
    found = vitdeploy.report("fp32", "python.html", benchmark="benchmark.json")
    assert found.path == Path("python.html")
    assert [one["runtime"] for one in found.verdicts] == ["onnxruntime"] * 2
    assert str(found).splitlines()[-1].startswith("wrote python.html (")
    with pytest.raises(vitdeploy.UsageError, match="there is nothing to report on"):
        vitdeploy.report([], "empty.html")

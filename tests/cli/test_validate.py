"""`vitdeploy validate` as a user types it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.accuracy.accuracy_cases import labels_of, logits_of, noisy, photos, prepare
from tests.bundles import WEIGHT
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main

pytest.importorskip("onnxruntime")

IMAGES = photos()
TARGETS = labels_of(IMAGES)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with bundles `fp32` and `int8` and with `data`; the user's cache is in it."""
    return prepare(tmp_path, monkeypatch, IMAGES)


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of `vitdeploy validate` with ONNX Runtime."""

    def call(*words: str) -> tuple[int, str, str]:
        runtime = () if "--runtime" in words else ("--runtime", "onnxruntime")
        code = main(["validate", *words, *runtime])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def test_the_table_says_what_was_lost_and_how_sure_that_is(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("int8", "--data", "data", "--baseline", "fp32")
    right, still = (logits_of(IMAGES, weight).argmax(1) == TARGETS for weight in (WEIGHT, noisy()))
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "120 of 120 images of data"
    assert lines[1] == f"baseline  FP32 bundle, fp32 on onnxruntime: top-1 {100 * right.mean():.2f} %"
    row = next(line for line in lines if line.startswith("int8 on onnxruntime  "))
    assert f"{100 * still.mean():.2f}" in row
    assert f"{100 * (right.mean() - still.mean()):.2f}" in row
    assert f"(lost {(right & ~still).sum()}, won {(still & ~right).sum()})" in row
    assert "more, see --json or --report" in out


def test_the_exit_code_is_the_gates(run: Callable[..., tuple[int, str, str]], place: Path) -> None:
    assert run("int8", "fp32", "--data", "data", "--max-drop", "90")[0] == 0
    code, out, _ = run("int8", "fp32", "--data", "data", "--max-drop", "1", "--json")
    told = json.loads(out)
    assert code == 1
    assert told["passed"] is False
    assert told["max_drop"] == 1
    assert [one["name"] for one in told["runs"]] == ["int8 on onnxruntime"]
    assert "int8 on onnxruntime drops" in told["failures"][0]
    assert Bundle.open(place / "int8").manifest.accuracy[0]["drop"] == told["runs"][0]["drop"]


def test_the_report_folder_holds_tables_plots_images_and_logits(
    run: Callable[..., tuple[int, str, str]], place: Path
) -> None:
    code, out, _ = run("int8", "fp32", "--data", "data", "--report", "reports/int8", "--no-record")
    folder = place / "reports" / "int8"
    assert code == 0
    names = {"report.json", "report.txt", "logits.npz"}
    names |= {"1-int8-on-onnxruntime-confusion.svg", "1-int8-on-onnxruntime-flipped.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "report.txt").read_text() == out
    document = json.loads((folder / "report.json").read_text())
    kept = np.load(folder / "logits.npz")
    assert kept["runs"].tolist() == ["fp32 on onnxruntime", "int8 on onnxruntime"]
    number = [int(name[-7:-4]) for name in kept["images"]]
    np.testing.assert_allclose(kept["logits"][1], logits_of(IMAGES, noisy())[number], atol=1e-5)
    np.testing.assert_array_equal(kept["labels"], TARGETS[number])

    tiles = min(60, len(document["runs"][0]["flipped"]))
    sheet = Image.open(folder / "1-int8-on-onnxruntime-flipped.png")
    columns = min(6, tiles)
    assert sheet.size == (8 + 168 * columns, 8 + 212 * -(-tiles // columns))
    assert Bundle.open(place / "int8").manifest.accuracy == []


def test_the_confusion_plot_counts_every_image_and_stays_in_its_frame(
    run: Callable[..., tuple[int, str, str]], place: Path
) -> None:
    run("int8", "fp32", "--data", "data", "--report", "report")
    plot = ElementTree.parse(place / "report" / "1-int8-on-onnxruntime-confusion.svg").getroot()
    texts = list(plot.iter("{http://www.w3.org/2000/svg}text"))
    counts = [int(text.text or "") for text in texts if (text.text or "").isdigit()]
    changes = [int(text.text or "") for text in texts if (text.text or "")[0] in "+-"]
    assert sum(counts) == len(IMAGES)
    assert sum(changes) == 0
    assert sum(map(abs, changes)) > 0
    width, height = float(plot.attrib["width"]), float(plot.attrib["height"])
    assert all(0 <= float(text.attrib["x"]) <= width and 0 <= float(text.attrib["y"]) <= height for text in texts)


def test_an_interrupted_command_says_that_it_goes_on(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    from vitdeploy.accuracy import compute

    with monkeypatch.context() as patch:
        patch.setattr(compute, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        code, out, err = run("int8", "fp32", "--data", "data")
    assert code == 130
    assert "error: interrupted; the same command continues where it stopped" in err
    assert out == ""
    assert Bundle.open(place / "int8").manifest.accuracy == []
    assert run("int8", "fp32", "--data", "data")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("int8", "--data", "gone", "--baseline", "fp32"), "there is no file or folder gone"),
        (("gone", "--data", "data"), "there is no bundle at gone"),
        (("int8", "--data", "data"), "there is no FP32 baseline to compare with"),
        (("int8", "--data", "data", "--baseline", "int8"), "cannot be the baseline"),
        (("int8", "--data", "data", "--baseline", "fp32", "--max-drop", "-3"), "invalid max_drop -3"),
        (("int8", "--data", "data", "--baseline", "fp32", "--runtime", "onnx"), "no runtime called 'onnx'"),
        (("int8", "--data", "data", "--baseline", "fp32", "--runtime", ","), "nothing to validate"),
        (("int8", "--data", "data/ant", "--baseline", "fp32"), "have no labels"),
        (("int8", "--data", "int8/reference.npz", "--baseline", "fp32"), "it has no array `images`"),
        (("int8", "--data", "data", "--baseline", "fp32", "--report", "data/ant/001.png"), "is a file"),
        (
            ("int8", "--data", "data", "--baseline", "fp32", "--compute-precision", "bf16"),
            "does not support the option compute_precision",
        ),
        (("int8", "--data", "data", "--checkpoint", "gone.safetensors"), "error:"),
    ],
)
def test_wrong_input_says_what_to_type_and_exits_with_2(
    run: Callable[..., tuple[int, str, str]], words: tuple[str, ...], told: str
) -> None:
    first = next((Path("data") / "ant").iterdir())
    words = tuple(str(first) if word == "data/ant/001.png" else word for word in words)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert told in err


def test_arguments_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--samples", "0"], ["--samples", "many"], ["--max-drop", "little"], []):
        assert main(["validate", "b", *(["--data", "d"] if words else []), *words]) == 2
    assert "--data" in capsys.readouterr().err

"""The gates of `vitdeploy export --int8` as a user meets them: missed, nothing is left; accepted, it is on record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.quantize import gates
from vitdeploy.quantize.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("one_capture")

Export = Callable[..., tuple[int, str, str]]


def photos(count: int) -> np.ndarray:
    """Pixels with flat areas and edges, uint8 [count, 24, 32, 3]."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (count, 6, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(coarse + rng.integers(-20, 20, (count, 24, 32, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images with the class numbers of the seven outputs."""
    path = tmp_path_factory.mktemp("data") / "photos.npz"
    np.savez(path, images=photos(64), labels=np.arange(64) % 7)
    return path


@pytest.fixture
def export(
    model_file: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Export:
    """Exit code, standard output and standard error; the bundle, if there is one, is `out` in the working folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, source: str = f"{model_file}:build", calibration: Path = data) -> tuple[int, str, str]:
        given = ["--image-size", "16x24", "--int8", "--calibration", str(calibration), "--samples", "40"]
        code = main(["export", source, *given, *words, "-o", "out"])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        if code:
            assert [path.name for path in tmp_path.iterdir()] == []
        return code, told.out, told.err

    return call


def missed() -> list[dict[str, object]]:
    found: list[dict[str, object]] = Bundle.open("out").manifest.precision_report["missed"]
    return found


def test_a_ratio_out_of_reach_fails_and_leaves_nothing(export: Export) -> None:
    code, out, err = export("--min-snr", "150")
    assert (code, out) == (1, "")
    assert "error: no mixture of INT8 and float keeps --min-snr 150\n  why: the best one, with " in err
    assert "--fp16, or --accept-loss" in err


def test_an_accepted_loss_is_written_told_and_recorded(export: Export) -> None:
    code, out, err = export("--min-snr", "150", "--accept-loss")
    assert code == 0
    (one,) = missed()
    assert (one["gate"], one["bound"]) == ("min_snr", 150)
    assert 20 < float(str(one["reached"])) < 150
    assert f"warning: accepted by --accept-loss: {one['what']}" in err
    assert "LOSS ACCEPTED" in out
    assert str(one["what"]) in out


def test_less_than_the_floor_is_refused_without_being_asked(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "MIN_SNR_DB", 90.0)
    code, _, err = export()
    assert code == 1
    assert "dB less than the floor of 90 dB, on images that were not calibrated on" in err
    assert "try: --fp16, --min-snr 90, or --accept-loss" in err
    code, out, _ = export("--accept-loss", "--json")
    assert code == 0
    assert [one["gate"] for one in json.loads(out)["missed"]] == ["min_snr", "min_snr"]  # and on the reference images


def test_nan_is_less_than_the_floor(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluator, "ratios", lambda *_: {"logits": math.nan})
    code, _, err = export()
    assert code == 1
    assert "INT8 keeps no signal" in err
    code, out, _ = export("--accept-loss")
    assert code == 0
    assert "no signal on images not calibrated on" in out


def test_what_is_measured_is_the_graph_that_is_written_where_the_rest_becomes_fp16(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantized graph alone may hold what the one with FP16 in the rest does not."""
    ratios = {"qdq": 50.0, "as_written": 12.0}
    monkeypatch.setattr(Evaluator, "ratios", lambda self, model, mode="qdq": {"logits": ratios[mode]})
    code, _, err = export("--target", "tensorrt10")
    assert code == 1
    assert "INT8 keeps 12.0 dB" in err
    assert export("--target", "portable")[0] == 0


# The drop


def test_a_drop_is_told_with_its_interval_and_the_number_of_images(export: Export) -> None:
    code, out, err = export("--max-drop", "20")
    assert code == 0
    assert "--max-drop 20 takes 16 labelled images that do not calibrate; " in err
    report = Bundle.open("out").manifest.precision_report
    assert report["drop_images"] == 24
    assert report["drop_low"] <= report["drop"] <= report["drop_high"] <= 20
    assert 0 <= report["fp32_top1"] <= 100
    assert report["missed"] == []
    row = next(line for line in out.splitlines() if line.startswith("drop of top-1"))
    interval = f"{report['drop']:.2f} points (95 % interval {report['drop_low']:.2f} to {report['drop_high']:.2f})"
    assert f"{interval} on 24 images; FP32 has {report['fp32_top1']:.2f} %" in row


def test_a_drop_that_the_images_cannot_show_is_refused_before_the_network_is_built(export: Export) -> None:
    code, out, err = export("--max-drop", "0.1", source="gone.py:build")
    assert (code, out) == (2, "")
    assert "--max-drop 0.1 needs 3,838 labelled images that do not calibrate, and " in err
    assert "photos.npz has 24" in err
    assert "try: DATA with 3,878 labelled images or more, --max-drop 13.8, or --accept-loss" in err


def test_a_drop_on_too_few_images_is_a_warning_where_the_loss_is_accepted(export: Export) -> None:
    code, out, err = export("--max-drop", "0.1", "--accept-loss", "--json")
    assert code == 0
    assert "warning: --max-drop 0.1 needs 3,838 labelled images" in err
    summary = json.loads(out)
    (one,) = summary["missed"]
    assert (one["gate"], one["bound"], one["reached"]) == ("max_drop", 0.1, round(summary["drop_high"], 4))
    assert summary["drop_images"] == 24


def test_classes_that_may_be_others_than_the_networks_are_refused(
    export: Export, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("named")
    for index, pixels in enumerate(photos(60)):
        place = folder / ("cats", "dogs")[index % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    code, _, err = export("--max-drop", "20", calibration=folder)
    assert code == 2
    assert f"error: {folder} has 2 classes, the network 7" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-drop", "0"), "no number of images shows a drop of 0"),
        (("--max-drop", "nan"), "invalid --max-drop nan"),
        (("--min-snr", "nan"), "invalid --min-snr nan"),
        (("--min-snr", "12"), "less than 20 is accepted with --accept-loss alone"),
    ],
)
def test_a_bound_that_makes_no_sense_is_refused(export: Export, words: tuple[str, ...], told: str) -> None:
    code, _, err = export(*words, source="gone.py:build")
    assert code == 2
    assert told in err


def test_accepting_a_loss_is_for_int8(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"{model_file}:build", "--fp16", "--accept-loss"]) == 2
    assert "--accept-loss is for INT8" in capsys.readouterr().err

"""INT8 of a network of two inputs and two outputs: calibrated on arrays by name, with a goal for each output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

# An image and a vector of facts: logits of both, and a map of the image alone.
NETWORK = """
import torch
from torch import nn

class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=4)
        self.body = nn.Conv2d(32, 32, 3, padding=1)
        self.masks = nn.Conv2d(32, 4, 1)
        self.facts = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))
        self.logits = nn.Linear(32, 5)

    def forward(self, images, facts, kind):
        maps = torch.relu(self.body(torch.relu(self.stem(images))))
        shift = self.facts(facts) + kind.to(facts.dtype)
        return {"logits": self.logits(maps.mean(dim=(2, 3)) + shift), "masks": self.masks(maps), "best": kind * 2}

def build():
    torch.manual_seed(0)
    return Fused().eval()
"""
INPUTS = ("--input", "images=1x3x16x16", "--input", "facts=1x16", "--input", "kind=1x1:int64")


def arrays(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (count, 20, 20, 3), np.uint8),
        "facts": rng.normal(size=(count, 16)).astype(np.float32),
        "kind": rng.integers(0, 2, (count, 1)),
    }


@pytest.fixture
def export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of `vitdeploy export` with DATA `calibration.npz`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    np.savez("calibration.npz", **arrays(120))

    def call(*words: str, data: str = "calibration.npz", precision: str = "--int8") -> tuple[int, str, str]:
        int8 = ("--calibration", data, "--samples", "48") if precision == "--int8" else ()
        code = main(["export", "net.py:build", *INPUTS, "--batch", "dynamic", precision, *int8, *words])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return call


def test_a_network_of_several_inputs_is_calibrated_on_arrays_by_name(
    export: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = export("-o", "int8", "--goal", "masks=28", "--goal", "logits=25")
    assert code == 0, err
    report = Bundle.open("int8").manifest.precision_report
    assert report["goals"] == {"logits": 25, "masks": 28}
    assert report["outputs"].keys() == {"logits", "masks"}
    assert all(report["outputs"][name] >= bound for name, bound in report["goals"].items())
    assert report["calibration"]["images"] == 48
    assert len(set(report["calibration"]["sha256"])) == 48
    assert report["layers"]["convolution"]["int8"] > 0
    assert report["layers"]["linear"]["int8"] > 0
    assert "exact input" in {one["repair"] for one in report["repairs"]}
    assert "goal of masks" in out
    assert main(["verify", "int8", "--runtime", "onnxruntime"]) == 0

    # On other samples than those that calibrated, and through the session alone.
    code, _, err = export("-o", "fp32", precision="--precision=fp32")
    assert code == 0, err
    report = vitdeploy.validate("int8", arrays(32, seed=9), baseline="fp32", task="features", runtime="onnxruntime",
                                logits=tmp_path / "rows").to_dict()  # fmt: skip
    kept = {one["output"]: one["snr_db"] for one in report["runs"][0]["outputs"]}
    assert kept.keys() == {"logits", "masks"}
    assert min(kept.values()) > 24


def test_a_goal_reverts_layers_of_its_output_alone(export: Callable[..., tuple[int, str, str]]) -> None:
    assert export("-o", "plain")[0] == 0
    plain = Bundle.open("plain").manifest.precision_report
    goal = plain["outputs"]["logits"] + 3
    code, out, err = export("-o", "better", "--goal", f"logits={goal:.2f}", "--json")
    assert code == 0, err
    better = Bundle.open("better").manifest.precision_report
    assert better["outputs"]["logits"] >= goal - 0.01
    assert better["reverted"]
    assert json.loads(out)["goals"] == {"logits": round(goal, 2)}


@pytest.mark.parametrize(
    ("words", "told", "status"),
    [
        (("--goal", "mask=25"), "the outputs are logits, masks, best", 2),
        (("--goal", "best=25"), "it is int64", 2),
        (("--goal", "masks=5"), "invalid --goal masks=5", 2),
        (("--goal", "masks=nan"), "invalid --goal masks=nan", 2),
        (("--goal", "masks=25", "--goal", "masks=30"), "--goal masks is given twice", 2),
        (("--goal", "masks=200"), "no mixture of INT8 and float keeps --goal masks=200", 1),
    ],
)
def test_goals_that_cannot_be_kept_are_named(
    export: Callable[..., tuple[int, str, str]], words: tuple[str, ...], told: str, status: int
) -> None:
    code, out, err = export("-o", "int8", *words)
    assert (code, out) == (status, "")
    assert told in err
    assert not Path("int8").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"facts": None}, "has no array for the input facts"),
        ({"facts": np.zeros((120, 15), np.float32)}, "the array facts of calibration.npz is float32 [120, 15]"),
        ({"facts": np.zeros((7, 16), np.float32)}, "different numbers of samples"),
        ({"facts": np.full((120, 16), np.nan, np.float32)}, "holds NaN or Inf"),
        ({"kind": np.zeros((120, 1), np.float32)}, "the array kind of calibration.npz is float32 [120, 1]"),
        ({"images": np.zeros((120, 3), np.uint8)}, "images"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    export: Callable[..., tuple[int, str, str]], change: dict[str, np.ndarray | None], told: str
) -> None:
    given = {name: array for name, array in {**arrays(120), **change}.items() if array is not None}
    np.savez("calibration.npz", **given)
    code, out, err = export("-o", "int8")
    assert (code, out) == (2, "")
    assert told in err
    assert not Path("int8").exists()


FACTS = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 5)).eval()
"""


def test_a_network_without_images_is_calibrated_and_judged_by_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.py").write_text(FACTS)
    values = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    classes = np.arange(600) % 5
    words = ["export", "facts.py:build", "--input", "input=1x16", "--batch", "dynamic", "--int8", "--calibration"]
    np.savez("facts.npz", input=values, labels=classes)
    code = main([*words, "facts.npz", "--samples", "60", "--max-drop", "3", "-o", "int8"])
    assert code == 0, capsys.readouterr().err
    assert Bundle.open("int8").manifest.precision_report["drop_images"] == 540
    np.savez("unlabelled.npz", input=values)
    assert main([*words, "unlabelled.npz", "--max-drop", "3", "-o", "other"]) == 2
    assert "--max-drop needs labels, and unlabelled.npz has none" in capsys.readouterr().err
    np.savez("odd.npz", input=values, labels=classes[:7])
    assert main([*words, "odd.npz", "-o", "other"]) == 2
    assert "the labels of odd.npz are int64 [7]" in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_folder_of_images_does_not_feed_several_inputs(export: Callable[..., tuple[int, str, str]]) -> None:
    from PIL import Image

    Path("folder").mkdir()
    Image.new("RGB", (9, 9)).save("folder/one.png")
    code, _, err = export("-o", "int8", data="folder")
    assert code == 2
    assert "folder cannot feed the network" in err
    assert "an .npz with an array for each input" in err


def test_a_goal_is_for_int8(export: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = export("-o", "fp16", "--goal", "masks=25", precision="--fp16")
    assert code == 2
    assert "--goal is for INT8" in err
    assert export("-o", "int8", "--goal", "masks")[0] == 2

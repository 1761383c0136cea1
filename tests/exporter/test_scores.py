"""Whole numbers and flags are judged by the floats that they are decided from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph_cases import parsed
from vitdeploy import export, verify
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.errors import GateError
from vitdeploy.exporter.scores import hide_scores, show_scores
from vitdeploy.proof.discrete import flips_db
from vitdeploy.proof.parity import compare_outputs

HEADER = '<ir_version: 10, opset_import: ["": 17]> '
X = {"x": np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)}


@pytest.mark.parametrize(
    ("body", "outputs", "scores"),
    [
        ("s = Tanh (x) y = ArgMax <axis = 1, keepdims = 0> (s)", "int64[1, 3] y", ["s"]),
        ("s = Tanh (x) v, y = TopK <axis = 1> (s, k)", "int64[1, 2, 3] y", ["s"]),
        ("s = Tanh (x) t = Exp (x) f = Greater (s, t) y = Cast <to = 7> (f)", "int64[1, 4, 3] y", ["s", "t"]),
        ("s = Tanh (x) y = ArgMax <axis = 1, keepdims = 0> (s)", "float[1, 4, 3] s, int64[1, 3] y", []),
        ("y = ArgMax <axis = 1, keepdims = 0> (x)", "int64[1, 3] y", []),
        ("h = Shape (x) y = Identity (h)", "int64[3] y", []),
    ],
)
def test_the_floats_behind_a_decision_are_shown_and_hidden_again(body: str, outputs: str, scores: list[str]) -> None:
    graph = parsed(HEADER + f"g (float[1, 4, 3] x) => ({outputs}) <int64[1] k = {{2}}> {{ {body} }}")
    names = [str(value.name) for value in graph.graph.outputs]
    expected = {name: np.zeros(1) for name in names}
    found = show_scores(graph, X, expected)
    assert sorted(found.keys() - expected.keys()) == scores
    if "s" in scores:
        np.testing.assert_allclose(found["s"], np.tanh(X["x"]), rtol=1e-6)
    hide_scores(graph, expected)
    assert [str(value.name) for value in graph.graph.outputs] == names
    assert isinstance(graph, ir.Model)


def test_a_few_flips_at_borders_count_as_one_another() -> None:
    reference = np.zeros((2, 1000), np.int64)
    few, many = reference.copy(), reference.copy()
    few[:, :5], many[:, :100] = 1, 1
    assert flips_db(reference, few, 2) == pytest.approx(flips_db(reference, reference, 2))
    assert flips_db(reference, many, 2) == pytest.approx([10.0, 10.0])


@pytest.mark.parametrize(("precision", "passed"), [("fp32", False), ("fp16", False), ("int8", True)])
def test_how_many_entries_may_flip_is_judged_but_for_int8(precision: str, passed: bool) -> None:
    reference = {"y": np.zeros((2, 100), np.int64)}
    actual = {"y": np.concatenate([np.ones((2, 3), np.int64), np.zeros((2, 97), np.int64)], axis=1)}
    report = compare_outputs(reference, actual, runtime="r", precision=precision)
    assert report.passed == passed
    assert report.entries[0].equal == 194


SEGMENTER = """
import torch
from torch import nn


class Segmenter(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.a, self.b, self.gain = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 4, 1), gain

    def forward(self, images):
        return (self.b(torch.relu(self.a(images))) * self.gain + 3000.0 * (self.gain < 1)).argmax(1)


def build(gain=1.0):
    torch.manual_seed(0)
    return Segmenter(gain)
"""


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("segmenter") / "segmenter.py"
    file.write_text(SEGMENTER)
    return f"{file}:build"


def test_a_class_map_in_every_precision(segmenter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    for precision in ("fp16", "int8"):
        out = tmp_path / precision
        options = ["--calibration", str(tmp_path / "images.npz"), "--samples", "4"] if precision == "int8" else []
        command = ["export", segmenter, "--image-size", "16", "--precision", precision, *options, "-o", str(out)]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "entries are equal" in said
        assert "hardest image" not in said
        manifest = Bundle.open(out).manifest
        assert [spec.name for spec in manifest.outputs] == ["logits"]
        assert 30 < manifest.precision_report["snr_db"] < 90
        assert verify(out).passed


def test_half_precision_that_flips_classes_is_repaired_or_refused(segmenter: str, tmp_path: Path) -> None:
    """Scores of 3,000 with differences of 0.01 are lost in half precision, and only the scores show how much."""
    try:
        bundle = export(segmenter, tmp_path / "b", precision="fp16", image_size=16, hyperparameters={"gain": 0.01})
    except GateError:
        return
    assert bundle.manifest.precision_report["kept_fp32"]
    assert verify(bundle).passed

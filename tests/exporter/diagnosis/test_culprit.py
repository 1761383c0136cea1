"""A gate that fails names what is wrong: the graph and its module, the rewrite, the network, or the precision."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tests.image_cases import noise
from tests.rows import TARGETS
from vitdeploy import export
from vitdeploy.cli import main
from vitdeploy.errors import GateError
from vitdeploy.exporter import capture, half_repair, optimize, pipeline, preparation
from vitdeploy.exporter.artifact import write_model
from vitdeploy.exporter.diagnosis import culprit
from vitdeploy.exporter.lowering.attention import lower_attention
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.models.outputs import choose_outputs
from vitdeploy.passes.fold_batch_norm import FoldBatchNorm
from vitdeploy.proof.parity import Bounds, compare_outputs

SIZE = 32


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 2, x.shape[-1] // 2).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Network(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.bn = nn.Conv2d(3, width, 8, 8), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(2))
        self.head = nn.Linear(width, 5)
        with torch.no_grad():
            self.bn.running_mean.normal_()  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn(self.stem(images)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x.mean(1))
        return out


class Chaos(nn.Module):
    """The logistic map, in which a rounding error grows by a factor of almost two with every step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5)
        self.steps = nn.ModuleList(Step() for _ in range(steps))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(images))
        for step in self.steps:
            x = step(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3.9 * x * (1 - x)


class Single(Chaos):
    """It has no form in FP64."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.float())


@pytest.fixture
def failure(tmp_path: Path) -> Callable[..., GateError]:
    """The error of an export, which leaves nothing behind."""

    def fail(module: nn.Module, **options: Any) -> GateError:
        with pytest.raises(GateError) as caught:
            export(module, tmp_path / "bundle", image_size=SIZE, **options)
        assert not (tmp_path / "bundle").exists()
        assert caught.value.exit_code == 1
        return caught.value

    return fail


def change(model: ir.Model, name: str, by: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a weight of a graph."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(by(value.const_value.numpy()).astype(np.float32), name=name)


def blames_the_graph(error: GateError, module: str) -> None:
    assert error.what == "the graph of Network does not reproduce PyTorch, whatever the precision"
    assert f"{module} is the first module whose inputs agree with PyTorch" in (error.why or "")
    assert "logits: the relative error is" in (error.why or "")
    assert error.fix is not None
    assert "--verbose" in error.fix
    assert f"the code of {module}" in error.fix
    assert "fp32" not in str(error)


@pytest.mark.parametrize(("precision", "batch"), [("fp32", 2), ("fp16", "dynamic")])
def test_an_operator_that_is_captured_wrongly(
    precision: str, batch: int | str, failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = capture.attention

    def too_sharp(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        return honest(1.5 * q, k, v, *args, **options)

    monkeypatch.setattr(capture, "attention", too_sharp)
    error = failure(Network(), precision=precision, batch=batch)
    blames_the_graph(error, "blocks.0 (Attention)")
    assert "it is wrong as it was captured, before any rewrite" in (error.why or "")
    assert re.search(
        r"the first wrong result in it is that of scaled_dot_product\w+ at .*test_culprit.py:\d+", str(error)
    )


def test_int8_of_a_wrong_graph_is_refused_before_anything_is_calibrated(
    tmp_path: Path, failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = capture.attention
    monkeypatch.setattr(capture, "attention", lambda q, *args, **options: honest(3 * q, *args, **options))
    monkeypatch.setattr(pipeline, "eight_bits", lambda *args: pytest.fail("calibrated"))
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(4):
        Image.fromarray(noise(SIZE, SIZE, seed)).save(images / f"{seed}.png")
    error = failure(Network(), precision="int8", calibration=images)
    blames_the_graph(error, "blocks.0 (Attention)")
    assert "8 bits" not in str(error)
    assert "INT8" not in str(error)


def test_a_graph_that_misses_the_bound_is_right_where_the_network_rounds_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = Network().eval()
    network = TorchNetwork(module, "Network", choose_outputs(module, features=False), 1)
    images = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    graph, inputs = (
        capture.capture(module, torch.tensor(images), dynamic_batch=False, output_names=["logits"]),
        {"images": images},
    )
    evidence = culprit.Evidence(network, graph, graph, TARGETS["portable"], inputs, network.run(inputs), "fp16")
    monkeypatch.setattr(culprit, "SINGLE", Bounds(max_relative=0.0))
    culprit.require_right(evidence)
    wrong = graph.clone()
    change(wrong, "head.bias", lambda bias: bias + 1e-3)
    assert compare_outputs(
        evidence.expected, evidence.outputs(wrong), runtime="", precision="fp16", bounds=culprit.HALF
    ).passed
    with pytest.raises(GateError, match="the FP32 graph of Network does not reproduce PyTorch"):
        culprit.require_right(replace(evidence, optimized=wrong))


def test_an_operator_that_is_lowered_wrongly(
    failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = lower_attention

    def second_is_wrong(model: ir.Model) -> list[str]:
        changes = honest(model)
        softmax = [node for node in model.graph if node.op_type == "Softmax"][1]
        softmax.attributes["axis"] = ir.AttrInt64("axis", 2)
        return changes

    monkeypatch.setattr(optimize, "lower_attention", second_is_wrong)
    error = failure(Network())
    blames_the_graph(error, "blocks.1 (Attention)")
    assert "the rewrite lower_attention makes it wrong (blocks.0/CrossAttention" in (error.why or "")


def test_a_pass_that_computes_something_else(
    failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FoldBatchNorm.rewrite

    def scaled(self: FoldBatchNorm, model: Any) -> Any:
        changes = honest(self, model)
        name = next(name for name, one in model.graph.initializers.items() if "stem" in name and one.shape == [16])
        change(model, name, lambda bias: 1.1 * bias)
        return changes

    monkeypatch.setattr(FoldBatchNorm, "rewrite", scaled)
    error = failure(Network())
    assert "the rewrite fold_batch_norm makes it wrong" in (error.why or "")
    assert "whatever the precision" in error.what


def test_a_graph_that_no_repeated_rewrite_makes_wrong(
    failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = preparation._graph

    def spoiled(*args: Any) -> Any:
        graph, record = honest(*args)
        change(graph, "head.bias", lambda bias: bias + 0.1)
        return graph, record

    monkeypatch.setattr(preparation, "_graph", spoiled)
    error = failure(Network())
    blames_the_graph(error, "head (Linear)")
    assert "rewrite" not in (error.why or "")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_that_amplifies_rounding_is_called_ill_conditioned(
    precision: str, failure: Callable[..., GateError]
) -> None:
    error = failure(Chaos(30), precision=precision)
    assert error.what.startswith("Chaos itself is ill-conditioned")
    assert "against FP64, PyTorch in FP32 reaches" in (error.why or "")
    assert "and the FP32 graph" in (error.why or "")
    assert "(Step) is the first module where it shows" in (error.why or "")
    assert error.fix is not None
    assert "precision" not in error.fix


def test_a_network_without_a_form_in_double_is_judged_without_it(failure: Callable[..., GateError]) -> None:
    error = failure(Single(30))
    assert "ill-conditioned" not in str(error)
    assert "does not reproduce PyTorch" in error.what


def test_the_precision_is_blamed_where_the_graph_is_right_and_the_blocks_are_named(
    failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_repair, "MAX_REPAIRS", 1)
    error = failure(Chaos(12), precision="fp16")
    assert re.search(r"most is lost in (steps\.\d+|stem|graph) \(\d+\.\d dB, in FP32 \d+\.\d dB\)", error.why or "")
    assert error.what.startswith("half precision reaches")
    assert re.search(r"the FP32 graph is right: .* PyTorch in FP32 itself keeps \d+ dB of FP64", error.why or "")
    assert "--precision fp32" in (error.fix or "")


def test_the_runtime_is_blamed_where_the_graph_is_right(
    failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = write_model

    def damaged(graph: ir.Model, *args: Any) -> None:
        change(graph, "head.bias", lambda bias: bias + 0.1)
        honest(graph, *args)

    monkeypatch.setattr(pipeline, "write_model", damaged)
    error = failure(Network())
    assert error.what == "Network does not reproduce PyTorch in onnxruntime"
    assert "the FP32 graph is right: " in (error.why or "")
    assert "itself keeps" not in (error.why or ""), "Network does not magnify rounding"
    assert error.fix == "another --target"


def test_a_search_that_fails_does_not_hide_the_gate(
    failure: Callable[..., GateError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_repair, "MAX_REPAIRS", 0)
    monkeypatch.setattr(culprit, "_explain", lambda *args: 1 / 0)
    assert failure(Chaos(12), precision="fp16").what.startswith("half precision reaches")


def test_an_export_whose_gates_hold_looks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "_explain", lambda *args: pytest.fail("searched"))
    monkeypatch.setattr(TorchNetwork, "in_double", lambda self: pytest.fail("computed in FP64"))
    bundle = export(Network(), tmp_path / "bundle", image_size=SIZE)
    assert bundle.manifest.parity
    assert all(report["passed"] for report in bundle.manifest.parity)


def test_the_command_line_prints_what_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("vitdeploy")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    level = logger.level
    honest = capture.attention
    monkeypatch.setattr(capture, "attention", lambda q, *args, **options: honest(1.5 * q, *args, **options))
    source = tmp_path / "net.py"
    source.write_text("from tests.exporter.diagnosis.test_culprit import Network as build\n")
    out = tmp_path / "bundle"
    try:
        assert main(["export", f"{source}:build", "--image-size", str(SIZE), "--verbose", "-o", str(out)]) == 1
    finally:
        logger.setLevel(level)
    printed = capsys.readouterr().err
    assert "blocks.0 (Attention): inputs agree, outputs differ" in printed
    assert "Traceback" not in printed
    assert not out.exists()

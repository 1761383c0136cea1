"""Every operator form computes what PyTorch does in float64, for every target, valid at the opset it declares."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from tests.exporter.lowering.forms import FORMS, QUICK, SIZE, network
from tests.rows import TARGETS
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering.opset import GRID_SAMPLE_OPSET
from vitdeploy.exporter.optimize import lower, optimize
from vitdeploy.graph.run import Runner
from vitdeploy.platforms.boards import PLATFORMS
from vitdeploy.platforms.graph_rules import unreadable

TOLERANCE = 1e-4
KINDS = ("natural", "noise", "zero", "constant")


def images(kind: str, batch: int) -> torch.Tensor:
    """Images [batch, 3, 16, 16] of one kind; natural ones are smooth with little noise."""
    generator = torch.Generator().manual_seed(batch)
    noise = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
    coarse = torch.randn(batch, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear") + 0.1 * noise
    return {
        "natural": smooth,
        "noise": noise,
        "zero": torch.zeros_like(noise),
        "constant": torch.full_like(noise, 0.7),
    }[kind]


class Exported:
    """A row captured once, with PyTorch's outputs in float64."""

    def __init__(self, row: str, batch: int | None) -> None:
        self.module, self.batch = network(row), batch
        self.exact = copy.deepcopy(self.module).double()
        example = torch.zeros(batch or 2, 3, SIZE, SIZE)
        self.captured = capture(self.module, example, dynamic_batch=batch is None, output_names=["y"])

    def lowered(self, target: str) -> ir.Model:
        graph = self.captured.clone()
        lower(graph, TARGETS[target])
        optimize(graph, TARGETS[target])
        return graph

    def samples(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The kind, the images, and PyTorch's output for them in float64."""
        for batch in (1, 5) if self.batch is None else (self.batch,):
            for kind in KINDS:
                x = images(kind, batch)
                with torch.no_grad():
                    yield f"{kind} {batch}", x.numpy(), self.exact(x.double()).numpy()


def largest_error(exported: Exported, run: object) -> float:
    """Of all samples, as a part of the largest value; infinite for another shape and for what is not finite."""
    samples = list(exported.samples())
    largest = max(np.abs(wanted).max(initial=1e-6) for _, _, wanted in samples)
    errors = []
    for _, x, wanted in samples:
        found = run(x)  # type: ignore[operator]
        error = np.abs(found - wanted).max(initial=0) if found.shape == wanted.shape else np.inf
        errors.append(np.inf if np.isnan(error) else error)
    return float(max(errors) / largest)


def require_valid(graph: ir.Model, target: str) -> None:
    """Valid by onnx.checker at the target's opset, and nothing that its TensorRT cannot read."""
    proto = ir.to_proto(graph)
    declared = {entry.domain: entry.version for entry in proto.opset_import}
    modes = {node.attributes["mode"].as_string() for node in graph.graph if node.op_type == "GridSample"}
    older = TARGETS[target].for_nvidia and modes - {"nearest"}
    assert declared[""] == (min(GRID_SAMPLE_OPSET, TARGETS[target].opset) if older else TARGETS[target].opset)
    onnx.checker.check_model(proto, full_check=True)
    if target in PLATFORMS:
        assert not list(unreadable(graph, PLATFORMS[target]))


def on_onnxruntime(graph: ir.Model) -> object:
    runner = Runner(graph)
    return lambda x: runner({"images": x})["y"]


def on_openvino(graph: ir.Model) -> object:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(ir.to_proto(graph).SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda x: compiled([x])[0]


RUNTIMES: Mapping[str, object] = {"onnxruntime": on_onnxruntime, "openvino": on_openvino}


@pytest.mark.parametrize("row", QUICK)
def test_a_form_of_each_kind_is_right_in_the_oldest_opset_and_readable_for_tensorrt(row: str) -> None:
    exported = Exported(row, None)
    graph = exported.lowered("portable")
    require_valid(graph, "portable")
    assert largest_error(exported, on_onnxruntime(graph)) <= TOLERANCE
    require_valid(exported.lowered("tensorrt8"), "tensorrt8")
    require_valid(exported.lowered("tensorrt11"), "tensorrt11")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("row", FORMS)
def test_every_form_is_right_for_every_target_in_every_runtime(row: str, batch: int | None) -> None:
    exported = Exported(row, batch)
    for target, described in TARGETS.items():
        graph = exported.lowered(target)
        require_valid(graph, target)
        for runtime in {*described.runtimes, "onnxruntime"} & set(RUNTIMES):
            assert largest_error(exported, RUNTIMES[runtime](graph)) <= TOLERANCE, (target, runtime)  # type: ignore[operator]

"""Every network of the zoo, for every target, in both precisions, against PyTorch.

The product of 19 variants, 6 targets, 2 precisions, 2 sizes and 2 batch modes is covered like this:

- All six targets and both precisions come from one capture of a variant at a size and a batch mode. Targets whose rows
  ask for the same form give the same bytes; these are checked once.
- Every variant is captured at its default size for a batch of 1, and at another size for a dynamic batch.
- The smallest variant of each family is captured for the other two combinations too: for it the product is complete.
- Each distinct graph runs in ONNX Runtime, and in OpenVINO where one of its targets names it; dynamic ones at a batch
  of 1, 2 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.exporter.zoo_models import SHALLOW, shallow_model, zoo_model
from tests.rows import TARGETS
from vitdeploy import export, verify
from vitdeploy.exporter.artifact import standard_onnx
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.half import half_precision
from vitdeploy.exporter.half_parts import pin_modules
from vitdeploy.exporter.optimize import lower, optimize
from vitdeploy.graph.edit import Array
from vitdeploy.models.outputs import choose_outputs
from vitdeploy.models.registry import cards
from vitdeploy.proof.parity import compare_outputs
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.options import Options
from vitdeploy.targets import Target

SMALLEST = ("lemevit_tiny.eurosat", "dualvit_s", "qnavit_tiny", "saevit_xs", "cagevit_tiny")
DYNAMIC_BATCHES = (5, 1, 2)
FIXED_BATCHES = 3  # of one image each

# What a parser may lack or compute from shapes at run time; a network of fixed size needs none of it.
SHAPE_OPERATORS = {
    "Shape",
    "Gather",
    "GatherElements",
    "GatherND",
    "Resize",
    "ConstantOfShape",
    "Range",
    "NonZero",
    "Loop",
    "If",
}
HEAVY = {"Conv", "MatMul", "Gemm"}


@pytest.mark.parametrize("family", SHALLOW)
def test_a_shallow_network_of_each_family_exports_in_half_precision(family: str, tmp_path: Path) -> None:
    model, images = shallow_model(family)
    bundle = export(model, tmp_path / "bundle", precision="fp16", batch="dynamic", reference=images)
    for runtime in ("onnxruntime", "openvino"):
        report = verify(bundle, runtime=runtime)
        assert report.passed, report
    check_form(onnx.load(bundle.path / "model.onnx"), TARGETS["portable"], dynamic=True)
    check_half(onnx.load(bundle.path / "model.onnx"), getattr(model, "float32_modules", ()))
    assert bundle.manifest.precision_report["snr_db"] >= 45
    assert bundle.manifest.precision_report["repairs"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize(("other_size", "dynamic"), [(False, True), (True, False)])
def test_the_smallest_of_each_family_in_the_remaining_combinations(name: str, other_size: bool, dynamic: bool) -> None:
    check_every_target(*zoo_model(name, other_size=other_size), dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["default-size-batch-1", "other-size-dynamic"])
@pytest.mark.parametrize("name", cards())
def test_every_variant_for_every_target(name: str, dynamic: bool) -> None:
    check_every_target(*zoo_model(name, other_size=dynamic), dynamic=dynamic)


@pytest.mark.parametrize("family", SHALLOW)
def test_a_lost_parameter_or_statistic_would_show(family: str) -> None:
    """These tests compare outputs: whatever the graph forgets must move them by more than the bound, 1e-4."""
    model, images = shallow_model(family)
    photos = torch.from_numpy(images[:2])
    with torch.inference_mode():
        outputs = telling_outputs(model, photos)
        for name, tensor in [*model.named_parameters(), *statistics(model)]:
            value = tensor.clone()
            tensor.zero_()
            changed = telling_outputs(model, photos)
            tensor.copy_(value)
            effect = max(
                float((new - old).abs().max() / old.abs().max()) for new, old in zip(changed, outputs, strict=True)
            )
            assert effect > 3e-4, name


def telling_outputs(model: nn.Module, photos: torch.Tensor) -> list[torch.Tensor]:
    """Logits and, of a network that selects, the scores behind the selection, which stays the first image's half."""
    if not hasattr(model, "select"):
        return [model(photos)]
    patches = model.grid[0] * model.grid[1]  # type: ignore[union-attr, operator, index]
    index = torch.arange(0, patches, 2).expand(len(photos), -1)
    return [model.encode(photos, index), model.guide(photos).score]  # type: ignore[operator, union-attr]


def statistics(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, buffer) for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


def check_every_target(model: nn.Module, images: Array, *, dynamic: bool) -> None:
    """Capture once; lower, optimize, halve and run for all targets; all failures are reported together."""
    if not dynamic:
        images = images[:FIXED_BATCHES]
    wanted = choose_outputs(model, features=False)
    with torch.inference_mode():
        if hasattr(model, "prepare_fp16"):
            model.prepare_fp16(torch.from_numpy(images))  # type: ignore[operator]
        expected = {k: v.numpy() for k, v in wanted.call(model, {"images": torch.from_numpy(images)}).items()}
    example = torch.from_numpy(images[: 2 if dynamic else 1])
    captured = capture(model, example, dynamic_batch=dynamic, output_names=list(expected), call=wanted.call)
    pinned = getattr(model, "float32_modules", ())
    del model

    distinct: dict[bytes, tuple[ir.Model, list[Target]]] = {}
    for target in TARGETS.values():
        graph = captured.clone()
        lower(graph, target)
        optimize(graph, target)
        pin_modules(graph, pinned)
        key = sha256(ir.to_proto(graph).SerializeToString(deterministic=True)).digest()
        distinct.setdefault(key, (graph, []))[1].append(target)

    failures = []
    for graph, targets in distinct.values():
        typed, report = half_precision(graph, {"images": images}, expected, selections=wanted.selections)
        assert report["snr_db"] >= 45
        for precision, finished in (("fp32", graph), ("fp16", typed)):
            proto = standard_onnx(finished)
            if precision == "fp16":
                check_half(proto, pinned, [entry["node"] for entry in report["kept_fp32"]])
            for target in targets:
                check_form(proto, target, dynamic=dynamic)
            failures += [
                f"{'/'.join(target.name for target in targets)} {precision} in {runtime}: {failure}"
                for runtime in runtimes(targets)
                for failure in run_and_compare(proto, images, expected, runtime, precision, dynamic=dynamic)
            ]
    assert not failures, "\n".join(failures)


def runtimes(targets: list[Target]) -> list[str]:
    return ["onnxruntime", *(["openvino"] if any("openvino" in target.runtimes for target in targets) else [])]


def run_and_compare(
    proto: onnx.ModelProto,
    images: Array,
    expected: Mapping[str, Array],
    runtime: str,
    precision: str,
    *,
    dynamic: bool,
) -> list[str]:
    """What does not hold when `runtime`, computing in FP32 where it may, runs the file on `images`."""
    backend = find_backend(runtime).load(proto.SerializeToString(), options=Options(threads=1))
    assert {(spec.name, spec.dtype) for spec in (*backend.inputs, *backend.outputs)} == {
        ("images", "float32"),
        *((name, array.dtype.name) for name, array in expected.items()),
    }
    if dynamic:
        whole, *others = (backend.run({"images": np.ascontiguousarray(images[:count])}) for count in DYNAMIC_BATCHES)
    else:
        assert backend.inputs[0].shape == (1, *images.shape[1:])
        single = [backend.run({"images": image[None]}) for image in images]
        whole, others = {name: np.concatenate([outputs[name] for outputs in single]) for name in expected}, []
    backend.close()
    failures = list(
        compare_outputs(expected, whole, runtime=runtime, precision=precision, selections=("selection",)).failures
    )
    for outputs in others:  # a smaller batch gives the same rows
        rows = len(next(iter(outputs.values())))
        reference = {name: array[:rows] for name, array in whole.items()}
        report = compare_outputs(reference, outputs, runtime=runtime, precision=precision, selections=("selection",))
        failures += [f"batch {rows}: {failure}" for failure in report.failures]
    return failures


def check_form(proto: onnx.ModelProto, target: Target, *, dynamic: bool) -> None:
    """The file is of the target's opset and of its forms, with nothing left that only shapes need."""
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", target.opset)]
    assert proto.ir_version <= 10
    operators = Counter(node.op_type for node in proto.graph.node)
    if dynamic and target.for_nvidia:
        # The one query that does not depend on the image gets its batch for TensorRT's fused attention.
        assert operators.pop("Shape", 0) == operators.pop("Expand", 0) <= 1
    assert not operators.keys() & {*SHAPE_OPERATORS, "Expand"}
    assert ("LayerNormalization" in operators) == (target.layer_norm == "operator")
    assert ("Gelu" in operators) == (target.gelu == "gelu" and "Erf" not in operators)
    for node in proto.graph.node:
        if node.op_type == "ConvTranspose":
            weight = next(w for w in proto.graph.initializer if w.name == node.input[1])
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            assert group == 1 or min(weight.dims[0] // group, weight.dims[1]) >= target.min_deconvolution_group


def check_half(proto: onnx.ModelProto, pinned: Sequence[str], kept: Sequence[str] = ()) -> None:
    """What computes most does it in half precision, but for pinned modules and what is on record; float32 outside."""
    interface = [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)]
    assert onnx.TensorProto.FLOAT16 not in interface
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    heavy = [node for node in proto.graph.node if node.op_type in HEAVY]
    single = [
        node.name
        for node in heavy
        if types.get(node.input[1]) == onnx.TensorProto.FLOAT
        and not node.name.startswith(tuple(f"{module}{end}" for module in pinned for end in "./"))
    ]
    assert set(single) <= set(kept)
    assert len(single) < len(heavy) / 4

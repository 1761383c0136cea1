"""`check`: each rule fires on the graph that breaks it, and only there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import LABELS, SIZE, tiny_manifest, write_tiny_bundle
from vitdeploy.bundle import MODEL, BundleWriter
from vitdeploy.cli import main
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.platforms.boards import BOARDS, PLATFORMS, find_platform
from vitdeploy.platforms.check import check
from vitdeploy.platforms.report import BLOCKS, CheckReport


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: dict[str, tuple[int, list[int | str]]] | None = None,
    output: tuple[str, int, list[int | str] | None] = ("out", TensorProto.FLOAT, None),
    weights: dict[str, np.ndarray] | None = None,
    more: Sequence[TensorProto] = (),
    opset: int = 17,
) -> Path:
    """A bundle around any graph; `check` reads no more of it than its model and its name."""
    inputs = inputs or {"x": (TensorProto.FLOAT, [1, 8, 16, 16])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(*output)],
        [*(numpy_helper.from_array(array, name) for name, array in (weights or {}).items()), *more],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, model.SerializeToString())
        images = np.zeros((2, 3, SIZE, SIZE), np.float32)
        writer.write_reference(inputs={"images": images}, outputs={"logits": np.zeros((2, len(LABELS)), np.float32)})
        writer.seal(tiny_manifest())
        writer.commit()
    return path


def node(kind: str, inputs: Sequence[str], output: str = "out", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{kind}.{output}", **attributes)


def attention(
    path: Path,
    *,
    tokens: tuple[int, int] = (196, 196),
    head: int = 32,
    batches: tuple[int | str, int | str] = (1, 1),
    kind: int = TensorProto.FLOAT16,
    before: Sequence[onnx.NodeProto] = (),
    after: Sequence[onnx.NodeProto] = (),
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """softmax(q k) v, where `before` leads from `scores` to `logits` and `after` from `weights` to `mixed`."""
    queries, keys = tokens
    nodes = [
        node("MatMul", ["q", "k"], "scores" if before else "logits"),
        *before,
        node("Softmax", ["logits"], "weights" if after else "mixed", axis=-1),
        *after,
        node("MatMul", ["mixed", "v"]),
    ]
    shapes: dict[str, tuple[int, list[int | str]]] = {
        "q": (kind, [batches[0], 2, queries, head]),
        "k": (kind, [batches[1], 2, head, keys]),
        "v": (kind, [batches[1], 2, keys, head]),
    }
    return write(path, nodes, inputs=shapes, output=("out", kind, None), weights=weights)


def blocked(report: CheckReport) -> list[str]:
    return [finding.what for finding in report.findings if finding.level == BLOCKS]


def broken(path: Path, target: str = "tensorrt10.8") -> set[str]:
    """Names of the rules that the only attention of the graph breaks."""
    (block,) = check(path, target).attentions
    return {rule.name for rule in block.open_rules}


def test_a_plain_model_passes_on_every_platform(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    for name in PLATFORMS:
        report = check(bundle, name)
        assert report.passed, (name, report.findings)
        assert json.loads(json.dumps(report.to_dict()))["passed"]


def test_every_board_has_a_platform_and_its_python_is_judged(tmp_path: Path) -> None:
    for board in BOARDS:
        assert any(name.startswith(board) for name in PLATFORMS)
    nano = find_platform("jetson-orin-nano-jp6")
    assert (nano.oldest, nano.sm, nano.python) == ((10, 3), (8, 7), "3.10")
    report = check(write_tiny_bundle(tmp_path / "b"), "jetson-orin-nano-jp5")
    assert any("Python 3.8" in finding.what for finding in report.findings)
    assert report.passed


def test_a_range_of_versions_is_judged_by_its_oldest() -> None:
    assert find_platform("tensorrt8").minors == ((8, 5, 2), (8, 6, 2))
    assert find_platform("tensorrt10").minors[:2] == ((10, 3), (10, 4))
    with pytest.raises(UsageError, match="--target jetson-orin-nano-jp"):
        find_platform("jetson-orin-nano-jp66")


def test_an_opset_the_parser_does_not_read_blocks(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", [node("Relu", ["x"])], opset=20)
    assert "reads opset 9 to 17, this is 20" in blocked(check(bundle, "tensorrt8"))[0]
    assert not blocked(check(bundle, "tensorrt10"))


def test_operators_come_with_versions(tmp_path: Path) -> None:
    ones = np.ones(16, np.float32)
    norm = write(tmp_path / "n", [node("LayerNormalization", ["x", "w", "w"])], weights={"w": ones})
    assert blocked(check(norm, "tensorrt8")) == ["LayerNormalization is there from TensorRT 8.6, not in 8.5.2"]
    assert not blocked(check(norm, "tensorrt8.6"))
    unique = write(tmp_path / "u", [node("Unique", ["x"])])
    assert blocked(check(unique, "tensorrt11")) == ["TensorRT has no Unique"]
    foreign = write(tmp_path / "f", [helper.make_node("FusedGelu", ["x"], ["out"], domain="com.microsoft")])
    with pytest.raises(BundleError, match=r"com\.microsoft\.FusedGelu, which opset 17 of ONNX does not define"):
        check(foreign, "tensorrt11")


@pytest.mark.parametrize("target", ["tensorrt8", "tensorrt10", "tensorrt11"])
def test_pixels_feed_a_cast_and_nothing_else(target: str, tmp_path: Path) -> None:
    inputs: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.UINT8, ["batch", 4, 4, 3])}
    cast = {"to": TensorProto.FLOAT}
    first = [node("Cast", ["x"], "c", **cast), node("Transpose", ["c"], perm=[0, 3, 1, 2])]
    late = [node("Transpose", ["x"], "t", perm=[0, 3, 1, 2]), node("Cast", ["t"], **cast)]
    assert not blocked(check(write(tmp_path / "f", first, inputs=inputs), target))
    assert "it reads uint8" in blocked(check(write(tmp_path / "l", late, inputs=inputs), target))


def test_what_the_sources_leave_open_is_a_warning(tmp_path: Path) -> None:
    mish = write(tmp_path / "m", [node("Mish", ["x"])], opset=18)
    report = check(mish, "tensorrt10")
    assert report.passed
    assert any("not known for 10.3" in finding.what for finding in report.findings)
    assert not check(mish, "tensorrt10.15").findings


@pytest.mark.parametrize(("count", "is_sorted", "blocks"), [(8, 1, 0), (4000, 1, 1), (8, 0, 1)])
def test_top_k_has_limits(tmp_path: Path, count: int, is_sorted: int, blocks: int) -> None:
    top = helper.make_node("TopK", ["x", "k"], ["out", "places"], sorted=is_sorted)
    bundle = write(
        tmp_path / "b",
        [top],
        inputs={"x": (TensorProto.FLOAT, [1, 5000])},
        weights={"k": np.asarray([count], np.int64)},
    )
    assert len(blocked(check(bundle, "tensorrt10"))) == blocks


@pytest.mark.parametrize(("zero", "expected"), [(np.int8(0), []), (np.int8(3), ["the zero point is not 0"])])
def test_quantization_is_symmetric(tmp_path: Path, zero: np.int8, expected: list[str]) -> None:
    pair = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"])]
    weights = {"s": np.asarray(0.1, np.float32), "z": np.asarray(zero)}
    assert blocked(check(write(tmp_path / "b", pair, weights=weights), "tensorrt10")) == expected * 2


def test_unsigned_quantization_and_integer_operators_block(tmp_path: Path) -> None:
    weights = {"s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.uint8)}
    pair = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"])]
    assert set(blocked(check(write(tmp_path / "u", pair, weights=weights), "tensorrt11"))) == {"uint8 is not taken"}
    dynamic = [helper.make_node("DynamicQuantizeLinear", ["x"], ["out", "s", "z"])]
    bundle = write(tmp_path / "d", dynamic, output=("out", TensorProto.UINT8, None))
    assert blocked(check(bundle, "tensorrt11")) == ["DynamicQuantizeLinear is an integer operator"]


def test_deconvolution_groups_block_only_in_int8(tmp_path: Path) -> None:
    kernel = {"w": np.ones((8, 1, 2, 2), np.float32)}
    up = write(tmp_path / "f", [node("ConvTranspose", ["x", "w"], group=8, strides=[2, 2])], weights=kernel)
    report = check(up, "tensorrt10")
    assert report.passed
    assert "1 and 1 channels a group" in report.findings[0].what
    quantized = {"w8": kernel["w"].astype(np.int8), "s": np.asarray(0.1, np.float32)}
    nodes = [node("DequantizeLinear", ["w8", "s"], "w"), node("ConvTranspose", ["x", "w"], group=8, strides=[2, 2])]
    assert len(blocked(check(write(tmp_path / "q", nodes, weights=quantized), "tensorrt10"))) == 1


def test_int64_outputs_shrink_before_10(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", [node("ArgMax", ["x"], axis=1)], output=("out", TensorProto.INT64, None))
    assert any("int64 becomes int32" in finding.what for finding in check(bundle, "tensorrt8").findings)
    assert not check(bundle, "tensorrt10.8").findings


def test_the_canonical_attention_fuses(tmp_path: Path) -> None:
    bundle = attention(tmp_path / "a")
    assert broken(bundle) == set()
    (block,) = check(bundle, "tensorrt10.8").attentions
    assert block.fuses is True
    assert block.shape == "2 heads, 196 x 196 tokens, head size 32"
    assert block.int8 is not None
    assert block.int8.answer == "measure"
    masked = [node("Add", ["scores", "mask"], "logits")]
    mask = {"mask": np.zeros((1, 1, 1, 196), np.float16)}
    assert broken(attention(tmp_path / "m", before=masked, weights=mask)) == set()


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"head": 36}, {"head size"}),
        ({"head": 8}, {"head size"}),
        ({"kind": TensorProto.FLOAT}, {"types"}),
        ({"tokens": (4, 70000)}, {"tokens"}),
        ({"batches": (1, "batch")}, {"batch"}),
        ({"before": [node("Mul", ["scores", "half"], "logits")]}, {"scale"}),
        ({"before": [node("Relu", ["scores"], "logits")]}, None),
        ({"before": [node("Identity", ["scores"], "logits")]}, {"between"}),
        ({"after": [node("Reshape", ["weights", "shape"], "mixed")]}, {"between"}),
        ({"before": [node("Add", ["scores", "half"], "m"), node("Add", ["m", "half"], "logits")]}, {"between"}),
    ],
)
def test_each_fusion_rule_is_held(tmp_path: Path, change: dict[str, object], rules: set[str] | None) -> None:
    weights = {"half": np.asarray(0.5, np.float16), "shape": np.asarray([1, 2, 196, 196], np.int64)}
    bundle = attention(tmp_path / "a", weights=weights, **change)  # type: ignore[arg-type]
    if rules is None:
        assert check(bundle, "tensorrt10.8").attentions == (), "that is no attention"
    else:
        assert broken(bundle) == rules


def test_int8_attention_needs_few_tokens_and_a_platform_that_has_the_kernel(tmp_path: Path) -> None:
    long = attention(tmp_path / "l", tokens=(3136, 16))
    (block,) = check(long, "tensorrt10.8").attentions
    assert block.fuses
    assert block.int8 is not None
    assert (block.int8.answer, block.int8.reason) == ("no", "tokens: 3136 x 16, limit 512")
    (on_orin,) = check(attention(tmp_path / "s"), "jetson-orin-nano-jp6").attentions
    assert on_orin.fuses
    assert on_orin.int8 is not None
    assert "10.3 on Orin fuses FP16 only" in on_orin.int8.reason


def test_what_reports_disagree_on_is_unknown(tmp_path: Path) -> None:
    (block,) = check(attention(tmp_path / "a"), "jetson-agx-orin-jp6.0").attentions
    assert block.fuses is None
    assert "attention by the rules: 1 unknown" in str(check(attention(tmp_path / "b"), "jetson-agx-orin-jp6.0"))


def test_a_layer_norm_is_one_operator_over_the_last_axis(tmp_path: Path) -> None:
    weights = {"w": np.ones(16, np.float32), "w3": np.ones((8, 16, 16), np.float32)}
    good = write(tmp_path / "g", [node("LayerNormalization", ["x", "w"])], weights=weights)
    assert [block.fuses for block in check(good, "tensorrt10").layer_norms] == [True]
    wide = write(tmp_path / "w", [node("LayerNormalization", ["x", "w3"], axis=1)], weights=weights)
    (block,) = check(wide, "tensorrt10").layer_norms
    assert [rule.name for rule in block.open_rules] == ["last axis"]


def test_a_layer_norm_written_out_is_recognised(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMean", ["x"], "mean", axes=[-1]),
        node("Sub", ["x", "mean"], "centred"),
        node("Mul", ["centred", "centred"], "square"),
        node("ReduceMean", ["square"], "variance", axes=[-1]),
        node("Add", ["variance", "eps"], "shifted"),
        node("Sqrt", ["shifted"], "deviation"),
        node("Div", ["centred", "deviation"]),
    ]
    bundle = write(tmp_path / "b", nodes, weights={"eps": np.asarray(1e-6, np.float32)})
    assert [block.fuses for block in check(bundle, "tensorrt8").layer_norms] == [True], "8.5 has nothing better"
    assert [block.fuses for block in check(bundle, "tensorrt10").layer_norms] == [False]


def test_known_bad_versions_are_named_where_the_graph_has_what_they_break(tmp_path: Path) -> None:
    def sources(path: Path, target: str) -> list[str]:
        return [finding.source for finding in check(path, target).findings]

    assert "NVIDIA/TensorRT#4723" in sources(attention(tmp_path / "h"), "jetson-orin-nano-jp6")
    assert "NVIDIA/TensorRT#4723" not in sources(
        attention(tmp_path / "s", kind=TensorProto.FLOAT), "jetson-orin-nano-jp6"
    )
    assert "NVIDIA/TensorRT#4333" in sources(attention(tmp_path / "a"), "tensorrt10.7")
    assert "NVIDIA/TensorRT#4419" not in sources(attention(tmp_path / "i"), "jetson-orin-nano-jp6")
    free = attention(tmp_path / "f", batches=("batch", "batch"))
    assert "NVIDIA/TensorRT#4419" in sources(free, "jetson-orin-nano-jp6")
    assert "NVIDIA/TensorRT#4419" not in sources(free, "jetson-orin-nano-jp7.2")
    assert "NVIDIA/TensorRT#4333" not in sources(write(tmp_path / "r", [node("Relu", ["x"])]), "tensorrt10.7")


@pytest.mark.parametrize(("operator", "named"), [(False, True), (True, False)])
def test_a_layer_norm_that_is_written_out_overflows_in_fp16_on_tensorrt_10_3(
    operator: bool, named: bool, tmp_path: Path
) -> None:
    ones = {"w": np.ones(16, np.float16), "eps": np.asarray(1e-6, np.float16)}
    written = [
        node("ReduceMean", ["x"], "mean", axes=[-1]),
        node("Sub", ["x", "mean"], "centred"),
        node("Mul", ["centred", "centred"], "squared"),
        node("ReduceMean", ["squared"], "variance", axes=[-1]),
        node("Add", ["variance", "eps"], "shifted"),
        node("Sqrt", ["shifted"], "deviation"),
        node("Div", ["centred", "deviation"]),
    ]
    bundle = write(
        tmp_path / "b",
        [node("LayerNormalization", ["x", "w", "w"])] if operator else written,
        inputs={"x": (TensorProto.FLOAT16, [1, 8, 16, 16])},
        output=("out", TensorProto.FLOAT16, None),
        weights=ones,
    )
    sources = {finding.source for finding in check(bundle, "jetson-orin-nano-jp6").findings}
    assert ("onnxsim/onnxsim#1742" in sources) is named


@pytest.mark.parametrize(("target", "named"), [("jetson-orin-nano-jp6", True), ("jetson-orin-nano-jp7.2", False)])
@pytest.mark.parametrize("top", [True, False])
def test_int8_that_ends_in_top_k_is_warned_of_on_jetpack_6(target: str, named: bool, top: bool, tmp_path: Path) -> None:
    pair = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d")]
    end = [helper.make_node("TopK", ["d", "k"], ["out", "places"])] if top else [node("Relu", ["d"])]
    weights = {"s": np.asarray(0.1, np.float32), "z": np.asarray(np.int8(0)), "k": np.asarray([4], np.int64)}
    bundle = write(tmp_path / "b", [*pair, *end], weights=weights)
    sources = {finding.source for finding in check(bundle, target).findings}
    assert ("ultralytics/ultralytics#23841" in sources) is (named and top)


@pytest.mark.parametrize(
    ("kind", "target", "blocks"),
    [
        (TensorProto.FLOAT8E4M3FN, "jetson-orin-nano-jp7.2", True),
        (TensorProto.FLOAT8E4M3FN, "jetson-thor-jp7.2", False),
        (TensorProto.FLOAT8E4M3FN, "tensorrt10", False),
        (TensorProto.INT8, "jetson-orin-nano-jp7.2", False),
    ],
)
def test_orin_has_no_fp8(kind: int, target: str, blocks: bool, tmp_path: Path) -> None:
    zero = helper.make_tensor("z", kind, [], [0])
    pair = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"])]
    bundle = write(tmp_path / "b", pair, weights={"s": np.asarray(0.1, np.float32)}, more=[zero], opset=19)
    found = [what for what in blocked(check(bundle, target)) if "needs compute capability 8.9" in what]
    assert bool(found) is blocks


@pytest.mark.parametrize(
    ("kind", "line"),
    [(TensorProto.FLOAT16, "trtexec --onnx=model.onnx --fp16"), (TensorProto.FLOAT, "trtexec --onnx=model.onnx")],
)
def test_on_jetpack_5_the_line_for_trtexec_allows_what_the_graph_has(kind: int, line: str, tmp_path: Path) -> None:
    findings = check(attention(tmp_path / "b", kind=kind), "jetson-orin-nano-jp5").findings
    (python,) = [finding for finding in findings if "Python 3.8" in finding.what]
    assert python.fix == f"{line}, or a newer JetPack"
    assert ("compare the outputs" in python.what) is (kind == TensorProto.FLOAT16)


def test_the_int8_bound_counts_multiplications(tmp_path: Path) -> None:
    wide = {"w": np.ones((64, 64), np.float32)}
    shape: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.FLOAT, [1, 100, 64])}
    all_in = check(write(tmp_path / "a", [node("MatMul", ["x", "w"])], inputs=shape, weights=wide), "tensorrt10").int8
    assert (all_in.share, all_in.bound, all_in.verdict.answer) == (1.0, 2.0, "measure")
    thin = {"w": np.ones((64, 8), np.float32)}
    none = check(write(tmp_path / "b", [node("MatMul", ["x", "w"])], inputs=shape, weights=thin), "tensorrt10").int8
    assert (none.share, none.bound, none.verdict.answer) == (0.0, 1.0, "no")
    assert none.obstacles == {"fewer than 16 channels": 100 * 64 * 8}
    depthwise = {"w": np.ones((8, 1, 1, 1), np.float32)}
    conv = check(write(tmp_path / "c", [node("Conv", ["x", "w"], group=8)], weights=depthwise), "tensorrt10").int8
    assert list(conv.obstacles.values()) == [8 * 16 * 16]


def test_the_command_exits_1_where_something_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write(tmp_path / "b", [node("Relu", ["x"])], opset=20)
    assert main(["check", str(bundle), "--target", "tensorrt8", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert main(["check", str(bundle), "--target", "tensorrt11"]) == 0
    assert capsys.readouterr().out.startswith("builds on tensorrt11, by the rules; INT8 against FP16: no\n")
    assert main(["check", str(bundle), "--target", "tensorrt8"]) == 1
    assert capsys.readouterr().out.startswith("does not build on tensorrt8, by the rules; 1 finding blocks; INT8")
    assert main(["check", str(bundle), "--target", "tensorrt9"]) == 2


def test_a_model_that_cannot_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", [node("Relu", ["x"])])
    broken_file = write(tmp_path / "c", [node("MatMul", ["x", "w"])], weights={"w": np.ones((3, 3), np.float32)})
    with pytest.raises(BundleError, match=r"model.onnx is no model that vitdeploy exports\n  why: .*MatMul"):
        check(broken_file, "tensorrt10")
    assert check(bundle, "tensorrt10").passed


def test_without_onnx_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["check", str(tmp_path), "--target", "tensorrt10"]) == 2
    assert "pip install 'vitdeploy[export]'" in capsys.readouterr().err

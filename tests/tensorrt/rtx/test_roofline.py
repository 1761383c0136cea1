"""The estimate of time: bytes and operations of recorded layers by hand, and what holds for every device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.conftest import examples
from tests.tensorrt.rtx.conftest import Play, recorded
from tests.transformer import transformer
from vitdeploy.cli import main
from vitdeploy.graph.flop import flop_by_node
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.platforms.devices import DEVICES, Device
from vitdeploy.tensorrt.rtx.compile import compile_check
from vitdeploy.tensorrt.rtx.compiler import BUILT, Outcome
from vitdeploy.tensorrt.rtx.roofline import LAUNCH_MICROSECONDS, TITLE, estimate, read_roofline
from vitdeploy.tensorrt.rtx.workload import LayerWork, layer_works

NETWORKS = {name: transformer(half=name.endswith("16"), batch=1) for name in ("transformer_fp16", "transformer_fp32")}
PRECISIONS = ("int8", "fp16", "fp32", "other")
RATES = st.floats(0.1, 1000)
DEVICE = st.builds(Device, st.just("d"), RATES, RATES, RATES, RATES, st.just(""))
WORKS = st.lists(
    st.builds(
        LayerWork,
        st.just("layer"),
        st.sampled_from(PRECISIONS),
        moved=st.integers(10**5, 10**8),
        lasting=st.integers(0, 10**5),
        flop=st.floats(0, 1e10),
        moves=st.booleans(),
    ),
    max_size=5,
)


def engine_of(name: str) -> str:
    return Outcome(BUILT, log=tuple((severity, text) for severity, text in recorded(name)["log"])).engine


def graph_flop(model: bytes) -> int:
    return sum(count or 0 for count in flop_by_node(read_graph(model).graph).values())


def listed(name: str, kind: str, metadata: str, **sides: list[tuple[str, str, str, str]]) -> str:
    """A line of the builder's list; a tensor is name, dimensions, strides and type."""

    def side(tensors: list[tuple[str, str, str, str]]) -> str:
        told = (
            f"{{ Name: {name}, Dimensions: [{dims}], Strides: [{strides}], StrideOrder: [0], Datatype: {dtype}, "
            "Format: (Linear) Row major linear format }"
            for name, dims, strides, dtype in tensors
        )
        return f"[ {', '.join(told)}]" if tensors else "[]"

    parts = ", ".join(f"{title}: {side(sides.get(title.lower(), []))}" for title in ("Inputs", "Constants", "Outputs"))
    return f"Name: {name}, LayerType: {kind}, {parts}, TacticName: , StreamId: 0, Metadata: {metadata}"


def network(*lines: str) -> str:
    return Outcome(BUILT, log=(("VERBOSE", "\n".join(("Layers:", *lines))),)).engine


def product(rows: int | str = 10) -> bytes:
    """x [rows, 20] Relu, times w [20, 30]: y."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, wide]) for name, wide in (("x", 20), ("y", 30))
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [20, 30], [0.0] * 600)
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="relu"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="mul"),
    ]
    made: bytes = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight])).SerializeToString()
    return made


RELU = listed(
    "__myl_Relu_myl0_0",
    "kgen",
    "[ONNX Layer: relu]",
    inputs=[("x", "10,20", "20,1", "Float")],
    outputs=[("h", "10,20", "20,1", "Half")],
)
GEMM = listed(
    "mul_myl0_1",
    "gemm",
    "[ONNX Layer: mul]",
    inputs=[("h", "10,20", "20,1", "Half")],
    constants=[("c", "20,30", "30,1", "Half")],
    outputs=[("y", "10,30", "30,1", "Float")],
)


def test_a_small_network_by_hand() -> None:
    works = layer_works(network(RELU, GEMM), product())
    assert works == (
        LayerWork("__myl_Relu_myl0_0", "fp32", 200 * 4 + 200 * 2, 200 * 4, 200, moves=False),
        LayerWork("mul_myl0_1", "fp16", 200 * 2 + 600 * 2 + 300 * 4, 600 * 2 + 300 * 4, 2 * 300 * 20, moves=False),
    )
    # 1 GB/s and 4e9 operations a second in FP16: the first layer waits for memory, the second computes.
    device = Device("d", bandwidth=1, int8=0.008, fp16=0.004, fp32=0.002, source="")
    found = estimate(works, device)
    assert found.ms == pytest.approx(1200e-6 + 12000 / 4e6)
    assert found.cached_ms == pytest.approx(800e-6 + 12000 / 4e6)
    assert found.memory_ms == pytest.approx(1200e-6)
    assert found.launched_ms == pytest.approx(found.ms + 2 * LAUNCH_MICROSECONDS / 1000)
    assert found.moving_ms == 0


def test_a_layer_that_only_moves_data_computes_nothing_where_another_names_the_node_too() -> None:
    copied = listed("__myl_Move_myl0_9", "kgen", "[ONNX Layer: relu]", inputs=[("x", "10,20", "20,1", "Float")])
    works = layer_works(network(copied, RELU, GEMM), product())
    assert [(work.flop, work.moves) for work in works] == [(0, True), (200, False), (12000, False)]


def test_the_layers_of_a_recording_by_hand() -> None:
    works = {work.name: work for work in layer_works(engine_of("transformer_fp16"), NETWORKS["transformer_fp16"])}
    tokens, wide, meta, heads, head = 16, 32, 4, 2, 16
    linear = works["__myl_FcAdd_myl0_3"]
    assert linear.moved == 2 * (tokens * wide + wide + wide * wide + tokens * wide)
    assert linear.flop == 2 * tokens * wide * wide + tokens * wide
    merged = works["blocks.0.0.mlp/MatMul+blocks.0.0.attn.v/MatMul+blocks.0.0.attn.k/MatMul_myl0_5"]
    assert merged.flop == 3 * 2 * meta * wide * wide
    sliced = works["__myl_AddReshTranReshMove_myl0_6"]  # reads a third of the merged product through its strides
    assert sliced.moved == 2 * (meta * wide + wide + meta * wide)
    attention = works["_gemm_mha_v2_myl0_8"]
    assert attention.flop == 2 * 2 * heads * tokens * meta * head + heads * tokens * meta
    assert [name for name, work in works.items() if work.moves and work.flop] == []
    assert works["stem/Conv_myl0_1"].flop == 2 * wide * tokens * 3 * 4  # named by the layer before it too


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_compute_what_the_graph_does(name: str) -> None:
    report = read_roofline(engine_of(name), NETWORKS[name])
    assert report.flop == graph_flop(NETWORKS[name])
    assert [one.device for one in report.estimates] == list(DEVICES)


@given(st.data())
@settings(max_examples=examples(40))
def test_no_operation_is_lost_whatever_the_layers_name(data: st.DataObject) -> None:
    """Layers without names, with names that no node has, and nodes that several layers name."""
    name = data.draw(st.sampled_from(sorted(NETWORKS)))
    document = json.loads(engine_of(name))
    layers = document["Layers"]
    told = [layer["Metadata"] for layer in layers]
    for layer in layers:
        layer["Metadata"] = data.draw(st.sampled_from([layer["Metadata"], "", "[ONNX Layer: nobody]", *told]))
    works = layer_works(json.dumps(document), NETWORKS[name])
    assert sum(work.flop for work in works) == pytest.approx(graph_flop(NETWORKS[name]))
    assert all(work.flop >= 0 for work in works)


def test_products_that_no_layer_names_go_to_those_of_their_dimensions() -> None:
    document = json.loads(engine_of("transformer_fp16"))
    model = NETWORKS["transformer_fp16"]
    named = {work.name: work.flop for work in layer_works(json.dumps(document), model)}
    merged = [layer for layer in document["Layers"] if "+" in layer["Name"]]
    assert len(merged) == 3
    for index, layer in enumerate(merged):
        layer["Name"], layer["Metadata"] = f"merged_{index}", ""
    found = {work.name: work.flop for work in layer_works(json.dumps(document), model)}
    assert [found[f"merged_{index}"] for index in range(3)] == [value for name, value in named.items() if "+" in name]


def test_a_product_of_unknown_shape_is_counted_by_the_dimensions_of_its_layer() -> None:
    works = layer_works(network(RELU, GEMM), product("rows"))
    assert works[1].flop == 2 * 300 * 20


@pytest.mark.parametrize(
    ("dims", "strides", "dtype", "size"),
    [
        ("4,8", "8,1", "Half", 64),
        ("4,8", "96,1", "Half", 64),  # a slice leaves gaps
        ("4,8", "0,1", "Float", 32),  # every row is the same one
        ("6,3", "1,1", "Int8", 8),  # windows that overlap
        ("", "", "Float", 4),
        ("0,8", "8,1", "Float", 0),
        ("5", "1", "INT4", 3),
    ],
)
def test_a_view_counts_the_elements_that_it_reaches(dims: str, strides: str, dtype: str, size: int) -> None:
    line = listed("l_myl0_0", "kgen", "", inputs=[("t", dims, strides, dtype)])
    assert layer_works(network(line), product())[0].moved == size


def test_a_tensor_that_a_layer_lists_twice_is_read_once() -> None:
    line = listed("l_myl0_0", "kgen", "", inputs=[("t", "8", "1", "Half")] * 2)
    assert layer_works(network(line), product())[0].moved == 16


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (listed("l", "kgen", "", inputs=[("t", "-1,8", "8,1", "Half")]), "the batch is free"),
        (listed("l", "kgen", "", inputs=[("t", "4,8", "-1,1", "Half")]), "the batch is free"),
        (listed("l", "kgen", "", inputs=[("t", "4,8", "8,1", "Trit")]), "the type Trit"),
        ("Engine Metadata:", "no layers"),
    ],
)
def test_what_has_no_known_size_is_no_estimate(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_roofline(network(line), product())


@given(WORKS, DEVICE, st.sampled_from(["bandwidth", "int8", "fp16", "fp32"]), st.floats(1, 10))
@settings(max_examples=examples(100))
def test_a_better_device_is_never_slower(works: list[LayerWork], device: Device, name: str, times: float) -> None:
    before, after = estimate(works, device), estimate(works, replace(device, **{name: getattr(device, name) * times}))
    for which in ("ms", "launched_ms", "cached_ms", "moving_ms", "moving_launched_ms"):
        assert getattr(after, which) <= getattr(before, which) * (1 + 1e-9)


@given(WORKS, DEVICE)
@settings(max_examples=examples(100))
def test_the_estimate_is_the_sum_of_the_larger_of_both_times(works: list[LayerWork], device: Device) -> None:
    peaks = {"int8": device.int8, "fp16": device.fp16, "fp32": device.fp32, "other": device.fp32}
    times = [max(work.moved / device.bandwidth / 1e6, work.flop / peaks[work.precision] / 1e9) for work in works]
    found = estimate(works, device)
    assert found.ms == pytest.approx(sum(times))
    assert found.moving_ms == pytest.approx(sum(time for time, work in zip(times, works, strict=True) if work.moves))
    assert found.cached_ms <= found.ms <= found.launched_ms
    assert 0 <= found.memory_ms <= found.ms * (1 + 1e-9)


def test_the_command_prints_an_estimate_for_each_device(
    tmp_path: Path, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(NETWORKS["transformer_fp16"])
    play(log=recorded("transformer_fp16")["log"])
    assert main(["check", str(path), "--compile"]) == 0
    text = capsys.readouterr().out
    assert f"{TITLE}: " in text
    assert [line.split("  ")[1] for line in text.splitlines() if line.startswith(("  Orin", "  AGX"))] == [
        device.name for device in DEVICES
    ]
    assert main(["check", str(path), "--compile", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)["compiled"]["roofline"]
    assert (told["what"], told["layers"], told["flop"]) == (TITLE, 28, graph_flop(NETWORKS["transformer_fp16"]))
    first = told["estimates"][0]
    assert first["device"]["name"] == DEVICES[0].name
    assert first["device"]["source"]
    assert 0 < first["cached_ms"] < first["ms"] < first["launched_ms"]


def test_a_free_batch_has_no_estimate_and_says_so(tmp_path: Path, play: Play) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(product("batch"))
    play(log=[["VERBOSE", listed("l", "kgen", "", inputs=[("x", "-1,20", "20,1", "Float")])]])
    report = compile_check(path)
    assert report.passed
    assert report.fusion is not None
    assert report.roofline is None
    assert "no time is estimated: the batch is free" in report.note
    assert "--batch 1" in str(report)

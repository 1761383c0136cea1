"""One way to run a graph: the modes differ in what they say, and any number of samples fits any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph_cases import batch, parsed
from vitdeploy.errors import BackendError
from vitdeploy.graph.edit import constant
from vitdeploy.graph.run import Mode, Runner, open_session, run

MODES: tuple[Mode, ...] = ("as_written", "qdq", "optimized")

# Two outputs, one that has two rows a sample and one without a batch.
_TEXT = """g (float[{batch}, 4] x) => (float[{batch}, 3] y, float[rows, 2] pairs, int64[2] size) {{
  y = MatMul (x, w) pairs = Reshape (x, two) size = Shape (x) }}"""


def linear(batch: int | str) -> ir.Model:
    return parsed(_TEXT.format(batch=batch), w=WEIGHT, two=np.array([-1, 2], np.int64))


WEIGHT = batch(4, 3, seed=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", ["n", 1, 3])
def test_every_sample_has_its_outputs_whatever_the_batch(size: int | str, mode: Mode) -> None:
    runner, x = Runner(linear(size), mode), batch(7, 4)
    assert (runner.inputs, runner.outputs) == (("x",), ("y", "pairs", "size"))
    assert runner.batch == (None if size == "n" else size)
    found = runner({"x": x})
    np.testing.assert_allclose(found["y"], x @ WEIGHT, atol=1e-6)
    np.testing.assert_array_equal(found["pairs"], x.reshape(-1, 2))


@given(count=st.integers(1, 9), size=st.sampled_from(["n", 1, 2, 4]), step=st.sampled_from([None, 1, 3, 20]))
def test_batches_come_in_the_size_of_the_graph_or_the_one_asked_for(
    count: int, size: int | str, step: int | None
) -> None:
    x = batch(count, 4)
    parts = list(Runner(linear(size)).batches({"x": x}, step))
    wanted = size if isinstance(size, int) else step or count
    assert [len(part["y"]) for part in parts] == [min(wanted, count - start) for start in range(0, count, wanted)]
    np.testing.assert_allclose(np.concatenate([part["y"] for part in parts]), x @ WEIGHT, atol=1e-6)
    seen = {int(part["size"][0]) for part in parts}  # what the graph itself saw: always whole batches of a fixed size
    assert seen == ({size} if isinstance(size, int) else {len(part["y"]) for part in parts})


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_no_more_threads_are_started_than_the_quota_of_the_container(
    monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    monkeypatch.setattr("vitdeploy.graph.run.default_threads", lambda: threads)
    assert open_session(linear(2)).get_session_options().intra_op_num_threads == (threads or 0)


def test_bytes_are_taken_as_the_graph_is() -> None:
    model, x = linear("n"), {"x": batch(2, 4)}
    np.testing.assert_array_equal(run(ir.to_proto(model).SerializeToString(), x)["y"], run(model, x)["y"])


def pair() -> ir.Model:
    """A product with Q/DQ on both sides."""
    text = """g (float[n, 16] x) => (float[n, 16] y) {
      q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) w = DequantizeLinear <axis = 1> (wi, ws, wz)
      y = MatMul (d, w) }"""
    rng = np.random.default_rng(0)
    return parsed(
        text,
        s=np.asarray(0.1, np.float32),
        z=np.zeros((), np.int8),
        wi=rng.integers(-127, 128, (16, 16)).astype(np.int8),
        ws=np.full(16, 0.01, np.float32),
        wz=np.zeros(16, np.int8),
    )


def kernels(mode: Mode, folder: Path) -> set[str]:
    path = folder / f"{mode}.onnx"
    open_session(pair(), mode, optimized=path)
    return {node.op_type for node in onnx.load(path).graph.node}


def test_only_the_optimized_mode_uses_integer_kernels(tmp_path: Path) -> None:
    assert kernels("optimized", tmp_path) == {"MatMulIntegerToFloat", "QuantizeLinear"}
    assert kernels("as_written", tmp_path) == {"MatMul", "QuantizeLinear", "DequantizeLinear"}
    assert "MatMul" in kernels("qdq", tmp_path)


def test_qdq_is_computed_as_the_standard_says() -> None:
    model, x = pair(), batch(5, 16)
    constants = {name: constant(value) for name, value in model.graph.initializers.items()}
    rounded = (np.clip(np.rint(x / np.float32(0.1)), -128, 127) * np.float32(0.1)).astype(np.float32)
    expected = rounded @ (constants["wi"] * constants["ws"])
    for mode in ("qdq", "as_written"):
        np.testing.assert_allclose(run(model, {"x": x}, mode)["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_graph_that_cannot_be_loaded_or_run_is_an_error_that_says_why() -> None:
    with pytest.raises(BackendError, match="cannot load the graph"):
        open_session(b"no graph")
    with pytest.raises(BackendError, match="cannot run the graph"):
        run(linear("n"), {"x": batch(2, 5)})


def test_every_overload_of_a_function_is_itself() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "mine": 1]>
    agraph (float[N, 2] x) => (float[N, 2] y) { a = mine.f (x) b = mine.f : more (a, x) y = mine.f (b) }
    <opset_import: ["": 20], domain: "mine"> f (x) => (y) { y = Neg (x) }
    <opset_import: ["": 20], domain: "mine", overload: "more"> f (x, z) => (y) { y = Mul (x, z) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    fed = np.array([[2, 3]], np.float32)
    np.testing.assert_array_equal(run(model, {"x": fed})["y"], [[4, 9]])
    assert len(model.functions) == 2, "the graph is the caller's"

"""Operators and forms that other exporters write, of opset 9 to 18: what a bundle computes is what the file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest

from vitdeploy import export, load
from vitdeploy.errors import BackendError, ExportError, UsageError

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


Case = tuple[int, str, dict[str, np.ndarray]]

TWICE = {"s": np.array([1, 1, 2, 2], np.float32)}
CASES: dict[str, Case] = {
    "Upsample, nearest": (9, 'y = Upsample <mode="nearest"> (x, s)', TWICE),
    "Upsample, linear": (9, 'y = Upsample <mode="linear"> (x, s)', TWICE),
    "Resize 10, nearest": (10, 'y = Resize <mode="nearest"> (x, s)', {"s": np.array([1, 1, 1.5, 2], np.float32)}),
    "Resize 10, linear": (10, 'y = Resize <mode="linear"> (x, s)', TWICE),
    "Dropout": (9, "a = Relu (x) y = Dropout <ratio=0.5> (a)", {}),
    "Dropout with a ratio": (12, "a = Relu (x) y = Dropout (a, r)", {"r": number(0.5)}),
    "Slice by attributes": (9, "y = Slice <axes=[1,2], starts=[1,0], ends=[3,4]> (x)", {}),
    "axes as attributes": (
        9,
        "a = ReduceMean <axes=[2], keepdims=1> (x) b = Squeeze <axes=[2]> (a) y = Unsqueeze <axes=[1]> (b)",
        {},
    ),
    "BatchNormalization": (
        9,
        "y = BatchNormalization (x, a, b, m, v)",
        {"a": weights(4), "b": weights(4), "m": weights(4), "v": np.abs(weights(4)) + 0.5},
    ),
    "Clip by attributes": (9, "y = Clip <min=0.0, max=6.0> (x)", {}),
    "Pad by attributes": (9, "y = Pad <pads=[0,0,1,1,0,0,1,1], value=1.0> (x)", {}),
    "Softmax over all behind an axis": (9, "y = Softmax <axis=1> (x)", {}),
    "Softmax over the last axis": (11, "y = Softmax <axis=3> (x)", {}),
    "LogSoftmax": (11, "y = LogSoftmax <axis=2> (x)", {}),
    "Gemm": (9, "a = Flatten (x) y = Gemm <transB=1> (a, w, b)", {"w": weights(5, 256), "b": weights(5)}),
    "Split by attribute": (11, "a, b = Split <axis=1, split=[1,3]> (x) y = Concat <axis=1> (b, a)", {}),
    "Split by number": (18, "a, b = Split <axis=1, num_outputs=2> (x) y = Concat <axis=1> (b, a)", {}),
    "LSTM": (
        14,
        "s = Reshape (x, h) t = Transpose <perm=[1,0,2]> (s) a, b, c = LSTM <hidden_size=3> (t, w, r) "
        "y = Transpose <perm=[2,0,1,3]> (a)",
        {"h": np.array([0, 4, 64]), "w": weights(1, 12, 64), "r": weights(1, 12, 3)},
    ),
    "Einsum": (12, 'y = Einsum <equation="nchw,cd->ndhw"> (x, w)', {"w": weights(4, 3)}),
    "InstanceNormalization": (9, "y = InstanceNormalization (x, a, b)", {"a": weights(4), "b": weights(4)}),
    "LRN": (9, "y = LRN <size=3> (x)", {}),
    "OneHot": (
        11,
        "a = ArgMax <axis=1, keepdims=0> (x) y = OneHot <axis=1> (a, d, v)",
        {"d": np.array(4), "v": np.array([0, 1], np.float32)},
    ),
    "ConstantOfShape": (
        9,
        "s = Shape (x) z = ConstantOfShape <value = float[1] {1.0}> (s) y = Add (x, z)",
        {},
    ),
    "Range": (
        11,
        "s = Shape (x) h = Gather (s, two) r = Range (zero, h, one) k = Cast <to=1> (r) y = Add (x, k)",
        {"two": np.array(2), "zero": np.array(0), "one": np.array(1)},
    ),
    "a number": (13, "y = ReduceSum <keepdims=0> (x)", {}),
    "a sequence": (11, "a = Neg (x) s = SequenceConstruct (x, a) y = ConcatFromSequence <axis=1> (s)", {}),
    "FP64 inside": (13, "d = Cast <to=11> (x) e = Mul (d, k) y = Cast <to=1> (e)", {"k": np.array(0.1)}),
    "Conv, same size": (11, 'y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)', {"w": weights(5, 4, 3, 3)}),
    "MaxPool, same size": (11, 'y = MaxPool <auto_pad="SAME_LOWER", kernel_shape=[3,3], strides=[2,2]> (x)', {}),
    "AveragePool, rounded up": (11, "y = AveragePool <ceil_mode=1, kernel_shape=[3,3], strides=[2,2]> (x)", {}),
    "ConvTranspose, same size": (
        11,
        'y = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)',
        {"w": weights(4, 5, 3, 3)},
    ),
    "the input itself": (13, "y = Identity (x)", {}),
}


def written(case: Case, path: Path, *, inputs: str = "", ir_version: int = 8) -> Path:
    """The file of a case, on float32 [N, 4, 8, 8]; as some exporters write it, its output states no shape."""
    opset, body, arrays = case
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
    proto = onnx.parser.parse_model(f"{header} agraph (float[N, 4, 8, 8] x{inputs}) => (float[N] y) {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(proto, path)
    return path


def check(path: Path, folder: Path, batch: int | str) -> None:
    bundle = export(path, folder, batch=batch)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for runtime in ("onnxruntime", "openvino"):
        for count in (1, 3) if batch == "dynamic" else (batch,):
            x = np.random.default_rng(1).standard_normal((count, 4, 8, 8)).astype(np.float32)
            (expected,) = session.run(None, {"x": x})
            with load(bundle, runtime=runtime) as loaded:
                (found,) = loaded.run({"x": x}).values()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, float(np.abs(expected).max())))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [2, "dynamic"])
def test_a_bundle_computes_what_the_file_does(case: str, batch: int | str, tmp_path: Path) -> None:
    check(written(CASES[case], tmp_path / "x.onnx"), tmp_path / "b", batch)


def test_weights_that_are_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    case: Case = (9, "y = Mul (x, w)", {"w": weights(4, 8, 8)})
    path = written(case, tmp_path / "x.onnx", inputs=", float[4, 8, 8] w", ir_version=3)
    check(path, tmp_path / "b", "dynamic")


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    unpool = (
        "a, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) "
        "y = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (a, i)"
    )
    refusals: dict[str, tuple[str, type[Exception], str]] = {
        unpool: ("openvino", BackendError, "--target onnxruntime, which openvino need not read"),
        "a = NonZero (x) b = Cast <to=1> (a) y = Transpose <perm=[1, 0]> (b)": (
            "size follows from values",
            ExportError,
            "such as the selection of detections",
        ),
        "s = Shape (x) y = Expand (c, s)": ("depends on its input x", UsageError, "export the .onnx without it"),
    }
    for body, (words, kind, fix) in refusals.items():
        arrays = {"c": np.ones((1, 4, 1, 1), np.float32)} if "(c, s)" in body else {}
        with pytest.raises(kind) as caught:
            export(written((13, body, arrays), tmp_path / "x.onnx"), tmp_path / "b")
        assert words in str(caught.value)
        assert fix in str(caught.value)

"""`vitdeploy export model.onnx`: what is wrong with a file, or with what was asked of it, is said in a line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
from PIL import Image

from tests.exporter.onnx_networks import TF2ONNX
from vitdeploy.cli import main

Refused = Callable[..., str]


def proto(
    body: str,
    *,
    inputs: str = "float[N, 3, 8, 8] x",
    output: str = "float[N, 3, 8, 8] y",
    opset: int = 17,
    domains: str = "",
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """A file from the text of its graph."""
    header = f'<ir_version: 8, opset_import: ["": {opset}{domains}]>'
    made = onnx.parser.parse_model(f"{header} agraph ({inputs}) => ({output}) {{ {body} }}")
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return made


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Exports `x.onnx`, written from the model or bytes, and gives the message; nothing else may be left behind."""
    monkeypatch.chdir(tmp_path)

    def run(file: onnx.ModelProto | bytes | None, *options: str, code: int = 2) -> str:
        if file is not None:
            data = file if isinstance(file, bytes) else file.SerializeToString()
            (tmp_path / "x.onnx").write_bytes(data)
        before = sorted(tmp_path.iterdir())
        assert main(["export", "x.onnx", "-o", "out", *options]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert "\n  try: " in captured.err
        assert sorted(tmp_path.iterdir()) == before
        return captured.err

    return run


BROKEN: dict[str, tuple[bytes, str]] = {
    "text": (b"this is no protobuf at all", "cannot be read as ONNX"),
    "empty": (b"", "not an ONNX file, or an empty one"),
    "zeros": (bytes(100), "cannot be read as ONNX"),
    "cut": (proto("y = Relu (x)").SerializeToString()[:-20], "x.onnx"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_hold_no_graph(case: str, refused: Refused) -> None:
    data, words = BROKEN[case]
    assert words in refused(data)


def test_a_file_that_is_not_there(refused: Refused) -> None:
    assert "there is no file x.onnx" in refused(None)


GRAPHS: dict[str, tuple[onnx.ModelProto, tuple[str, ...]]] = {
    "custom operator": (
        proto("a = Relu (x) y = com.acme.Sparkle (a)", domains=', "com.acme": 1'),
        ("custom operators: com.acme.Sparkle", "first at the node", "standard operators"),
    ),
    "of a runtime": (
        proto("y = com.microsoft.FastGelu (x)", domains=', "com.microsoft": 1'),
        ("custom operators: com.microsoft.FastGelu", "before a runtime's optimizer"),
    ),
    "left by a converter": (proto("y = Erfc (x)"), ("custom operators: ai.onnx.Erfc",)),
    "inside a branch": (
        proto(
            "s = ReduceSum <keepdims = 0> (x) c = Greater (s, zero) "
            "y = If (c) <then_branch = t () => (a) { a = com.acme.Sparkle (x) }, "
            "else_branch = e () => (b) { b = Relu (x) }>",
            domains=', "com.acme": 1',
            zero=np.array(0, np.float32),
        ),
        ("com.acme.Sparkle",),
    ),
    "quantized": (
        proto("q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)", s=np.array(0.1, np.float32)),
        ("quantized already", "QuantizeLinear", "--int8"),
    ),
    "random": (proto("r = RandomNormalLike (x) y = Add (x, r)"), ("draws random numbers", "RandomNormalLike")),
    "a branch": (
        proto(
            "s = ReduceSum <keepdims = 0> (x) c = Greater (s, zero) "
            "y = If (c) <then_branch = t () => (a) { a = Neg (x) }, else_branch = e () => (b) { b = Relu (x) }>",
            zero=np.array(0, np.float32),
        ),
        ("decides with If",),
    ),
    "an old opset": (proto("y = Relu (x)", opset=5), ("opset 5", "opset_version=17")),
    "no batch": (
        proto("y = Mul (x, s)", inputs="float[N, 3, 8, 8] x, float s"),
        ("the input s of x.onnx has no batch axis",),
    ),
    "two batches": (
        proto("y = Mul (x, s)", inputs="float[1, 3, 8, 8] x, float[3, 8, 8] s"),
        ("batches of 1 and 3",),
    ),
    "an input without effect": (
        proto("y = Relu (x)", inputs="float[N, 3, 8, 8] x, float[N, 4] z"),
        ("no output of x depends on its input z",),
    ),
    "open sizes": (
        proto("y = Relu (x)", inputs="float[N, 3, H, W] x", output="float[N, 3, H, W] y"),
        ("leaves axis 2 and 3 of its input x open", "--image-size 224"),
    ),
    "an open length": (
        proto("y = Relu (x)", inputs="float[N, L] x", output="float[N, L] y"),
        ("leaves axis 1 of its input x open", "--input x=NxL with numbers"),
    ),
    "text as input": (
        proto("y = Identity (x)", inputs="string[N, 3] x", output="string[N, 3] y"),
        ("the input x of x.onnx is STRING",),
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs_that_cannot_be_exported(case: str, refused: Refused) -> None:
    model, words = GRAPHS[case]
    message = refused(model)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--input", "z=1x3x8x8"), ("has no input z", "x float32 [N, 3, 8, 8]")),
        (("--input", "x=1x3x9x9"), ("does not take x as 1x3x9x9", "x float32 [N, 3, 8, 8]")),
        (("--input", "x=1x3x8x8:int64"), ("the input x of x.onnx is float32", "x=SHAPE:float32")),
        (("--image-size", "16"), ("takes no images of 16x16 pixels",)),
        (("--image-size", "8", "--input", "x=1x3x8x8"), ("say the same",)),
        (("--features",), ("no feature pyramid",)),
        (("--checkpoint", "w.pth"), ("--checkpoint does not belong to x.onnx",)),
        (("--set", "a=1"), ("--set does not belong to x.onnx",)),
        (("--num-classes", "3"), ("--num-classes does not belong to x.onnx",)),
    ],
)
def test_options_that_do_not_fit_the_file(options: tuple[str, ...], words: tuple[str, ...], refused: Refused) -> None:
    message = refused(proto("y = Relu (x)"), *options)
    for word in words:
        assert word in message


def test_a_fixed_batch_is_not_another_one(refused: Refused) -> None:
    model = proto("y = Relu (x)", inputs="float[2, 3, 8, 8] x", output="float[2, 3, 8, 8] y")
    assert "takes batches of 2 alone" in refused(model)
    assert "--batch 2" in refused(model, "--batch", "dynamic")


def external(tmp_path: Path) -> onnx.ModelProto:
    model = proto("y = Mul (x, w)", w=np.ones((3, 8, 8), np.float32))
    onnx.external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, tmp_path / "whole.onnx")
    for name in ("whole.onnx", "w.bin"):
        (tmp_path / name).rename(tmp_path / f"kept_{name}")
    return onnx.load(tmp_path / "kept_whole.onnx", load_external_data=False)


def test_weights_that_are_not_with_the_file(refused: Refused, tmp_path: Path) -> None:
    model = external(tmp_path)
    message = refused(model)
    assert "has its weights in w.bin, which is not there" in message
    assert "copy w.bin" in message
    (tmp_path / "w.bin").write_bytes((tmp_path / "kept_w.bin").read_bytes()[:100])
    message = refused(model)
    assert "w.bin is too short" in message
    for place in ("/etc/passwd", "../w.bin", ""):
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = place
        assert "external data lies in the folder of the .onnx file" in refused(model)


def test_weights_of_gigabytes_are_refused_at_once(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.exporter.sources.resolve.LARGEST_WEIGHTS", 100)
    assert "holds less than 2 GB" in refused(proto("y = Mul (x, w)", w=np.ones((3, 8, 8), np.float32)))


def test_nan_of_the_file_is_its_own(refused: Refused) -> None:
    model = proto("a = Sqrt (x) y = Log (a)")
    assert "x.onnx itself returns NaN or Inf in y" in refused(model)


def test_sizes_and_names_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = proto("y = Relu (x)", inputs="float[N, 3, H, W] x", output="float[N, 3, H, W] y")
    onnx.save(model, tmp_path / "x.onnx")
    for options in (("--image-size", "8x16"), ("--input", "x=1x3x8x16"), ("--input", "x=Nx3x8x16")):
        assert main(["export", str(tmp_path / "x.onnx"), "-o", str(tmp_path / "b"), "--force", *options]) == 0
    assert "proven against x.onnx, not against PyTorch" not in capsys.readouterr().err


def test_every_command_works_on_a_bundle_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for label in "abcd":
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(3):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    # Called like a network of the zoo, which it is not.
    shutil.copy(TF2ONNX / "tf2onnx_classes.onnx", "lemevit_tiny.onnx")
    assert main(["export", "lemevit_tiny.onnx", "--fp16", "-o", "half"]) == 0
    assert "proven against lemevit_tiny.onnx, not against PyTorch" in capsys.readouterr().out
    assert main(["export", "lemevit_tiny.onnx", "-o", "single"]) == 0

    assert main(["verify", "half", "--runtime", "onnxruntime"]) == 0
    assert "fp16 on onnxruntime against lemevit_tiny.onnx FP32" in capsys.readouterr().out
    assert main(["predict", "half", "data/a/0.png"]) == 0
    assert main(["inspect", "half"]) == 0
    assert "weights         onnx, lemevit_tiny.onnx" in capsys.readouterr().out
    assert main(["benchmark", "half", "--runtime", "onnxruntime", "--rounds", "5"]) == 0
    assert main(["validate", "half", "--data", "data", "--baseline", "single", "--runtime", "onnxruntime"]) == 0
    assert "baseline  FP32 bundle, single" in capsys.readouterr().out

    assert main(["validate", "half", "--data", "data", "--runtime", "onnxruntime"]) == 2
    message = capsys.readouterr().err
    assert "made of lemevit_tiny.onnx, which is a graph and no module" in message
    assert "--baseline with the FP32 export of the same network\n" in message
    assert main(["verify", "half", "--runtime", "torch"]) == 2

"""The C++ project: its constants, and, compiled, the logits of Python to 1e-5 for images of every kind."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import vitdeploy
from tests.image_cases import noise
from tests.serving.cases import LABELS, recipe, write_linear
from vitdeploy.bundle import Bundle
from vitdeploy.machine.hardware import Cpu
from vitdeploy.preprocess import Preprocessing
from vitdeploy.serving.content import one_line
from vitdeploy.serving.cpp import _float, _text

Build = Callable[[Path, str], Path]

RECIPES = {
    "resize_crop": recipe(),
    "crop_resize": recipe(mode="crop_resize", interpolation="bicubic_no_antialias", channels="BGR"),
    "border": recipe(mode="border", interpolation="bilinear", crop_ratio=0.9, channels="BGR"),
    "stretch": recipe(mode="stretch", interpolation="bilinear", scale=100.0),
    "grey": recipe(channels="L", mean=(0.4,), std=(0.2,), crop_ratio=0.7),
    "larger": recipe(size=(61, 45), mode="border", crop_ratio=1.0),
}


@given(st.floats(-1e6, 1e6, width=32))
def test_a_literal_is_the_very_number(value: float) -> None:
    text = _float(value)
    assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?f", text)
    assert {".", "e"} & set(text), "without either it is no literal of a float"
    assert np.float32(text.removesuffix("f")) == np.float32(value)


def test_a_label_is_a_text_of_c() -> None:
    assert _text('a "b" \\c Ä') == '"a \\"b\\" \\\\c Ä"'
    assert _text("a\n#include") == '"a\\012#include"'


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_constants_are_those_of_the_bundle(precision: str, tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", recipe(channels="BGR"), precision=precision, batch=2)
    vitdeploy.handoff(bundle, tmp_path / "out", to="cpp")
    text = (tmp_path / "out" / "model.hpp").read_text()
    assert "batch = 2, channels = 3, height = 9, width = 12;" in text
    assert "colours = Colours::bgr;" in text
    assert "border{104, 116, 124};" in text, "the mean in the order of the image"
    bounds = {"fp32": "0.0001, min_snr_db = 0", "fp16": "0, min_snr_db = 45.0", "int8": "0, min_snr_db = 0"}
    assert f"max_relative = {bounds[precision]};" in text
    assert text.count('\n    "') == len(LABELS)
    reference = bundle.reference()
    inputs = np.fromfile(tmp_path / "out" / "reference" / "inputs.bin", "<f4")
    outputs = np.fromfile(tmp_path / "out" / "reference" / "outputs.bin", "<f4")
    np.testing.assert_array_equal(inputs, reference.inputs["images"].ravel())
    np.testing.assert_array_equal(outputs, reference.outputs["logits"].ravel())


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What CMake is told for each runtime whose headers are here.

    ONNXRUNTIME_INCLUDE in the environment is the folder of its headers, where they are not installed.
    """
    if not all(map(shutil.which, ("cmake", "c++"))):
        pytest.skip("no cmake or no compiler of C++")
    found: dict[str, list[str]] = {}
    places = [
        os.environ.get("ONNXRUNTIME_INCLUDE", ""),
        *("/usr/include/onnxruntime", "/usr/local/include/onnxruntime"),
    ]
    header = next((place for place in places if place and Path(place, "onnxruntime_cxx_api.h").is_file()), None)
    try:
        import onnxruntime
    except ImportError:
        pass
    else:
        libraries = sorted(Path(onnxruntime.__path__[0], "capi").glob("libonnxruntime.so.*"))
        if header and libraries:
            # The library calls itself by a shorter name than the file of the package has.
            folder = tmp_path_factory.mktemp("onnxruntime")
            for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
                (folder / name).symlink_to(libraries[0])
            library = folder / "libonnxruntime.so.1"
            found["onnxruntime"] = [f"-DONNXRUNTIME_INCLUDE={header}", f"-DONNXRUNTIME_LIBRARY={library}"]
    try:
        import openvino
    except ImportError:
        pass
    else:
        if Path(openvino.__path__[0], "cmake", "OpenVINOConfig.cmake").is_file():
            found["openvino"] = [f"-DOpenVINO_DIR={Path(openvino.__path__[0], 'cmake')}"]
    return found


@pytest.fixture
def build(options: dict[str, list[str]], tmp_path: Path) -> Build:
    """Compiles a project with every warning an error, and gives the program."""

    def compiled(folder: Path, runtime: str) -> Path:
        if runtime not in options:
            pytest.skip(f"no headers of {runtime} are here, see docs/handoff.md")
        out = tmp_path / f"build-{folder.name}"
        flags = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"
        call("cmake", "-S", folder, "-B", out, f"-DRUNTIME={runtime}", flags, *options[runtime])
        call("cmake", "--build", out)
        return out / "classify"

    return compiled


def aarch64(folder: Path, out: Path) -> list[object]:
    """Compiles a project for aarch64, and gives the words that run it under emulation."""
    root = os.environ.get("AARCH64_ROOT")
    if root is None:
        pytest.skip("AARCH64_ROOT does not name a folder that tests/serving/aarch64_root.sh made")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={root}/toolchain.cmake"
    call("cmake", "-S", folder, "-B", out, "-DRUNTIME=openvino", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", toolchain)
    call("cmake", "--build", out)
    return [f"{root}/run", out / "classify"]


def call(*words: object, code: int = 0) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else f"{done.stdout}{done.stderr}"


def exif_block(*entries: tuple[int, int, bytes], order: str = "<") -> bytes:
    """An EXIF block from the type, the count and the four bytes of the value of each entry for the orientation."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHI", 0x0112, *entry[:2]) + entry[2] for entry in entries) + bytes(4)


BLOCKS = {
    "short 6": exif_block((3, 1, struct.pack("<HH", 6, 0))),
    "short 6, big end first": exif_block((3, 1, struct.pack(">HH", 6, 0)), order=">"),
    "long 8": exif_block((4, 1, struct.pack("<I", 8))),
    "long 8, big end first": exif_block((4, 1, struct.pack(">I", 8)), order=">"),
    "signed 3": exif_block((8, 1, struct.pack("<hh", 3, 0))),
    "long of more than 16 bits": exif_block((4, 1, struct.pack("<I", 65536 + 6))),
    "byte 6": exif_block((1, 1, bytes([6, 0, 0, 0]))),
    "none": exif_block((3, 1, bytes(4))),
    "nine": exif_block((3, 1, struct.pack("<HH", 9, 0))),
    "two entries": exif_block((3, 1, struct.pack("<HH", 6, 0)), (3, 1, struct.pack("<HH", 3, 0))),
    "two values": exif_block((3, 2, struct.pack("<HH", 6, 3))),
    "no entry": exif_block(),
}
PACKETS = {
    "an attribute": 'a tiff:Orientation="8" b',
    "an element": "a <tiff:Orientation>6</tiff:Orientation> b",
    "the second": "tiff:Orientation=6 tiff:Orientation='6' tiff:Orientation=\"3\"",
    "nothing": "tiff:Orientation=",
}


def images(folder: Path) -> list[Path]:
    """Files of many kinds: sizes, colours, depths, orientations by EXIF and XMP in JPEG and PNG."""
    folder.mkdir()
    picture = Image.fromarray(noise(47, 91))
    kinds: dict[str, Any] = {
        "plain.png": picture,
        "tall.png": Image.fromarray(noise(113, 20, 1)),
        "tiny.png": Image.fromarray(noise(3, 2, 2)),
        "exact.png": Image.fromarray(noise(9, 12, 3)),
        "grey.png": picture.convert("L"),
        "bits.png": picture.convert("1"),
        "palette.png": picture.quantize(17),
        "alpha.png": picture.convert("RGBA"),
        "grey alpha.png": picture.convert("LA"),
        "deep.png": Image.fromarray(noise(20, 30)[..., 0].astype(np.uint16) * 257),
        "photo.jpg": picture.resize((200, 150), Image.Resampling.BICUBIC),
        "grey.jpg": picture.convert("L"),
    }
    for name, image in kinds.items():
        image.save(folder / name)
    for name, block in BLOCKS.items():
        picture.save(folder / f"{name}.jpg", exif=b"Exif\0\0" + block)
        picture.save(folder / f"{name}.png", exif=block)
    for name, words in PACKETS.items():
        packet = f"<x:xmpmeta>{words}</x:xmpmeta>"
        picture.save(folder / f"{name}.jpg", xmp=packet.encode())
        picture.save(folder / f"{name} too.jpg", xmp=packet.encode(), exif=b"Exif\0\0" + BLOCKS["short 6"])
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet)
        picture.save(folder / f"{name}.png", pnginfo=text)
    for head in (b"Exif\0\0", b""):
        profile = (head + BLOCKS["long 8"]).hex()
        text = PngInfo()
        text.add_text(
            "Raw profile type exif", f"\nexif\n{len(profile) // 2:8}\n{profile[:36]}\n{profile[36:]}\n", zip=True
        )
        picture.save(folder / f"profile {len(head)}.png", pnginfo=text)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(folder / f"turned{orientation}.{'png' if orientation % 2 else 'jpg'}", exif=exif)
    return sorted(folder.iterdir())


def logits_of(bundle: Bundle, paths: list[Path], runtime: str) -> np.ndarray:
    """What Python gives for the files."""
    from vitdeploy.preprocess import preprocess, to_pixels

    manifest = bundle.manifest
    prepare = to_pixels if manifest.preprocessing_in_graph else preprocess
    with vitdeploy.load(bundle, runtime=runtime) as session:
        return np.stack([session(prepare(path, manifest.recipe)[None])[0] for path in paths])


def differs(program: list[object], bundle: Bundle, paths: list[Path], runtime: str, tmp_path: Path) -> np.ndarray:
    """The largest difference of the logits from Python's, for each file."""
    told = call(*program, "--logits", tmp_path / "logits.bin", *paths)
    assert told.count("%") == len(LABELS) * len(paths)
    found = np.fromfile(tmp_path / "logits.bin", "<f4").reshape(len(paths), -1)
    return np.abs(found - logits_of(bundle, paths, runtime)).max(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_program_gives_the_logits_of_python(name: str, runtime: str, build: Build, tmp_path: Path) -> None:
    if runtime == "openvino" and name not in ("resize_crop", "grey"):
        pytest.skip("the preprocessing is that of the other runtime")
    bundle = write_linear(tmp_path / "b", RECIPES[name])
    vitdeploy.handoff(bundle, tmp_path / "out", to="cpp")
    program, paths = build(tmp_path / "out", runtime), images(tmp_path / "images")
    if name == "grey":
        deep = tmp_path / "images" / "deep.png"
        assert "grey of 16 bits" in call(program, deep, code=2)
        paths.remove(deep)
    found = differs([program], bundle, paths, runtime, tmp_path)
    assert {path.name: error for path, error in zip(paths, found, strict=True) if error > 1e-5} == {}
    assert "passed" in call(program, "--check")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_program_gives_the_logits_of_python_on_aarch64_too(name: str, tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", RECIPES[name])
    vitdeploy.handoff(bundle, tmp_path / "out", to="cpp")
    program = aarch64(tmp_path / "out", tmp_path / "build")
    paths = [path for path in images(tmp_path / "images") if name != "grey" or path.name != "deep.png"]
    found = differs(program, bundle, paths, "openvino", tmp_path)
    assert {path.name: error for path, error in zip(paths, found, strict=True) if error > 1e-5} == {}
    assert "passed" in call(*program, "--check")


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["batch", 3])
def test_a_graph_that_takes_pixels_and_a_fixed_batch(batch: int | str, build: Build, tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", recipe(channels="BGR"), baked=True, batch=batch)
    vitdeploy.handoff(bundle, tmp_path / "out", to="cpp")
    program, paths = build(tmp_path / "out", "openvino"), images(tmp_path / "images")[:3]
    told = call(program, "--logits", tmp_path / "logits.bin", *paths)
    found = np.fromfile(tmp_path / "logits.bin", "<f4").reshape(len(paths), -1)
    assert told.count("%") == len(LABELS) * len(paths)
    if batch == "batch":
        np.testing.assert_allclose(found, logits_of(bundle, paths, "openvino"), rtol=0, atol=1e-5)
    assert "passed" in call(program, "--check")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_processor_whose_integers_overflow_is_told_to_compute_otherwise(
    runtime: str, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_linear(tmp_path / "b", precision="int8")
    vitdeploy.handoff(bundle, tmp_path / "out", to="cpp")
    header = tmp_path / "out" / "overflow.hpp"
    text = header.read_text()
    assert text.count("return !wide && !narrow;") == 1
    header.write_text(text.replace("return !wide && !narrow;", "return (wide || narrow) || true;"))
    monkeypatch.setattr(Cpu, "saturates", True)
    program, paths = build(tmp_path / "out", runtime), images(tmp_path / "images")[:9]
    assert differs([program], bundle, paths, runtime, tmp_path).max() <= 1e-5
    assert "the outputs are finite" in call(program, "--check")


@pytest.mark.parametrize("version", ["8", "10"])
@pytest.mark.parametrize("baked", [False, True])
def test_the_source_of_tensorrt_is_one_that_a_compiler_takes(version: str, baked: bool, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no compiler of C++")
    vitdeploy.handoff(write_linear(tmp_path / "b", baked=baked), tmp_path / "out", to="cpp")
    source = tmp_path / "out" / "tensorrt.cpp"
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-DTENSORRT_{version}"]
    assert call("c++", *options, "-I", Path(__file__).with_name("standin"), source) == ""


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["batch", 3])
@pytest.mark.parametrize("baked", [False, True])
def test_the_program_of_tensorrt_gives_the_logits_of_python_where_tensorrt_is_played(
    batch: int | str, baked: bool, options: dict[str, list[str]], tmp_path: Path
) -> None:
    if "openvino" not in options:
        pytest.skip("OpenVINO plays TensorRT, and is not here")
    bundle = write_linear(tmp_path / "b", baked=baked, batch=batch)
    vitdeploy.handoff(bundle, tmp_path / "out", to="cpp")
    shutil.copy(tmp_path / "out" / "model.onnx", tmp_path / "out" / "model.plan")
    sources = "main.cpp;image.cpp;preprocess.cpp;tensorrt.cpp"
    words = [f"-DPROJECT={tmp_path / 'out'}", f"-DSOURCES={sources}", *options["openvino"]]
    call("cmake", "-S", Path(__file__).with_name("standin"), "-B", tmp_path / "build", *words)
    call("cmake", "--build", tmp_path / "build")
    program, paths = tmp_path / "build" / "classify", images(tmp_path / "images")[:5]
    assert "passed" in call(program, "--check")
    call(program, "--logits", tmp_path / "logits.bin", *paths)
    if batch == "batch":
        found = np.fromfile(tmp_path / "logits.bin", "<f4").reshape(len(paths), -1)
        np.testing.assert_allclose(found, logits_of(bundle, paths, "openvino"), rtol=0, atol=1e-5)
    (tmp_path / "out" / "model.plan").write_bytes(b"no engine")
    assert "TensorRT refuses the engine" in call(program, "--check", code=2)
    (tmp_path / "out" / "model.plan").unlink()
    assert "cannot read the engine" in call(program, "--check", code=2)


@pytest.mark.slow
def test_the_program_refuses_what_is_wrong_in_words(build: Build, tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b")
    vitdeploy.handoff(bundle, tmp_path / "out", to="cpp")
    program = build(tmp_path / "out", "openvino")
    good = tmp_path / "good.png"
    Image.fromarray(noise(20, 20)).save(good)
    Image.fromarray(noise(20, 20)).save(tmp_path / "cut.jpg")
    Image.new("CMYK", (9, 9)).save(tmp_path / "cmyk.jpg")
    for name, kind in (("cut.jpg", "JPEG"), ("cut.png", "PNG")):
        Image.fromarray(noise(200, 200)).save(tmp_path / name, kind)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (1, 1_000_000)).save(tmp_path / "thin.png")  # 144 million pixels once it is 12 wide
    wrong = ("cut.jpg", "cut.png", "cmyk.jpg", "text.png", "empty.png", "nowhere.png", "folder.png", "thin.png")
    for words in (
        *([tmp_path / name] for name in wrong),
        *([], ["--nonsense"], ["--top-k", "0", good], ["--top-k"], ["--check", good], ["--folder", tmp_path, good]),
        ["--logits", tmp_path / "no" / "folder", good],
    ):
        told = call(program, *words, code=2)
        assert "error: " in told, words
        assert "terminate" not in told
    reference = tmp_path / "out" / "reference" / "outputs.bin"
    values = np.fromfile(reference, "<f4")
    (values * np.float32(1.01)).tofile(reference)
    assert "failed: the outputs differ" in call(program, "--check", code=1)
    reference.write_bytes(b"")
    assert "is missing, or not of this network" in call(program, "--check", code=2)
    lines = [line.strip() for line in call(program, "--top-k", "2", good).splitlines()[1:]]
    assert len(lines) == 2
    assert all(line.split("%  ")[1] in map(one_line, LABELS) for line in lines)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    (weights,) = model.graph.initializer
    weights.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * np.float32(np.nan), weights.name)
    )
    onnx.save(model, tmp_path / "out" / "model.onnx")
    assert "gives NaN or Inf for" in call(program, good, code=2)


def test_every_recipe_of_the_tests_is_one_of_each_kind() -> None:
    from vitdeploy.preprocess import INTERPOLATIONS, MODES

    used: list[Preprocessing] = list(RECIPES.values())
    assert {one.mode for one in used} == set(MODES)
    assert {one.interpolation for one in used} == set(INTERPOLATIONS)
    assert {one.channels for one in used} == {"RGB", "BGR", "L"}

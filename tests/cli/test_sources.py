"""Every kind of source and every form of inputs and outputs, through `vitdeploy export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitdeploy import create_model, export, load, verify
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.errors import ExportError, UsageError

MODELS = '''
import torch
from torch import nn
from neighbour import WIDTH


class Two(nn.Module):
    """An image and a few words; a mapping of outputs, some nested, one absent, one a number."""

    def __init__(self):
        super().__init__()
        self.patch, self.words, self.head = nn.Conv2d(3, WIDTH, 8, 8), nn.Embedding(2, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, pixels, ids):
        image, text = self.patch(pixels).flatten(2).mean(2), self.words(ids).mean(1)
        scores = self.head(image + text)
        return {"scores": scores, "parts": [image, None, text], "best": scores.argmax(1), "scale": 2.0}


class Bands(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.patch, self.head = nn.Conv2d(channels, WIDTH, 8, 8), nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(torch.relu(self.patch(x)).flatten(2).mean(2))


def two():
    torch.manual_seed(0)
    return Two()


def with_examples():
    return two(), (torch.randn(2, 3, 16, 16), torch.randint(0, 2, (2, 7)))


def by_name():
    return two(), {"ids": torch.randint(0, 2, (1, 7)), "pixels": torch.randn(1, 3, 16, 16).half()}


def bands(channels=3, dtype="float32"):
    torch.manual_seed(0)
    return Bands(channels).to(getattr(torch, dtype))


def compiled():
    return torch.compile(bands())


def scripted():
    return torch.jit.trace(bands(), torch.randn(1, 3, 16, 16))


def fails():
    return bands().missing


def number():
    return 3
'''


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my models")
    (folder / "neighbour.py").write_text("WIDTH = 8\n")
    (folder / "models.py").write_text(MODELS)
    return folder / "models.py"


def exported(models: Path, tmp_path: Path, function: str, *options: str) -> Bundle:
    out = tmp_path / "bundle"
    assert main(["export", f"{models}:{function}", *options, "-o", str(out)]) == 0
    assert verify(out).passed
    return Bundle.open(out)


def refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], function: str, *options: str) -> str:
    out = tmp_path / "bundle"
    assert main(["export", f"{models}:{function}", *options, "-o", str(out)]) == 2
    assert not out.exists()
    return capsys.readouterr().err


TWO = ("--input", "pixels=1x3x16x16", "--input", "ids=1x7:int64")


@pytest.mark.parametrize(
    ("function", "options"),
    [("two", TWO), ("with_examples", ("--batch", "dynamic", "--fp16")), ("by_name", ("--batch", "3"))],
)
def test_several_inputs_and_nested_outputs(
    models: Path, tmp_path: Path, function: str, options: tuple[str, ...]
) -> None:
    bundle = exported(models, tmp_path, function, *options)
    manifest = bundle.manifest
    assert {spec.name: spec.dtype for spec in manifest.inputs} == {"pixels": "float32", "ids": "int64"}
    assert manifest.images == ("pixels",)
    assert [spec.name for spec in manifest.outputs] == ["scores", "parts.0", "parts.2", "best", "scale"]
    assert [entry["name"] for entry in manifest.parity[0]["entries"]] == ["best"]
    count = 3 if "3" in options else 1
    with load(bundle, runtime="onnxruntime") as session:
        given = {"pixels": np.zeros((count, 3, 16, 16), np.float32), "ids": np.ones((count, 7), np.int64)}
        outputs = session.run(given)
        assert outputs["scores"].shape == (count, 5)
        np.testing.assert_array_equal(outputs["best"], outputs["scores"].argmax(1))
        assert float(outputs["scale"]) == 2.0


def test_the_values_of_inputs_can_be_the_reference(models: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"pixels": rng.normal(size=(3, 3, 16, 16)).astype(np.float32), "ids": rng.integers(0, 2, (3, 7))}
    np.savez(tmp_path / "inputs.npz", **arrays)
    bundle = exported(models, tmp_path, "two", *TWO, "--reference", str(tmp_path / "inputs.npz"))
    kept = bundle.reference().inputs
    np.testing.assert_array_equal(kept["ids"][:3], arrays["ids"])
    np.testing.assert_array_equal(kept["pixels"][:3], arrays["pixels"])


def test_a_network_of_many_channels(models: Path, tmp_path: Path) -> None:
    options = ("--set", "channels=13", "--input", "x=1x13x16x16", "--preprocessing", "channels=bands,scale=10000")
    normalise = ("--preprocessing", f"mean={','.join(['0.1'] * 13)},std={','.join(['0.2'] * 13)}")
    bundle = exported(models, tmp_path, "bands", *options, *normalise)
    manifest = bundle.manifest
    assert manifest.recipe.channels == "bands"
    assert manifest.recipe.size == (16, 16)
    assert manifest.model.num_classes == 5
    image = np.random.default_rng(0).integers(0, 10000, (20, 20, 13)).astype(np.uint16)
    with load(bundle, runtime="onnxruntime") as session:
        assert len(session.predict(image, top_k=2)[0]) == 2


def test_bands_are_taken_as_they_are_but_for_what_is_said(models: Path, tmp_path: Path) -> None:
    options = ("--set", "channels=4", "--input", "x=1x4x16x16", "--preprocessing", "scale=10000")
    recipe = exported(models, tmp_path, "bands", *options).manifest.recipe
    assert (recipe.channels, recipe.scale, recipe.mean, recipe.std) == ("bands", 10000, (0.0,) * 4, (1.0,) * 4)


def test_a_network_of_grey_images(models: Path, tmp_path: Path) -> None:
    options = ("--set", "channels=1", "--image-size", "16", "--preprocessing", "channels=L,mean=0.5,std=0.5")
    bundle = exported(models, tmp_path, "bands", *options)
    assert bundle.manifest.inputs[0].shape == (1, 1, 16, 16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_another_precision_are_computed_in_fp32(
    models: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(models, tmp_path, "bands", "--set", f"dtype={dtype}", "--image-size", "16")
    assert f"Bands holds weights in {dtype}, the reference is computed in FP32" in capsys.readouterr().err


def test_a_compiled_module_is_the_one_that_was_compiled(models: Path, tmp_path: Path) -> None:
    assert exported(models, tmp_path, "compiled", "--image-size", "16").manifest.model.name == "Bands"


def test_labels_of_a_module_of_ones_own_are_kept(models: Path, tmp_path: Path) -> None:
    names = ["e", "d", "c", "b", "a"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    options = ("--image-size", "16", "--labels", str(tmp_path / "labels.txt"))
    assert exported(models, tmp_path, "bands", *options).manifest.labels == tuple(names)


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        ("fails", ("--image-size", "16"), ["raises AttributeError", "models.py:56"]),
        ("number", ("--image-size", "16"), ["is a int, not a torch module"]),
        ("nothing", (), ["has no function 'nothing'", "it has two, with_examples"]),
        ("scripted", ("--image-size", "16"), ["is TorchScript", "the module that was scripted"]),
        ("bands", (), ["does not say which inputs", "--image-size 224"]),
        ("bands", ("--set", "depth=2", "--image-size", "16"), ["unexpected keyword argument 'depth'", "channels=3"]),
        ("bands", ("--image-size", "16", "--num-classes", "3"), ["--num-classes does not belong to"]),
        ("two", ("--image-size", "16"), ["missing a required argument", "it takes pixels, ids"]),
        ("two", ("--input", "pixels=1x3x16x16", "--input", "words=1x7:int64"), ["has no argument words"]),
        ("with_examples", ("--int8", "--calibration", "."), ["there are no images"]),
        (
            "bands",
            ("--set", "channels=13", "--input", "x=1x13x16x16", "--preprocessing", "mean=0.5,0.5,0.5,std=1,1,1"),
            ["images of 13 channels, and its preprocessing gives 3", "13 means and deviations"],
        ),
        ("two", (*TWO, "--bake-preprocessing"), ["baked preprocessing cannot be proven"]),
    ],
)
def test_what_does_not_fit_is_refused(
    models: Path,
    tmp_path: Path,
    function: str,
    options: tuple[str, ...],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(models, tmp_path, capsys, function, *options)
    assert [word for word in words if word not in said] == []
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("lemevit_tinny", ["no model called 'lemevit_tinny'", "lemevit_tiny"]),
        (
            "nothing_like_it_at_all",
            ["a name of `vitdeploy models`, timm:NAME, hf:FOLDER_OR_ID, file.py:function, model.pt2 or model.onnx"],
        ),
        ("model.onnx", ["there is no file model.onnx", "ls ."]),
        ("weights.pth", ["a file of weights, or TorchScript", "--checkpoint weights.pth"]),
        ("net.py", ["names no function", "net.py:build"]),
        ("missing.py:build", ["there is no file missing.py"]),
        ("no.such.module:build", ["there is no module no.such.module"]),
        ("model.pt2", ["there is no file model.pt2"]),
    ],
)
def test_a_source_that_is_not_there(
    source: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", source, "-o", "b"]) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == []
    assert list(tmp_path.iterdir()) == []


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 8, 8)

    def forward(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.head(pictures).mean((2, 3))
        return out


def test_a_program_in_memory_and_in_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, images = Scale().eval(), torch.randn(1, 3, 16, 16)
    program = torch.export.export(module, (images,))
    torch.export.save(program, tmp_path / "model.pt2")
    for index, source in enumerate((program, tmp_path / "model.pt2")):
        bundle = export(source, tmp_path / f"b{index}")  # type: ignore[arg-type]
        assert [spec.name for spec in bundle.manifest.inputs] == ["pictures"]
        with load(bundle, runtime="onnxruntime") as session:
            expected = module(images).detach().numpy()
            np.testing.assert_allclose(session(images.numpy()), expected, atol=1e-5)


def test_a_program_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(Exception, match="cannot be read by torch"):
        export(tmp_path / "model.pt2", tmp_path / "b")


def test_a_program_that_would_run_code_when_it_is_read_is_refused(tmp_path: Path) -> None:
    import zipfile

    module, images = Scale().eval(), torch.randn(1, 3, 16, 16)
    torch.export.save(torch.export.export(module, (images,)), tmp_path / "good.pt2")
    evil = tmp_path / "evil.pt2"
    torch.save({"weights": _Evil(tmp_path / "ran")}, tmp_path / "evil.bin", pickle_protocol=2)
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(evil, "w") as bad:
        for name in good.namelist():
            swap = name.endswith((".pt", ".pth")) or "constants" in name
            bad.writestr(name, (tmp_path / "evil.bin").read_bytes() if swap else good.read(name))
    with pytest.raises(Exception, match="cannot be read by torch"):
        export(evil, tmp_path / "b")
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_weights_that_no_file_holds_are_refused_at_once(tmp_path: Path) -> None:
    class Large(Scale):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(1).expand(2**29))

    with pytest.raises(ExportError, match=r"take 2\.1 GB"):
        export(Large(), tmp_path / "b", image_size=16)


def test_options_that_belong_to_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--checkpoint does not belong to a module"):
        export(Scale(), tmp_path / "b", image_size=16, checkpoint="x.pth")
    for source in ("lemevit_tiny.eurosat", create_model("lemevit_tiny.eurosat")):
        for text in ("x=1x3x64x64", "images=1x3x32x64", "images=1x3xhx32", "images=1x3x64x64:int64"):
            with pytest.raises(UsageError, match=r"lemevit_tiny\.eurosat takes no input"):
                export(source, tmp_path / "b", inputs=[text])

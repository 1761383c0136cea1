"""Axes besides the batch whose length stays free: asked for by a word in --input, and right at other lengths too."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdeploy import Bundle, create_model, export, load
from vitdeploy.errors import ExportError, GateError, UsageError
from vitdeploy.exporter.inputs import InputSpec, parse_input, sized


class Pyramid(nn.Module):
    """Attention on a map at a quarter of the size, a transposed convolution, a skip and a resize back."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 48)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = torch.relu(self.fine(images))
        coarse = torch.relu(self.coarse(fine))
        batch, channels = coarse.shape[:2]
        tokens = self.norm(coarse.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(batch, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        tokens = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        merged = self.up(coarse + tokens.transpose(1, 2).reshape(coarse.shape)) + fine
        merged = merged * F.adaptive_avg_pool2d(merged, 1)
        return {
            "scores": F.interpolate(self.head(merged), scale_factor=2, mode="bilinear"),
            "nearest": F.interpolate(merged, size=images.shape[-2:], mode="nearest"),
            "pooled": F.max_pool2d(merged, 3, 2, 1),
        }


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Parameter(torch.randn(64, 16))
        self.layer, self.head = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 4)

    def forward(self, ids: Tensor, weight: Tensor) -> Tensor:
        x = self.layer(self.words(ids) + self.places[: ids.shape[1]])
        return self.head((x * weight[..., None].float()).mean(1))


class Branch(nn.Module):
    """Something else at a length of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(x.shape[0], 16, -1).mean(2) if x.shape[1] == 32 else x[:, :16])


class Bins(nn.Module):
    """Five bins of a map, whose sizes no constant knows."""

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, 5).flatten(1)


class Tied(nn.Module):
    """A position for each of 20 tokens, and for no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(20, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.places).mean(1)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def check(bundle: Bundle, module: nn.Module, shapes: list[tuple[int, ...]], tolerance: float) -> None:
    """The bundle is right for images of these shapes, which it was not proven at."""
    for runtime in ("onnxruntime", "openvino"):
        with load(bundle, runtime=runtime) as session:
            for shape in shapes:
                images = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
                with torch.no_grad():
                    expected = module(torch.from_numpy(images))
                for name, found in session.run({"images": images}).items():
                    wanted = expected[name].numpy()
                    assert found.shape == wanted.shape
                    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("text", "precision", "shapes"),
    [
        ("images=1x3xhxw", "fp32", [(1, 3, 32, 48), (1, 3, 64, 16), (1, 3, 96, 80)]),
        ("images=nx3xhxw", "fp16", [(1, 3, 32, 32), (3, 3, 64, 48)]),
        ("images=1x3xhx48", "fp32", [(1, 3, 64, 48)]),
    ],
)
def test_maps_of_any_size(text: str, precision: str, shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    module = made(Pyramid)
    bundle = export(module, tmp_path / "b", inputs=[text], image_size=(32, 48), precision=precision)
    assert [axis for axis in bundle.manifest.inputs[0].shape[2:] if isinstance(axis, str)]
    check(bundle, module, shapes, 1e-4 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize("batch", ["1", "n"])
def test_texts_of_any_length(batch: str, tmp_path: Path) -> None:
    module = made(Words)
    bundle = export(module, tmp_path / "b", inputs=[f"ids={batch}xL:int64", f"weight={batch}xL:int64"])
    assert [spec.shape[1] for spec in bundle.manifest.inputs] == ["l", "l"]
    with load(bundle, runtime="onnxruntime") as session:
        for length in (3, 40, 64):
            ids = np.random.default_rng(0).integers(0, 50, (1 if batch == "1" else 2, length))
            with torch.no_grad():
                expected = module(torch.from_numpy(ids), torch.ones(ids.shape)).numpy()
            found = session.run({"ids": ids, "weight": np.ones_like(ids)})["logits"]
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_a_network_of_the_zoo_takes_other_sizes(tmp_path: Path) -> None:
    module = create_model("lemevit_tiny", image_size=64, num_classes=5)
    bundle = export("lemevit_tiny", tmp_path / "b", inputs=["images=1x3xhxw"], image_size=64, num_classes=5)
    images = np.random.default_rng(3).standard_normal((1, 3, 96, 64)).astype(np.float32)
    with load(bundle, runtime="onnxruntime") as session, torch.no_grad():
        np.testing.assert_allclose(session(images), module(torch.from_numpy(images)).numpy(), atol=1e-4)


def test_a_file_of_another_exporter_keeps_its_free_axes(tmp_path: Path) -> None:
    class Scores(Pyramid):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)["scores"]

    module, file = made(Scores), tmp_path / "x.onnx"
    axes = {"images": {0: "n", 2: "height", 3: "width"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["images"], "output_names": ["scores"]}
        example = torch.randn(1, 3, 32, 48)
        torch.onnx.export(module, (example,), file, dynamo=False, opset_version=16, dynamic_axes=axes, **names)
    bundle = export(file, tmp_path / "b", inputs=["images=nx3xhxw"], image_size=(32, 48))
    with load(bundle, runtime="onnxruntime") as session:
        for shape in ((1, 3, 64, 32), (2, 3, 32, 48)):
            images = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
            with torch.no_grad():
                expected = module(torch.from_numpy(images)).numpy()
            np.testing.assert_allclose(session.run({"images": images})["scores"], expected, atol=1e-4)


def test_a_graph_that_is_wrong_at_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"the graph of Branch does not reproduce PyTorch at x \[1, 32\]"):
        export(made(Branch), tmp_path / "b", inputs=["x=1xL"])
    with pytest.raises(GateError, match=r"the graph of Bins does not reproduce PyTorch at images \[1, 3, 60, 60\]"):
        export(made(Bins), tmp_path / "b", inputs=["images=1x3xhxw"], image_size=30)
    assert not (tmp_path / "b").exists()


def test_an_axis_that_the_network_fixes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Tied cannot be captured for the free axes l") as caught:
        export(made(Tied), tmp_path / "b", inputs=["x=1xLx4"], reference={"x": np.ones((1, 20, 4), np.float32)})
    assert "numbers in --input" in str(caught.value.fix)


def test_engines_have_fixed_sizes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the input images has free axes besides the batch: h, w"):
        export(made(Pyramid), tmp_path / "b", inputs=["images=1x3xhxw"], image_size=32, target="tensorrt10")


def test_lengths_come_from_values_from_the_image_size_or_are_made() -> None:
    specs = [parse_input(text)[0] for text in ("a=1x3xhxw", "b=1xL:int64", "c=1xhxK:int64")]
    known = {"c": np.zeros((2, 24, 5), np.int64)}
    assert [spec.shape for spec in sized(specs, (24, 32), known)] == [(3, 24, 32), (16,), (24, 5)]
    assert sized(specs, (24, 32), known)[0] == InputSpec("a", (3, 24, 32), free=(None, "h", "w"))
    with pytest.raises(UsageError, match="the axis h of the input c is 24 long in its values, and 8 before"):
        sized(specs, (8, 8), known)

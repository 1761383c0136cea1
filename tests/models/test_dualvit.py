"""Dual-ViT against the official network's outputs, and its sizes, heads, checkpoints and export."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitdeploy.errors import ModelError
from vitdeploy.models.cards.dualvit import CARDS
from vitdeploy.models.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from vitdeploy.models.create import create_model
from vitdeploy.models.dualvit import DualViT, PixelFFN
from vitdeploy.models.registry import ModelCard

BY_NAME = {card.name: card for card in CARDS}


def build(name: str = "dualvit_s", image_size: tuple[int, int] = (224, 224), **override: Any) -> DualViT:
    hyperparameters = {**BY_NAME[name].hyperparameters, "num_classes": 1000, **override}
    torch.manual_seed(0)
    return DualViT(image_size=image_size, **hyperparameters).eval()


def small(image_size: tuple[int, int] = (64, 64), **override: Any) -> DualViT:
    """All parts of the network, few of each, with layer scales that let every branch show."""
    settings = {"stem_width": 8, "widths": (32, 64, 64, 96), "depths": (1, 1, 2, 1), "num_classes": 5, **override}
    model = build(image_size=image_size, **settings)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def record(model: nn.Module) -> dict[str, Any]:
    """A dictionary that the next forward pass fills: the first output of each module by its name."""
    outputs: dict[str, Any] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.setdefault(names[module], output)

    names = {module: name for name, module in model.named_modules()}
    for module in names:
        module.register_forward_hook(keep)
    return outputs


# The official network


class Official:
    """Our network with the weights behind the golden outputs."""

    def __init__(self, name: str, folder: Path, fill: ModuleType) -> None:
        self.about = json.loads((folder / f"{name}.json").read_text())
        self.golden = np.load(folder / f"{name}.npz")
        keys = self.about["state_dict"].items()
        self.state = {key: torch.from_numpy(np.asarray(fill.fill_tensor(key, tuple(shape)))) for key, shape in keys}
        self.images = torch.from_numpy(fill.fill_input(tuple(self.about["input_shape"]), self.about["fill_seed"]))
        self.model = build(name)
        self.model.load_state_dict(self.model.adapt_state_dict(self.state), strict=True)


@pytest.fixture(scope="module", params=["dualvit_s", pytest.param("dualvit_b", marks=pytest.mark.slow)])
def official(request: pytest.FixtureRequest, shared: Path, fill: ModuleType) -> Official:
    return Official(request.param, shared / "reference" / "golden", fill)


def test_keys_epsilons_and_parameter_count_are_the_official_ones(official: Official) -> None:
    assert set(official.model.state_dict()) == set(official.state)
    assert sum(p.numel() for p in official.model.parameters()) == official.about["num_params"]
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    eps = {name: module.eps for name, module in official.model.named_modules() if isinstance(module, norms)}
    assert eps == official.about["norm_eps"]


def test_single_precision_logits_equal_the_official_ones(official: Official) -> None:
    with torch.no_grad():
        logits = official.model.float()(official.images)
    np.testing.assert_allclose(logits, official.golden["logits"], rtol=0, atol=1e-5)


def test_double_precision_logits_and_every_tap_equal_the_official_ones(official: Official) -> None:
    model, golden = official.model.double(), official.golden
    outputs = record(model)
    with torch.no_grad():
        logits = model(official.images.double())
        pixels, semantics = outputs[f"block4.{len(model.block4) - 1}"]
        merged = torch.cat((pixels, semantics), dim=1)
        class_block = torch.cat((outputs["post_network.0"], merged), dim=1)
        taps = {
            "patch_embed1": outputs["patch_embed1"],
            "q_embed": outputs["q_embed"],
            "semantic_init": outputs["proxy_ln"],
            "block1_0_pixel": outputs["block1.0"][0],
            "block1_0_semantic": outputs["block1.0"][1],
            **{f"stage{i}_pixel": outputs[f"norm{i}"] for i in (1, 2, 3)},
            **{f"stage{i}_semantic": outputs[f"norm_proxy{i}"] for i in (1, 2, 3)},
            "stage4_merged": merged,
            "class_block": class_block,
            "final_norm": model.norm4(class_block),
            "head": outputs["head"],
            "aux_head": outputs["aux_head"],
        }

    np.testing.assert_allclose(logits, golden["logits_fp64"], rtol=0, atol=1e-9)
    assert set(taps) == {name.split(".")[0] for name in golden.files if "." in name}
    for name, tap in taps.items():
        assert list(tap.shape) == list(golden[f"{name}.shape"]), name
        first = tap.flatten()[:16]
        np.testing.assert_allclose(first, golden[f"{name}.first16_fp64"], rtol=0, atol=1e-9, err_msg=name)
        assert float(tap.mean()) == pytest.approx(float(golden[f"{name}.mean"]), abs=1e-6), name
        assert float(tap.std(correction=0)) == pytest.approx(float(golden[f"{name}.std"]), abs=1e-6), name


def test_features_are_the_normed_pixel_maps_of_the_four_stages(official: Official) -> None:
    model, golden = official.model.float(), official.golden
    with torch.no_grad():
        maps = model.forward_features(official.images)
        last = model.aux_head(maps[3].permute(0, 2, 3, 1)).flatten()[:16]
    widths = BY_NAME[official.about["variant"]].hyperparameters["widths"]
    sides = [224 // stride for stride in model.feature_strides]
    assert [tuple(m.shape) for m in maps] == [(2, C, side, side) for C, side in zip(widths, sides, strict=True)]
    for i in (1, 2, 3):
        first = maps[i - 1].permute(0, 2, 3, 1).flatten()[:16]
        np.testing.assert_allclose(first, golden[f"stage{i}_pixel.first16"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(last, golden["aux_head.first16"], rtol=0, atol=1e-5)


# Pieces, computed one element at a time


def cubic(t: float) -> float:
    """Keys' kernel with the coefficient -0.75."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resize(table: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic resize of [h, w, C] with half-pixel centres and clamped borders."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
                matrix[i, min(max(j, 0), old - 1)] += cubic(centre - j)
        return matrix

    return np.einsum("ih,jw,hwc->ijc", weights(table.shape[0], height), weights(table.shape[1], width), table)


@pytest.mark.parametrize(
    ("image_size", "grid"), [((256, 256), (9, 9)), ((64, 64), (2, 2)), ((25, 100), (1, 3)), ((192, 320), (6, 11))]
)
def test_queries_are_the_learned_grid_resized(image_size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = small(image_size).double()
    model.q_embed = nn.Identity()
    expected = resize(model.q.detach().numpy().reshape(8, 8, -1), *grid).reshape(grid[0] * grid[1], -1)
    for dense in (False, True):
        queries = model.semantic_queries(dense=dense).detach()
        np.testing.assert_allclose(queries, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("image_size", [(224, 224), (225, 230)])
def test_queries_of_an_8x8_grid_are_the_learned_ones(image_size: tuple[int, int]) -> None:
    model = small(image_size)
    model.q_embed = nn.Identity()
    assert model.semantic_queries() is model.q
    assert model.semantic_queries(dense=True) is model.q


def test_64_queries_of_another_grid_stay_unchanged_in_the_classifier_and_are_resized_for_maps() -> None:
    model = small((112, 448)).double()
    model.q_embed = nn.Identity()
    assert model.semantic_queries() is model.q
    expected = resize(model.q.detach().numpy().reshape(8, 8, -1), 4, 16).reshape(64, -1)
    np.testing.assert_allclose(model.semantic_queries(dense=True).detach(), expected, rtol=0, atol=1e-12)


def test_semantic_tokens_of_an_odd_grid_leave_out_the_last_rows_and_columns() -> None:
    model = small((62, 87)).double()  # a stem map of 16x22, hence 2x3 windows
    nn.init.normal_(model.se[2].weight)
    x = torch.randn(2, 16 * 22, 32, dtype=torch.float64)
    queries = torch.randn(6, 32, dtype=torch.float64)
    with torch.no_grad():
        tokens = model.semantic_tokens(x, queries)
        for image in range(2):
            grid = x[image].reshape(16, 22, 32)
            windows = [grid[7 * i : 7 * i + 7, 7 * j : 7 * j + 7].mean((0, 1)) for i in range(2) for j in range(3)]
            pooled = torch.stack(windows)
            keys, values = model.kv(pooled).split(32, dim=1)
            attended = (queries @ keys.T / math.sqrt(32)).softmax(1) @ values
            gates = model.se((attended + pooled).mean(0)).reshape(2, 32).softmax(0)
            expected = model.proxy_ln(gates[0] * attended + gates[1] * pooled)
            torch.testing.assert_close(tokens[image], expected, rtol=0, atol=1e-12)


def test_pixel_ffn_equals_linears_around_a_depthwise_convolution_on_a_grid_that_is_not_square() -> None:
    ffn = PixelFFN(4, 12, (3, 5)).double()
    x = torch.randn(2, 15, 4, dtype=torch.float64)
    hidden = F.linear(x, ffn.fc1.weight[:, :, 0, 0], ffn.fc1.bias).reshape(2, 3, 5, 12)
    padded = F.pad(hidden, (0, 0, 1, 1, 1, 1))
    kernel = ffn.dwconv.dwconv.weight
    mixed = sum(padded[:, i : i + 3, j : j + 5] * kernel[:, 0, i, j] for i in range(3) for j in range(3))
    expected = F.linear(F.gelu(mixed + ffn.dwconv.dwconv.bias), ffn.fc2.weight[:, :, 0, 0], ffn.fc2.bias)
    torch.testing.assert_close(ffn(x), expected.reshape(2, 15, 4), rtol=0, atol=1e-12)


# Published sizes


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_parameters_and_multiply_adds_are_the_published_ones(card: ModelCard) -> None:
    for (height, width), macs, _ in ((card.image_size, card.macs, card.top1), *card.other_sizes):
        with torch.device("meta"):
            model = build(card.name, (height, width))
            images = torch.empty(1, 3, height, width)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(images)
        assert sum(p.numel() for p in model.parameters()) == card.parameters
        assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.005)


# Image sizes


@pytest.mark.parametrize("size", [(25, 25), (25, 90), (61, 33), (112, 448), (225, 230)])
def test_any_size_from_25_pixels_works(size: tuple[int, int]) -> None:
    model = small(size)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits, maps = model(images), model.forward_features(images)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    grids = [tuple(math.ceil(side / stride) for side in size) for stride in model.feature_strides]
    assert [tuple(m.shape) for m in maps] == [(2, C, *g) for C, g in zip((32, 64, 64, 96), grids, strict=True)]


def test_a_smaller_image_is_refused_with_a_size_that_works() -> None:
    with pytest.raises(ModelError, match="at least 25x40"):
        small((24, 40))


def test_an_image_of_another_size_than_built_for_is_refused() -> None:
    with pytest.raises(ModelError, match="built for 224x224"):  # as many tokens, on another grid
        small((224, 224))(torch.zeros(1, 3, 112, 448))


# Heads and checkpoints


def test_half_the_maximum_over_the_pixels_joins_the_logits() -> None:
    model = small()
    outputs = record(model)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 64, 64))
    assert outputs["aux_head"].shape == (2, 4, 5)
    torch.testing.assert_close(logits, outputs["head"] + 0.5 * outputs["aux_head"].max(dim=1).values)


def official_layout(model: DualViT) -> dict[str, Tensor]:
    """The state dict with the pixel FFN's 1x1 convolutions as the Linears of the official code."""
    return {
        key: t[:, :, 0, 0] if key.endswith(("fc1.weight", "fc2.weight")) and t.ndim == 4 else t
        for key, t in model.state_dict().items()
    }


@pytest.mark.parametrize(("built_with", "saved_with"), [(True, False), (False, True), (False, False)])
def test_without_an_auxiliary_head_on_either_side_the_class_logits_stand_alone(
    built_with: bool, saved_with: bool
) -> None:
    source = small(token_label=saved_with)
    model = small(token_label=built_with)
    model.load_state_dict(model.adapt_state_dict(official_layout(source)), strict=True)
    images = torch.randn(2, 3, 64, 64)
    outputs = record(source)
    with torch.no_grad():
        source(images)
        torch.testing.assert_close(model(images), outputs["head"])
    assert not any(key.startswith("aux_head") for key in model.state_dict())


def test_a_saved_network_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    model, again = small((48, 80)), small((48, 80), token_label=False)
    save_checkpoint(path, model, replace(BY_NAME["dualvit_s"], num_classes=5))
    load_checkpoint(again, read_checkpoint(path), model_name="dualvit_s")
    images = torch.randn(1, 3, 48, 80)
    outputs = record(model)
    with torch.no_grad():
        model(images)
        assert torch.equal(again(images), outputs["head"])


def test_every_parameter_receives_a_gradient() -> None:
    model = small().train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# A trained network


@pytest.fixture(scope="module")
def trained(shared: Path) -> tuple[nn.Module, dict[str, Any], zipfile.ZipFile]:
    path = shared / "weights" / "dualvit_s_eurosat.safetensors"
    model = create_model("dualvit_s", num_classes=10, image_size=64, checkpoint=path)
    about = json.loads(path.with_suffix(".json").read_text())
    return model, about, zipfile.ZipFile(shared / "data" / "eurosat" / "eurosat_val.zip")


def load_images(model: nn.Module, archive: zipfile.ZipFile, names: list[str]) -> Tensor:
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names])
    recipe = model.card.preprocessing
    normalised = (pixels / 255 - recipe.mean) / recipe.std
    return torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float()


def test_a_trained_network_gives_the_recorded_logits(trained: tuple[nn.Module, dict[str, Any], Any]) -> None:
    model, about, archive = trained
    first = next(name for name in archive.namelist() if name.endswith(about["first_val_logits"]["file"]))
    with torch.no_grad():
        logits = model(load_images(model, archive, [first]))[0]
    np.testing.assert_allclose(logits, about["first_val_logits"]["logits"], rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_trained_network_keeps_its_accuracy(trained: tuple[nn.Module, dict[str, Any], Any]) -> None:
    model, about, archive = trained
    names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
    truth = [about["labels"].index(name.split("/")[-2]) for name in names]
    correct = 0
    for start in range(0, len(names), 90):
        with torch.no_grad():
            top = model(load_images(model, archive, names[start : start + 90])).argmax(1)
        correct += int((top == torch.tensor(truth[start : start + 90])).sum())
    assert len(names) == about["val_top1"]["images"]
    assert correct == pytest.approx(about["val_top1"]["correct"], abs=2)


# Export


def test_captures_with_a_dynamic_batch_and_nothing_else_dynamic() -> None:
    model = small((64, 96))
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=batch, strict=False)
    for n in (1, 3):
        images = torch.randn(n, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), model(images))

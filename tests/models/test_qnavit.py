"""QnA-ViT against the official network's outputs, and its windows, checkpoints and float16 range."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from vitdeploy.errors import ModelError
from vitdeploy.models.cards.qnavit import CARDS
from vitdeploy.models.qnavit import QnA, QnAViT, WindowAttention
from vitdeploy.models.qnavit_flax import from_flax

BY_NAME = {card.name: card for card in CARDS}


def build(name: str = "qnavit_tiny", image_size: tuple[int, int] = (224, 224), **override: Any) -> QnAViT:
    hyperparameters = {**BY_NAME[name].hyperparameters, "num_classes": 1000, **override}
    torch.manual_seed(0)
    return QnAViT(image_size=image_size, **hyperparameters).eval()


def small(image_size: tuple[int, int] = (224, 224), **override: Any) -> QnAViT:
    """All parts of the network, few of each."""
    depths = {"attention": (0, 0, 1, 1), "local": (1, 0, 1, 0), "width": 16, "num_classes": 5}
    return build(image_size=image_size, **{**depths, **override})


# The official network


@pytest.fixture(scope="module", params=["qnavit_tiny", pytest.param("qnavit_small", marks=pytest.mark.slow)])
def official(request: pytest.FixtureRequest, shared: Path, fill: ModuleType) -> tuple[QnAViT, dict[str, Any], Any]:
    folder = shared / "reference" / "golden"
    about = json.loads((folder / f"{request.param}.json").read_text())
    model = build(request.param)
    filled = {key: torch.from_numpy(fill.fill_tensor(key, tuple(shape))) for key, shape in about["params"].items()}
    model.load_state_dict(model.adapt_state_dict(filled), strict=True)
    return model, about, np.load(folder / f"{request.param}.npz")


def module_of(tap: str) -> str:
    """The module of ours whose output is the official tap."""
    path = re.sub(r"\w+Stage_(\d)\.QnA_Block_\d+_stride_2", r"stages.\1.down", tap)
    path = re.sub(r"LSAStage_(\d)\.MSA_Block_(\d+)", lambda m: f"stages.{m[1]}.attention.{int(m[2]) - 1}", path)
    path = re.sub(r"QnAStage_(\d)\.QnA_Block_(\d+)", lambda m: f"stages.{m[1]}.local.{int(m[2]) - 1}", path)
    path = re.sub(r"FusedKQnA_0|MultiHeadSelfAttention_0", "mixer", path).replace("Conv_0", "skip")
    return path.replace("StemBlock_0", "stem").replace("ClassificationHead_0.LayerNorm_0", "norm")


def test_logits_and_every_tap_equal_the_official_network(
    official: tuple[QnAViT, dict[str, Any], Any], fill: ModuleType
) -> None:
    model, about, golden = official
    taps = {name: module_of(name) for name in about["taps"] if "." in name or name == "StemBlock_0"}
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, output)

    handles = [model.get_submodule(path).register_forward_hook(keep(name)) for name, path in taps.items()]
    handles.append(model.head.register_forward_pre_hook(lambda module, args: seen.__setitem__("pooled", args[0])))
    images = torch.from_numpy(fill.fill_input(tuple(about["input_shape"]), about["fill_seed"]))
    with torch.no_grad():
        logits = model(images)
    for handle in handles:
        handle.remove()

    assert seen.keys() == {*taps, "pooled"}
    assert len(seen) >= 38
    for name, value in seen.items():
        if tuple(value.shape) != tuple(about["taps"][name]):  # channel first inside
            value = value.permute(0, 2, 3, 1)
        assert list(value.shape) == about["taps"][name], name
        first = golden[f"{name}.first16"]
        tolerance = 1e-5 * max(1, float(np.abs(first).max()))
        np.testing.assert_allclose(value.flatten()[:16], first, rtol=0, atol=tolerance, err_msg=name)
        assert float(value.mean()) == pytest.approx(float(golden[f"{name}.mean"]), abs=1e-5), name
        assert float(value.std(correction=0)) == pytest.approx(float(golden[f"{name}.std"]), abs=1e-5), name
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5)


def test_faint_images_show_the_same_epsilons(official: tuple[QnAViT, dict[str, Any], Any], fill: ModuleType) -> None:
    model, about, golden = official
    images = torch.from_numpy(fill.fill_input(tuple(about["input_shape"]), about["fill_seed"])) * about["faint_factor"]
    with torch.no_grad():
        np.testing.assert_allclose(model(images), golden["logits_faint"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["s1k3", "s2k3", "s1k7", "s2k7"])
def test_qna_layer_equals_the_official_layer(shared: Path, case: str) -> None:
    folder = shared / "reference" / "golden"
    about = json.loads((folder / "qna_layer.json").read_text())["cases"][case]
    golden = np.load(folder / "qna_layer.npz")
    layer = QnA(
        about["in_features"],
        about["features"],
        head_width=about["head_dim"],
        kernel_size=about["kernel_size"],
        stride=about["stride"],
        queries=about["n_queries"],
    )
    official = {
        f"params/QnAStage_0/QnA_Block_1/FusedKQnA_0/{name.removeprefix('params/')}": torch.from_numpy(
            golden[f"{case}.{name}"]
        )
        for name in about["params"]
    }
    own = {name.removeprefix("stages.0.local.0.mixer."): value for name, value in from_flax(official).items()}
    layer.load_state_dict(own, strict=True)
    mixed = []
    layer.proj.register_forward_pre_hook(lambda module, args: mixed.append(args[0]))
    with torch.no_grad():
        x = torch.from_numpy(golden[f"{case}.input"]).permute(0, 3, 1, 2)
        out = layer(x)
        scores = layer._scores(x).permute(0, 2, 3, 1).reshape(golden[f"{case}.scores"].shape)
    np.testing.assert_allclose(scores, golden[f"{case}.scores"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(mixed[0].permute(0, 2, 3, 1), golden[f"{case}.mixed"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.permute(0, 2, 3, 1), golden[f"{case}.output"], rtol=0, atol=1e-5)


def test_attention_adds_the_table_row_of_query_minus_key() -> None:
    """The bias of query i and key j is the table's row of i - j, computed here one pair at a time."""
    window, attention = 3, WindowAttention(64, 3)
    nn.init.normal_(attention.position_bias)
    x = torch.randn(2, 9, 64)
    q, k, v = (t.unflatten(2, (2, 32)).double() for t in attention.qkv(x).chunk(3, dim=2))
    out = torch.empty(2, 9, 2, 32, dtype=torch.float64)
    for head in range(2):
        for i in range(9):
            scores = []
            for j in range(9):
                row, column = i // 3 - j // 3 + 2, i % 3 - j % 3 + 2
                bias = attention.position_bias[row * (2 * window - 1) + column, head].double()
                scores.append((q[:, i, head] * k[:, j, head]).sum(1) / math.sqrt(32) + bias)
            weights = torch.stack(scores, 1).softmax(1)
            out[:, i, head] = torch.einsum("bj,bjd->bd", weights, v[:, :, head])
    expected = out.flatten(2).float() @ attention.proj.weight.t()
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-5)


# Published sizes


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_parameter_counts_are_the_measured_ones(card: Any) -> None:
    with torch.device("meta"):
        model = QnAViT(num_classes=card.num_classes, image_size=card.image_size, **card.hyperparameters)
    assert sum(p.numel() for p in model.parameters()) == card.parameters


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [("qnavit_tiny", 2.42), ("qnavit_tiny_7x7", 2.51), ("qnavit_small", 4.35), ("qnavit_base", 9.51)],
)
def test_multiply_adds_are_the_measured_ones(name: str, gmacs: float) -> None:
    """The official count holds the folding of the queries into the key projection too, a constant here: 1 to 3 M."""
    with torch.device("meta"):
        model = build(name)
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += out.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            total += out.numel() * module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, QnA):
            groups, pixels = module.queries * module.heads, args[0].shape[2] * args[0].shape[3]
            total += groups * pixels * args[0].shape[1]
            total += groups * (module.head_width + 1) * module.kernel_size**2 * out.shape[2] * out.shape[3]
        elif isinstance(module, WindowAttention):
            total += 2 * out.shape[1] ** 2 * out.shape[2]

    for module in model.modules():
        module.register_forward_hook(count)
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert total / 1e9 == pytest.approx(gmacs, abs=0.01)


# Windows and image sizes


@pytest.mark.parametrize(("side", "windows"), [(256, (8, 8, 16, 8)), (384, (12, 12, 24, 12))])
def test_other_sizes_are_refused_with_windows_that_fit_and_work_with_them(side: int, windows: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        small((side, side))
    assert f"windows={windows}" in str(caught.value)
    assert re.search(r"image size of (224x224|448x448)", str(caught.value))
    with torch.no_grad():
        assert small((side, side), windows=windows)(torch.randn(1, 3, side, side)).shape == (1, 5)


@pytest.mark.parametrize("windows", [(8, 8, 16), (7, 7, 0, 7), ("7", "7", "14", "7")])
def test_windows_that_are_none_are_refused(windows: Any) -> None:
    with pytest.raises(ModelError, match=r"invalid windows .* for QnA-ViT"):
        small(windows=windows)


def test_a_size_with_several_windows_equals_attention_inside_each() -> None:
    model = small((224, 448))
    x = torch.randn(2, 14, 28, 64)
    with torch.no_grad():
        out = (
            model.stages[2]
            .attention[0](torch.stack([x[:, :, :14], x[:, :, 14:]], 1).reshape(4, 196, 64))
            .reshape(2, 2, 14, 14, 64)
        )
        expected = torch.cat([out[:, 0], out[:, 1]], 2)
        model.stages[2].local = nn.ModuleList()
        torch.testing.assert_close(model.stages[2](x)[0], expected)


def test_a_side_that_is_no_multiple_of_four_is_padded_not_cropped() -> None:
    model = small((222, 211))
    x = torch.randn(1, 3, 222, 211)
    padded = nn.functional.pad(x, (0, 1, 1, 1))  # 211 -> 212: all behind; 222 -> 224: one on each side
    with torch.no_grad():
        assert [tuple(m.shape) for m in model.forward_features(x)] == [
            (1, 16, 56, 53), (1, 32, 28, 27), (1, 64, 14, 14), (1, 128, 7, 7)
        ]  # fmt: skip
        torch.testing.assert_close(model.stem(model.pad(x)), model.stem(padded))


def test_features_are_the_stages_before_they_are_halved() -> None:
    model = small()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.norm(features[-1].permute(0, 2, 3, 1)).mean((1, 2))
        torch.testing.assert_close(model.head(pooled), model(x))
        down = model.stages[1].down(features[1].permute(0, 2, 3, 1))
        torch.testing.assert_close(model.stages[2](down)[0].permute(0, 3, 1, 2), features[2])
    for feature, stride, channels in zip(features, model.feature_strides, (16, 32, 64, 128), strict=True):
        assert feature.shape == (2, channels, 224 // stride, 224 // stride)


# Checkpoints


def keys_bicubic(table: np.ndarray, size: int) -> np.ndarray:
    """Keys' kernel, a = -0.5, half-pixel centres, weights normalised at the border: one axis of [n, ...] to `size`."""
    scale = max(len(table) / size, 1.0)  # antialiased when it shrinks
    out = np.zeros((size, *table.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * len(table) / size - 0.5
        distance = np.abs(np.arange(len(table)) - centre) / scale
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
        out[i] = np.tensordot(weights / weights.sum(), table, 1)
    return out


@pytest.mark.parametrize(("side", "window"), [(384, 24), (192, 12)])
def test_position_tables_are_resized_to_the_windows(side: int, window: int) -> None:
    source = small()
    for stage in (2, 3):
        nn.init.normal_(source.stages[stage].attention[0].mixer.position_bias)
    target = small((side, side), windows=(7, 7, window, window // 2))
    target.load_state_dict(target.adapt_state_dict(source.state_dict()), strict=True)
    table = source.stages[2].attention[0].mixer.position_bias.detach().double().numpy().reshape(27, 27, 2)
    expected = keys_bicubic(keys_bicubic(table, 2 * window - 1).swapaxes(0, 1), 2 * window - 1).swapaxes(0, 1)
    found = target.stages[2].attention[0].mixer.position_bias.detach().numpy()
    np.testing.assert_allclose(found, expected.reshape(-1, 2), atol=1e-5)
    torch.testing.assert_close(target.head.weight, source.head.weight)


def test_its_own_state_dict_passes_unchanged_and_carries_no_constants() -> None:
    model = small()
    state = model.state_dict()
    adapted = model.adapt_state_dict(dict(state))
    assert adapted.keys() == state.keys()
    assert all(torch.equal(adapted[key], state[key]) for key in state)
    assert not any("score_shift" in key or "index" in key for key in state)


def test_unknown_official_keys_stay_visible() -> None:
    kept = from_flax({"params/QnAStage_0/QnA_Block_1/Odd_0/kernel": torch.zeros(3, 3), "params/extra": torch.zeros(1)})
    assert set(kept) == {"stages.0.local.0.Odd_0/kernel", "params/extra"}


# The float16 range


class Float16(TorchDispatchMode):
    """Every floating tensor that an operator returns is rounded to float16, overflow to infinity included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def rounded(value: Any) -> Any:
            return value.half().float() if isinstance(value, Tensor) and value.is_floating_point() else value

        return tree_map(rounded, func(*args, **(kwargs or {})))


def loud_layer(deviation: float, offset: float = 0.0) -> tuple[QnA, Tensor]:
    """A layer whose scores have about that standard deviation and mean."""
    torch.manual_seed(0)
    layer = QnA(64, 64, head_width=8, kernel_size=3)
    nn.init.normal_(layer.window_bias, std=0.5)
    nn.init.normal_(layer.window_scale)
    x = torch.randn(2, 64, 24, 24)
    with torch.no_grad():
        layer.key.mul_(deviation / layer._scores(x).std())
    if offset:
        # The channel that is always one gives every score the offset.
        x[:, 0] = 1
        with torch.no_grad():
            unit = layer.query.unflatten(1, (8, 8))
            unit = unit / unit.norm(dim=2, keepdim=True) / math.sqrt(8)
            for head in range(8):
                target = torch.full((2,), offset)
                layer.key[head * 8 : head * 8 + 8, 0] = torch.linalg.lstsq(unit[:, head], target[:, None]).solution[
                    :, 0
                ]
    return layer, x


def emulated_error(layer: QnA, x: Tensor) -> float:
    with torch.no_grad():
        exact = layer.double()(x.double())
        layer.float()
        with Float16():
            rounded = layer(x)
    return float((rounded.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("deviation", [3.0, 4.0])
def test_loud_scores_overflow_float16_unless_shifted_and_stay_accurate_with_it(deviation: float) -> None:
    layer, x = loud_layer(deviation)
    assert not math.isfinite(emulated_error(layer, x))
    layer.fit_half_range(x)
    assert emulated_error(layer, x) < 0.005


@pytest.mark.parametrize("offset", [-25.0, 25.0])
def test_scores_far_from_zero_neither_vanish_nor_overflow(offset: float) -> None:
    layer, x = loud_layer(0.5, offset)
    assert not emulated_error(layer, x) < 0.05
    layer.fit_half_range(x)
    assert emulated_error(layer, x) < 0.005


def test_the_shift_leaves_room_for_louder_images_than_it_was_measured_on() -> None:
    layer, x = loud_layer(2.0)
    layer.fit_half_range(x)
    assert emulated_error(layer, 1.3 * x) < 0.005


def test_the_shift_cancels_exactly() -> None:
    layer, x = loud_layer(2.0)
    layer, x = layer.double(), x.double()
    with torch.no_grad():
        plain = layer(x)
        layer.fit_half_range(x)
        assert float(layer.score_shift.abs().min()) > 0.1
        torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-12)


def test_preparing_the_network_for_float16_moves_every_layer_and_no_logit() -> None:
    model = small()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        before = model(x)
        model.prepare_fp16(x)
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
    layers = [module for module in model.modules() if isinstance(module, QnA)]
    assert all(bool(layer.score_shift.any()) for layer in layers)
    assert not any(layer._forward_pre_hooks for layer in layers)


# Export


@pytest.mark.parametrize("image_size", [(224, 224), (224, 448)])
def test_export_keeps_the_batch_dynamic(image_size: tuple[int, int]) -> None:
    model = small(image_size)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, *image_size),), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 3, *image_size)
    torch.testing.assert_close(program.module()(x), model(x))

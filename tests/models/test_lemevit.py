"""LeMeViT against the official network's outputs, its published costs, and formulas written out by hand."""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitdeploy.errors import ModelError
from vitdeploy.models.cards.lemevit import CARDS
from vitdeploy.models.create import create_model
from vitdeploy.models.lemevit import DualCrossAttention, LeMeViT, TiedDualCrossAttention
from vitdeploy.models.registry import build
from vitdeploy.preprocess import preprocess

BY_NAME = {card.name: card for card in CARDS}
NETWORKS = [card.name for card in CARDS if card.checkpoint is None]


class MacCounter(TorchFunctionMode):
    """Multiply-adds in units of 1e9: `dense` for convolutions and linear layers, `attention` for its two products."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.linear, F.conv2d):
            self.total["dense"] += out.numel() * args[1][0].numel()
        elif func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            self.total["attention"] += out.numel() // v.shape[-1] * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return out


def macs(name: str, image_size: tuple[int, int] = (224, 224)) -> Counter[str]:
    with torch.device("meta"), MacCounter() as counter:
        build(BY_NAME[name].resized(image_size)).eval()(torch.empty(1, 3, *image_size))
    return Counter({part: count / 1e9 for part, count in counter.total.items()})


def small_network(kinds: str, image_size: tuple[int, int] = (64, 96)) -> LeMeViT:
    """One block of each kind, in float64, with BatchNorm statistics that show."""
    torch.manual_seed(0)
    stages = kinds.split()
    widths = (32, 32, 64, 64, 96)[5 - len(stages) :]
    model = LeMeViT(num_classes=7, image_size=image_size, depth=(1,) * len(stages), widths=widths, kinds=stages)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


# The official network


@pytest.fixture(scope="module", params=["lemevit_tiny", pytest.param("lemevit_small", marks=pytest.mark.slow)])
def official(request: pytest.FixtureRequest, shared: Path, fill: ModuleType) -> tuple[LeMeViT, dict[str, Any], Any]:
    folder = shared / "reference" / "golden"
    about = json.loads((folder / f"{request.param}.json").read_text())
    model = build(BY_NAME[request.param]).eval()
    model.load_state_dict(
        {key: torch.from_numpy(np.asarray(fill.fill_tensor(key, tuple(s)))) for key, s in about["state_dict"].items()}
    )
    return model, about, np.load(folder / f"{request.param}.npz")


def golden_input(about: dict[str, Any], fill: ModuleType) -> Tensor:
    return torch.from_numpy(fill.fill_input(tuple(about["input_shape"]), about["fill_seed"]))


def summary(tap: Tensor) -> np.ndarray:
    values = tap.detach().double()
    return np.array([*values.flatten()[:16], values.mean(), values.std(correction=0)])


def test_state_dict_has_the_official_keys_and_shapes_in_the_official_order(official: Any) -> None:
    model, about, _ = official
    assert [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()] == [*about["state_dict"].items()]
    assert sum(parameter.numel() for parameter in model.parameters()) == about["num_params"]


def test_every_tap_equals_the_official_network(official: Any, fill: ModuleType) -> None:
    model, about, golden = official
    taps: dict[str, Tensor] = {}

    def remember_stage(stage: int) -> Any:
        def hook(_: nn.Module, __: Any, streams: tuple[Tensor, Tensor]) -> None:
            taps[f"stage{stage}_image"], taps[f"stage{stage}_meta"] = streams

        return hook

    handles = [blocks[-1].register_forward_hook(remember_stage(i)) for i, blocks in enumerate(model.stages)]
    handles.append(model.head.register_forward_pre_hook(lambda _, args: taps.update(pooled=args[0])))
    with torch.no_grad():
        taps["logits"] = model(golden_input(about, fill))
    for handle in handles:
        handle.remove()

    assert set(taps) == set(golden)
    for name, expected in golden.items():
        stage_tap = name.startswith("stage")
        deviation = expected[-1] if stage_tap else expected.std()
        measured = summary(taps[name]) if stage_tap else taps[name].numpy()
        assert np.abs(measured - expected).max() <= 1e-5 * deviation, name


def test_the_pyramid_is_the_official_image_stream_after_stages_1_to_4(official: Any, fill: ModuleType) -> None:
    model, about, golden = official
    with torch.no_grad():
        maps = model.forward_features(golden_input(about, fill))
    assert [224 // m.shape[2] for m in maps] == list(model.feature_strides) == [4, 8, 16, 32]
    for stage, features in enumerate(maps, start=1):
        expected = golden[f"stage{stage}_image"]
        assert np.abs(summary(features) - expected).max() <= 1e-5 * expected[-1]


def test_float64_agrees_with_float32(official: Any, fill: ModuleType) -> None:
    model, about, _ = official
    images = golden_input(about, fill)[:1, :, :96, :96]
    with torch.no_grad():
        single, double = model(images), copy.deepcopy(model).double()(images.double())
    assert (single - double).abs().max() <= 1e-5 * double.std()


# The zoo's figures


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_parameters_are_the_cards(card: Any) -> None:
    with torch.device("meta"):
        model = build(card)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters


def test_base_has_569_state_dict_entries() -> None:
    with torch.device("meta"):
        assert len(build(BY_NAME["lemevit_base"]).state_dict()) == 569


@pytest.mark.parametrize(
    ("name", "dense", "attention"),
    [("lemevit_tiny", 1.779, 0.167), ("lemevit_small", 3.736, 0.220), ("lemevit_base", 11.060, 0.680)],
)
def test_macs_are_the_published_ones_and_the_official_attention(name: str, dense: float, attention: float) -> None:
    counted = macs(name)
    assert counted["dense"] == pytest.approx(dense, abs=6e-4)
    assert counted["attention"] == pytest.approx(attention, abs=6e-4)
    assert BY_NAME[name].macs == pytest.approx(counted["dense"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "total"), [("lemevit_small_v2", 2.479), ("lemevit_tiny_v2", 3.339), ("vit_tiny", 7.503)]
)
def test_macs_of_the_unpublished_networks_are_the_official_codes(name: str, total: float) -> None:
    assert macs(name).total() == pytest.approx(total, abs=6e-4)


@pytest.mark.parametrize(("size", "total"), [(256, 2.555), (512, 12.347)])
def test_macs_grow_with_resolution_as_the_official_codes(size: int, total: float) -> None:
    assert macs("lemevit_tiny", (size, size)).total() == pytest.approx(total, abs=6e-4)


# Formulas


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    heads = [
        softmax(scale * q[:, :, i : i + 32] @ k[:, :, i : i + 32].swapaxes(1, 2)) @ v[:, :, i : i + 32]
        for i in range(0, q.shape[2], 32)
    ]
    return np.concatenate(heads, axis=2)


@pytest.mark.parametrize("tied", [False, True])
def test_dual_cross_attention_is_the_papers_formula(tied: bool) -> None:
    width, image_tokens, meta_tokens = 96, 35, 16
    torch.manual_seed(0)
    layer = (TiedDualCrossAttention if tied else DualCrossAttention)(width).double()
    for projection in layer.children():
        nn.init.normal_(projection.weight, std=0.3)
    image = torch.randn(2, image_tokens, width, dtype=torch.float64)
    meta = torch.randn(2, meta_tokens, width, dtype=torch.float64)

    def project(tokens: Tensor, name: str, part: int) -> np.ndarray:
        linear = getattr(layer, name)
        rows = slice(part * width, (part + 1) * width)
        return (tokens @ linear.weight[rows].T + linear.bias[rows]).detach().numpy()

    if tied:
        q1 = k1 = project(image, "qv1", 0)
        k2 = q2 = project(meta, "kv2", 0)
        v1, v2 = project(image, "qv1", 1), project(meta, "kv2", 1)
    else:
        q1, k1, v1 = (project(image, "qkv1", part) for part in range(3))
        q2, k2, v2 = (project(meta, "qkv2", part) for part in range(3))
    scale = 1 / math.sqrt(width)
    dx = attention(q1, k2, v2, scale * math.log(meta_tokens, image_tokens))
    dc = attention(q2, k1, v1, scale)

    updates = layer(image, meta)
    np.testing.assert_allclose(updates[0].detach(), project(torch.from_numpy(dx), "proj_x", 0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(updates[1].detach(), project(torch.from_numpy(dc), "proj_c", 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kinds", ["C D D S S", "C D2 D2 S S", "S S S S"])
def test_a_transposed_image_under_transposed_kernels_gives_the_same_logits(kinds: str) -> None:
    """Height and width are never confused, odd sizes included."""
    model = small_network(kinds)
    mirrored = copy.deepcopy(model)
    for module in mirrored.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.transpose(2, 3).contiguous()
    images = torch.randn(2, 3, 33, 47, dtype=torch.float64)
    with torch.no_grad():
        logits, again = model(images), mirrored(images.transpose(2, 3))
        maps, turned = model.forward_features(images), mirrored.forward_features(images.transpose(2, 3))
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-11)
    assert [tuple(m.shape[2:]) for m in maps] == [(9, 12), (5, 6), (3, 3), (2, 2)]
    for left, right in zip(maps, turned, strict=True):
        torch.testing.assert_close(right.transpose(2, 3), left, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kinds", ["C D D S S", "C D2 D2 S S", "S S S S"])
def test_an_image_is_classified_alike_alone_and_in_a_batch(kinds: str) -> None:
    model = small_network(kinds)
    images = torch.randn(3, 3, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    assert together[0].sub(together[1]).abs().max() > 1e-3
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


def test_exports_with_a_dynamic_batch_and_otherwise_static_shapes() -> None:
    model = small_network("C D D S S")
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            assert all(isinstance(size, int) for size in node.meta["val"].shape[1:]), node
    for batch in (1, 3):
        other = torch.randn(batch, 3, 64, 96, dtype=torch.float64)
        torch.testing.assert_close(program.module()(other), model(other), rtol=0, atol=1e-11)


# Sizes and initial weights


@pytest.mark.parametrize("image_size", [(9, 1), (8, 16), (225, 231)])
def test_any_size_with_two_tokens_at_stride_8_is_admitted(image_size: tuple[int, int]) -> None:
    model = small_network("C D D S S", image_size)
    with torch.no_grad():
        assert model(torch.randn(1, 3, *image_size, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("image_size", [(8, 8), (1, 8), (5, 7)])
def test_a_size_with_one_token_is_refused_with_advice(image_size: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match=r"(?s)log\(1\).*9 pixels or more, such as 16x16"):
        small_network("C D D S S", image_size)
    with pytest.raises(ModelError):
        small_network("C D D S S")(torch.randn(1, 3, *image_size, dtype=torch.float64))


def test_vit_tiny_has_no_dual_stage_and_takes_8x8() -> None:
    assert create_model("vit_tiny", image_size=8)(torch.zeros(1, 3, 8, 8)).shape == (1, 1000)


def test_linear_layers_start_small_with_zero_biases_and_meta_tokens_of_unit_scale() -> None:
    model = create_model("lemevit_tiny")
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert all(linear.weight.std().item() == pytest.approx(0.02, rel=0.05) for linear in linears)
    assert not any(linear.bias.any() for linear in linears)
    assert model.meta_tokens.std().item() == pytest.approx(1, rel=0.1)


# The trained network of this package


@pytest.fixture(scope="module")
def eurosat_facts(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "weights" / "lemevit_tiny_eurosat.json").read_text())


def test_the_eurosat_card_is_what_the_weights_were_trained_with(eurosat_facts: dict[str, Any]) -> None:
    card = create_model("lemevit_tiny.eurosat").card
    recipe = eurosat_facts["preprocessing"]
    assert list(card.labels) == eurosat_facts["labels"]
    assert card.num_classes == eurosat_facts["num_classes"]
    assert list(card.image_size) == list(card.preprocessing.size) == eurosat_facts["image_size"] == recipe["resize"]
    assert [list(card.preprocessing.mean), list(card.preprocessing.std)] == [recipe["mean"], recipe["std"]]
    assert card.weights.kind == "checkpoint"
    assert card.weights.sha256 == eurosat_facts["sha256"]


def classify(model: Any, archive: zipfile.ZipFile, names: list[str]) -> Tensor:
    images = [preprocess(Image.open(io.BytesIO(archive.read(name))), model.card.preprocessing) for name in names]
    with torch.no_grad():
        return model(torch.from_numpy(np.stack(images)))


def test_the_first_eurosat_image_has_the_recorded_logits(shared: Path, eurosat_facts: dict[str, Any]) -> None:
    recorded = eurosat_facts["first_val_logits"]
    with zipfile.ZipFile(shared / "data" / "eurosat" / "eurosat_val.zip") as archive:
        logits = classify(create_model("lemevit_tiny.eurosat"), archive, [recorded["file"]])[0]
    np.testing.assert_allclose(logits, recorded["logits"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_eurosat_network_scores_the_recorded_top1(shared: Path, eurosat_facts: dict[str, Any]) -> None:
    model = create_model("lemevit_tiny.eurosat")
    correct = 0
    with zipfile.ZipFile(shared / "data" / "eurosat" / "eurosat_val.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        for start in range(0, len(names), 81):
            batch = names[start : start + 81]
            answers = classify(model, archive, batch).argmax(dim=1)
            correct += sum(
                model.card.labels[answer] == name.split("/")[0] for answer, name in zip(answers, batch, strict=True)
            )
    assert len(names) == eurosat_facts["val_top1"]["images"]
    assert abs(correct - eurosat_facts["val_top1"]["correct"]) <= 2

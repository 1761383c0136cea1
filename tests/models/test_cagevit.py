"""CageViT against its formulas, written a second time in float64: no official code or weights exist."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.cagevit import CageViT, Fusion, GatedLinearSRA, Guide, Selection
from vitdeploy.models.cards.cagevit import CARDS


def build(image_size: tuple[int, int] = (224, 224), **override: Any) -> CageViT:
    torch.manual_seed(0)
    return CageViT(**{"image_size": image_size, "num_classes": 10, "width": 128, "depth": 3, **override}).eval()


def images(count: int, height: int = 224, width: int = 224) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def stirred(module: nn.Module) -> nn.Module:
    """The module in float64 with every parameter and statistic away from its initial value."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if "trunk" in name and parameter.ndim == 4:
                parameter.mul_(1.2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.add_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.add_(torch.rand(layer.running_var.shape, generator=generator) - 0.5)
    return module.double().eval()


# Sizes


@pytest.mark.parametrize(
    ("name", "parameters", "without_guide", "gmacs"),
    [
        ("cagevit_tiny", 7_717_780, 6_213_772, 0.718),
        ("cagevit_small", 25_519_672, 24_015_664, 2.413),
        ("cagevit_base", 43_826_000, 42_321_992, 4.145),
    ],
)
def test_parameters_are_exact_and_multiply_adds_within_two_percent(
    name: str, parameters: int, without_guide: int, gmacs: float
) -> None:
    card = next(card for card in CARDS if card.name == name)
    with torch.device("meta"):
        model = CageViT(num_classes=1000, image_size=(224, 224), **card.hyperparameters).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters == card.parameters
    assert parameters - sum(p.numel() for p in model.guide.parameters()) == without_guide
    assert sum(p.numel() for p in model.guide.trunk.parameters()) == 927_008

    total = 98 * 196 * 49  # S R; the selection itself counts as a gather

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += out.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            total += out.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, GatedLinearSRA):
            total += out.shape[2] * (2 * out.shape[1] * 57 + 49 * 98)
        elif isinstance(module, Fusion):
            total += args[0].shape[2] * 8 * 196

    for module in model.modules():
        module.register_forward_hook(count)
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert total / 1e9 == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize(("size", "nearest"), [((225, 224), "224x224"), ((100, 250), "96x256"), ((8, 500), "16x496")])
def test_sides_that_are_no_multiple_of_sixteen_are_refused_with_the_nearest(
    size: tuple[int, int], nearest: str
) -> None:
    with pytest.raises(ModelError) as caught:
        build(size)
    assert f"image size of {nearest}" in str(caught.value)
    assert build(tuple(map(int, nearest.split("x")))).grid  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(16, 16), (1424, 1424)])
def test_images_with_nothing_or_too_much_to_select_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="cannot keep"):
        build(size)


@pytest.mark.parametrize("size", [(16, 32), (48, 176), (256, 320)])
def test_small_and_oblong_images_work(size: tuple[int, int]) -> None:
    model = build(size)
    with torch.no_grad():
        assert bool(model(images(2, *size)).isfinite().all())
        maps = model.forward_features(images(1, *size))
    assert model.feature_strides == (4, 8, 16)
    assert [tuple(m.shape) for m in maps] == [
        (1, width, size[0] // stride, size[1] // stride) for width, stride in ((16, 4), (24, 8), (128, 16))
    ]


# Guide


def test_class_activation_equals_its_formula_one_patch_at_a_time() -> None:
    guide = stirred(Guide(7))
    x = images(2, 64, 96).double()
    with torch.no_grad():
        score, logits, _ = guide(x)
        activation = guide.trunk(x).flatten(2).numpy()
    weight, bias = guide.fc.weight.detach().numpy(), guide.fc.bias.detach().numpy()
    for b in range(2):
        mean = np.array([sum(row) / len(row) for row in activation[b]])
        z = np.array([sum(weight[c] * mean) + bias[c] for c in range(7)])
        p = np.exp(z) / np.exp(z).sum()
        alpha = sum(p[c] * weight[c] for c in range(7))
        expected = [sum(alpha[k] * (activation[b, k, i] - mean[k]) for k in range(576)) for i in range(24)]
        np.testing.assert_allclose(score[b], expected, atol=1e-9)
        np.testing.assert_allclose(logits[b], z, atol=1e-9)
    assert float(score.std()) > 1e-3


def test_the_score_is_the_grad_cam_map_of_all_classes() -> None:
    guide = stirred(Guide(7))
    with torch.no_grad():
        activation = guide.trunk(images(2, 64, 96).double()).flatten(2)
    activation.requires_grad_()
    logits = guide.fc(activation.mean(2))
    (gradient,) = torch.autograd.grad((logits.softmax(1).detach() * logits).sum(), activation)
    centred = activation - activation.mean(2, keepdim=True)
    grad_cam = (gradient.mean(2, keepdim=True) * centred).sum(1)
    with torch.no_grad():
        torch.testing.assert_close(guide(images(2, 64, 96).double()).score, 24 * grad_cam.detach(), atol=1e-9, rtol=0)


# Selection


@pytest.mark.parametrize("ties", ["none", "many", "all"])
def test_selection_takes_the_best_and_of_equals_the_first(ties: str) -> None:
    score = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    score = {"none": score, "many": score.round(), "all": torch.full_like(score, -0.25)}[ties]
    index = Selection(40, 17)(score)
    for row, selected in zip(score.tolist(), index.tolist(), strict=True):
        assert selected == sorted(range(40), key=lambda i: (-row[i], i))[:17]


def test_selection_on_a_constant_image_is_the_same_in_every_runtime(tmp_path: Any) -> None:
    """All scores of a black image under an untrained guide are equal."""
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    model = build((128, 160))

    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.select(x)

    x = torch.stack([torch.full((3, 128, 160), value) for value in (0.0, 0.4, -2.0)])
    path = tmp_path / "select.onnx"
    torch.onnx.export(Selecting(), (x,), path, dynamo=True, opset_version=18, verbose=False)
    with torch.no_grad():
        expected = model.select(x)
        score = model.guide(x).score
    assert bool((score[0] == score[0, 0]).all())
    assert expected[0].tolist() == list(range(40))
    session = onnxruntime.InferenceSession(path)
    in_onnxruntime = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    in_openvino = compiled(x.numpy())[0]
    for one, two, three in zip(expected.tolist(), in_onnxruntime.tolist(), in_openvino.tolist(), strict=True):
        assert set(one) == set(two) == set(three)


def test_logits_depend_on_the_selected_set_and_not_on_its_order() -> None:
    model, x = build(), images(2)
    with torch.no_grad():
        index = model.select(x)
        assert index.shape == (2, 98)
        torch.testing.assert_close(model.encode(x, index), model(x))
        torch.testing.assert_close(model.encode(x, index.flip(1)), model(x), atol=1e-5, rtol=0)
        assert float((model.encode(x, (index + 1) % 196) - model(x)).abs().max()) > 1e-3


@pytest.mark.parametrize("how", ["half", "bfloat16", "autocast"])
def test_the_selection_does_not_change_with_the_precision_of_the_rest(how: str) -> None:
    model, x = build(), images(2).half().float()
    with torch.no_grad():
        expected, logits = model.select(x), model(x)
        if how == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                index, rounded = model.select(x), model(x)
        else:
            narrow = getattr(copy.deepcopy(model), how)()
            index, rounded = narrow.select(x), narrow(getattr(x, how)())
            assert narrow.head.weight.dtype == rounded.dtype != torch.float32
    assert torch.equal(index, expected)
    assert 0 < float((rounded.float() - logits).norm() / logits.norm()) < 0.05
    assert set(model.float32_modules) <= {name for name, _ in model.named_modules()}


# Encoder


def test_fusion_equals_its_formula() -> None:
    fusion = stirred(Fusion(128, 3))
    x, minor = torch.randn(2, 10, 128).double(), (torch.rand(2, 10) < 0.6).double()
    with torch.no_grad():
        tokens, scores = fusion(x, minor)
        for b in range(2):
            members = [i for i in range(10) if minor[b, i]]
            z = [(x[b, i] - x[b, i].mean()) / (x[b, i].var(correction=0) + 1e-6).sqrt() for i in range(10)]
            z = [row * fusion.norm.weight + fusion.norm.bias for row in z]
            for f in range(3):
                raw = [float(z[i] @ fusion.score.weight[f]) for i in range(10)]
                np.testing.assert_allclose(scores[b, :, f], raw, atol=1e-9)
                total = sum(math.exp(raw[i]) for i in members)
                pooled = sum(math.exp(raw[i]) / total * z[i] for i in members)
                expected = fusion.v.weight @ pooled + fusion.v.bias + fusion.emb[0, f]
                torch.testing.assert_close(tokens[b, f], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("size", "windows"), [((224, 224), (7, 7)), ((160, 256), (7, 7)), ((64, 144), (4, 7))])
def test_pooling_averages_the_majors_of_each_window(size: tuple[int, int], windows: tuple[int, int]) -> None:
    model = build(size, depth=1)
    x = images(2, *size)
    height, width = size[0] // 16, size[1] // 16
    with torch.no_grad():
        index = model.select(x)
        # One window's patches are all minor: its row must be masked, not undefined.
        index[0] = torch.arange(height * width).flip(0)[: index.shape[1]]
        a = model._arrange(x, index)
    assert a.pool.shape == (2, windows[0] * windows[1], index.shape[1])
    masked = 0
    for b in range(2):
        of_window: dict[int, list[int]] = {p: [] for p in range(windows[0] * windows[1])}
        for position, patch in enumerate(index[b].tolist()):
            y, column = divmod(patch, width)
            of_window[windows[0] * y // height * windows[1] + windows[1] * column // width].append(position)
        for p, members in of_window.items():
            expected = torch.zeros(index.shape[1])
            expected[members] = 1 / max(len(members), 1)
            torch.testing.assert_close(a.pool[b, p], expected)
            assert float(a.mask[b, 0, 0, p]) == (0 if members else -1e4)
            masked += not members
    assert masked > 0


def test_majors_and_minors_partition_the_patches() -> None:
    model = build(depth=1)
    with torch.no_grad():
        index = model.select(images(2))
        a = model._arrange(images(2), index)
    for b in range(2):
        torch.testing.assert_close(a.tokens[b, :98], a.patches[b, index[b]], atol=0, rtol=0)
        assert {i for i in range(196) if a.minor[b, i] == 1} == set(range(196)) - set(index[b].tolist())


def test_gated_attention_equals_its_formula() -> None:
    attention = stirred(GatedLinearSRA(128, majors=6))
    t = torch.randn(1, 9, 128).double()
    pool = torch.zeros(1, 4, 6).double()
    pool[0, 0, :2], pool[0, 1, 2:5], pool[0, 3, 5] = 1 / 2, 1 / 3, 1  # window 2 is empty
    mask = torch.tensor([0.0, 0.0, -1e4, 0.0]).double().reshape(1, 1, 1, 4)

    def linear(layer: nn.Linear, row: Tensor) -> Tensor:
        return layer.weight @ row + layer.bias

    def reduced(row: Tensor) -> Tensor:
        r = linear(attention.sr, row)
        r = (r - r.mean()) / (r.var(correction=0) + 1e-6).sqrt() * attention.srn.weight + attention.srn.bias
        return r * 0.5 * (1 + torch.erf(r / math.sqrt(2)))

    def read(query: Tensor, sources: list[Tensor], head: int) -> Tensor:
        part = slice(64 * head, 64 * head + 64)
        keys = [linear(attention.kv, s)[:128][part] for s in sources]
        values = [linear(attention.kv, s)[128:][part] for s in sources]
        weights = torch.stack([query[part] @ k / 8 for k in keys]).softmax(0)
        return sum(w * v for w, v in zip(weights, values, strict=True))  # type: ignore[return-value]

    with torch.no_grad():
        windows = [t[0, :2].mean(0), t[0, 2:5].mean(0), t[0, 5]]
        near_sources, far_sources = [reduced(w) for w in windows], list(t[0, 6:])
        for i in range(9):
            query, gate = linear(attention.q, t[0, i]), linear(attention.gate, t[0, i]).sigmoid()
            heads = []
            for head in range(2):
                near, far = read(query, near_sources, head), read(query, far_sources, head)
                heads.append(near + gate[head] * (far - near))
            expected = linear(attention.proj, torch.cat(heads))
            torch.testing.assert_close(attention(t, pool, mask)[0, i], expected, atol=1e-9, rtol=0)


def test_feature_maps_put_majors_in_place_and_fill_minors_from_the_fusion_tokens() -> None:
    model = stirred(build((96, 128)))
    x = images(1, 96, 128).double()
    last: list[Tensor] = []
    model.norm.register_forward_hook(lambda module, args, output: last.append(output))
    with torch.no_grad():
        maps = model.forward_features(x)
        index = model.select(x)[0].tolist()
        patches = (model.patch(x) + model.pos).flatten(2)[0].t()
        contribution = model.fusion.score(model.fusion.norm(patches)).softmax(1)
        tokens = last[0][0]
        for patch in range(48):
            if patch in index:
                expected = tokens[index.index(patch)]
            else:
                expected = patches[patch] + sum(contribution[patch, f] * tokens[24 + f] for f in range(8))
            torch.testing.assert_close(maps[2][0, :, patch // 8, patch % 8], expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(model.head(tokens.mean(0)), model(x)[0])
        torch.testing.assert_close(maps[0], model.guide.trunk[:2](x))
        torch.testing.assert_close(maps[1], model.guide.trunk[:4](x))


def test_both_losses_together_reach_every_parameter() -> None:
    model = build((64, 64)).train()
    x = images(4, 64, 64)
    logits, guide_logits = model(x), model.guide(x).logits
    target = torch.tensor([1, 2, 3, 4])
    (nn.functional.cross_entropy(logits, target) + 0.4 * nn.functional.cross_entropy(guide_logits, target)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# Checkpoints


def test_the_position_embedding_is_resized_to_the_grid() -> None:
    source, target = build((160, 96)), build((224, 256))
    state = target.adapt_state_dict(source.state_dict())
    target.load_state_dict(state, strict=True)
    with torch.no_grad():
        # A bicubic kernel reproduces a plane away from the border.
        plane = torch.arange(10.0)[:, None] + 3 * torch.arange(6.0)
        state = source.state_dict() | {"pos": plane.expand(1, 128, 10, 6).clone()}
        resized = target.adapt_state_dict(state)["pos"][0, 0]
    row, column = (torch.arange(14) + 0.5) * 10 / 14 - 0.5, (torch.arange(16) + 0.5) * 6 / 16 - 0.5
    expected = row[:, None] + 3 * column
    torch.testing.assert_close(resized[3:-3, 4:-4], expected[3:-3, 4:-4], atol=1e-4, rtol=0)
    assert source.adapt_state_dict(source.state_dict())["pos"] is not state["pos"]
    assert torch.equal(source.adapt_state_dict(source.state_dict())["pos"], source.pos)


def test_constants_are_no_part_of_the_state_dict() -> None:
    state = build().state_dict()
    assert not {"membership", "places", "selection.earlier"} & state.keys()


# Export


def test_export_keeps_the_batch_dynamic_and_the_selection_constant() -> None:
    model = build((96, 160), depth=2)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2, 96, 160),), dynamic_shapes=({0: batch},))
    for count in (1, 3):
        torch.testing.assert_close(program.module()(images(count, 96, 160)), model(images(count, 96, 160)))
    topk = [node for node in program.graph.nodes if node.target is torch.ops.aten.topk.default]
    assert [node.args[1] for node in topk] == [30]
    scopes = {path for node in topk for path, _ in node.meta["nn_module_stack"].values()}
    assert "selection" in {path.split(".")[-1] for path in scopes}


def test_the_card_says_what_is_the_papers_and_what_is_not() -> None:
    for card in CARDS:
        assert "No official code and no weights exist" in card.reconstruction
        assert card.macs is None
    assert [card.top1 for card in CARDS] == [None, None, 83.4]

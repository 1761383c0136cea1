"""What an export asks PyTorch: on copies, twice, and with the cause named where the answers differ."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdeploy import export, verify
from vitdeploy.errors import ExportError
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.exporter.torch_reference import reference_outputs
from vitdeploy.models.outputs import choose_outputs

SIZE = 16
IMAGES = np.random.default_rng(0).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)

Middle = Callable[[Any, Tensor], Tensor]


class Network(nn.Module):
    """Tokens, `middle` of them, and a head; with modules that some middles use."""

    count: Tensor

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.middle = middle
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True))
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout(0.3)
        self.plain = [nn.Dropout(0.3)]
        self.calls: list[Tensor] = []
        self.register_buffer("count", torch.zeros(1))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.mlp(self.stem(images).flatten(2).transpose(1, 2))
        out: Tensor = self.head(self.middle(self, tokens).mean(1))
        return out


def network(middle: Middle, batch: int | None = None) -> TorchNetwork:
    torch.manual_seed(0)
    module = Network(middle).eval()
    return TorchNetwork(module, "Network", choose_outputs(module, features=False), batch)


def refusal(middle: Middle, batch: int | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        reference_outputs(network(middle, batch), {"images": IMAGES})
    return str(caught.value)


def retrained(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.drop.train()(x)
    return out


def counted(net: Any, x: Tensor) -> Tensor:
    net.count += 1
    return x + net.count


def remembered(net: Any, x: Tensor) -> Tensor:
    net.calls.append(x)
    return x * len(net.calls)


def rare(net: Any, x: Tensor) -> Tensor:
    return 2 * x if torch.rand(()).item() < 0.4 else x


def seeded(net: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x + torch.randn_like(x)


def own_generator(net: Any, x: Tensor) -> Tensor:
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


# What a network does, what names it, and what is said to do about it.
UNREPEATABLE: dict[str, tuple[Middle, str, str]] = {
    "F.dropout": (lambda net, x: F.dropout(x, 0.3), "Network.forward", "training=self.training"),
    "noise": (lambda net, x: x + torch.randn_like(x), "randn_like draws", "training=self.training"),
    "attention with dropout": (
        lambda net, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
        "test_torch_reference.py:",
        "training=self.training",
    ),
    "now and then": (rare, "rand draws", "a fixed seed does not help"),
    "of numpy": (lambda net, x: x + float(np.random.rand()), "random numbers of numpy", "sampling out of forward"),
    "of random": (lambda net, x: x + random.random(), "random numbers of random", "sampling out of forward"),
    "train() in forward": (retrained, "drop (Dropout) is the first", "let model.eval() reach drop (Dropout)"),
    "a module in a list": (lambda net, x: net.plain[0](x), "no registered submodule", "nn.ModuleList"),
    "a buffer": (counted, "every call changes count", "change count in training mode only"),
    "an attribute": (remembered, "Network.forward is the first", "nothing but its input"),
}


@pytest.mark.parametrize("kind", UNREPEATABLE)
@pytest.mark.parametrize("batch", [None, 1])
def test_a_network_whose_answer_changes_is_refused_with_the_cause(kind: str, batch: int | None) -> None:
    middle, cause, fix = UNREPEATABLE[kind]
    message = refusal(middle, batch)
    assert "Network answers the same inputs differently: logits changes by" in message
    assert cause in message
    assert fix in message.partition("try:")[2]


@pytest.mark.parametrize("middle", [seeded, own_generator], ids=["global", "own"])
def test_a_fixed_seed_does_not_make_random_numbers_part_of_a_graph(middle: Middle) -> None:
    message = refusal(middle)
    assert "from random numbers with a fixed seed" in message
    assert "draws random numbers in Network.forward at " in message


@pytest.mark.parametrize("batch", [None, 1])
def test_a_batch_normalization_in_training_mode_is_named(batch: int | None) -> None:
    message = refusal(lambda net, x: net.norm.train()(x), batch)
    assert "norm (BatchNorm1d) of Network is in training mode" in message
    assert "let model.eval() reach norm" in message


# What looks alike and answers the same: a counter that no output sees, a cache of the first call, numbers drawn for
# nothing, statistics of the weights, dropout that is off.
REPEATABLE: dict[str, Middle] = {
    "nothing": lambda net, x: x,
    "a counter": lambda net, x: x + 0 * net.count.add_(1),
    "a cache": lambda net, x: x + (net.calls or [net.calls.append(torch.ones(8)) or net.calls[0]])[0],
    "numbers for nothing": lambda net, x: x + 0 * torch.rand(()),
    "statistics of weights": lambda net, x: x + F.batch_norm(net.head.weight[None], None, None, training=True).sum(),
    "dropout that is off": lambda net, x: F.dropout(x, 0.3, training=net.training),
}


@pytest.mark.parametrize("kind", REPEATABLE)
def test_a_network_that_answers_the_same_is_taken(kind: str) -> None:
    asked = network(REPEATABLE[kind])
    outputs = reference_outputs(asked, {"images": IMAGES})
    with torch.no_grad():
        expected = asked.module(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_the_images_and_the_outputs_are_copies(batch: int | None) -> None:
    class Rewriting(nn.Module):
        """Normalises its input in place and answers with a tensor that the next call overwrites."""

        def __init__(self) -> None:
            super().__init__()
            self.out = torch.zeros(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            images.sub_(0.5).mul_(2)
            return torch.mean(images, dim=(2, 3), out=self.out[: len(images)])

    module, images = Rewriting().eval(), IMAGES.copy()
    images.flags.writeable = False
    outputs = reference_outputs(
        TorchNetwork(module, "Rewriting", choose_outputs(module, features=False), batch), {"images": images}
    )
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_allclose(outputs["logits"], ((IMAGES - 0.5) * 2).mean((2, 3)), atol=1e-6)


def test_what_a_module_keeps_from_its_first_call_may_be_changed_in_place_later() -> None:
    def middle(net: Any, x: Tensor) -> Tensor:
        if not net.calls:
            net.calls.append(torch.ones(8))
        return x + net.calls[0]

    asked = network(middle)
    reference_outputs(asked, {"images": IMAGES})
    kept: Tensor = asked.module.calls[0]  # type: ignore[index, assignment]
    assert not kept.is_inference()
    kept.add_(1)


def test_a_forward_that_fails_is_the_networks_error_with_its_line() -> None:
    message = refusal(lambda net, x: x.reshape(7, -1))
    assert "Network fails in PyTorch on images [4, 3, 16, 16]" in message
    assert "RuntimeError at " in message
    assert "test_torch_reference.py:" in message
    assert "--batch 1" in message
    assert "--batch 1" not in refusal(lambda net, x: x.reshape(7, -1), 1)


def test_nan_is_counted_by_images() -> None:
    message = refusal(lambda net, x: torch.where(x.abs().sum((1, 2), keepdim=True) >= 0, x / 0, x))
    assert "PyTorch itself returns NaN or Inf in logits" in message
    assert "4 of 4 reference inputs" in message


def test_an_answer_that_depends_on_the_batch_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    reference_outputs(network(lambda net, x: x - x.mean(0, keepdim=True)), {"images": IMAGES})
    assert "depends on the others in its batch" in caplog.text
    caplog.clear()
    reference_outputs(network(lambda net, x: x - x.mean(1, keepdim=True)), {"images": IMAGES})
    assert not caplog.text


def test_an_export_refuses_before_the_capture_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.exporter import capture

    monkeypatch.setattr(capture, "capture", lambda *args, **options: pytest.fail("captured"))
    for precision in ("fp32", "fp16"):
        module = Network(lambda net, x: F.dropout(x, 0.3))
        with pytest.raises(ExportError, match="answers the same inputs differently"):
            export(module, tmp_path / "bundle", image_size=SIZE, precision=precision)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "batch"), [("fp32", "dynamic"), ("fp16", 1)])
def test_a_network_that_normalises_its_input_in_place_is_exported(
    precision: str, batch: int | str, tmp_path: Path
) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

        def forward(self, images: Tensor) -> Tensor:
            images.sub_(0.4).mul_(1.7)
            out: Tensor = self.head(F.gelu(self.stem(images)).mean((2, 3)))
            return out

    module = InPlace().eval()
    bundle = export(module, tmp_path / "bundle", image_size=SIZE, precision=precision, batch=batch)
    assert [spec.name for spec in bundle.manifest.outputs] == ["logits"]
    assert verify(bundle, runtime="onnxruntime").passed
    reference = bundle.reference()
    with torch.no_grad():
        expected = module(torch.tensor(reference.inputs["images"])).numpy()
    np.testing.assert_allclose(reference.outputs["logits"], expected, atol=1e-5)

"""Rounding explains the errors of the images on which a network is ill-conditioned, and of no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import examples
from tests.rows import TARGETS
from vitdeploy.exporter.diagnosis.conditioning import first_rounded, image_errors, in_double
from vitdeploy.exporter.diagnosis.culprit import SINGLE, Evidence, _unexplained
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.models.outputs import Outputs, choose_outputs


def network(module: nn.Module) -> TorchNetwork:
    return TorchNetwork(module.eval(), "net", choose_outputs(module, features=False))


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.floats(3e-4, 0.3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=examples(60))
def test_an_ill_conditioned_image_hides_no_fault_on_another(
    images: list[tuple[bool, bool]], size: float, seed: int
) -> None:
    """Of each image: whether rounding changes it, and whether the graph is wrong there."""
    rng = np.random.default_rng(seed)
    rounded, wrong = (np.array(flags) for flags in zip(*images, strict=True))
    exact = rng.uniform(0.5, 1.0, (len(images), 7))

    def moved(flags: np.ndarray, by: float) -> np.ndarray:
        return flags[:, None] * rng.choice([-by, by], exact.shape)

    expected = (exact + moved(rounded, size)).astype(np.float32)
    found = {"y": (expected + moved(rounded, size) + moved(wrong & ~rounded, size)).astype(np.float32)}
    evidence = Evidence(
        TorchNetwork(nn.Identity(), "net", Outputs(lambda model, inputs: dict(inputs))),
        ir.Model(ir.Graph([], [], nodes=[]), ir_version=10),
        ir.Model(ir.Graph([], [], nodes=[]), ir_version=10),
        TARGETS["portable"],
        {"images": np.zeros((len(images), 3, 1, 1), np.float32)},
        {"y": expected},
        "fp32",
    )
    report = evidence.compare(evidence.expected, found, SINGLE)
    np.testing.assert_array_equal(_unexplained(evidence, found, report, {"y": exact}), wrong & ~rounded)
    # Without a form in FP64 nothing excuses the graph.
    np.testing.assert_array_equal(_unexplained(evidence, found, report, None), wrong | rounded)
    right = replace(evidence, expected=found)
    assert not _unexplained(right, found, right.compare(found, found, SINGLE), None).any()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("old", "new", "errors"),
    [
        ([[1.0, 2.0], [4.0, 0.0]], [[1.0, 2.0], [4.0, 1.0]], [0.0, 0.25]),
        ([[0.0], [0.0]], [[0.0], [1e-9]], [0.0, INF]),
        ([[1.0], [2.0]], [[1.0], [NAN]], [0.0, INF]),
        ([[1.0], [2.0]], [[INF], [2.0]], [INF, 0.0]),
        ([[1.0, 2.0]], [[1.0]], [INF]),
        ([[1, 2, 3], [4, 5, 6]], [[3, 1, 2], [4, 5, 9]], [0.0, 1 / 3]),
        ([[[True], [False]]], [[[True], [True]]], [0.5]),
    ],
)
def test_errors_of_images(old: list[object], new: list[object], errors: list[float]) -> None:
    chosen = ("y",) if np.array(old).dtype.kind == "i" else ()
    found = image_errors({"y": np.array(old)}, {"y": np.array(new)}, len(errors), chosen)
    np.testing.assert_allclose(found, errors)
    other = {"y": np.array(old), "same": np.ones(len(errors))}
    np.testing.assert_allclose(image_errors(other, {**other, "y": np.array(new)}, len(errors), chosen), errors)


def test_an_output_that_does_not_count_the_images_stands_for_all() -> None:
    assert image_errors({"y": np.array([2.0])}, {"y": np.array([3.0])}, 3).tolist() == [0.5, 0.5, 0.5]


class Difference(nn.Module):
    """Loses all but a few bits, in its second step."""

    def __init__(self, kind: torch.dtype | None = None) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Flatten(), nn.ReLU(), kind

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.to(self.kind) if self.kind else images)
        return self.second(x + 1e6) - 1e6


INPUTS = {"images": np.random.default_rng(0).uniform(0.1, 1, (2, 3, 4, 4)).astype(np.float32)}


def test_the_module_where_rounding_shows_is_named() -> None:
    asked = network(Difference())
    double = in_double(asked, INPUTS)
    assert double is not None
    assert (image_errors(double, asked.run(INPUTS), 2) > 1e-3).all()
    assert first_rounded(asked, INPUTS, 1e-3) == "Difference.forward"
    assert first_rounded(asked, INPUTS, 1.0) is None


def test_attention_with_a_mask_of_fp32_has_the_right_form_in_double() -> None:
    class Masked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(2).transpose(1, 2)[:, None].contiguous()  # as the fused kernel wants it
            mask = torch.linspace(-3, 3, tokens.shape[2])[None, None, None]
            return F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)

    asked = network(Masked())
    double = in_double(asked, INPUTS)
    assert double is not None
    assert image_errors(double, asked.run(INPUTS), 2).max() < 1e-5


def test_a_network_that_hard_codes_fp32_has_no_form_in_double() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.head(images.float().mean((2, 3)))
            return out

    class Locked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2

        def __deepcopy__(self, memo: object) -> object:
            raise RuntimeError("not to be copied")

    assert in_double(network(Difference(torch.float32)), INPUTS) is None
    assert in_double(network(Mixed()), INPUTS) is None
    assert in_double(network(Locked()), INPUTS) is None

"""Lowering and optimization together, on a module with everything in it."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph_cases import ops, run
from tests.rows import TARGETS
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.optimize import lower, node_count, optimize
from vitdeploy.targets import Target


class Everything(nn.Module):
    """Attention by the timm idiom, residual convolution, BatchNorm, learned tokens, deconvolution, both GELUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.BatchNorm2d(16), nn.GELU(approximate="tanh"))
        self.position = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.tokens = nn.Parameter(torch.randn(1, 4, 16))
        self.embed = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.last = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, 16))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.position(x)
        height, width = x.shape[2:]
        tokens = self.embed(self.tokens).expand(x.shape[0], -1, -1)
        t, c = self.attend(x.flatten(2).transpose(1, 2)), self.attend(tokens)
        t = t + c.mean(1, keepdim=True)
        x = F.gelu(self.up(t.transpose(1, 2).reshape(-1, 16, height, width)))
        out: Tensor = self.head(self.last(x).mean((2, 3)))
        return out


@cache
def everything() -> nn.Module:
    """The module with seeded weights."""
    torch.manual_seed(0)
    module = Everything()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)  # no zero bias, no unit variance: nothing may get lost unseen
    return module.eval()


@cache
def captured_everything(dynamic: bool) -> ir.Model:
    """Captured once a session: rewrite a clone."""
    torch.manual_seed(0)
    return capture(everything(), torch.randn(2, 3, 16, 24), dynamic_batch=dynamic, output_names=["logits"])


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_the_optimized_graph_computes_what_pytorch_computes(target: Target, dynamic: bool) -> None:
    model = captured_everything(dynamic).clone()
    captured = node_count(model)
    lower(model, target)
    records = optimize(model, target)
    for batch in (1, 2, 5) if dynamic else (2,):
        images = torch.randn(batch, 3, 16, 24)
        expected = everything()(images).detach().numpy()
        actual = run(model, {"images": images.numpy()})[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found = ops(model)
    assert model.graph.opset_imports == {"": target.opset}
    assert node_count(model) < captured
    gone = {"Gather", "Shape", "Expand", "BatchNormalization", "ConvTranspose", "Constant", "Identity"}
    assert not gone & set(found)
    assert found["Conv"] == 3  # stem with its BatchNorm, position with its residual, up as a 1x1 convolution
    # The learned tokens' own attention does not depend on the image: it is a constant.
    assert found["Softmax"] == 1
    assert (found["LayerNormalization"] > 0) == (target.layer_norm == "operator")
    assert (found["Gelu"] > 0) == (target.gelu == "gelu")
    fired = {record["pass"] for record in records if record["changes"]}
    assert {"static_shapes", "split_qkv", "fold_batch_norm", "fold_residual_conv"} <= fired


def test_optimization_is_deterministic() -> None:
    def build() -> bytes:
        model = capture(everything(), torch.randn(2, 3, 16, 24), dynamic_batch=True, output_names=["logits"])
        lower(model, TARGETS["portable"])
        optimize(model, TARGETS["portable"])
        data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
        return data

    assert build() == build()

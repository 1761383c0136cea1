"""A small model of the user's own, and one export of it that every test may read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitdeploy.cli import main

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.qkv = nn.Linear(16, 48)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2, groups=16)
        self.head = nn.Linear(16, 7)

    def forward(self, images):
        x = self.stem(images)
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (t.reshape(t.shape[0], -1, 2, 8).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        tokens = tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape)
        x = self.up(tokens.transpose(1, 2).reshape(-1, 16, height, width))
        return self.head(F.gelu(x).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Tiny()
"""


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python file whose `build` makes a small network with attention and a transposed convolution."""
    path = tmp_path_factory.mktemp("source") / "tiny.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP16 bundle of that network at 16x24 pixels; not to be changed."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    assert main(["export", f"{model_file}:build", "--image-size", "16x24", "--fp16", "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def captures() -> dict[Any, Any]:
    """What `one_capture` keeps: the weights and the captured graph, by size, batch and outputs."""
    return {}


@pytest.fixture
def one_capture(captures: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the small network that differ in target or precision alone begin with one captured graph."""
    import torch

    from vitdeploy.exporter import capture as module

    capture = module.capture

    def once(model: torch.nn.Module, example: dict[str, torch.Tensor], **options: Any) -> Any:
        key = (*(tuple(one.shape) for one in example.values()), options["dynamic_batch"], *options["output_names"])
        if key not in captures:
            captures[key] = model.state_dict(), capture(model, example, **options)
        weights, graph = captures[key]
        torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
        return graph.clone()

    monkeypatch.setattr(module, "capture", once)

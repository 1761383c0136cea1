"""Small networks as `.onnx` files of several exporters."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE, WIDTH, HEADS = 32, 24, 3
TF2ONNX = Path(__file__).parent / "onnx_files"


class Attention(nn.Module):
    """Self-attention: `plain` products, `scaled` by PyTorch's operator, or the module `multihead`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.multihead = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) if how == "multihead" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.multihead is not None:
            return self.multihead(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "scaled":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, how: str, approximate: str) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(how), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(approximate=approximate), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Two blocks on 16 tokens of an image [B, 3, 32, 32]: scores of classes, or with `maps` a map of them."""

    def __init__(self, how: str = "plain", approximate: str = "none", *, maps: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTH // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(WIDTH // 2),
            nn.Hardswish(),
            nn.Conv2d(WIDTH // 2, WIDTH, 4, 4),
        )
        self.blocks, self.norm = nn.ModuleList(Block(how, approximate) for _ in range(2)), nn.LayerNorm(WIDTH)
        self.up = nn.Sequential(nn.ConvTranspose2d(WIDTH, 8, 4, 4), nn.GELU(), nn.ConvTranspose2d(8, 5, 4, 2, 1))
        self.head, self.maps = nn.Linear(WIDTH, 5), maps

    def forward(self, images: Tensor) -> Tensor:
        grid = self.stem(images)
        x = grid.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.up(x.transpose(1, 2).reshape(grid.shape)) if self.maps else self.head(x.mean(1))


def transformer(how: str = "plain", approximate: str = "none", *, maps: bool = False) -> nn.Module:
    """The network in eval mode, with the same weights every time; none of its affine parts is the identity."""
    torch.manual_seed(0)
    module = Transformer(how, approximate, maps=maps).eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return module


def write(module: nn.Module, path: Path, exporter: str, opset: int, *, batch: int | None = None) -> Path:
    """Export by `torchscript` or `dynamo`, for a batch, or with a free one."""
    images, free = torch.randn(batch or 2, 3, SIZE, SIZE), batch is None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            axes = {"input": {0: "batch_size"}, "output": {0: "batch_size"}} if free else None
            names = {"input_names": ["input"], "output_names": ["output"]}
            torch.onnx.export(module, (images,), path, dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
        else:
            shapes = ({0: torch.export.Dim("samples")},) if free else None
            torch.onnx.export(
                module, (images,), path, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
            )
    return path

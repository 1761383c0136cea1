"""Parts that two or more families share."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    """Map [B, C, H, W] -> tokens [B, H*W, C], row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, H*W, C] -> map [B, C, H, W]; the inverse of `to_tokens`."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Multi-head attention: q [B, n, C], k [B, m, C], v [B, m, D] -> [B, n, D].

    Head j owns the j-th block of C / heads (of v: D / heads) channels. softmax(scale * q k^T + bias) v with `scale`
    (C / heads)^-1/2 unless given; `bias` broadcasts to [B, heads, n, m].
    """
    q, k, v = (split_heads(t, heads) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2).flatten(2)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Tokens [B, n, C] -> [B, heads, n, C / heads]."""
    batch, n, width = tokens.shape
    return tokens.reshape(batch, n, heads, width // heads).transpose(1, 2)


def init_weights(network: nn.Module) -> None:
    """Linear weights from normal(0.02), truncated; Conv2d weights from normal(sqrt(2 / fan_out)); biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resize_positions(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Learned positions [1, C, h, w] -> [1, C, *size]: bicubic (Keys, a = -0.5), antialiased where it shrinks."""
    if tuple(table.shape[2:]) == size:
        return table
    # PyTorch's bicubic kernel has a = -0.75, except in its antialiased form, which has -0.5.
    return F.interpolate(table.float(), size, mode="bicubic", antialias=True).to(table.dtype)

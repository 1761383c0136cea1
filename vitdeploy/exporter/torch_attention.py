"""aten.scaled_dot_product_attention, any ranks and any broadcasting, as vitdeploy::CrossAttention on rank 4."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.modules import transformer

from vitdeploy.exporter import composites

_FREE = 1 << 40  # elements that an axis of unknown size counts for where copies are to be small


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The operator as one composite: query [..., L, d], key [..., S, d] and value [..., S, e] give [..., L, e].

    All axes in front of the last two broadcast against each other from the right, those of the mask [..., L, S] too.
    """
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
    if is_causal:  # every query sees the first key, so that none is left without one
        visible = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        attn_mask = torch.where(visible, 0.0, composites.MASKED).to(query.dtype)
    operands = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
    rank = max(t.dim() for t in operands)
    operands = [_padded(t, max(rank, 3)) for t in operands]
    if rank <= 3:
        operands = [t.unsqueeze(1) for t in operands]
    leading = [_common(sizes) for sizes in zip(*(t.shape[:-2] for t in operands), strict=True)]
    first = _split(operands, leading)
    query, key, value, *mask = (_grouped(t, leading, first) for t in operands)
    batch, heads = (_common([t.shape[axis] for t in (query, key, value, *mask)]) for axis in (0, 1))
    if not _one(batch):
        query, key, value = (t.expand(batch, -1, -1, -1) for t in (query, key, value))
    shape = (batch, heads, query.shape[2], value.shape[3])
    out: Tensor = torch.onnx.ops.symbolic(
        "vitdeploy::CrossAttention",
        (query, key, value, *mask),
        {"scale": float(scale)},
        dtype=query.dtype,
        shape=shape,
        version=composites.VERSION,
    )
    return out if rank == 4 else out.reshape(*leading[: rank - 2], *shape[2:])


def _padded(t: Tensor, rank: int) -> Tensor:
    """`t` with axes of size 1 in front."""
    return t if t.dim() == rank else t.reshape(*[1] * (rank - t.dim()), *t.shape)


def _one(size: Any) -> bool:
    return statically_known_true(size == 1)


def _common(sizes: Sequence[Any]) -> Any:
    """What `sizes` broadcast to."""
    return next((size for size in sizes if not _one(size)), 1)


def _mixed(t: Tensor, leading: Sequence[Any], axes: range) -> bool:
    """Whether `t` has its full size along one of `axes` and broadcasts along another."""
    full = [not _one(t.shape[axis]) for axis in axes if not _one(leading[axis])]
    return any(full) and not all(full)


def _split(operands: Sequence[Tensor], leading: Sequence[Any]) -> int:
    """How many axes become the batch, the rest being heads, so that least has to be copied; the latest such place."""

    def copied(first: int) -> int:
        groups = range(first), range(first, len(leading))
        return sum(
            math.prod(size if isinstance(size, int) else _FREE for size in (*leading, *t.shape[-2:]))
            for t in operands
            if any(_mixed(t, leading, axes) for axes in groups)
        )

    return min(range(len(leading) - 1, 0, -1), key=copied)


def _grouped(t: Tensor, leading: Sequence[Any], first: int) -> Tensor:
    """`t` on rank 4: the first axes are the batch, the other leading ones the heads."""
    groups = range(first), range(first, len(leading))
    mixed = {axis for axes in groups if _mixed(t, leading, axes) for axis in axes}
    if mixed:
        t = t.expand(*(size if axis in mixed else -1 for axis, size in enumerate(leading)), -1, -1)
    sizes = [math.prod(t.shape[axis] for axis in axes) for axes in groups]
    return t if len(leading) == 2 else t.reshape(*sizes, *t.shape[-2:])


@contextlib.contextmanager
def transformers_as_in_inference() -> Iterator[None]:
    """Let nn.TransformerEncoder compute while it is captured what it computes in inference.

    Its fast path, which no capture can take, gives 0 for padded tokens where the padding is on the right of every
    sequence. And where nobody says whether a mask is causal, the mask is used rather than compared with one that is.
    """
    forward, detect = nn.TransformerEncoder.forward, transformer._detect_is_causal_mask

    def padded(
        self: nn.TransformerEncoder,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        nested = src_key_padding_mask is not None and mask is None and src.dim() == 3
        if src_key_padding_mask is None or not nested or not getattr(self, "use_nested_tensor", False):
            return forward(self, src, mask, src_key_padding_mask, is_causal)
        norm, self.norm = self.norm, None
        try:
            out = forward(self, src, mask, src_key_padding_mask, is_causal)
        finally:
            self.norm = norm
        padding = src_key_padding_mask
        padding = padding if padding.dtype == torch.bool else padding == -math.inf
        aligned = (padding[:, 1:] | ~padding[:, :-1]).all()
        out = torch.where((padding & aligned).unsqueeze(-1), 0.0, out)
        return out if norm is None else norm(out)

    def stated(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal)

    nn.TransformerEncoder.forward, transformer._detect_is_causal_mask = padded, stated  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.TransformerEncoder.forward = forward  # type: ignore[method-assign]
        transformer._detect_is_causal_mask = detect

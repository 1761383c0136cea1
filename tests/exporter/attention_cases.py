"""Networks around attention, each called in another way that PyTorch allows; batch first, [B, 3, 8, 8] pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, TOKENS, WIDTH = 4, 16, 16


class Around(nn.Module):
    """Tokens [B, 16, 16] of the image, what `inner` makes of them, and a linear layer behind it."""

    def __init__(self, inner: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, WIDTH, 2, 2), inner
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.inner(tokens))
        return out


class Heads(nn.Module):
    """q, k and v [B, h, N, d] of the tokens, and what `attend(q, k, v, tokens)` makes of them [B, h, N, d]."""

    def __init__(self, attend: Callable[..., Tensor], heads: int = HEADS, value_width: int = WIDTH) -> None:
        super().__init__()
        self.attend, self.heads = attend, heads
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, value_width), nn.Linear(value_width, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (
            layer(tokens).reshape(tokens.shape[0], TOKENS, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = self.attend(q, k, v, tokens)
        out: Tensor = self.out(
            attended.transpose(-3, -2).flatten(-2).reshape(tokens.shape[0], -1, self.out.in_features)
        )
        return out


def hidden_rows(*shape: int) -> Tensor:
    """A mask of bools in which the last three queries see no key, and no query sees the last three keys."""
    mask = torch.rand(*shape, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[..., -3:, :] = mask[..., -3:] = False
    mask[..., 0] = True
    mask[..., -3:, :] = False
    return mask


def bias(*shape: int, seed: int = 5) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def infinite(mask: Tensor, low: float = -math.inf) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, low)


def masked(mask: Tensor, **options: Any) -> Callable[[], nn.Module]:
    """Attention under one constant mask."""

    class Masked(Heads):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__(self._call)
            self.register_buffer("mask", mask)

        def _call(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **options)

    return Masked


def calls(attend: Callable[..., Tensor], **options: int) -> Callable[[], nn.Module]:
    return lambda: Heads(attend, **options)


sdpa = F.scaled_dot_product_attention
TABLE = bias(WIDTH // HEADS, TOKENS)


def seen(tokens: Tensor) -> Tensor:
    """Which tokens are to be seen, by their content [B, N]."""
    return tokens[..., 0] > tokens[..., 0].mean(1, keepdim=True) + 0.1


def windows(t: Tensor, count: int = 2) -> Tensor:
    """[B, h, N, d] as [B, windows, h, N / windows, d]."""
    b, h, n, d = t.shape
    return t.reshape(b, h, count, n // count, d).transpose(1, 2)


def of_rank_5(shape: tuple[int, ...], kind: str = "float") -> Callable[..., Tensor]:
    given = bias(*shape)

    def attend(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        mask = given.to(q) if kind == "float" else given > -1.5
        y = sdpa(*map(windows, (q, k, v)), attn_mask=mask)
        return y.transpose(1, 2).reshape(q.shape)

    return attend


def rank_3(mask: Tensor | None) -> Callable[..., Tensor]:
    """One head on [B, N, d]."""

    def attend(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        given = mask.to(q) if mask is not None and mask.dtype != torch.bool else mask
        return sdpa(*(t.transpose(1, 2).flatten(2) for t in (q, k, v)), attn_mask=given).unsqueeze(1)

    return attend


class Single(nn.Module):
    """One of q, k, v is a parameter, the same for all images."""

    def __init__(self, which: str, heads: int = HEADS, mask: Tensor | None = None) -> None:
        super().__init__()
        self.which, self.inner, self.mask = which, Heads(self._call), mask
        self.learned = nn.Parameter(torch.randn(1, heads, TOKENS, WIDTH // HEADS))

    def _call(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        given = {"q": q, "k": k, "v": v} | dict.fromkeys(self.which, self.learned)
        return sdpa(given["q"], given["k"], given["v"], attn_mask=self.mask)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.inner(tokens)
        return out


def by_image(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=seen(tokens)[:, None, None])


def by_image_rows(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    mask = seen(tokens)[:, None, :, None] & seen(tokens)[:, None, None]
    return sdpa(q, k, v, attn_mask=mask)


def by_image_infinite(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    mask = seen(tokens)[:, None, :, None] & seen(tokens)[:, None, None]
    return sdpa(q, k, v, attn_mask=torch.zeros(mask.shape).to(q).masked_fill(~mask, -math.inf))


def from_queries(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    """A bias computed from the queries (SAM, MViT)."""
    return sdpa(q, k, v, attn_mask=q @ TABLE.to(q))


def columns(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=TABLE[:1].to(q))


def rectangular(queries: int, keys: int) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        return sdpa(q[:, :, :queries], k[:, :, :keys], v[:, :, :keys], is_causal=True)

    return attend


SDPA: dict[str, Callable[[], nn.Module]] = {
    "plain": calls(sdpa_ := lambda q, k, v, t: sdpa(q, k, v)),
    "scale": calls(lambda q, k, v, t: sdpa(q, k, v, scale=0.3)),
    "causal": calls(lambda q, k, v, t: sdpa(q, k, v, is_causal=True)),
    "causal, more keys": calls(rectangular(5, 12)),
    "causal, more queries": calls(rectangular(12, 5)),
    "wide value": calls(sdpa_, value_width=32),
    "narrow value": calls(sdpa_, value_width=8),
    "grouped": calls(lambda q, k, v, t: sdpa(q, k[:, :2], v[:, :2], enable_gqa=True)),
    "grouped, of one": calls(lambda q, k, v, t: sdpa(q, k[:, :1], v[:, :1], enable_gqa=True)),
    "one head of keys": calls(lambda q, k, v, t: sdpa(q, k[:, :1], v[:, :1])),
    "one head of queries": calls(lambda q, k, v, t: sdpa(q[:, :1], k, v)),
    "one head of values": calls(lambda q, k, v, t: sdpa(q, k, v[:, :1])),
    "values alone have heads": calls(lambda q, k, v, t: sdpa(q[:, :1], k[:, :1], v)),
    "mask of bools": masked(bias(TOKENS, TOKENS) > -1),
    "mask of heads": masked(bias(HEADS, TOKENS, TOKENS) > -1),
    "hidden rows": masked(hidden_rows()),
    "hidden rows by head": masked(hidden_rows(HEADS)),
    "hidden rows by -inf": masked(infinite(hidden_rows())),
    "hidden rows by the smallest number": masked(infinite(hidden_rows(), torch.finfo(torch.float32).min)),
    "bias": masked(bias(TOKENS, TOKENS)),
    "bias of heads": masked(bias(HEADS, TOKENS, TOKENS)),
    "bias of heads, rank 4": masked(bias(1, HEADS, TOKENS, TOKENS)),
    "bias of queries": masked(bias(HEADS, TOKENS, 1)),
    "bias of keys": calls(columns),
    "bias with -inf": masked(bias(TOKENS, TOKENS).masked_fill(~(hidden_rows()), -math.inf)),
    "computed mask": calls(by_image),
    "computed mask, hidden rows": calls(by_image_rows),
    "computed mask of -inf": calls(by_image_infinite),
    "bias from queries": calls(from_queries),
    "rank 3": calls(rank_3(None)),
    "rank 3, bias": calls(rank_3(bias(TOKENS, TOKENS))),
    "rank 3, bias of rank 3": calls(rank_3(bias(1, TOKENS, TOKENS))),
    "rank 3, mask": calls(rank_3(hidden_rows())),
    "rank 5": calls(of_rank_5((8, 8))),
    "rank 5, bias of heads": calls(of_rank_5((HEADS, 8, 8))),
    "rank 5, bias of windows": calls(of_rank_5((2, 1, 8, 8))),
    "rank 5, bias of both": calls(of_rank_5((2, HEADS, 8, 8))),
    "rank 5, bias of windows on rank 5": calls(of_rank_5((1, 2, 1, 8, 8))),
    "rank 5, mask of windows": calls(of_rank_5((2, 1, 8, 8), "bool")),
    **{f"learned {which}": lambda which=which: Single(which) for which in ("q", "k", "v", "qk", "kv")},
    "learned q of one head": lambda: Single("q", heads=1),
    "learned q, mask": lambda: Single("q", mask=hidden_rows()),
}


class Multihead(nn.Module):
    """nn.MultiheadAttention in one of its modes."""

    def __init__(
        self,
        *,
        cross: str = "",
        attn: Tensor | None = None,
        padding: str = "",
        weights: bool = False,
        average: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        options = {"batch_first": True, **options}
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, **options)
        self.batch_first = options["batch_first"]
        self.cross, self.padding, self.need, self.average = cross, padding, weights, average
        self.register_buffer("attn", attn)
        self.learned = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        for parameter in self.inner.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.kdim, self.vdim = self.inner.kdim, self.inner.vdim

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = tokens, tokens, tokens
        if self.cross == "queries":
            query = self.learned.expand(tokens.shape[0], -1, -1)
        elif self.cross == "keys":
            key = value = self.learned.expand(tokens.shape[0], -1, -1)
        if self.kdim != WIDTH or self.vdim != WIDTH:
            key, value = tokens[..., : self.kdim], tokens[..., : self.vdim]
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        padding = None
        if self.padding == "constant":
            padding = torch.arange(TOKENS, device=tokens.device).expand(tokens.shape[0], -1) > 11
        elif self.padding == "computed":
            padding = ~seen(tokens)
            padding[:, 0] = False
        elif self.padding == "float":
            padding = tokens[..., 1] * 3
        out, weights = self.inner(
            query,
            key,
            value,
            key_padding_mask=padding,
            attn_mask=self.attn if self.attn is None or self.attn.dtype == torch.bool else self.attn.to(tokens),
            need_weights=self.need,
            average_attn_weights=self.average,
        )
        out = out if self.batch_first else out.transpose(0, 1)
        if weights is not None:
            weights = weights if weights.dim() == 3 else weights.amax(1)
            out = out + weights[..., :TOKENS]
        return out


CAUSAL = torch.ones(TOKENS, TOKENS).triu(1).bool()
MULTIHEAD: dict[str, Callable[[], nn.Module]] = {
    "multihead": lambda: Multihead(),
    "multihead, weights": lambda: Multihead(weights=True),
    "multihead, weights of heads": lambda: Multihead(weights=True, average=False),
    "multihead, batch second": lambda: Multihead(batch_first=False),
    "multihead, batch second, weights": lambda: Multihead(batch_first=False, weights=True),
    "multihead, queries learned": lambda: Multihead(cross="queries"),
    "multihead, queries learned, weights": lambda: Multihead(cross="queries", weights=True),
    "multihead, keys learned": lambda: Multihead(cross="keys"),
    "multihead, batch second, queries learned": lambda: Multihead(cross="queries", batch_first=False),
    "multihead, no bias": lambda: Multihead(bias=False),
    "multihead, bias of keys": lambda: Multihead(add_bias_kv=True),
    "multihead, bias of keys, weights": lambda: Multihead(add_bias_kv=True, weights=True),
    "multihead, zero": lambda: Multihead(add_zero_attn=True),
    "multihead, zero, bias of keys, padding": lambda: Multihead(
        add_zero_attn=True, add_bias_kv=True, padding="constant", attn=CAUSAL
    ),
    "multihead, other widths": lambda: Multihead(kdim=8, vdim=12),
    "multihead, padding": lambda: Multihead(padding="constant"),
    "multihead, padding, weights": lambda: Multihead(padding="constant", weights=True),
    "multihead, padding computed": lambda: Multihead(padding="computed"),
    "multihead, padding of floats": lambda: Multihead(padding="float"),
    "multihead, padding computed, mask": lambda: Multihead(padding="computed", attn=CAUSAL, cross="queries"),
    "multihead, mask": lambda: Multihead(attn=CAUSAL),
    "multihead, mask, weights": lambda: Multihead(attn=CAUSAL, weights=True),
    "multihead, hidden rows": lambda: Multihead(attn=~hidden_rows(), cross="keys"),
    "multihead, bias given": lambda: Multihead(attn=bias(TOKENS, TOKENS)),
}


class Encoder(nn.Module):
    """nn.TransformerEncoder, whose eval mode has a path of its own."""

    def __init__(self, *, padding: str = "", mask: Tensor | None = None, layers: int = 2, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, **{"batch_first": True, **options})
        self.inner = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(WIDTH)) if layers else layer
        self.batch_first, self.padding, self.mask = options.get("batch_first", True), padding, mask

    def forward(self, tokens: Tensor) -> Tensor:
        padding = None
        if self.padding == "left":
            padding = torch.arange(TOKENS, device=tokens.device).expand(tokens.shape[0], -1) > 11
        elif self.padding == "scattered":
            padding = torch.arange(TOKENS, device=tokens.device).expand(tokens.shape[0], -1) % 3 == 1
        elif self.padding == "computed":
            padding = ~seen(tokens)
            padding[:, 0] = False
        mask = self.mask if self.mask is None or self.mask.dtype == torch.bool else self.mask.to(tokens)
        x = tokens if self.batch_first else tokens.transpose(0, 1)
        name = "src_mask" if isinstance(self.inner, nn.TransformerEncoderLayer) else "mask"
        x = self.inner(x, src_key_padding_mask=padding, **{name: mask})
        return x if self.batch_first else x.transpose(0, 1)


class Decoder(nn.Module):
    """nn.TransformerDecoder with learned queries, as in DETR."""

    def __init__(self, *, padding: bool = False, causal: bool = False, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, **{"batch_first": True, **options})
        self.inner = nn.TransformerDecoder(layer, 2)
        self.query = nn.Parameter(torch.randn(1, 9, WIDTH))
        self.batch_first, self.padding, self.causal = options.get("batch_first", True), padding, causal

    def forward(self, tokens: Tensor) -> Tensor:
        query, memory = self.query.expand(tokens.shape[0], -1, -1), tokens
        if not self.batch_first:
            query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        padding = ~seen(tokens) if self.padding else None
        if padding is not None:
            padding[:, 0] = False
        mask = torch.ones(9, 9, device=tokens.device).triu(1).bool() if self.causal else None
        x = self.inner(query, memory, tgt_mask=mask, memory_key_padding_mask=padding)
        return x if self.batch_first else x.transpose(0, 1)


STACKS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: Encoder(),
    "encoder layer": lambda: Encoder(layers=0),
    "encoder, norm first": lambda: Encoder(norm_first=True),
    "encoder, gelu": lambda: Encoder(activation="gelu"),
    "encoder, batch second": lambda: Encoder(batch_first=False),
    "encoder, mask": lambda: Encoder(mask=CAUSAL),
    "encoder, mask of floats": lambda: Encoder(mask=infinite(~CAUSAL)),
    "encoder, padding": lambda: Encoder(padding="left"),
    "encoder, padding scattered": lambda: Encoder(padding="scattered"),
    "encoder, padding computed": lambda: Encoder(padding="computed"),
    "encoder layer, padding": lambda: Encoder(layers=0, padding="left"),
    "encoder, padding and mask": lambda: Encoder(padding="left", mask=CAUSAL),
    "encoder, padding, norm first": lambda: Encoder(padding="left", norm_first=True),
    "decoder": lambda: Decoder(),
    "decoder, batch second": lambda: Decoder(batch_first=False),
    "decoder, norm first": lambda: Decoder(norm_first=True),
    "decoder, causal": lambda: Decoder(causal=True),
    "decoder, padding": lambda: Decoder(padding=True),
}
CASES = SDPA | MULTIHEAD | STACKS


def network(name: str) -> nn.Module:
    """The network of a case, seeded and in eval mode."""
    torch.manual_seed(0)
    return Around(CASES[name]()).eval()


def pictures(count: int) -> Tensor:
    """Natural-like, noise, all zero and of one colour, in turn [count, 3, 8, 8]."""
    made = torch.Generator().manual_seed(1)
    smooth = F.interpolate(torch.randn(count, 3, 3, 3, generator=made), (8, 8), mode="bilinear")
    noise = torch.randn(count, 3, 8, 8, generator=made)
    flat = torch.randn(count, 3, 1, 1, generator=made).expand(-1, -1, 8, 8)
    kinds = (smooth, noise, torch.zeros_like(noise), flat)
    return torch.stack([kinds[index % 4][index] for index in range(count)])

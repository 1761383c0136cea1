"""LeMeViT: a pyramid in which 16 learned meta tokens stand in for the image in its high-resolution stages.

Jiang et al., "LeMeViT: Efficient Vision Transformer with Learnable Meta Tokens for Remote Sensing Image
Interpretation", IJCAI 2024, arXiv 2405.09789. State-dict keys are those of ViTAE-Transformer/LeMeViT.

Every block takes and returns two streams: the image x [B, C, H, W] and the meta tokens c [B, M, C], where c has
batch 1 as long as it is the same for every image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.layers import attend, to_map, to_tokens

HEAD_WIDTH = 32
META_TOKENS = 16
BLOCK_EPS = 1e-6


class CrossAttention(nn.Module):
    """Meta tokens gather from image tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.heads = width // HEAD_WIDTH

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        """Image [B, N, C], meta [1 or B, M, C] -> update of meta [B, M, C]."""
        k, v = self.kv(image).chunk(2, dim=2)
        q = self.q(meta).expand(image.shape[0], -1, -1)
        update: Tensor = self.proj(attend(q, k, v, heads=self.heads))
        return update


class SelfAttention(nn.Module):
    """Tokens attend to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = width // HEAD_WIDTH

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, n, C] -> their update [B, n, C]."""
        update: Tensor = self.proj(attend(*self.qkv(tokens).chunk(3, dim=2), heads=self.heads))
        return update


class DualCrossAttention(nn.Module):
    """Image and meta tokens attend to each other.

    The scales hold the full width C, not the head width. The image's also holds log_N(M), so that the entropy of its
    attention over M keys does not depend on the resolution: a network at another size is another function.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._make_projections(width)
        self.proj_x = nn.Linear(width, width)
        self.proj_c = nn.Linear(width, width)
        self.heads = width // HEAD_WIDTH
        self.scale = width**-0.5

    def _make_projections(self, width: int) -> None:
        self.qkv1 = nn.Linear(width, 3 * width)
        self.qkv2 = nn.Linear(width, 3 * width)

    def _project(self, image: Tensor, meta: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """q, k, v of the image's attention and of the meta tokens'."""
        q1, k1, v1 = self.qkv1(image).chunk(3, dim=2)
        q2, k2, v2 = self.qkv2(meta).chunk(3, dim=2)
        return (q1, k2, v2), (q2, k1, v1)

    def forward(self, image: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
        """Image [B, N, C], meta [B, M, C] -> updates of both."""
        for_image, for_meta = self._project(image, meta)
        log_factor = math.log(meta.shape[1]) / math.log(image.shape[1])
        dx = attend(*for_image, heads=self.heads, scale=log_factor * self.scale)
        dc = attend(*for_meta, heads=self.heads, scale=self.scale)
        return self.proj_x(dx), self.proj_c(dc)


class TiedDualCrossAttention(DualCrossAttention):
    """Dual cross attention in which the queries of one stream are the keys of the other."""

    def _make_projections(self, width: int) -> None:
        self.qv1 = nn.Linear(width, 2 * width)
        self.kv2 = nn.Linear(width, 2 * width)

    def _project(self, image: Tensor, meta: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        q, v1 = self.qv1(image).chunk(2, dim=2)
        k, v2 = self.kv2(meta).chunk(2, dim=2)
        return (q, k, v2), (k, q, v1)


class Block(nn.Module):
    """What the three kinds of block own; both streams share every part but the position encoding."""

    attention: type[nn.Module]

    def __init__(self, width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.attn = self.attention(width)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_EPS)
        # The identity keeps the official indices 0 and 3.
        hidden = mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Identity(), nn.GELU(), nn.Linear(hidden, width))

    def image_tokens(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> tokens [B, H*W, C] with their positions encoded."""
        return to_tokens(x + self.pos_embed(x))

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """The residual MLP, [B, n, C] -> [B, n, C]."""
        update: Tensor = self.mlp(self.norm2(tokens))
        return tokens + update


class CrossBlock(Block):
    """Updates the meta tokens and leaves the image as it came, without the position encoding."""

    attention = CrossAttention

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams in, both streams out."""
        c = c + self.attn(self.norm1(self.image_tokens(x)), self.norm1(c))
        return x, self.feed_forward(c)


class DualCrossBlock(Block):
    """Updates both streams, each from the other."""

    attention = DualCrossAttention

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams in, both streams out."""
        t = self.image_tokens(x)
        dx, dc = self.attn(self.norm1(t), self.norm1(c))
        return to_map(self.feed_forward(t + dx), x.shape[2], x.shape[3]), self.feed_forward(c + dc)


class TiedDualCrossBlock(DualCrossBlock):
    """The dual cross block with tied queries and keys."""

    attention = TiedDualCrossAttention


class StandardBlock(Block):
    """Updates both streams with the same weights; neither sees the other."""

    attention = SelfAttention

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams in, both streams out."""
        t = self._update(self.image_tokens(x))
        return to_map(t, x.shape[2], x.shape[3]), self._update(c)

    def _update(self, tokens: Tensor) -> Tensor:
        return self.feed_forward(tokens + self.attn(self.norm1(tokens)))


BLOCKS = {"C": CrossBlock, "D": DualCrossBlock, "D2": TiedDualCrossBlock, "S": StandardBlock}


class LeMeViT(nn.Module):
    """The classifier, and the pyramid inside it.

    depth, widths, kinds: blocks, channels and kind of block (a key of BLOCKS) of each stage; a stage after one of
    kind C keeps its resolution, every other halves it (rounding up), the first one twice.
    Any height and width work, square or not, as long as every dual cross stage has more than one image token.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        depth: Sequence[int],
        widths: Sequence[int],
        kinds: Sequence[str],
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        previous = (widths[0], *widths[:-1])
        keeps_size = [False] + [kind == "C" for kind in kinds[:-1]]
        self.strides = [4 * 2 ** (i - sum(keeps_size[: i + 1])) for i in range(len(widths))]
        self.feature_strides = tuple(stride for stride, kind in zip(self.strides, kinds, strict=True) if kind != "C")
        self._check_size(*image_size)

        self.meta_tokens = nn.Parameter(torch.randn(META_TOKENS, widths[0]))
        self.downsample_layers = nn.ModuleList([_stem(widths[0])])
        for before, after, keep in list(zip(previous, widths, keeps_size, strict=True))[1:]:
            self.downsample_layers.append(nn.Identity() if keep else _halve(before, after))
        self.meta_token_downsample = nn.ModuleList(map(_meta_projection, previous, widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(BLOCKS[kind](width, mlp_ratio) for _ in range(blocks))
            for blocks, width, kind in zip(depth, widths, kinds, strict=True)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.norm_c = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, num_classes]."""
        *_, (x, c) = self._run_stages(images)
        logits: Tensor = self.head(self.norm(x).mean(dim=(2, 3)) + self.norm_c(c).mean(dim=1))
        return logits

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """The image after each stage but those of kind C, [N, C_i, H / stride, W / stride], without a norm."""
        maps = [x for x, _ in self._run_stages(images)]
        return [x for x, kind in zip(maps, self.kinds, strict=True) if kind != "C"]

    def _run_stages(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        self._check_size(images.shape[2], images.shape[3])
        x, c = images, self.meta_tokens.unsqueeze(0)
        for downsample, project, blocks in zip(
            self.downsample_layers, self.meta_token_downsample, self.stages, strict=True
        ):
            x, c = downsample(x), project(c)
            for block in blocks:  # type: ignore[attr-defined]
                x, c = block(x, c)
            yield x, c

    def _check_size(self, height: int, width: int) -> None:
        """Refuse a size at which log_N(M) has no value."""
        coarsest = max((s for s, kind in zip(self.strides, self.kinds, strict=True) if kind.startswith("D")), default=0)
        if max(height, width) <= coarsest:
            raise ModelError(
                f"LeMeViT cannot take images of {height}x{width} pixels",
                why=f"a single token remains at stride {coarsest}, and the attention scale divides by log(1)",
                fix=f"an image with a side of {coarsest + 1} pixels or more, such as {2 * coarsest}x{2 * coarsest}",
            )


def _stem(width: int) -> nn.Sequential:
    return nn.Sequential(*_halve(3, width // 2), nn.GELU(), *_halve(width // 2, width))


def _halve(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after))


def _meta_projection(before: int, after: int) -> nn.Sequential:
    hidden = 4 * before
    return nn.Sequential(
        nn.Linear(before, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, after), nn.LayerNorm(after)
    )

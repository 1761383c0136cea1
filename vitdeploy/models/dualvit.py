"""Dual-ViT: full-resolution pixel tokens exchange information through a few semantic tokens.

T. Yao, Y. Li, Y. Pan, Y. Wang, X.-P. Zhang, T. Mei, "Dual Vision Transformer", arXiv 2207.04976 (IEEE TPAMI 2023).
Tensor names are those of the official code (YehLi/ImageNetModel, classification/dualvit.py), where "proxy" stands for
"semantic". Inference only: the official training extras (MixToken, drop path) are not part of the network here.

Notation: pixel tokens x [B, N, C], row by row over the stage's grid; semantic tokens s [B, M, C]. M is the same in all
stages, one token for each 7x7 window of the stride-4 map.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from itertools import pairwise
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.layers import attend, init_weights, to_map, to_tokens

HEAD_WIDTH = 32
SEMANTIC_WINDOW = 7
QUERY_GRID = (8, 8)
MINIMUM_SIDE = 25
PIXEL_RATIOS = ((8,), (8,), (4, 3), (3,))  # FFN expansion of each stage, alternating over its blocks
DUAL_SEMANTIC_RATIO, MERGE_SEMANTIC_RATIO, CLASS_RATIO = 4, 2, 2
LAYER_SCALE = 1e-6

# The official network mixes two epsilons: norms of the streams use 1e-6, norms inside attentions and embeddings 1e-5.
StreamNorm = partial(nn.LayerNorm, eps=1e-6)
InnerNorm = partial(nn.LayerNorm, eps=1e-5)


def layer_scale(width: int) -> nn.Parameter:
    """A learned factor for each channel of a residual branch, [C]."""
    return nn.Parameter(torch.full((width,), LAYER_SCALE))


class PatchEmbed(nn.Module):
    """Halves the resolution: map [B, C_in, H, W] -> tokens [B, ceil(H/2) * ceil(W/2), C]."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.norm = InnerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map in, tokens out."""
        tokens: Tensor = self.norm(to_tokens(self.proj(x)))
        return tokens


class Stem(PatchEmbed):
    """Image [B, 3, H, W] -> tokens at stride 4."""

    def __init__(self, stem_width: int, width: int) -> None:
        super().__init__(stem_width, width)
        layers: list[nn.Module] = []
        for width_in, kernel, stride in ((3, 7, 2), (stem_width, 3, 1), (stem_width, 3, 1)):
            layers.append(nn.Conv2d(width_in, stem_width, kernel, stride, padding=kernel // 2, bias=False))
            layers.extend((nn.BatchNorm2d(stem_width), nn.ReLU()))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Image in, tokens out."""
        return super().forward(self.conv(x))


class ProxyEmbed(nn.Module):
    """Semantic tokens of one stage to the width of the next."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.proj_proxy = nn.Sequential(nn.Linear(width_in, width), InnerNorm(width))

    def forward(self, s: Tensor) -> Tensor:
        """[B, M, C_in] -> [B, M, C]."""
        tokens: Tensor = self.proj_proxy(s)
        return tokens


class PixelFFN(nn.Module):
    """Linear, 3x3 depthwise convolution, GELU, Linear on pixel tokens.

    The Linears are 1x1 convolutions, so that only the narrow ends are transposed and never the wide hidden map.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)))
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return to_tokens(self.fc2(self.act(self.dwconv(self.fc1(to_map(x, *self.grid))))))


class DualAttention(nn.Module):
    """The semantic pathway of a dual block, and the pixels' attention to its result."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv_proxy = nn.Sequential(InnerNorm(width), nn.Linear(width, 3 * width))
        self.gamma1 = layer_scale(width)
        self.q_proxy_ln = InnerNorm(width)
        self.q_proxy = nn.Linear(width, width)
        self.kv_proxy = nn.Linear(width, 2 * width)
        self.gamma2 = layer_scale(width)
        self.p_ln = InnerNorm(width)
        hidden = DUAL_SEMANTIC_RATIO * width
        self.mlp_proxy = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.gamma3 = layer_scale(width)
        self.q = nn.Linear(width, width)
        self.proxy_ln = InnerNorm(width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Normed pixel tokens and semantic tokens -> (update of the pixel tokens, new semantic tokens)."""
        q, k, v = self.qkv_proxy(s).chunk(3, dim=2)
        s = s + self.gamma1 * attend(q, k, v, heads=self.heads)
        k, v = self.kv_proxy(y).chunk(2, dim=2)
        s = s + self.gamma2 * attend(self.q_proxy(self.q_proxy_ln(s)), k, v, heads=self.heads)
        s = s + self.gamma3 * self.mlp_proxy(self.p_ln(s))
        k, v = self.kv(self.proxy_ln(s)).chunk(2, dim=2)
        return self.proj(attend(self.q(y), k, v, heads=self.heads)), s


class DualBlock(nn.Module):
    """Stages 1 and 2: pixels see each other only through the semantic tokens, at a cost linear in N."""

    def __init__(self, width: int, pixel_ratio: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm1 = StreamNorm(width)
        self.attn = DualAttention(width)
        self.gamma1 = layer_scale(width)
        self.norm2 = StreamNorm(width)
        self.mlp = PixelFFN(width, pixel_ratio * width, grid)
        self.gamma2 = layer_scale(width)

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams in, both streams out."""
        update, s = self.attn(self.norm1(x), s)
        x = x + self.gamma1 * update
        return x + self.gamma2 * self.mlp(self.norm2(x)), s


class Attention(nn.Module):
    """Multi-head attention of `queries` [B, n, C] to `tokens` [B, m, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """-> [B, n, C]."""
        k, v = self.kv(tokens).chunk(2, dim=2)
        update: Tensor = self.proj(attend(self.q(queries), k, v, heads=self.heads))
        return update


class MergeFFN(PixelFFN):
    """The pixel FFN, called, and beside it the MLP of the semantic tokens, `fc_proxy`."""

    def __init__(self, width: int, hidden: int, grid: tuple[int, int]) -> None:
        super().__init__(width, hidden, grid)
        semantic = MERGE_SEMANTIC_RATIO * width
        self.fc_proxy = nn.Sequential(nn.Linear(width, semantic), nn.GELU(), nn.Linear(semantic, width))


class MergeBlock(nn.Module):
    """Stages 3 and 4: self-attention over pixel and semantic tokens together.

    Only the attention sees them joined; elsewhere they stay apart, so that quantisation gives each its own scale.
    """

    def __init__(self, width: int, pixel_ratio: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm1 = StreamNorm(width)
        self.attn = Attention(width)
        self.gamma1 = layer_scale(width)
        self.norm2 = StreamNorm(width)
        self.mlp = MergeFFN(width, pixel_ratio * width, grid)
        self.gamma2 = layer_scale(width)

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams in, both streams out."""
        y = self.norm1(torch.cat((x, s), dim=1))
        pixel_update, semantic_update = (self.gamma1 * self.attn(y, y)).split((x.shape[1], s.shape[1]), dim=1)
        x, s = x + pixel_update, s + semantic_update
        return x + self.gamma2 * self.mlp(self.norm2(x)), s + self.gamma2 * self.mlp.fc_proxy(self.norm2(s))


class ClassBlock(nn.Module):
    """The class token: the mean of all tokens, refined by one attention to them and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = CLASS_RATIO * width
        self.norm1 = StreamNorm(width)
        self.attn = Attention(width)
        self.norm2 = StreamNorm(width)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width)))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Pixel tokens [B, N, C] and semantic tokens [B, M, C] -> class token [B, 1, C]."""
        tokens = torch.cat((x, s), dim=1)
        c = tokens.mean(dim=1, keepdim=True)
        y = self.norm1(torch.cat((c, tokens), dim=1))
        c = c + self.attn(y[:, :1], y)
        refined: Tensor = c + self.mlp(self.norm2(c))
        return refined


class DualViT(nn.Module):
    """Dual-ViT for images of one fixed size; no tensor depends on that size.

    image_size   (height, width) in pixels, both at least 25, else ModelError
    stem_width   channels inside the stem
    widths       channels of the four stages, multiples of 32 (the width of a head)
    depths       blocks of the four stages: two of dual blocks, two of merge blocks
    token_label  with the auxiliary head of token-labelled training: half its maximum over the pixels joins the logits
    """

    feature_strides = (4, 8, 16, 32)
    norm4: nn.LayerNorm

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        stem_width: int,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        token_label: bool = True,
    ) -> None:
        super().__init__()
        height, width = self.image_size = image_size
        if min(image_size) < MINIMUM_SIDE:
            raise ModelError(
                f"Dual-ViT cannot take images of {height}x{width} pixels",
                why="the stride-4 map must hold a 7x7 window, or no semantic token remains",
                fix=f"an image size of at least {max(height, MINIMUM_SIDE)}x{max(width, MINIMUM_SIDE)}",
            )
        self.grids = [(ceil(height / stride), ceil(width / stride)) for stride in self.feature_strides]
        self.semantic_grid = tuple(side // SEMANTIC_WINDOW for side in self.grids[0])

        C = widths[0]
        self.q = nn.Parameter(nn.init.trunc_normal_(torch.empty(prod(QUERY_GRID), C), std=0.02))
        self.q_embed = nn.Sequential(InnerNorm(C), nn.Linear(C, C))
        self.kv = nn.Linear(C, 2 * C)
        self.se = nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, 2 * C))
        self.proxy_ln = InnerNorm(C)

        self.patch_embed1 = Stem(stem_width, C)
        for i, (width_in, width_out) in enumerate(pairwise(widths), start=2):
            self.add_module(f"patch_embed{i}", PatchEmbed(width_in, width_out))
            self.add_module(f"proxy_embed{i}", ProxyEmbed(width_in, width_out))
        for i, (C, depth, grid, ratios) in enumerate(zip(widths, depths, self.grids, PIXEL_RATIOS, strict=True), 1):
            block = DualBlock if i <= 2 else MergeBlock
            blocks = nn.ModuleList(block(C, ratios[j % len(ratios)], grid) for j in range(depth))
            self.add_module(f"block{i}", blocks)
            self.add_module(f"norm{i}", StreamNorm(C))
            if i < 4:
                self.add_module(f"norm_proxy{i}", StreamNorm(C))

        self.post_network = nn.ModuleList([ClassBlock(widths[-1])])
        self.head = nn.Linear(widths[-1], num_classes)
        self.aux_head = nn.Linear(widths[-1], num_classes) if token_label else None
        init_weights(self)
        for module in self.modules():
            if isinstance(module, PixelFFN):  # Linears in all but layout
                nn.init.trunc_normal_(module.fc1.weight, std=0.02)
                nn.init.trunc_normal_(module.fc2.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> logits [B, num_classes]."""
        x, s = self._stages(images, self.semantic_queries())[-1]
        logits: Tensor = self.head(self.norm4(self.post_network[0](x, s).squeeze(1)))
        if self.aux_head is not None:
            logits = logits + 0.5 * self.aux_head(self.norm4(x)).amax(dim=1)
        return logits

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> the normed pixel maps [B, C_i, H_i, W_i] at strides 4, 8, 16, 32.

        These are the maps of the official detection and segmentation backbones. They differ from what the classifier
        computes only where 64 semantic tokens lie on a grid other than 8x8 (see `semantic_queries`).
        """
        *early, last = (x for x, _ in self._stages(images, self.semantic_queries(dense=True)))
        return [to_map(x, *grid) for x, grid in zip([*early, self.norm4(last)], self.grids, strict=True)]

    def semantic_queries(self, *, dense: bool = False) -> Tensor:
        """Queries of the semantic tokens, [M, C1], the same for every image.

        The learned 8x8 grid is resized to the semantic grid. The official classifier leaves it alone whenever M is 64,
        even on a 4x16 grid; the official dense-prediction backbones (`dense`) do not.
        """
        q: Tensor = self.q
        if self.semantic_grid != QUERY_GRID and (dense or prod(self.semantic_grid) != len(q)):
            learned = to_map(q[None], *QUERY_GRID)
            q = to_tokens(F.interpolate(learned, self.semantic_grid, mode="bicubic", align_corners=False))[0]
        queries: Tensor = self.q_embed(q)
        return queries

    def semantic_tokens(self, x: Tensor, queries: Tensor) -> Tensor:
        """Stem tokens [B, N, C1] and queries [M, C1] -> the first semantic tokens [B, M, C1].

        Two summaries of the image, attended and pooled over windows, are mixed by a learned gate on each channel.
        """
        pooled = to_tokens(F.avg_pool2d(to_map(x, *self.grids[0]), SEMANTIC_WINDOW))
        k, v = self.kv(pooled).chunk(2, dim=2)
        attended = attend(queries.expand(x.shape[0], -1, -1), k, v, heads=1)
        for_attended, for_pooled = self.se((attended + pooled).mean(dim=1, keepdim=True)).chunk(2, dim=2)
        gate = torch.sigmoid(for_attended - for_pooled)  # the softmax of the two
        s: Tensor = self.proxy_ln(gate * attended + (1 - gate) * pooled)
        return s

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint in the official layout as this module's state dict.

        The pixel FFN's Linears become 1x1 convolutions. The auxiliary head follows the checkpoint: without one there it
        is removed here, and one that this network was built without is left out.
        """
        if "aux_head.weight" not in state:
            self.aux_head = None
        own = self.state_dict()
        return {
            key: tensor[:, :, None, None] if tensor.ndim == 2 and key in own and own[key].ndim == 4 else tensor
            for key, tensor in state.items()
            if self.aux_head is not None or not key.startswith("aux_head.")
        }

    def _stages(self, images: Tensor, queries: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pixel and semantic tokens after each stage, normed in all but the last."""
        if images.shape[2:] != self.image_size:
            raise ModelError(
                f"this Dual-ViT was built for {self.image_size[0]}x{self.image_size[1]} pixels, "
                f"not {images.shape[2]}x{images.shape[3]}",
                fix=f"create_model(..., image_size=({images.shape[2]}, {images.shape[3]}))",
            )
        x = self.patch_embed1(images)
        s = self.semantic_tokens(x, queries)
        stages = []
        for i, previous in enumerate([None, *self.grids[:-1]], start=1):
            if previous:
                x = getattr(self, f"patch_embed{i}")(to_map(x, *previous))
                s = getattr(self, f"proxy_embed{i}")(s)
            for block in getattr(self, f"block{i}"):
                x, s = block(x, s)
            if i < 4:
                x, s = getattr(self, f"norm{i}")(x), getattr(self, f"norm_proxy{i}")(s)
            stages.append((x, s))
        return stages

"""SAEViT: a convolutional pyramid whose attention runs among sampled representatives of the image.

Built from the abstract of "A Lightweight Convolution and Vision Transformer integrated model with Multi-scale
Self-attention Mechanism", arXiv 2508.16884 (Neurocomputing 658, 131670). Neither official code nor weights are public:
the modules SAA, CIFFN and DWSConv, their purpose and the pyramid are the paper's; the formulas inside them, widths,
depths and tensor names are a reconstruction that meets the two published compute budgets. Regularisation of the
training (drop path) is not part of the network here.

All maps are [B, C, H, W].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.layers import attend, init_weights, to_map, to_tokens

STRIDE = 32
SAMPLING_RATES = (4, 2, 2, 1)
SHARPNESS = 2.0
FFN_RATIO = 4
FFN_GROUPS = 4
NORM_EPS = 1e-6
REDISTRIBUTION = 1e-5


class DWSConv(nn.Sequential):
    """Depthwise separable convolution, 3x3 with `stride`, then 1x1."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__(
            OrderedDict(
                dw=nn.Conv2d(width_in, width_in, 3, stride, padding=1, groups=width_in, bias=False),
                bn1=nn.BatchNorm2d(width_in),
                act=nn.GELU(),
                pw=nn.Conv2d(width_in, width, 1, bias=False),
                bn2=nn.BatchNorm2d(width),
            )
        )


class AdaptiveSampling(nn.Module):
    """One representative for each `rate` x `rate` window: its mean, weighted by a learned importance for each head."""

    def __init__(self, width: int, heads: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.bn = nn.BatchNorm2d(width)
        self.score = nn.Conv2d(width, heads, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / rate, W / rate]; rate must divide H and W.

        The importance exp(2 tanh a) lies between e^-2 and e^2, so the division is safe in half precision.
        """
        C, H, W = x.shape[1:]
        importance = torch.exp(SHARPNESS * torch.tanh(self.score(self.bn(x)))).reshape(-1, 1, H, W)
        heads = x.reshape(-1, C // self.score.out_channels, H, W)  # each head a batch entry of its own
        sampled = F.avg_pool2d(heads * importance, self.rate) / F.avg_pool2d(importance, self.rate)
        return sampled.reshape(-1, C, H // self.rate, W // self.rate)


class SAA(nn.Module):
    """Sparsely aggregated attention: sample representatives, attend among them, recover the map by deconvolution."""

    def __init__(self, width: int, heads: int, rate: int) -> None:
        super().__init__()
        self.heads = heads
        self.sample = AdaptiveSampling(width, heads, rate) if rate > 1 else nn.Identity()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.ConvTranspose2d(width, width, rate, stride=rate, groups=width) if rate > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> its update, same shape."""
        sampled = self.sample(x)
        q, k, v = self.qkv(self.norm(to_tokens(sampled))).chunk(3, dim=2)
        attended = self.proj(attend(q, k, v, heads=self.heads))
        update: Tensor = self.up(to_map(attended, sampled.shape[2], sampled.shape[3]))
        return update


class CIFFN(nn.Module):
    """Channel-interactive FFN: each group of hidden channels is split into a common part and its detail.

    The common part of a group is computed from all hidden channels; the detail, what differs from it, is weighted by
    `sigma` for each channel and added back.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = FFN_RATIO * width
        self.norm = nn.BatchNorm2d(width)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.common = nn.Conv2d(hidden, FFN_GROUPS, 1)
        self.sigma = nn.Parameter(torch.full((hidden,), REDISTRIBUTION))
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> its update, same shape."""
        y = self.act(self.dw(self.fc1(self.norm(x))))
        common = self.act(self.common(y))
        m, H, W = y.shape[1:]
        groups = y.reshape(-1, m // FFN_GROUPS, H, W)  # each group a batch entry of its own
        detail = (groups - common.reshape(-1, 1, H, W)).reshape(-1, m, H, W)
        update: Tensor = self.fc2(y + self.sigma[:, None, None] * detail)
        return update


class Block(nn.Module):
    """Local features (and with them position), sparse global attention, channel mixing; each residual."""

    def __init__(self, width: int, heads: int, rate: int) -> None:
        super().__init__()
        self.local = DWSConv(width, width, 1)
        self.attn = SAA(width, heads, rate)
        self.ffn = CIFFN(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> same shape."""
        x = x + self.local(x)
        x = x + self.attn(x)
        mixed: Tensor = x + self.ffn(x)
        return mixed


class SAEViT(nn.Module):
    """SAEViT for images whose height and width are multiples of 32, else ModelError; no tensor depends on the size.

    widths, depths, heads: channels, blocks and attention heads of the four stages.
    """

    feature_strides = (4, 8, 16, 32)

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        heads: tuple[int, int, int, int],
    ) -> None:
        super().__init__()
        _check_size(*image_size)
        half = widths[0] // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
        )
        self.down = nn.ModuleList([nn.Identity(), *(DWSConv(before, after, 2) for before, after in pairwise(widths))])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(C, h, rate) for _ in range(depth)))
            for C, h, rate, depth in zip(widths, heads, SAMPLING_RATES, depths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=NORM_EPS)
        self.head = nn.Linear(widths[-1], num_classes)
        init_weights(self)
        for module in self.modules():
            if isinstance(module, AdaptiveSampling):  # starts as the plain mean of a window
                nn.init.zeros_(module.score.weight)
            elif (
                isinstance(module, nn.ConvTranspose2d) and module.bias is not None
            ):  # starts as nearest-neighbour upsampling
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> logits [B, num_classes]."""
        *_, x = self._run_stages(images)
        logits: Tensor = self.head(self.norm(x.mean(dim=(2, 3))))
        return logits

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> the outputs of the stages, [B, C_i, H / stride, W / stride].

        They are not normed: a classifier has no weights for that, so norms of the maps are a dense-prediction head's.
        """
        return list(self._run_stages(images))

    def _run_stages(self, images: Tensor) -> Iterator[Tensor]:
        _check_size(images.shape[2], images.shape[3])
        x = self.stem(images)
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(x))
            yield x


def _check_size(height: int, width: int) -> None:
    """Refuse a size that the windows of the sampling do not tile."""
    if height % STRIDE or width % STRIDE:
        smaller = [max(side // STRIDE * STRIDE, STRIDE) for side in (height, width)]
        larger = [-(-side // STRIDE) * STRIDE for side in (height, width)]
        raise ModelError(
            f"SAEViT cannot take images of {height}x{width} pixels",
            why=f"height and width must be multiples of {STRIDE}",
            fix=" or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (smaller, larger))),
        )

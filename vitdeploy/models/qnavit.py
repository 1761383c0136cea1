"""QnA-ViT: local attention whose queries are learned (Arar et al., CVPR 2022, arXiv 2112.11435).

Follows the official code, github.com/moabarar/qna at 1f8e8e3d395d2fb061b90a4e4ef061b2f5fef4ec, number for number, and
reads its Flax checkpoints. Maps are channel-last between the blocks, as LayerNorm and the linear layers want them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.layers import attend, resize_positions
from vitdeploy.models.qnavit_flax import ATTENTION_HEAD_WIDTH, from_flax

STEM_STRIDE = 4


class QnA(nn.Module):
    """Every pixel's window is pooled by `queries` learned queries: [B, in_channels, H, W] -> [B, channels, H', W'].

    A query and a head attend to those of the kernel_size x kernel_size pixels around each output pixel that lie inside
    the image; each softmax weight is multiplied by a learned number of its place in the window, and the results of the
    queries are added. The queries do not depend on the image, so exp(score + bias) is a factor of the pixel times one
    of the place, and both sums over the window are depthwise convolutions of exp(score). What depends on parameters
    alone (queries, key projection, tables) becomes a constant of an exported graph.

    Scores are shifted by `score_shift`, a number for each query and head that cancels in the quotient: zero unless
    `fit_half_range` chose it. It is not part of the state dict.
    """

    score_shift: Tensor

    def __init__(
        self, in_channels: int, channels: int, *, head_width: int, kernel_size: int, stride: int = 1, queries: int = 2
    ) -> None:
        super().__init__()
        self.channels, self.kernel_size, self.stride, self.queries = channels, kernel_size, stride, queries
        self.head_width, self.heads = head_width, channels // head_width
        groups = queries * self.heads  # query slow, head fast
        self.query = nn.Parameter(torch.randn(queries, channels))
        self.key = nn.Parameter(torch.randn(channels, in_channels) * in_channels**-0.5)
        self.window_bias = nn.Parameter(torch.zeros(kernel_size**2, groups))
        self.window_scale = nn.Parameter(torch.ones(kernel_size**2, groups))
        self.value = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, channels, 1, bias=False)
        self.register_buffer("score_shift", torch.zeros(groups), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H', W'], H' = ceil(H / stride)."""
        _, _, numerator, denominator = self._sums(x)
        height, width = denominator.shape[2:]
        numerator = numerator.reshape(-1, self.queries, self.heads, self.head_width, height * width)
        mixed = numerator / denominator.reshape(-1, self.queries, self.heads, 1, height * width)
        out: Tensor = self.proj(mixed.sum(1).reshape(-1, self.channels, height, width))
        return out

    def _scores(self, x: Tensor) -> Tensor:
        """Unit queries times keys, [B, queries * heads, H, W]; the keys themselves are never formed."""
        query = self.query.reshape(self.queries, self.heads, self.head_width)
        query = query / (query.norm(dim=2, keepdim=True) + 1e-6) / math.sqrt(self.head_width)
        key = self.key.reshape(self.heads, self.head_width, -1)
        weight = torch.einsum("qhd,hdc->qhc", query, key).flatten(0, 1)
        return F.conv2d(x, weight[..., None, None], -self.score_shift)

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """exp(score), exp(score) * value and their weighted sums over the window, [B, groups (* head_width), ., .]."""
        height, width = x.shape[2:]
        groups, padding = self.queries * self.heads, self.kernel_size // 2
        exponential = self._scores(x).exp()
        values = self.value(x).reshape(-1, 1, self.heads, self.head_width, height * width)
        weighted = exponential.reshape(-1, self.queries, self.heads, 1, height * width) * values
        weighted = weighted.reshape(-1, groups * self.head_width, height, width)

        places = self.window_bias.exp()
        denominator_kernel = places.t().reshape(groups, 1, self.kernel_size, self.kernel_size)
        numerator_kernel = (places * self.window_scale).t().reshape(groups, 1, self.kernel_size, self.kernel_size)
        numerator_kernel = numerator_kernel.expand(-1, self.head_width, -1, -1).reshape(
            groups * self.head_width, 1, self.kernel_size, self.kernel_size
        )
        # The zero padding comes after the exponential: a pixel outside the image has no weight in either sum.
        numerator = F.conv2d(weighted, numerator_kernel, None, self.stride, padding, groups=groups * self.head_width)
        denominator = F.conv2d(exponential, denominator_kernel, None, self.stride, padding, groups=groups)
        return exponential, weighted, numerator, denominator

    @torch.no_grad()
    def fit_half_range(self, x: Tensor) -> None:
        """Choose `score_shift` so that the sums for inputs like x [B, in_channels, H, W] suit float16.

        The largest number of the layer must not overflow and the smallest denominator must not underflow: the shift
        puts their geometric mean in the middle of float16's normal range, which leaves the same room on both sides.
        """
        self.score_shift.zero_()
        self.score_shift.copy_(self._scores(x).amax((0, 2, 3)))  # so that nothing overflows while measuring
        exponential, weighted, numerator, denominator = self._sums(x)
        peaks = [t.abs().amax((0, 2, 3)) for t in (exponential, denominator)]
        peaks += [t.abs().amax((0, 2, 3)).reshape(-1, self.head_width).amax(1) for t in (weighted, numerator)]
        largest, smallest = torch.stack(peaks).amax(0), denominator.amin((0, 2, 3))
        half, tiny = torch.finfo(torch.float16), torch.finfo(x.dtype).tiny
        self.score_shift.add_(((largest * smallest).clamp_min(tiny) / (half.max * half.tiny)).log() / 2)


class WindowAttention(nn.Module):
    """Self-attention inside a window with a table of relative positions: tokens [B, window**2, C] -> the same."""

    index: Tensor

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.heads = channels // ATTENTION_HEAD_WIDTH
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels, bias=False)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, self.heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"), -1).reshape(
            -1, 2
        )
        row, column = (place[:, None] - place[None] + window - 1).unbind(-1)  # query minus key
        self.register_buffer("index", row * (2 * window - 1) + column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, window**2, C] -> the same shape."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        bias = F.embedding(self.index, self.position_bias).permute(2, 0, 1).unsqueeze(0)
        out: Tensor = self.proj(attend(q, k, v, heads=self.heads, bias=bias))
        return out


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6)


def _mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, 4 * channels), nn.GELU(approximate="tanh"), nn.Linear(4 * channels, channels)
    )


class AttentionBlock(nn.Module):
    """Pre-norm block of window attention and MLP on tokens [B, window**2, C]."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.norm1, self.mixer = _norm(channels), WindowAttention(channels, window)
        self.norm2, self.mlp = _norm(channels), _mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, window**2, C] -> the same shape."""
        x = x + self.mixer(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class QnABlock(nn.Module):
    """Pre-norm block of QnA and MLP on a map [B, H, W, C]; with stride 2 it halves the map and doubles the channels."""

    def __init__(self, in_channels: int, *, head_width: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        channels = in_channels * stride
        self.norm1 = _norm(in_channels)
        self.mixer = QnA(in_channels, channels, head_width=head_width, kernel_size=kernel_size, stride=stride)
        self.skip = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if stride > 1 else None
        self.norm2, self.mlp = _norm(channels), _mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C * stride]."""
        mixed = self.mixer(_channel_first(self.norm1(x)))
        x = x + _channel_last(mixed) if self.skip is None else _channel_last(mixed + self.skip(_channel_first(x)))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Stage(nn.Module):
    """`attention` blocks inside windows, then `local` QnA blocks, then (all but the last stage) `down`, of stride 2."""

    def __init__(
        self, channels: int, *, attention: int, local: int, window: int, head_width: int, kernel_size: int, last: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.attention = nn.ModuleList(AttentionBlock(channels, window) for _ in range(attention))
        self.local = nn.ModuleList(
            QnABlock(channels, head_width=head_width, kernel_size=kernel_size) for _ in range(local)
        )
        self.down = None if last else QnABlock(channels, head_width=head_width, kernel_size=kernel_size, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, H, W, C] -> the stage's map, of the same shape, and the next stage's input."""
        if self.attention:
            height, width = x.shape[1:3]
            x = _split(x, self.window)
            for block in self.attention:
                x = block(x)
            x = _merge(x, self.window, height, width)
        for block in self.local:
            x = block(x)
        return x, x if self.down is None else self.down(x)


class QnAViT(nn.Module):
    """The network: [N, 3, H, W] -> [N, num_classes].

    width          channels of the first stage; each further stage doubles them
    attention      self-attention blocks of each stage
    local          QnA blocks of stride 1 of each stage
    head_width     channels of a QnA head
    kernel_size    side of the QnA window
    windows        side of the self-attention window of each stage; where a stage has such blocks, its map must be a
                   multiple of it. ModelError names windows that fit.

    An image side that is not a multiple of 4 is padded in the stem, as the official code does.
    """

    feature_strides = (4, 8, 16, 32)

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        width: int = 64,
        attention: Sequence[int] = (0, 0, 4, 2),
        local: Sequence[int] = (2, 3, 2, 0),
        head_width: int = 8,
        kernel_size: int = 3,
        windows: Sequence[int] = (7, 7, 14, 7),
    ) -> None:
        super().__init__()
        _check_windows(image_size, windows, attention)
        vertical, horizontal = (-side % STEM_STRIDE for side in image_size)
        self.pad = nn.ZeroPad2d((horizontal // 2, (horizontal + 1) // 2, vertical // 2, (vertical + 1) // 2))
        self.stem = nn.Conv2d(3, width, STEM_STRIDE, STEM_STRIDE, bias=False)
        self.stages = nn.ModuleList(
            Stage(
                width * 2**i,
                attention=attention[i],
                local=local[i],
                window=windows[i],
                head_width=head_width,
                kernel_size=kernel_size,
                last=i == 3,
            )
            for i in range(4)
        )
        self.norm = _norm(width * 8)
        self.head = nn.Linear(width * 8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, num_classes]."""
        logits: Tensor = self.head(self.norm(self._maps(x)[-1]).mean((1, 2)))
        return logits

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The four stages' maps [N, C, H/s, W/s], each before the block that halves it, s = `feature_strides`."""
        return [_channel_first(x) for x in self._maps(x)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = _channel_last(self.stem(self.pad(x)))
        maps = []
        for stage in self.stages:
            stage_map, x = stage(x)
            maps.append(stage_map)
        return maps

    def prepare_fp16(self, images: Tensor) -> None:
        """Shift every QnA layer's scores into float16's range, measured on `images` [N, 3, H, W].

        The function of the network does not change: the shift cancels in each layer's quotient.
        """
        layers = [module for module in self.modules() if isinstance(module, QnA)]
        handles = [
            layer.register_forward_pre_hook(lambda layer, args: layer.fit_half_range(args[0])) for layer in layers
        ]
        try:
            with torch.no_grad():
                self(images)
        finally:
            for handle in handles:
                handle.remove()

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official Flax parameters (`params/...`) or this module's own, with position tables resized to the windows."""
        own = self.state_dict()
        state = from_flax(state)
        for name in state:
            if name in own and ".attention." in name and name.endswith("position_bias"):
                state[name] = _resized(state[name], len(own[name]))
        return state


def _resized(table: Tensor, rows: int) -> Tensor:
    """A table of relative positions [(2w - 1)**2, heads] for another window, with `rows` rows."""
    side = math.isqrt(len(table))
    if side * side != len(table):
        return table  # not such a table: the strict load says so
    resized = resize_positions(table.t().reshape(1, -1, side, side), (math.isqrt(rows),) * 2)
    return resized.reshape(-1, rows).t()


def _channel_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channel_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _split(x: Tensor, window: int) -> Tensor:
    """Map [B, H, W, C] -> windows' tokens [B * H/window * W/window, window**2, C]."""
    _, height, width, channels = x.shape
    if height == width == window:
        return x.reshape(-1, window**2, channels)
    x = x.reshape(-1, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window**2, channels)


def _merge(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `_split`."""
    channels = x.shape[2]
    if height != window or width != window:
        x = x.reshape(-1, height // window, width // window, window, window, channels).transpose(2, 3)
    return x.reshape(-1, height, width, channels)


def _check_windows(image_size: tuple[int, int], windows: Sequence[int], attention: Sequence[int]) -> None:
    """Raise ModelError, naming windows and sizes that fit, unless every attended map is a multiple of its window."""
    if len(windows) != len(attention) or not all(isinstance(window, int) and window > 0 for window in windows):
        raise ModelError(
            f"invalid windows {windows!r} for QnA-ViT",
            why=f"it has {len(attention)} stages, and each needs the side of its window as a positive integer",
            fix="windows=(7, 7, 14, 7)",
        )
    fitting, refused = [], []
    height, width = (-(-side // STEM_STRIDE) for side in image_size)
    for stage, (window, blocks) in enumerate(zip(windows, attention, strict=True)):
        if blocks and (height % window or width % window):
            refused.append(f"the {height}x{width} map of stage {stage} is not a multiple of its window {window}")
        common = math.gcd(height, width)
        fitting.append(max(side for side in range(1, 2 * window + 1) if common % side == 0))
        height, width = -(-height // 2), -(-width // 2)
    if refused:
        period = math.lcm(*(window * STEM_STRIDE * 2**i for i, window in enumerate(windows) if attention[i]))
        nearest = "x".join(str(max(1, round(side / period)) * period) for side in image_size)
        raise ModelError(
            f"QnA-ViT with windows {tuple(windows)} does not admit images of {image_size[0]}x{image_size[1]} pixels",
            why="; ".join(refused),
            fix=f"windows={tuple(fitting)}, or an image size of {nearest}",
        )

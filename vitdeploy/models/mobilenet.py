"""MobileNetV3-Small (Howard et al., ICCV 2019, arXiv 1905.02244) as a trunk of output stride 16.

The names inside are those of torchvision's `mobilenet_v3_small`, whose `dilated` option is this graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# kernel, expanded width, output width, squeezed width (0: none), hard swish instead of ReLU, stride, dilation
BOTTLENECKS = (
    (3, 16, 16, 8, False, 2, 1),
    (3, 72, 24, 0, False, 2, 1),
    (3, 88, 24, 0, False, 1, 1),
    (5, 96, 40, 24, True, 2, 1),
    (5, 240, 40, 64, True, 1, 1),
    (5, 240, 40, 64, True, 1, 1),
    (5, 120, 48, 32, True, 1, 1),
    (5, 144, 48, 40, True, 1, 1),
    (5, 288, 96, 72, True, 1, 2),
    (5, 576, 96, 144, True, 1, 2),
    (5, 576, 96, 144, True, 1, 2),
)
TRUNK_WIDTH = 576


def _convolution(
    in_channels: int,
    channels: int,
    activation: type[nn.Module] | None,
    *,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution and BatchNorm, [B, in_channels, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]."""
    padding = dilation * (kernel - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Each channel times a number in 0..1 that the means of all channels decide."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        squeezed = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * nn.functional.hardsigmoid(self.fc2(squeezed))


class Bottleneck(nn.Module):
    """Expand, depthwise convolution, squeeze and excite, project; plus the input where the shapes agree."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel: int,
        expanded: int,
        squeezed: int,
        activation: type[nn.Module],
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == channels
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(_convolution(in_channels, expanded, activation))
        layers.append(
            _convolution(
                expanded, expanded, activation, kernel=kernel, stride=stride, dilation=dilation, groups=expanded
            )
        )
        if squeezed:
            layers.append(SqueezeExcitation(expanded, squeezed))
        layers.append(_convolution(expanded, channels, None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]."""
        out: Tensor = self.block(x)
        return x + out if self.residual else out


def mobilenet_trunk() -> nn.Sequential:
    """Normalised images [B, 3, H, W] -> [B, 576, ceil(H / 16), ceil(W / 16)]; torchvision's keys less `features.`."""
    layers: list[nn.Module] = [_convolution(3, 16, nn.Hardswish, kernel=3, stride=2)]
    width = 16
    for kernel, expanded, channels, squeezed, hard_swish, stride, dilation in BOTTLENECKS:
        layers.append(
            Bottleneck(
                width,
                channels,
                kernel=kernel,
                expanded=expanded,
                squeezed=squeezed,
                activation=nn.Hardswish if hard_swish else nn.ReLU,
                stride=stride,
                dilation=dilation,
            )
        )
        width = channels
    layers.append(_convolution(width, TRUNK_WIDTH, nn.Hardswish))
    return nn.Sequential(*layers)

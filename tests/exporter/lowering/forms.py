"""One small module for each operator form that PyTorch's exporter states in opset 18 to 20, or not at all.

A row maps a feature map y [B, 4, 12, 10] to a tensor with the batch in front. The sizes are unlike each other, so that
axes cannot be taken for one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Form = Callable[[Tensor], Tensor]
SIZE = 16


class Network(nn.Module):
    """A convolution and one row behind it, on images [B, 3, 16, 16]."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.stem, self.form = nn.Conv2d(3, 4, (5, 7)), form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.stem(x))


def network(row: str) -> nn.Module:
    """The network of a row, in eval mode, with the same weights every time."""
    torch.manual_seed(0)
    return Network(FORMS[row]).eval()


def volume(y: Tensor) -> Tensor:
    """[B, 2, 2, 12, 10]."""
    return y.unflatten(1, (2, 2))


def flat(y: Tensor) -> Tensor:
    """[B, 4, 120]."""
    return y.flatten(2)


def tokens(y: Tensor) -> Tensor:
    """[B, 120, 4]."""
    return y.flatten(2).transpose(1, 2)


def few(y: Tensor) -> Tensor:
    """Nine tokens to scatter into, [B, 9, 4]."""
    return tokens(y)[:, 50:59] * 2


def places(y: Tensor) -> Tensor:
    """Where each value of the tokens goes, 0 to 8; the signs decide, which no rounding changes, [B, 120, 4]."""
    return (tokens(y) > 0).long() * 3 + torch.arange(120).unsqueeze(-1) % 5


def grid(y: Tensor) -> Tensor:
    """Where planes are sampled, partly outside, [B, 6, 5, 2]."""
    rows = torch.meshgrid(torch.linspace(-1.3, 1.3, 6), torch.linspace(-1.2, 1.4, 5), indexing="ij")
    base = torch.stack(rows[::-1], -1).to(y)
    return base[None] + 0.3 * torch.tanh(torch.stack((y[:, 0, :6, :5], y[:, 1, :6, :5]), -1))


def grid_of_volume(y: Tensor) -> Tensor:
    """Where volumes are sampled, [B, 3, 6, 5, 3]."""
    plane = torch.cat((grid(y), torch.tanh(y[:, 2, :6, :5, None])), -1)
    return torch.stack((plane, plane * 0.5, plane * 1.5), 1)


def theta(y: Tensor) -> Tensor:
    """An affine map for each image, [B, 2, 3]."""
    m = torch.tanh(y.mean((2, 3)))
    rows = ((1 + m[:, 0], m[:, 1] * 0.5, m[:, 2]), (m[:, 1] * 0.3, 1 - m[:, 0], m[:, 3]))
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def waves(rows: int, columns: int) -> Tensor:
    """A complex filter."""
    angles = [[math.sin(3 * i + j * j) for j in range(columns)] for i in range(rows)]
    return torch.polar(torch.tensor(angles).abs() + 0.5, torch.tensor(angles) * 3)


def spectrum(y: Tensor) -> Tensor:
    return torch.fft.rfft2(y)


def back(f: Tensor) -> Tensor:
    return torch.fft.irfft2(f, s=(12, 10))


def mixed_spectrum(y: Tensor) -> Tensor:
    """Channels mixed by complex weights."""
    return back(torch.einsum("bchw,cd->bdhw", spectrum(y), waves(4, 4).to(spectrum(y).dtype)))


def convolved_spectrum(y: Tensor) -> Tensor:
    """Real and imaginary part as channels of a convolution."""
    f = spectrum(y)
    parts = F.relu(F.conv2d(torch.cat((f.real, f.imag), 1), torch.linspace(-1, 1, 64).to(y).view(8, 8, 1, 1)))
    return back(torch.complex(*parts.chunk(2, 1)))


def shrunk_spectrum(y: Tensor) -> Tensor:
    """Pairs of numbers mixed and shrunk, as in AFNO."""
    pairs = torch.view_as_real(spectrum(y)) @ torch.tensor([[0.3, 0.2], [0.1, 0.5]]).to(y)
    return back(torch.view_as_complex(F.softshrink(pairs, 0.01)))


def low_frequencies(y: Tensor) -> Tensor:
    f, mask = torch.fft.fftshift(torch.fft.fft2(y), dim=(-2, -1)), torch.zeros(12, 10)
    mask[3:9, 3:7] = 1
    return torch.fft.ifft2(torch.fft.ifftshift(f * mask, dim=(-2, -1))).abs()


def written(y: Tensor) -> Tensor:
    z = y.clone()
    z[:, :, 2:5, ::2] = y[:, :, 3:6, ::2] * 3
    z[:, [1, 3]] = z[:, [0, 2]] + 1
    return z


def merged(y: Tensor, reduce: str) -> Tensor:
    """Tokens merged into their best match, as in ToMe; the matches are far apart."""
    index = places(y)[..., :1].expand(-1, -1, 4)
    return few(y).scatter_reduce(1, index, tokens(y), reduce)


def resize(**how: object) -> Form:
    return lambda y: F.interpolate(y, **how)  # type: ignore[arg-type]


RESIZES: dict[str, Form] = {
    "nearest, by 2": resize(scale_factor=2),
    "nearest, to a size": resize(size=(7, 9)),
    "nearest, to a multiple": resize(size=(24, 30)),
    "nearest, by odd factors": resize(scale_factor=(1.7, 0.33)),
    "nearest-exact": resize(size=(17, 13), mode="nearest-exact"),
    "bilinear, to a size": resize(size=(7, 15), mode="bilinear"),
    "bilinear, corners aligned": resize(scale_factor=2, mode="bilinear", align_corners=True),
    "bilinear, by odd factors": resize(scale_factor=(1.7, 0.33), mode="bilinear"),
    "bilinear, odd factors recomputed": resize(scale_factor=(1.7, 0.33), mode="bilinear", recompute_scale_factor=True),
    "bilinear, to one pixel": resize(size=(1, 1), mode="bilinear"),
    "bilinear, corners of one pixel": resize(size=(1, 3), mode="bilinear", align_corners=True),
    "bicubic, by 2": resize(scale_factor=2, mode="bicubic"),
    "bicubic, to a size": resize(size=(5, 4), mode="bicubic"),
    "bicubic, corners aligned": resize(size=(17, 19), mode="bicubic", align_corners=True),
    "bicubic, by odd factors": resize(scale_factor=(1.7, 0.33), mode="bicubic"),
    "bilinear, antialiased": resize(size=(5, 7), mode="bilinear", antialias=True),
    "bilinear, antialiased by odd factors": resize(scale_factor=(0.37, 0.33), mode="bilinear", antialias=True),
    "bicubic, antialiased": resize(size=(17, 7), mode="bicubic", antialias=True),
    "bicubic, antialiased corners": resize(size=(5, 7), mode="bicubic", antialias=True, align_corners=True),
    "area": resize(size=(5, 7), mode="area"),
    "linear": lambda y: F.interpolate(flat(y), size=50, mode="linear"),
    "linear nearest": lambda y: F.interpolate(flat(y), scale_factor=2),
    "trilinear": lambda y: F.interpolate(volume(y), size=(3, 7, 5), mode="trilinear"),
    "trilinear nearest": lambda y: F.interpolate(volume(y), scale_factor=2),
}
POOLS: dict[str, Form] = {
    "adaptive mean": lambda y: F.adaptive_avg_pool2d(y, (5, 7)),
    "adaptive mean, divided": lambda y: F.adaptive_avg_pool2d(y, (4, 5)),
    "adaptive mean, of all": lambda y: F.adaptive_avg_pool2d(y, 1),
    "adaptive mean, larger": lambda y: F.adaptive_avg_pool2d(y, (15, 20)),
    "adaptive mean, one axis": lambda y: F.adaptive_avg_pool2d(y, (None, 3)),
    "adaptive mean, line": lambda y: F.adaptive_avg_pool1d(flat(y), 7),
    "adaptive mean, volume": lambda y: F.adaptive_avg_pool3d(volume(y), (1, 5, 7)),
    "adaptive maximum": lambda y: F.adaptive_max_pool2d(y, (5, 7)),
    "adaptive maximum, divided": lambda y: F.adaptive_max_pool2d(y, (4, 5)),
    "adaptive maximum, line": lambda y: F.adaptive_max_pool1d(flat(y), 7),
    "adaptive maximum, volume": lambda y: F.adaptive_max_pool3d(volume(y), (1, 5, 7)),
    "adaptive maximum, places": lambda y: F.adaptive_max_pool2d(y * (y > 0), (5, 7), return_indices=True)[1].to(y),
    "mean, ends rounded up": lambda y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True),
    "mean, ends rounded up without padding": lambda y: F.avg_pool2d(y, 3, 2, 1, True, False),
    "mean, padding left out, in steps of one": lambda y: F.avg_pool2d(y, 3, 1, 1, False, False),
    "mean, windows apart": lambda y: F.avg_pool2d(y, 2, 4, ceil_mode=True),
    "mean, padding left out": lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
    "mean, other divisor": lambda y: F.avg_pool2d(y, 3, 2, 1, True, divisor_override=4),
    "mean, line": lambda y: F.avg_pool1d(flat(y), 7, 4, 2, ceil_mode=True),
    "mean, volume": lambda y: F.avg_pool3d(volume(y), 2, ceil_mode=True),
    "maximum, ends rounded up": lambda y: F.max_pool2d(y, 3, 2, 1, ceil_mode=True),
    "maximum, dilated": lambda y: F.max_pool2d(y, 3, 2, 1, 2, True),
    "maximum, windows apart": lambda y: F.max_pool2d(y, 2, 4, ceil_mode=True),
    "power mean": lambda y: F.lp_pool2d(y, 2, 3, 2, ceil_mode=True),
    "fold": lambda y: F.fold(F.unfold(y, 3, padding=1, stride=2), (12, 10), 3, padding=1, stride=2),
    "fold, patches side by side": lambda y: F.fold(F.unfold(y, 2, stride=2), (12, 10), 2, stride=2),
    "fold, dilated": lambda y: F.fold(F.unfold(y, (3, 2), 2, (2, 1)), (12, 10), (3, 2), 2, (2, 1)),
}
SAMPLES: dict[str, Form] = {
    "bilinear, zeros": lambda y: F.grid_sample(y, grid(y), align_corners=False),
    "bilinear, border": lambda y: F.grid_sample(y, grid(y), padding_mode="border", align_corners=True),
    "bilinear, reflection": lambda y: F.grid_sample(y, grid(y), padding_mode="reflection", align_corners=False),
    "nearest": lambda y: F.grid_sample(y, grid(y), mode="nearest", align_corners=False),
    "bicubic, zeros": lambda y: F.grid_sample(y, grid(y), mode="bicubic", align_corners=False),
    "bicubic, border": lambda y: F.grid_sample(y, grid(y), "bicubic", "border", align_corners=True),
    "bicubic, reflection": lambda y: F.grid_sample(y, grid(y), "bicubic", "reflection", align_corners=True),
    "volume": lambda y: F.grid_sample(volume(y), grid_of_volume(y), align_corners=False),
    "volume, reflection": lambda y: F.grid_sample(volume(y), grid_of_volume(y), "bilinear", "reflection", True),
    "volume, nearest": lambda y: F.grid_sample(volume(y), grid_of_volume(y), "nearest", "border", False),
    "affine": lambda y: F.grid_sample(
        y, F.affine_grid(theta(y), [y.shape[0], 4, 6, 5], align_corners=False), align_corners=False
    ),
}
SCATTERS: dict[str, Form] = {
    "sum": lambda y: few(y).scatter_add(1, places(y), tokens(y)),
    "sum, without own": lambda y: few(y).scatter_reduce(1, places(y), tokens(y), "sum", include_self=False),
    "mean": lambda y: few(y).scatter_reduce(1, places(y), tokens(y), "mean"),
    "mean, without own": lambda y: few(y).scatter_reduce(1, places(y), tokens(y), "mean", include_self=False),
    "largest": lambda y: few(y).scatter_reduce(1, places(y), tokens(y), "amax"),
    "largest, without own": lambda y: few(y).scatter_reduce(1, places(y), tokens(y), "amax", include_self=False),
    "smallest": lambda y: few(y).scatter_reduce(1, places(y), tokens(y), "amin"),
    "product, without own": lambda y: few(y).scatter_reduce(1, places(y), tokens(y), "prod", include_self=False),
    "merged mean": lambda y: merged(y, "mean"),
    "merged largest": lambda y: merged(y, "amax"),
    "smaller index": lambda y: few(y).scatter_add(1, places(y)[:, :20, :3], tokens(y)),
    "last axis": lambda y: few(y).scatter_add(2, places(y)[:, :9] % 4, tokens(y)[:, :9]),
    "index add": lambda y: few(y).index_add(1, torch.arange(120) % 9, tokens(y), alpha=2),
    "index reduce": lambda y: few(y).index_reduce(1, torch.arange(120) % 7, tokens(y), "amax"),
    "index fill": lambda y: few(y).index_fill(1, torch.tensor([2, 0]), 3.0),
    "assignment": written,
}
SPECTRA: dict[str, Form] = {
    "filter": lambda y: back(spectrum(y) * waves(12, 6)),
    "filter, full": lambda y: torch.fft.ifft2(torch.fft.fft2(y) * waves(12, 10)).real,
    "orthonormal": lambda y: torch.fft.rfft2(y, norm="ortho").abs(),
    "pairs": lambda y: torch.view_as_real(spectrum(y)).flatten(1),
    "tokens and channels": lambda y: torch.fft.fft(torch.fft.fft(tokens(y), dim=-1), dim=-2).real,
    "padded": lambda y: torch.fft.fft(y, n=16, norm="forward").imag,
    "cut": lambda y: torch.fft.fft(y, n=6).imag,
    "odd": lambda y: torch.fft.irfft(torch.fft.rfft(y[..., :9]) * waves(12, 5), n=9),
    "other length": lambda y: torch.fft.irfft(torch.fft.rfft(y) * waves(12, 6), n=14, norm="ortho"),
    "hermitian": lambda y: torch.fft.hfft(torch.fft.rfft(y), n=10),
    "three axes": lambda y: torch.fft.rfftn(y, dim=(1, 2, 3)).imag,
    "mixed channels": mixed_spectrum,
    "convolved": convolved_spectrum,
    "shrunk": shrunk_spectrum,
    "low frequencies": low_frequencies,
    "rotated pairs": lambda y: torch.view_as_real(
        torch.view_as_complex(y.unflatten(3, (5, 2)).contiguous()) * torch.polar(torch.ones(5), torch.arange(5.0))
    ).flatten(3),
}
OTHERS: dict[str, Form] = {
    "pad, circular": lambda y: F.pad(y, (2, 3, 1, 4), mode="circular"),
    "pad, reflected": lambda y: F.pad(y, (2, 3, 1, 4), mode="reflect"),
    "pad, repeated": lambda y: F.pad(y, (2, 3, 1, 4), mode="replicate"),
    "pad, cut": lambda y: F.pad(y, (-2, 3, -1, -4), value=1.5),
    "mish": lambda y: F.mish(y * 10),
    "gelu": F.gelu,
    "gelu, tanh": lambda y: F.gelu(y, approximate="tanh"),
    "bits and": lambda y: ((y > 0).long() * 11 - 5 & 6).to(y),
    "bits or": lambda y: ((y > 0).long() * 11 - 5 | 3).to(y),
    "bits xor": lambda y: ((y > 0).int() * 11 - 5 ^ 5).to(y),
    "bits inverted": lambda y: (~((y > 0).long() * 11 - 5)).to(y),
    "flags": lambda y: ((y > 0) & (y < 1) | (y > 2) ^ ~(y < 3)).to(y),
    "largest flag": lambda y: (y > 0).amax(1).to(y),
    "any": lambda y: (y > 1).any(1).to(y),
    "all": lambda y: (y > -1).flatten(1).all(1, keepdim=True).to(y),
    "infinite": lambda y: torch.isinf(y.relu().log()).to(y),
    "not a number": lambda y: torch.isnan((y - 9).relu() / (y - 9).relu()).to(y),
    "norms": lambda y: y.norm(p=1, dim=1) + y.norm(dim=1) + y.norm(p=float("inf"), dim=1),
    "extremes": lambda y: torch.cat((y.amax((2, 3)), y.amin((2, 3)), y.logsumexp((2, 3)), y.prod(1).flatten(1)), 1),
    "logarithms": lambda y: torch.cat(
        (y.logsumexp(1, keepdim=True), (y.masked_fill(y > 0, -math.inf).logsumexp((1, 3)) > 0).to(y)[:, None, :, None]),
        -1,
    ),
    "uneven parts": lambda y: torch.cat([part * i for i, part in enumerate(y.chunk(7, dim=3))], 3),
    "group norm": lambda y: F.group_norm(y + 0.1 * y.roll(1, 2), 2, torch.ones(4).to(y), torch.ones(4).to(y)),
    "median": lambda y: torch.cat((y.median(1)[0], y.kthvalue(3, 2)[0].flatten(1)[:, None, :10]), 1),
    "sorted": lambda y: y.flatten(1).sort(dim=1, stable=True)[0],
    "distances": lambda y: torch.cdist(flat(y), flat(y) + 1) + torch.cdist(flat(y), flat(y) + 1, p=1),
    "hypotenuse": lambda y: torch.hypot(y, y + 1),
}
FORMS: dict[str, Form] = {
    f"{kind}: {name}": form
    for kind, forms in (
        ("resize", RESIZES),
        ("pool", POOLS),
        ("sample", SAMPLES),
        ("scatter", SCATTERS),
        ("spectrum", SPECTRA),
        ("other", OTHERS),
    )
    for name, form in forms.items()
}

# Rows that stand for their kind in the fast tests.
QUICK = (
    "resize: nearest, to a size",
    "resize: bilinear, to a size",
    "resize: bicubic, by odd factors",
    "resize: bilinear, antialiased",
    "resize: trilinear",
    "pool: adaptive mean",
    "pool: adaptive maximum",
    "pool: mean, other divisor",
    "pool: maximum, windows apart",
    "pool: fold",
    "sample: bilinear, zeros",
    "sample: bicubic, reflection",
    "sample: volume",
    "scatter: mean",
    "scatter: merged largest",
    "scatter: smaller index",
    "spectrum: filter",
    "spectrum: mixed channels",
    "other: mish",
    "other: bits xor",
    "other: largest flag",
)

"""W8A8 by the method of PTQ4ViT (arXiv:2111.12293) in fake quantization: what accuracy INT8 can keep, without a time.

    python benchmarks/ptq4vit.py [--data FOLDER] [--calibration 32] [--save NAME]

Every linear layer, convolution and product of attention rounds both of its inputs to 8 bits and computes in FP32 in
PyTorch, so nothing is faster. Weights have a scale for each output channel, activations one a tensor. Softmax and
GELU have twin uniform ranges: two scales, that of the small values a power of two below the other. The scales are those
of 10 candidates that change the output least, weighed by the squared gradient of the cross-entropy with the network's
own prediction (the Hessian-guided metric). The code is ours and follows the paper; that of the authors was not run.

`--save NAME` adds the row to benchmarks/results/NAME.json, which `int8.py` has written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitdeploy.data import open_data
from vitdeploy.models.create import create_model
from vitdeploy.preprocess.recipe import Preprocessing

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"
LEVELS = 127
GELU_MIN = 0.17  # -0.17 is the smallest value of GELU
CANDIDATES = torch.linspace(0.3, 1.2, 10)

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Site:
    """One product in the network, by its place in the order of the calls.

    channel  axis of the output that the second input's scales follow; None where that is no weight
    kinds    of the first input: `softmax`, `gelu` or `plain`
    """

    product: Product
    kind: str
    channel: int | None
    inputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    left: Any = None
    right: Any = None


def uniform(x: Tensor, scale: Tensor) -> Tensor:
    """Symmetric rounding to 8 bits."""
    return (x / scale).round().clamp(-LEVELS - 1, LEVELS) * scale


def twin_softmax(x: Tensor, scale: Tensor) -> Tensor:
    """Values of 0 to 1 by two ranges of 128 levels: the lower one by `scale`, the upper one by 1 / 128."""
    upper = (x * 128).round().clamp(0, 128) / 128
    return torch.where(x < 128 * scale, (x / scale).round() * scale, upper)


def twin_gelu(x: Tensor, scale: Tensor) -> Tensor:
    """Positive values by `scale`, negative ones by the smallest power of two below it that covers them."""
    steps = torch.floor(torch.log2(LEVELS * scale / GELU_MIN)).clamp(min=0)
    low = scale / 2**steps
    return torch.where(x < 0, uniform(x, low), uniform(x, scale))


QUANTIZERS = {"plain": uniform, "softmax": twin_softmax, "gelu": twin_gelu}


class Products(TorchFunctionMode):
    """Every product of the network goes through `at`, attention written out as two of them."""

    def __init__(self, at: Callable[[int, Product, str, int | None, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (F.linear, F.conv2d):
            return self._layer(function, *args, **kwargs)
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function in (torch.matmul, Tensor.matmul, Tensor.__matmul__):
            return self._call(torch.matmul, "plain", None, *args)
        return function(*args, **kwargs)

    def _layer(self, function: Any, x: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **others: Any) -> Tensor:
        def product(a: Tensor, b: Tensor) -> Tensor:
            made: Tensor = function(a, b, None, *rest, **others)
            return made

        channel = 1 if function is F.conv2d else -1
        made = self._call(product, _kind(x), channel, x, weight)
        return made if bias is None else made + (bias[:, None, None] if channel == 1 else bias)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, **others: Any) -> Tensor:
        assert not any(others.values()), others
        scores = self._call(torch.matmul, "plain", None, q * (scale or q.shape[-1] ** -0.5), k.transpose(-2, -1))
        return self._call(torch.matmul, "softmax", None, scores.softmax(-1), v)

    def _call(self, product: Product, kind: str, channel: int | None, a: Tensor, b: Tensor) -> Tensor:
        self.count += 1
        return self.at(self.count - 1, product, kind, channel, a, b)


def _kind(x: Tensor) -> str:
    low = float(x.detach().amin())
    return "gelu" if -GELU_MIN - 1e-3 < low < -0.05 else "plain"


def record(network: torch.nn.Module, batches: list[Tensor]) -> list[tuple[Site, list[Tensor]]]:
    """Inputs and outputs of every product on the calibration images, and the squared gradients of the outputs."""
    sites: list[Site] = []
    gradients: list[list[Tensor]] = []

    def at(place: int, product: Product, kind: str, channel: int | None, a: Tensor, b: Tensor) -> Tensor:
        if place == len(sites):
            sites.append(Site(product, kind, channel))
        out = product(a, b)
        out.retain_grad()
        sites[place].inputs.append((a.detach(), b.detach()))
        sites[place].outputs.append(out)
        return out

    for images in batches:
        with Products(at):
            logits = network(images)
        F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum").backward()
    for site in sites:
        gradients.append([out.new_zeros(()) if out.grad is None else out.grad.square() + 1e-12 for out in site.outputs])
        site.outputs = [out.detach() for out in site.outputs]
    return list(zip(sites, gradients, strict=True))


def search(site: Site, weights: list[Tensor], rounds: int) -> None:
    """The scales of both inputs, in turns: that of one with the other rounded."""
    left, right = (torch.stack([pair[side].abs().amax() for pair in site.inputs]).amax() / LEVELS for side in (0, 1))
    site.left, site.right = (torch.tensor(2.0**-4 / 128) if site.kind == "softmax" else left), right
    if site.channel is not None:
        weight = site.inputs[0][1]
        site.right = weight.abs().flatten(1).amax(1).clamp(min=1e-8).view(-1, *[1] * (weight.dim() - 1)) / LEVELS
    first, second = site.left, site.right
    lower = [torch.tensor(2.0**-m / 128) for m in range(11)]
    for _ in range(rounds):
        site.right = _best(site, weights, [second * factor for factor in CANDIDATES], 1)
        site.left = _best(site, weights, lower if site.kind == "softmax" else [first * f for f in CANDIDATES], 0)


def _best(site: Site, weights: list[Tensor], scales: Sequence[Tensor], side: int) -> Tensor:
    """The scale of one side with the smallest error of the output; for weights, of each output channel by itself."""
    channel = site.channel if side == 1 else None
    losses = torch.zeros(len(scales), *(scales[0].shape[:1] if channel else ()))
    for (a, b), out, weight in zip(site.inputs, site.outputs, weights, strict=True):
        a, b = (a, uniform(b, site.right)) if side == 0 else (QUANTIZERS[site.kind](a, site.left), b)
        axes = [axis for axis in range(out.dim()) if channel is None or axis != channel % out.dim()]
        for number, scale in enumerate(scales):
            made = site.product(a, uniform(b, scale)) if side else site.product(QUANTIZERS[site.kind](a, scale), b)
            losses[number] += made.sub_(out).square_().mul_(weight).sum(axes)
    chosen, stacked = losses.argmin(0), torch.stack(list(scales))
    if channel is None:
        return stacked[chosen]
    return stacked.gather(0, chosen.view(1, -1, *[1] * (stacked.dim() - 2)))[0]


def rounded(sites: list[Site]) -> Callable[[int, Product, str, int | None, Tensor, Tensor], Tensor]:
    """Products of rounded inputs, as `Products` calls them."""

    def at(place: int, product: Product, kind: str, channel: int | None, a: Tensor, b: Tensor) -> Tensor:
        site = sites[place]
        return product(QUANTIZERS[site.kind](a, site.left), uniform(b, site.right))

    return at


def figures(logits: Any, reference: Any, targets: Any) -> dict[str, float]:
    """Top-1, agreement and signal-to-noise, as int8.py gives them."""
    noise = np.sum((logits - reference) ** 2, dtype=np.float64)
    return {
        "top1": round(100 * float(np.mean(logits.argmax(1) == targets)), 3),
        "agreement": round(100 * float(np.mean(logits.argmax(1) == reference.argmax(1))), 3),
        "snr_db": round(10 * float(np.log10(np.sum(reference**2, dtype=np.float64) / max(noise, 1e-30))), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=SHARED / "data/eurosat")
    parser.add_argument("--calibration", type=int, default=32, help="images, those of PTQ4ViT")
    parser.add_argument("--rounds", type=int, default=1, help="how often the two inputs of a product take turns")
    parser.add_argument("--images", type=int, help="of the validation set; default: all of them")
    parser.add_argument("--save", help="results/NAME.json gets the row")
    args = parser.parse_args()
    network = create_model("lemevit_tiny.eurosat").eval()
    recipe = Preprocessing((64, 64), mode="stretch", crop_ratio=1.0)  # that of the training, as in the bundle
    train, val = open_data(args.data / "eurosat_train.zip"), open_data(args.data / "eurosat_val.zip")
    images = torch.from_numpy(np.stack([train.tensor(index, recipe) for index in train.sample(args.calibration)]))
    found = record(network, list(images.split(8)))
    with torch.no_grad():
        for number, (site, weights) in enumerate(found):
            print(f"{number + 1} of {len(found)}: {site.kind}", end="\r", flush=True)
            search(site, weights, args.rounds)
            site.inputs, site.outputs = [], []
        sites = [site for site, _ in found]
        count = args.images or len(val)
        order = val.sample(count)
        logits, reference = [], []
        for start in range(0, count, 50):
            batch = np.stack([val.tensor(index, recipe) for index in order[start : start + 50]])
            reference.append(network(torch.from_numpy(batch)).numpy())
            with Products(rounded(sites)):
                logits.append(network(torch.from_numpy(batch)).numpy())
    row = figures(np.concatenate(logits), np.concatenate(reference), np.asarray(val.targets)[list(order)])
    print(json.dumps({"products": len(sites), "images": count, **row}))
    if args.save:
        path = HERE / f"results/{args.save}.json"
        report = json.loads(path.read_text())
        rows = report["networks"]["lemevit_tiny.eurosat"]["accuracy"].setdefault("pytorch", {})
        rows["ptq4vit-like (fake)"] = row
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Segment land cover: make scenes with masks, train an FPN on LeMeViT's features, and export it.

  python examples/segment.py scenes eurosat_train.zip scenes/train --count 1500
  python examples/segment.py scenes eurosat_val.zip scenes/val --count 200 --seed 1
  python examples/segment.py train scenes/train -o segment.safetensors
  vitdeploy export examples/segment.py:build --set checkpoint=segment.safetensors --image-size 128 --batch dynamic \\
      --labels scenes/train/labels.txt --preprocessing mode=stretch,crop_ratio=1 -o segment-fp32
  vitdeploy validate segment-fp16 segment-fp32 --data scenes/val --max-drop 0.5

A scene is a map of irregular regions. Each region has one class of the photographs in DATA (a folder of class folders,
or a zip of it, such as EuroSAT), and shows photographs of that class side by side. `images/` has the scenes, `masks/`
the class of each pixel, `labels.txt` the names of the classes. The same photographs and seed make the same scenes.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitdeploy import create_model
from vitdeploy.data import Dataset, open_data
from vitdeploy.data.masks import open_masks
from vitdeploy.errors import UsageError, VitDeployError
from vitdeploy.preprocess import IMAGENET_MEAN, IMAGENET_STD

BACKBONE = "lemevit_tiny.eurosat"
WIDTH = 64  # channels of the decoder
WARM_UP, WEIGHT_DECAY, GRADIENT_NORM = 20, 0.05, 1.0

Pixels = NDArray[np.uint8]


class Decoder(nn.Module):
    """A feature pyramid (Lin et al., 2017) whose maps are enlarged by transposed convolutions.

    channels  of the maps that it reads, high resolution first, each half as high and wide as the one before
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channel, width, 1) for channel in channels)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, stride=2) for _ in channels[1:])
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores [N, classes, h, w] at the resolution of the first map."""
        found: Tensor = self.lateral[-1](maps[-1])
        for level in range(len(maps) - 2, -1, -1):
            found = self.lateral[level](maps[level]) + self.enlarge[level](found)
        scores: Tensor = self.classify(self.smooth(found))
        return scores


class Segmenter(nn.Module):
    """LeMeViT-Tiny and the decoder: images [N, 3, H, W] -> scores [N, classes, H / 4, W / 4]."""

    def __init__(self, classes: int, image_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.backbone = create_model(BACKBONE, image_size=image_size)
        size = self.backbone.card.image_size
        with torch.no_grad():
            maps = self.backbone.forward_features(torch.zeros(1, 3, *size))
        self.decoder = Decoder([found.shape[1] for found in maps], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of each class at a quarter of the resolution."""
        scores: Tensor = self.decoder(self.backbone.forward_features(images))
        return scores


def build(checkpoint: str | None = None, classes: int = 10, image_size: int = 128) -> Segmenter:
    """The network for `vitdeploy export examples/segment.py:build`, with random weights of the decoder or trained."""
    torch.manual_seed(0)
    weights = None if checkpoint is None else load_file(checkpoint)
    if weights is not None:
        classes = len(weights["decoder.classify.bias"])
    model = Segmenter(classes, image_size)
    if weights is not None:
        model.load_state_dict(weights)
    return model.eval()


def regions(size: int, rng: np.random.Generator, sites: int) -> NDArray[np.int64]:
    """Which of `sites` regions each pixel belongs to, [size, size]: the nearest site, over a wavy ground."""
    places = rng.uniform(0, size, (sites, 2))
    ground = np.stack(np.mgrid[:size, :size].astype(np.float64))
    waves = rng.uniform(2, 5, (2, 2, 3)), rng.uniform(0, 2 * math.pi, (2, 2, 3)), rng.uniform(0.02, 0.06, (2, 2, 3))
    bent = ground.copy()
    for axis in (0, 1):
        for along in (0, 1):
            for height, phase, pace in zip(*(wave[axis, along] for wave in waves), strict=True):
                bent[axis] += height * np.sin(2 * math.pi * pace * ground[along] + phase)
    distance = np.square(bent[None] - places[:, :, None, None]).sum(axis=1)
    nearest: NDArray[np.int64] = distance.argmin(axis=0)
    return nearest


def make_scene(photographs: Dataset, of_class: Sequence[Sequence[int]], size: int, seed: int) -> tuple[Pixels, Pixels]:
    """A scene [size, size, 3] and the class of each of its pixels [size, size]."""
    rng = np.random.default_rng(seed)
    sites = int(rng.integers(3, 7))
    where = regions(size, rng, sites)
    scene, mask = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    for site in range(sites):
        kind = int(rng.integers(len(of_class)))
        ground = _paved(photographs, of_class[kind], size, rng)
        scene[where == site], mask[where == site] = ground[where == site], kind
    return scene, mask


def _paved(photographs: Dataset, indices: Sequence[int], size: int, rng: np.random.Generator) -> Pixels:
    """Photographs of one class side by side, all of the size of the first, each turned and mirrored at random."""
    ground = np.zeros((size, size, 3), np.uint8)
    side = min(_picture(photographs, 0).size)
    for top in range(0, size, side):
        for left in range(0, size, side):
            picture = _picture(photographs, int(rng.choice(indices)))
            tile = np.asarray(picture if picture.size == (side, side) else picture.resize((side, side)))
            tile = np.rot90(tile, int(rng.integers(4)))[:, :: int(rng.choice([-1, 1]))]
            ground[top : top + side, left : left + side] = tile[: size - top, : size - left]
    return ground


def _picture(photographs: Dataset, index: int) -> Image.Image:
    image = photographs.read(index)
    return (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")


def write_scenes(data: Path, output: Path, count: int, size: int, seed: int) -> None:
    """Make `count` scenes of the photographs in `data`."""
    photographs = open_data(data)
    if photographs.targets is None or photographs.classes is None:
        raise UsageError(f"the photographs of {data} have no classes", fix="a folder for each class")
    if (output / "images").exists():
        raise UsageError(f"{output} has images already", fix="another folder")
    of_class = [np.flatnonzero(photographs.targets == kind) for kind in range(len(photographs.classes))]
    for folder in ("images", "masks"):
        (output / folder).mkdir(parents=True)
    palette = np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist()
    for number in range(count):
        scene, mask = make_scene(photographs, of_class, size, seed * 1_000_003 + number)
        Image.fromarray(scene).save(output / "images" / f"{number:05}.png")
        drawn = Image.fromarray(mask)
        drawn.putpalette(palette)
        drawn.save(output / "masks" / f"{number:05}.png")
    (output / "labels.txt").write_text("\n".join(photographs.classes) + "\n")


class Scenes(NamedTuple):
    """Pixels uint8 [N, H, W, 3] and class numbers [N, H, W]."""

    pixels: Tensor
    masks: Tensor


def read_scenes(data: Path) -> tuple[Scenes, list[str]]:
    """Scenes that are all of one size, and the names of the classes."""
    masked = open_masks(data)
    labels = (data / "labels.txt").read_text().split("\n")[:-1]
    pixels = np.stack([np.asarray(masked.images.read(index)) for index in range(len(masked))])
    masks = np.stack([masked.mask(index) for index in range(len(masked))])
    return Scenes(torch.from_numpy(pixels), torch.from_numpy(masks)), labels


def normalise(pixels: Tensor) -> Tensor:
    """Pixels uint8 [N, H, W, 3] as the network takes them."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def turned(scenes: Scenes) -> Scenes:
    """All of them turned by the same multiple of 90 degrees and perhaps mirrored, images and masks alike."""
    quarter, mirrored = int(torch.randint(4, ())), bool(torch.rand(()) < 0.5)
    pixels, masks = (column.rot90(quarter, (1, 2)) for column in scenes)
    return Scenes(pixels.flip(2), masks.flip(2)) if mirrored else Scenes(pixels, masks)


def train(model: Segmenter, scenes: Scenes, *, steps: int, batch: int, rate: float, seed: int = 0) -> float:
    """Train in place; returns the loss of the last steps. The backbone learns at a tenth of the rate."""
    torch.manual_seed(seed)
    model.train()
    groups = [
        {"params": list(model.decoder.parameters()), "lr": rate},
        {"params": list(model.backbone.parameters()), "lr": rate / 10},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    start, losses = time.perf_counter(), []
    for step in range(steps):
        drawn = torch.randint(len(scenes.pixels), (batch,))
        pixels, masks = turned(Scenes(scenes.pixels[drawn], scenes.masks[drawn]))
        scores = F.interpolate(model(normalise(pixels)), size=masks.shape[1:], mode="bilinear")
        loss = F.cross_entropy(scores, masks, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 25 == 0:
            minutes = (time.perf_counter() - start) / 60
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-25:]):.3f}  {minutes:.1f} min", file=sys.stderr)
    model.eval()
    return float(np.mean(losses[-10:]))


def run(args: argparse.Namespace) -> int:
    """Make scenes, or train."""
    if args.command == "scenes":
        write_scenes(args.data, args.output, args.count, args.size, args.seed)
        print(f"{args.output} has {args.count} scenes of {args.size}x{args.size} pixels with masks")
        return 0
    if args.output.suffix != ".safetensors":
        raise UsageError(f"cannot write a checkpoint as {args.output}", fix=f"-o {args.output.stem}.safetensors")
    scenes, labels = read_scenes(args.data)
    torch.manual_seed(args.seed)
    model = Segmenter(len(labels), scenes.pixels.shape[1])
    loss = train(model, scenes, steps=args.steps, batch=args.batch, rate=args.lr, seed=args.seed)
    save_file(model.state_dict(), args.output)
    print(f"{args.output} holds the weights after {args.steps} steps, loss {loss:.3f}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scenes = commands.add_parser("scenes", help="make scenes with masks")
    scenes.add_argument("data", type=Path, metavar="DATA", help="photographs in folders of their classes, or a zip")
    scenes.add_argument("output", type=Path, metavar="DIR")
    scenes.add_argument("--count", type=int, default=1500, metavar="N", help="scenes (default 1500)")
    scenes.add_argument("--size", type=int, default=128, metavar="N", help="pixels of a side (default 128)")
    scenes.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default 0)")
    training = commands.add_parser("train", help="train the network on scenes")
    training.add_argument("data", type=Path, metavar="DIR", help="scenes")
    training.add_argument("--steps", type=int, default=300, metavar="N", help="default 300")
    training.add_argument("--batch", type=int, default=16, metavar="N", help="scenes a step (default 16)")
    training.add_argument("--lr", type=float, default=2e-3, metavar="X", help="highest learning rate (default 2e-3)")
    training.add_argument("--seed", type=int, default=0, metavar="N", help="of order and start (default 0)")
    training.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="FILE.safetensors")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0 done, 2 wrong usage or bad input."""
    try:
        return run(parse(argv))
    except VitDeployError as error:
        print("error: " + "\n".join(error.lines()), file=sys.stderr)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

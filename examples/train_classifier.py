"""Train a network of the zoo on your own images, on a GPU where there is one and on the CPU otherwise.

  python examples/train_classifier.py lemevit_tiny photos/ --val held_out/ --image-size 64 -o photos.safetensors
  vitdeploy export lemevit_tiny --checkpoint photos.safetensors --fp16

DATA is a folder with one folder of images for each class (`class/file.jpg`), a zip of such a folder, or an .npz with
images and the names of their classes (see vitdeploy/data). Classes are in the order of their sorted names, or of the
lines of a `labels.txt` beside them. All images are decoded once and kept in memory at the network's size, 3 bytes a
pixel.

AdamW with cosine decay after a short warm-up, label smoothing, random flips, clipped gradients, bfloat16 autocast.
Scored and saved are averages of the weights over the last steps. The checkpoint is written after each epoch that is
better on --val (without it, after each epoch), so that Ctrl-C loses no more than the epoch under way.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy import create_model
from vitdeploy.cli.export import hyperparameter, image_size
from vitdeploy.data import Dataset, open_data
from vitdeploy.errors import UsageError, VitDeployError
from vitdeploy.models.cagevit import CageViT
from vitdeploy.models.checkpoints import save_checkpoint
from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing

WEIGHT_DECAY, LABEL_SMOOTHING, GRADIENT_NORM, GUIDE_LOSS = 0.05, 0.1, 1.0, 0.4
WARM_UP = 0.05  # of all steps
AVERAGING = 0.998  # part of the averaged weights that outlives a step; less in the first steps
INTERRUPTED = 130


class ImageDataset(NamedTuple):
    """Pixels uint8 [N, 3, H, W] in the network's channel order, and class numbers [N]."""

    pixels: Tensor
    classes: Tensor


def choose_recipe(published: Preprocessing, data: Dataset) -> Preprocessing:
    """The network's published preprocessing; nothing but normalisation where all images have its size already.

    Published recipes enlarge an image and cut its border off, which would only lose pixels that fit.
    """
    for index in range(len(data)):
        if np.asarray(data.read(index)).shape[:2] != published.size:
            return published
    return replace(published, mode="stretch", crop_ratio=1.0)


def load_images(data: Dataset, recipe: Preprocessing) -> ImageDataset:
    """Decode all images with the package's own preprocessing, short of the normalisation."""
    if data.targets is None:
        raise UsageError(f"the images of {data.where} have no labels", fix="a folder for each class")
    pixels = torch.empty((len(data), 3, *recipe.size), dtype=torch.uint8)
    for index, row in enumerate(pixels):
        rgb = data.tensor(index, recipe, normalised=False)
        ordered = rgb[:, :, ::-1] if recipe.channels == "BGR" else rgb
        row[:] = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
    return ImageDataset(pixels, torch.from_numpy(data.targets))


def normalize(pixels: Tensor, recipe: Preprocessing) -> Tensor:
    """Pixels uint8 [N, 3, H, W] -> the network's input, as `preprocess` computes it."""
    mean, std = (torch.tensor(v, device=pixels.device).reshape(3, 1, 1) for v in (recipe.mean, recipe.std))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor, kind: str) -> Tensor:
    """`flip`: each image mirrored or not; `rot90`: also turned by a multiple of 90 degrees; `none`: as they are."""
    if kind != "none":
        mirrored = torch.rand(len(pixels), 1, 1, 1) < 0.5
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
    if kind == "rot90":
        turns = torch.randint(4, (len(pixels),))
        for k in (1, 2, 3):
            pixels[turns == k] = pixels[turns == k].rot90(k, (2, 3))
    return pixels


def loss_of(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Smoothed cross entropy. CageViT's guide has a loss of its own: choosing patches passes it no gradient."""

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), classes, label_smoothing=LABEL_SMOOTHING)

    if not isinstance(model, CageViT):
        return loss(model(images))
    guidance = model.guide(images)
    return loss(model.encode(images, model.selection(guidance.score))) + GUIDE_LOSS * loss(guidance.logits)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights and BatchNorm statistics a little towards the model's."""
    kept = min(AVERAGING, (1 + step) / (10 + step))
    for mine, current in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(current, 1 - kept)
        else:
            mine.copy_(current)


@torch.inference_mode()
def accuracy(model: nn.Module, images: ImageDataset, recipe: Preprocessing, device: torch.device, batch: int) -> float:
    """Top-1 in percent, computed in float32 as an exported bundle is held to."""
    right = 0
    for pixels, classes in zip(*(torch.split(column, batch) for column in images), strict=True):
        right += int((model(normalize(pixels.to(device), recipe)).argmax(1).cpu() == classes).sum())
    return 100 * right / len(images.classes)


def train(
    model: nn.Module, card: ModelCard, training: ImageDataset, validation: ImageDataset | None, args: argparse.Namespace
) -> int:
    """Train and write the best averaged weights to `args.output`; returns the exit code."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).train()
    average = copy.deepcopy(model).eval()
    count, epochs, batch = len(training.classes), args.epochs, args.batch
    epoch_steps = max(1, count // batch)
    steps = epochs * epoch_steps
    warm_up = max(1, round(WARM_UP * steps))
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, args.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    start, step, best, written = time.perf_counter(), 0, -1.0, "nothing was written"
    try:
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=device)
            # A last batch of fewer images is left out: BatchNorm would learn noise from it.
            for indices in torch.split(torch.randperm(count)[: epoch_steps * batch], batch):
                images = normalize(augment(training.pixels[indices], args.augment).to(device), card.preprocessing)
                with torch.autocast(device.type, torch.bfloat16, enabled=args.autocast):
                    loss = loss_of(model, images, training.classes[indices].to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
                optimizer.step()
                schedule.step()
                update_average(average, model, step)
                total += loss.detach()
                step += 1
                if sys.stderr.isatty():
                    show(f"epoch {epoch}/{epochs}  step {step}/{steps}", start, step / steps, end="\r")
            line = f"epoch {epoch}/{epochs}  loss {float(total) / epoch_steps:.3f}"
            if not total.isfinite():
                raise UsageError(f"training diverged in epoch {epoch}; {written}", fix=f"--lr {args.lr / 3:.1g}")
            if validation:
                score = accuracy(average, validation, card.preprocessing, device, batch)
                line += f"  top-1 {score:.2f} %"
            if not validation or score > best:
                save_checkpoint(args.output, average, card)
                written = f"{args.output} holds the weights of epoch {epoch}"
                if validation:
                    best, written = score, f"{written}, top-1 {score:.2f} % of {len(validation.classes)} images"
            show(line, start, step / steps)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {written}", file=sys.stderr)
        return INTERRUPTED
    print(f"{written}\nnext: vitdeploy export {args.model} --checkpoint {args.output}")
    return 0


def show(text: str, start: float, done: float, end: str = "\n") -> None:
    """`text`, the time since `start` and the time left when `done` (0 to 1) is behind us, on stderr."""
    taken = (time.perf_counter() - start) / 60
    line = f"{text}  {taken:.1f} min, {taken / done - taken:.1f} min left"
    print(line.ljust(79), end=end, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> int:
    """Check the arguments, read the images, train."""
    if args.output.suffix != ".safetensors":
        raise UsageError(f"cannot write a checkpoint as {args.output}", fix=f"-o {args.output.stem}.safetensors")
    if args.output.exists() and not args.force:
        raise UsageError(f"{args.output} exists", fix="--force, or another -o")
    if min(args.epochs, args.batch) < 1 or args.lr <= 0:
        raise UsageError("--epochs, --batch and --lr must be positive")
    data = open_data(args.data)
    labels = data.classes or ()
    if len(labels) < 2:
        found = f"there is only one class in {args.data}: {labels[0]}" if labels else f"{args.data} names no classes"
        raise UsageError(found, fix="a folder for each class")
    unseen = open_data(args.val, labels=labels) if args.val else None
    torch.manual_seed(args.seed)
    model = create_model(
        args.model, num_classes=len(labels), image_size=args.image_size, hyperparameters=dict(args.set)
    )
    card: ModelCard = model.card  # type: ignore[assignment]
    height, width = card.image_size
    if args.augment == "rot90" and height != width:
        raise UsageError(f"{height}x{width} images cannot be turned by 90 degrees", fix="--augment flip")
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2].startswith("gamma"):
            nn.init.constant_(parameter, args.layer_scale)
    card = replace(card, labels=labels, preprocessing=choose_recipe(card.preprocessing, data))
    print(f"decoding {len(data) + len(unseen or ())} images of {len(labels)} classes", file=sys.stderr)
    training = load_images(data, card.preprocessing)
    validation = load_images(unseen, card.preprocessing) if unseen else None
    return train(model, card, training, validation, args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a name from `vitdeploy models`")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of class folders, or a zip of it")
    parser.add_argument("--val", type=Path, metavar="DATA", help="images to score every epoch on")
    parser.add_argument("--image-size", type=image_size, metavar="N", help="N, or HEIGHTxWIDTH (default: published)")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="times through DATA (default 12)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images a step (default 64)")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="highest learning rate (default 1e-3)")
    parser.add_argument("--augment", choices=("none", "flip", "rot90"), default="flip", help="default: flip")
    parser.add_argument(
        "--layer-scale", type=float, default=0.1, metavar="X", help="start of Dual-ViT's layer scale (default 0.1)"
    )
    parser.add_argument(
        "--set", type=hyperparameter, action="append", default=[], metavar="KEY=VALUE", help="e.g. windows=8,8,4,2"
    )
    parser.add_argument("--no-autocast", dest="autocast", action="store_false", help="float32 throughout")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of order and augmentation (default 0)")
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="FILE.safetensors")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0 done, 2 wrong usage or bad input, 130 interrupted."""
    try:
        return run(parse(argv))
    except VitDeployError as error:
        print("error: " + "\n".join(error.lines()), file=sys.stderr)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 2


if __name__ == "__main__":
    sys.exit(main())

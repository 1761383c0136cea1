"""Train a network of the zoo on your own pictures, on a GPU where there is one and on the CPU otherwise.

  python examples/train_classifier.py lemevit_tiny photos/ --val held_out/ --image-size 64 -o photos.safetensors
  vitdeploy export lemevit_tiny --checkpoint photos.safetensors --fp16

DATA is a folder with one folder of pictures for each class (`class/file.jpg`), or a zip of such a folder. The classes
are numbered in the order of their sorted names, or as the lines of a `labels.txt` beside them say. All pictures are
decoded once and kept in memory at the network's size, 3 bytes a pixel.

The recipe: AdamW with cosine decay after a short warm-up, label smoothing, random flips, clipped gradients, bfloat16
autocast. Scored and saved are the averages of the weights over the last steps. The checkpoint is written after each
epoch that is better on --val (after each epoch without it), so that Ctrl-C loses no more than the epoch under way.
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import math
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitdeploy import create_model
from vitdeploy.cli.export import image_size
from vitdeploy.errors import InputError, UsageError, VitDeployError
from vitdeploy.models.cagevit import CageViT
from vitdeploy.models.checkpoints import save_checkpoint
from vitdeploy.runtime.preprocess import Preprocessing, preprocess

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
WEIGHT_DECAY, LABEL_SMOOTHING, GRADIENT_NORM = 0.05, 0.1, 1.0
WARM_UP = 0.05  # of all steps
AVERAGING = 0.998  # the average forgets about 1/500 of itself a step, more in the first steps
GUIDE_LOSS = 0.4
INTERRUPTED = 130

Entry = Path | zipfile.Path


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures: pixels uint8 [N, 3, H, W] in the network's channel order, class numbers int64 [N]."""

    pixels: Tensor
    classes: Tensor

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and classes, `size` at a time; in a given order a smaller last batch is left out."""
        if order is None:
            order = torch.arange(len(self.classes))
        elif len(order) > size:
            order = order[: len(order) // size * size]
        for indices in order.split(size):
            yield self.pixels[indices], self.classes[indices]


def find_pictures(data: Path) -> tuple[tuple[str, ...], list[tuple[Entry, str]]]:
    """Class names in their order, and each picture's file and class name."""
    root: Entry
    if data.is_dir():
        root = data
    elif zipfile.is_zipfile(data):
        root = zipfile.Path(data)
    else:
        raise UsageError(f"{data} is neither a folder nor a zip of one" if data.exists() else f"there is no {data}")
    folders = sorted((f for f in root.iterdir() if f.is_dir() and f.name[0] not in "._"), key=lambda f: f.name)
    found = [
        (file, folder.name)
        for folder in folders
        for file in sorted(folder.iterdir(), key=lambda f: f.name)
        if file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")
    ]
    if not found:
        raise UsageError(f"{data} holds no pictures", why="they are expected as class/file.jpg", fix=f"ls {data}")
    listed = root / "labels.txt"
    labels = listed.read_text(encoding="utf-8").split("\n") if listed.is_file() else {name: 0 for _, name in found}
    return tuple(label.strip() for label in labels if label.strip()), found


def decode(entry: Entry, recipe: Preprocessing) -> Tensor:
    """The pixels uint8 [3, H, W] that the package's own `preprocess` would normalise."""
    try:
        with Image.open(io.BytesIO(entry.read_bytes())) as image:
            scaled = preprocess(image, replace(recipe, mean=(0, 0, 0), std=(1, 1, 1)))
    except (VitDeployError, OSError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError) as error:
        raise InputError(f"{entry} cannot be read", why=str(error), fix="repair it or take it out") from error
    return torch.from_numpy(np.rint(scaled * 255).astype(np.uint8))


def load_pictures(data: Path, files: Sequence[tuple[Entry, str]], labels: Sequence[str], recipe: Preprocessing) -> Pictures:
    """Decode all `files`; a UsageError for a class that is not one of `labels`."""
    number = {label: i for i, label in enumerate(labels)}
    if unknown := sorted({name for _, name in files} - set(number)):
        raise UsageError(f"{data}: {unknown[0]} is not one of the classes", why=f"they are {', '.join(labels)}")
    pixels = torch.empty((len(files), 3, *recipe.size), dtype=torch.uint8)
    for row, (entry, _) in zip(pixels, files, strict=True):
        row[:] = decode(entry, recipe)
    return Pictures(pixels, torch.tensor([number[name] for _, name in files]))


def choose_recipe(card_recipe: Preprocessing, files: Sequence[tuple[Entry, str]]) -> Preprocessing:
    """The network's published preprocessing; nothing but normalisation where all pictures have its size already.

    Published recipes enlarge a picture and cut its border off, which would only blur and waste pixels that fit.
    """
    for entry, _ in files:
        try:
            with entry.open("rb") as file, Image.open(file) as image:
                if (image.height, image.width) != card_recipe.size:
                    return card_recipe
        except OSError:
            return card_recipe  # `decode` will say what is wrong with it
    return replace(card_recipe, mode="stretch", crop_ratio=1.0)


def normalize(pixels: Tensor, recipe: Preprocessing) -> Tensor:
    """Pixels uint8 [N, 3, H, W] -> the network's input, as `preprocess` computes it."""
    mean, std = (torch.tensor(v, device=pixels.device).reshape(3, 1, 1) for v in (recipe.mean, recipe.std))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor, kind: str) -> Tensor:
    """`flip`: each picture mirrored or not; `rot90`: also turned by a multiple of 90 degrees; `none`: as they are."""
    if kind == "none":
        return pixels
    mirrored = torch.rand(len(pixels)) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    if kind == "rot90":
        turns = torch.randint(4, (len(pixels),))
        for k in (1, 2, 3):
            pixels[turns == k] = pixels[turns == k].rot90(k, (2, 3))
    return pixels


def loss_of(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Smoothed cross entropy; CageViT's guide, whose choice of patches passes no gradient, learns from a loss of its own."""
    if isinstance(model, CageViT):
        guidance = model.guide(images)
        guide_loss = F.cross_entropy(guidance.logits.float(), classes, label_smoothing=LABEL_SMOOTHING)
        logits = model.encode(images, model.selection(guidance.score))
    else:
        guide_loss, logits = None, model(images)
    loss = F.cross_entropy(logits.float(), classes, label_smoothing=LABEL_SMOOTHING)
    return loss if guide_loss is None else loss + GUIDE_LOSS * guide_loss


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights and BatchNorm statistics a little towards the model's."""
    towards = 1 - min(AVERAGING, (1 + step) / (10 + step))
    for mine, current in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(current, towards)
        else:
            mine.copy_(current)


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: Pictures, recipe: Preprocessing, device: torch.device, batch: int) -> float:
    """Top-1 in percent, in float32: the number that an exported bundle has to reproduce."""
    right = 0
    for pixels, classes in pictures.batches(batch):
        right += int((model(normalize(pixels.to(device), recipe)).argmax(1).cpu() == classes).sum())
    return 100 * right / len(pictures.classes)


def train(model: nn.Module, training: Pictures, validation: Pictures | None, args: argparse.Namespace) -> int:
    """Train, and write the best averaged weights to `args.output`; returns the exit code."""
    card, device = model.card, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).train()
    average = copy.deepcopy(model).eval()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    steps = args.epochs * max(1, len(training.classes) // args.batch)
    warm_up = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * t / steps))
    )
    start, step, best, written = time.perf_counter(), 0, -1.0, "nothing was written"
    shown, every = start, 1 if sys.stderr.isatty() else 60
    try:
        for epoch in range(1, args.epochs + 1):
            losses = []
            for pixels, classes in training.batches(args.batch, torch.randperm(len(training.classes))):
                images = normalize(augment(pixels, args.augment).to(device), card.preprocessing)
                with torch.autocast(device.type, torch.bfloat16, enabled=args.autocast):
                    loss = loss_of(model, images, classes.to(device))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
                optimizer.step()
                schedule.step()
                update_average(average, model, step)
                losses.append(loss.detach())
                step += 1
                if time.perf_counter() - shown > every:
                    shown = time.perf_counter()
                    report(f"epoch {epoch}/{args.epochs}  step {step}/{steps}  loss {loss.item():.3f}", start, step, steps)
            mean_loss = float(torch.stack(losses).mean())
            if not math.isfinite(mean_loss):
                raise UsageError(
                    f"the loss became {mean_loss} in epoch {epoch}; {written}", fix=f"--lr {args.lr / 3:.1g}"
                )
            score = accuracy(average, validation, card.preprocessing, device, args.batch) if validation else None
            if score is None or score > best:
                save_checkpoint(args.output, average, card)
                best, written = score or 0.0, f"{args.output} holds the weights of epoch {epoch}"
            top1 = f"  validation top-1 {score:.2f} %" if score is not None else ""
            report(f"epoch {epoch}/{args.epochs}  loss {mean_loss:.3f}{top1}", start, step, steps, end="\n")
    except KeyboardInterrupt:
        print(f"\ninterrupted: {written}", file=sys.stderr)
        return INTERRUPTED
    print(f"{written}" + (f": {best:.2f} % of {len(validation.classes)} pictures" if validation else ""))
    print(f"next: vitdeploy export {args.model} --checkpoint {args.output}")
    return 0


def report(text: str, start: float, step: int, steps: int, end: str | None = None) -> None:
    """`text` with the time taken and the time left, on stderr; on a terminal the next report replaces it."""
    taken = time.perf_counter() - start
    left = taken / step * (steps - step)
    end = end or ("\r" if sys.stderr.isatty() else "\n")
    print(f"{text}  {taken / 60:.1f} min, {left / 60:.1f} min left", end=end, file=sys.stderr, flush=True)


def prepare(args: argparse.Namespace) -> tuple[nn.Module, Pictures, Pictures | None]:
    """The network and its pictures; every complaint about the arguments comes before the first epoch."""
    if args.output.suffix != ".safetensors":
        raise UsageError(f"cannot write a checkpoint as {args.output}", fix=f"-o {args.output.stem}.safetensors")
    if args.output.exists() and not args.force:
        raise UsageError(f"{args.output} exists", fix="--force, or another -o")
    labels, files = find_pictures(args.data)
    if len(labels) < 2:
        raise UsageError(f"{args.data} holds one class only: {labels[0]}", fix="a folder for each of two classes or more")
    torch.manual_seed(args.seed)
    model = create_model(
        args.model, num_classes=len(labels), image_size=args.image_size, hyperparameters=dict(args.set)
    )
    height, width = model.card.image_size
    if args.augment == "rot90" and height != width:
        raise UsageError(f"{height}x{width} pictures cannot be turned by 90 degrees", fix="--augment flip")
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2].startswith("gamma"):
            nn.init.constant_(parameter, args.layer_scale)
    recipe = choose_recipe(model.card.preprocessing, files)
    model.card = replace(model.card, labels=labels, preprocessing=recipe)
    print(f"decoding {len(files)} pictures of {len(labels)} classes", file=sys.stderr)
    training = load_pictures(args.data, files, labels, recipe)
    validation = load_pictures(args.val, find_pictures(args.val)[1], labels, recipe) if args.val else None
    return model, training, validation


def hyperparameter(text: str) -> tuple[str, Any]:
    """`windows=8,8,4,2` as a name and a Python value."""
    name, _, value = text.partition("=")
    try:
        return name.strip(), ast.literal_eval(value.strip())
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as windows=8,8,4,2") from None


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a name from `vitdeploy models`")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of class folders, or a zip of it")
    parser.add_argument("--val", type=Path, metavar="DATA", help="pictures to score every epoch on, and keep the best")
    parser.add_argument("--image-size", type=image_size, metavar="N", help="pixels: N, or HEIGHTxWIDTH (default: 224)")
    parser.add_argument("--epochs", type=positive, default=12, metavar="N", help="times through DATA (default 12)")
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="pictures a step (default 64)")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="highest learning rate (default 1e-3)")
    parser.add_argument("--augment", choices=("none", "flip", "rot90"), default="flip", help="default: flip")
    parser.add_argument("--layer-scale", type=float, default=0.1, metavar="X", help="where it starts (default 0.1)")
    parser.add_argument(
        "--set", type=hyperparameter, action="append", default=[], metavar="NAME=VALUE", help="e.g. windows=8,8,4,2"
    )
    parser.add_argument("--no-autocast", dest="autocast", action="store_false", help="compute in float32 throughout")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="order and augmentation (default 0)")
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="FILE.safetensors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0 done, 2 wrong usage or bad input, 130 interrupted."""
    args = parser().parse_args(argv)
    try:
        return train(*prepare(args), args)
    except VitDeployError as error:
        print("error: " + "\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

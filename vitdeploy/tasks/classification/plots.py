"""An accuracy check as images: a confusion matrix (SVG) and a sheet of the images that flipped (PNG)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitdeploy.errors import InputError
from vitdeploy.preprocess import Preprocessing, to_pixels
from vitdeploy.statistics import confusion

if TYPE_CHECKING:
    from vitdeploy.tasks.classification.comparison import Comparison, ImageSet

CELL, MARGIN, TOP = 44, 190, 210
INK, RIGHT, WRONG, LONGEST_NAME = "#222222", "#4477aa", "#bb5566", 24
# More classes than this cannot be read; those that changed most are shown.
MOST_CLASSES = 40

MOST_IMAGES, COLUMNS, SIDE, CAPTION = 60, 6, 160, 44


def confusion_svg(run: Comparison, images: ImageSet) -> str:
    """Counts by right class (rows) and chosen class (columns), each with its difference from the baseline."""
    size = len(images.classes)
    counts, before = (confusion(a.targets, a.chosen, size) for a in (run.answers, run.baseline))
    change = counts - before
    shown = most_interesting(counts, change)
    totals = np.maximum(counts.sum(axis=1), 1)
    width, height = MARGIN + CELL * len(shown) + 110, TOP + CELL * len(shown) + 20
    part = "" if len(shown) == size else f" ({len(shown)} of {size} classes)"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(width, 640)}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="16" y="24" font-size="14">{escape(run.answers.name)}{part}</text>',
        '<text x="16" y="44">Rows: right class. Columns: chosen class. Small: change from the baseline.</text>',
    ]
    for place, kind in enumerate(shown):
        full = images.classes[kind]
        name = escape(full if len(full) <= LONGEST_NAME else full[: LONGEST_NAME - 1] + "…")
        middle = CELL * place + CELL / 2
        lines.append(f'<text x="{MARGIN - 8}" y="{TOP + middle + 4:g}" text-anchor="end">{name}</text>')
        turn = f"rotate(-60 {MARGIN + middle:g} {TOP - 8})"
        lines.append(f'<text x="{MARGIN + middle:g}" y="{TOP - 8}" transform="{turn}">{name}</text>')
    for row, right in enumerate(shown):
        for column, chosen in enumerate(shown):
            count, difference = int(counts[right, chosen]), int(change[right, chosen])
            if count or difference:
                share = float(counts[right, chosen] / totals[right])
                colour = RIGHT if right == chosen else WRONG
                lines += _cell(MARGIN + CELL * column, TOP + CELL * row, count, difference, colour, share)
    edge = f'<rect x="{MARGIN}" y="{TOP}" width="{CELL * len(shown)}" height="{CELL * len(shown)}" fill="none"'
    return "\n".join([*lines, f'{edge} stroke="{INK}"/>', "</svg>", ""])


def most_interesting(counts: np.ndarray, change: np.ndarray, most: int = MOST_CLASSES) -> list[int]:
    """Classes in DATA or chosen, at most `most`: those whose counts changed most, then those confused most."""
    wrong = counts - np.diag(counts.diagonal())
    changed, confused = (np.abs(m).sum(axis=0) + np.abs(m).sum(axis=1) for m in (change, wrong))
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    order = sorted(used.tolist(), key=lambda kind: (-changed[kind], -confused[kind], kind))
    return sorted(order[:most])


def _cell(x: int, y: int, count: int, difference: int, colour: str, share: float) -> list[str]:
    middle = x + CELL / 2
    lines = [
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{colour}" fill-opacity="{0.8 * share:.3f}"/>',
        f'<text x="{middle:g}" y="{y + 20}" text-anchor="middle">{count}</text>',
    ]
    if difference:
        lines.append(f'<text x="{middle:g}" y="{y + 36}" text-anchor="middle" font-size="10">{difference:+d}</text>')
    return lines


def contact_sheet(run: Comparison, images: ImageSet) -> Image.Image | None:
    """The images whose best class changed, each with its right class and both answers; None where none did.

    Lost ones come first, then won ones, then those that are wrong either way; at most MOST_IMAGES.
    """
    positions = _lost_first(run)[:MOST_IMAGES]
    if not positions:
        return None
    columns = min(COLUMNS, len(positions))
    rows = -(-len(positions) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + 8) + 8, rows * (SIDE + CAPTION + 8) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, position in enumerate(positions):
        x, y = 8 + number % columns * (SIDE + 8), 8 + number // columns * (SIDE + CAPTION + 8)
        sheet.paste(thumbnail(images, position) or Image.new("RGB", (SIDE, SIDE), "#cccccc"), (x, y))
        one = run.flip(position, images)
        for line, text in enumerate((one["image"].rpartition("/")[2], f"is {one['label']}", _answer(one))):
            # The font that comes with Pillow has Latin letters only.
            draw.text((x, y + SIDE + 2 + 13 * line), _latin(text)[:27], fill=INK, font=font)
    return sheet


def _lost_first(run: Comparison) -> list[int]:
    before, after = run.baseline.right, run.answers.right
    return sorted(run.flipped, key=lambda i: (not before[i], not after[i], i))


def _answer(one: dict[str, str]) -> str:
    return f"{one['baseline']} > {one['run']}"


def _latin(text: str) -> str:
    return text.encode("latin-1", errors="replace").decode("latin-1")


def thumbnail(images: ImageSet, position: int, side: int = SIDE) -> Image.Image | None:
    """An image, `side` pixels wide and high; None for normalised arrays, which cannot be drawn."""
    recipe = Preprocessing(size=(side, side), crop_ratio=1.0)
    try:
        pixels = to_pixels(images.dataset.read(images.indices[position]), recipe)
    except InputError:
        return None
    return Image.fromarray(pixels)


def plots(runs: Sequence[Comparison], images: ImageSet) -> dict[str, str | Image.Image]:
    """Every plot of every run by its file name."""
    found: dict[str, str | Image.Image] = {}
    for number, run in enumerate(runs, 1):
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in run.answers.name)
        found[f"{number}-{name}-confusion.svg"] = confusion_svg(run, images)
        sheet = contact_sheet(run, images)
        if sheet is not None:
            found[f"{number}-{name}-flipped.png"] = sheet
    return found

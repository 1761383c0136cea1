"""Whether the baseline itself is right: a drop from a baseline at chance says nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.statistics import confusion

Integers = NDArray[np.int64]

# With fewer images, chance cannot be told from a low accuracy.
FEWEST_IMAGES = 20
# A class is taken to have the name of another when at least so many of its images, and this share of them, get it.
FEWEST_OF_CLASS, CLEAR_SHARE = 5, 0.5


def find_problems(
    targets: Integers, chosen: Integers, names: Sequence[str], *, weights: str, by_name: bool
) -> tuple[str, ...]:
    """Problems of a baseline's predictions, in words with the probable reason; none where they look right.

    targets, chosen  true and predicted class of each image, int64 [N]; -1 where logits are not finite
    names            of all classes
    weights          `random`, `checkpoint` or `module`
    by_name          whether DATA's classes were found among the bundle's by their names
    """
    problems = []
    if (chosen < 0).any():
        problems.append(f"it gives NaN or Inf on {int((chosen < 0).sum())} of {len(chosen)} images")
    counts = confusion(targets, chosen, len(names))
    swapped = _called_otherwise(counts)
    if swapped:
        problems.append(_describe_swap(counts, swapped, names, by_name=by_name))
    elif _at_chance(targets, counts):
        accuracy = 100 * np.trace(counts) / len(targets)
        problems.append(f"it guesses: its top-1 is {accuracy:.2f} %; {_reason(counts, names, weights)}")
    return tuple(problems)


def _at_chance(targets: Integers, counts: Integers) -> bool:
    """Whether the accuracy is within three standard deviations of chance.

    Chance is the expected agreement of J. Cohen's kappa (1960), that of the same predictions in random order. With a
    single class in the data that would be the accuracy itself, so there it is one over the number of classes.
    """
    total = len(targets)
    if total < FEWEST_IMAGES:
        return False
    right, answers = counts.sum(axis=1) / total, counts.sum(axis=0) / total
    expected = float(right @ answers) if (right > 0).sum() > 1 else 1 / len(counts)
    deviation = math.sqrt(expected * (1 - expected) / total)
    return float(np.trace(counts)) / total <= expected + 3 * deviation


def _called_otherwise(counts: Integers) -> dict[int, int]:
    """Classes that are consistently predicted as another one, by that other; at least two, and no two as the same one.

    A weak network confuses classes too, but then it predicts two of them as the same one.
    """
    sizes = counts.sum(axis=1)
    present = np.flatnonzero(sizes)
    calls = {int(kind): int(counts[kind].argmax()) for kind in present}
    if len(set(calls.values())) < len(calls):
        return {}
    moved = {
        kind: call
        for kind, call in calls.items()
        if kind != call and sizes[kind] >= FEWEST_OF_CLASS and counts[kind, call] >= CLEAR_SHARE * sizes[kind]
    }
    return moved if len(moved) >= 2 else {}


def _describe_swap(counts: Integers, moved: Mapping[int, int], names: Sequence[str], *, by_name: bool) -> str:
    total = counts.sum()
    now = 100 * np.trace(counts) / total
    others = [kind for kind in range(len(names)) if kind not in moved]
    then = 100 * (sum(counts[kind, call] for kind, call in moved.items()) + counts[others, others].sum()) / total
    size = len(names)
    steps = {(call - kind) % size for kind, call in moved.items()}
    examples = [f"{names[kind]} is called {names[call]}" for kind, call in moved.items()]
    shown = "; ".join(examples[:4]) + (f"; and {len(examples) - 4} more" if len(examples) > 4 else "")
    if len(steps) == 1 and size > 2:
        step = (steps.pop() + size // 2) % size - size // 2
        what = f"shifted: class number k is called k {'+' if step > 0 else '-'} {abs(step)} ({shown})"
        why = "labels that count from 1, or an output for the background that only one side has"
    else:
        what = f"permuted: {shown}"
        why = "DATA numbers its classes in another order than the network (a labels.txt can give it)"
    if by_name:
        why = "folders under each other's names, or names in the bundle in another order than the network's outputs"
    exchanged = f"with these names exchanged top-1 would be {then:.2f} % instead of {now:.2f} %"
    return f"the labels look {what}; {exchanged}; probably {why}"


def _reason(counts: Integers, names: Sequence[str], weights: str) -> str:
    if weights == "random":
        return "its weights are random: nothing was trained"
    share, most = counts.sum(axis=0).max() / max(1, counts.sum()), int(counts.sum(axis=0).argmax())
    if share > 0.9:
        return f"it calls {share:.0%} of the images {names[most]}; probably they are preprocessed in another way"
    return "probably its weights were not trained for this, or the labels do not belong to the images"

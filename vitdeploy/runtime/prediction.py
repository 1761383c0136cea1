"""The classes of an image, from the logits that a network gave for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """One class of an image; `probability` is the softmax of the logits.

    Attributes:
        label: The name of the class; its number as text where the bundle has no names.
        probability: The softmax of the logits, from 0 to 1.
        index: The number of the class.
    """

    label: str
    probability: float
    index: int


def best_classes(logits: NDArray[Any], labels: Sequence[str], top_k: int) -> list[Prediction]:
    """The `top_k` most probable classes, best first; `logits` [classes] are finite.

    A class without a label is called by its number.
    """
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    names = [labels[i] if i < len(labels) else f"class {i}" for i in best]
    return [Prediction(name, float(probabilities[i]), int(i)) for name, i in zip(names, best, strict=True)]

"""The zoo: one card for each network."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex

from vitdeploy.argument_types import checked_arguments
from vitdeploy.errors import UsageError
from vitdeploy.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn

CARD_MODULES = ("lemevit", "dualvit", "qnavit", "saevit", "cagevit")
RANDOM_SEED = 0


@dataclass(frozen=True)
class Weights:
    """The origin of a module's weights, which is recorded in every manifest.

    kind: `random` (seeded initialisation), `checkpoint`, `module` (a user's live module) or `onnx` (a file).
    """

    kind: str
    detail: str
    sha256: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """A network of the zoo: how to build it, its image size, classes and preprocessing, and what is published of it.

    name            `family_variant`, or `family_variant.tag` for one with weights in this package
    network         `module:class` of the PyTorch definition, imported only when built
    hyperparameters keyword arguments of that class beside num_classes and image_size
    image_size      (height, width) in pixels
    parameters      exact count at 1000 classes (or at num_classes for a tagged card)
    macs            published multiply-adds at image_size, in units of 1e9; None where not published
    top1            published ImageNet-1K top-1 in percent; None where not published
    source          paper and code the definition follows
    reconstruction  empty where official code exists; otherwise which facts are from the paper
    checkpoint      file name under models/weights for a tagged card
    assumption      what was assumed, in words, where the weights came without a record of their preprocessing
    other_sizes     further sizes with published results: (image_size, macs, top1)
    """

    name: str
    family: str
    network: str
    hyperparameters: Mapping[str, Any]
    preprocessing: Preprocessing
    parameters: int
    source: str
    macs: float | None = None
    top1: float | None = None
    image_size: tuple[int, int] = (224, 224)
    num_classes: int = 1000
    labels: tuple[str, ...] = ()
    reconstruction: str = ""
    checkpoint: str | None = None
    assumption: str = ""
    other_sizes: tuple[tuple[tuple[int, int], float | None, float | None], ...] = ()
    weights: Weights = field(default_factory=lambda: Weights("random", f"seed {RANDOM_SEED}"))

    def resized(self, image_size: tuple[int, int]) -> ModelCard:
        """The same card for inputs of `image_size` (height, width)."""
        return replace(self, image_size=image_size, preprocessing=replace(self.preprocessing, size=image_size))

    def preprocessed(self, preprocessing: Preprocessing | Mapping[str, Any]) -> ModelCard:
        """The same card with another preprocessing, or with some fields of its preprocessing replaced.

        The size stays that of the network. Raises UsageError for a field that does not exist or an invalid value.
        """
        if isinstance(preprocessing, Preprocessing):
            chosen = replace(preprocessing, size=self.image_size)
        else:
            chosen = self.preprocessing.changed(preprocessing)
        return replace(self, preprocessing=chosen, assumption="")

    def tuned(self, hyperparameters: Mapping[str, Any]) -> ModelCard:
        """The same card with some hyperparameters replaced; a UsageError for one that it does not have."""
        unknown = sorted(set(hyperparameters) - set(self.hyperparameters))
        if unknown:
            raise UsageError(
                f"{self.name} has no hyperparameter {unknown[0]!r}",
                fix=f"use one of {', '.join(self.hyperparameters)}" if self.hyperparameters else "leave it out",
            )
        return replace(self, hyperparameters={**self.hyperparameters, **hyperparameters})


@cache
def cards() -> Mapping[str, ModelCard]:
    """All cards by name, in the order of the families' files."""
    modules = [importlib.import_module(f"vitdeploy.models.cards.{name}") for name in CARD_MODULES]
    return {card.name: card for module in modules for card in module.CARDS}


@checked_arguments
def list_models(pattern: str = "*") -> list[str]:
    """List the models of the zoo.

    Args:
        pattern: A shell pattern, e.g. `lemevit_*`; without it all names are listed.

    Returns:
        The names that match, family by family; any of them goes to `create_model` and `export`.
    """
    return fnmatch.filter(cards(), pattern)


def find_card(name: str) -> ModelCard:
    """The card called `name`; a UsageError offers the closest names."""
    if name in cards():
        return cards()[name]
    close = get_close_matches(name, cards(), n=3, cutoff=0.4)
    raise UsageError(
        f"there is no model called {name!r}",
        fix=" or ".join(close) if close else "vitdeploy models",
    )


def as_image_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an int (square) or a pair; a UsageError for anything else."""
    try:
        height, width = map(index, (size, size) if isinstance(size, SupportsIndex) else size)
    except (TypeError, ValueError):
        raise UsageError(f"invalid image size {size!r}", fix="give one number of pixels, or (height, width)") from None
    if height < 1 or width < 1:
        raise UsageError(f"invalid image size {height}x{width}", fix="give a height and a width of 1 or more pixels")
    return height, width


def build(card: ModelCard) -> nn.Module:
    """The network of a card with random weights of a fixed seed; on the meta device where that is the default."""
    import torch

    module, _, cls = card.network.partition(":")
    network = getattr(importlib.import_module(module), cls)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model: nn.Module = network(num_classes=card.num_classes, image_size=card.image_size, **card.hyperparameters)
    return model

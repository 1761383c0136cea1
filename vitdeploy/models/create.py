"""Building a network of the zoo by its name, with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.argument_types import checked_arguments
from vitdeploy.errors import MissingDependencyError, ModelError, UsageError
from vitdeploy.models.registry import ModelCard, as_image_size, build, find_card

if TYPE_CHECKING:
    from torch import nn


@checked_arguments
def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network of the zoo.

    Args:
        name: One of `list_models()`. A tagged name such as `lemevit_tiny.eurosat` comes with its weights.
        num_classes: Number of classes; by default that of the checkpoint or of the card.
        image_size: Side or (height, width) in pixels; by default that of the checkpoint or of the card.
        checkpoint: File with the weights. Without one, and without a tag, the weights are random with a fixed seed, and
            `model.card.weights.kind` is `random`.
        hyperparameters: Replaces some of the card's, e.g. `{"windows": (8, 8, 16, 8)}` for QnA-ViT at 256 pixels.

    Returns:
        The network in eval mode; `.card` describes it. `forward` takes normalised images [N, 3, H, W] and returns
        logits [N, num_classes]; `forward_features` returns the feature pyramid, high resolution first.

    Raises:
        UsageError: The name, a hyperparameter or a number does not exist or does not fit.
        ModelError: The network does not admit the image size.
        CheckpointError: The checkpoint is missing, damaged, unsafe, or of another network.
        MissingDependencyError: torch is not installed.
    """
    card = find_card(name)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependencyError("torch", needed_for="building a model", extra="export") from None
    from vitdeploy.models.checkpoints import load_checkpoint, read_checkpoint

    path = Path(checkpoint) if checkpoint else _packaged_weights(card)
    saved = read_checkpoint(path) if path else None
    if saved:
        card = saved.describe(card)
    if num_classes is not None and num_classes != card.num_classes:
        if num_classes < 1:
            raise UsageError(
                f"invalid number of classes {num_classes}",
                why="a classifier needs at least one class",
                fix="--num-classes 1 or more (in Python: num_classes)",
            )
        card = replace(card, num_classes=num_classes, labels=())
    if image_size is not None:
        card = card.resized(as_image_size(image_size))
    if hyperparameters:
        card = card.tuned(hyperparameters)

    try:
        model = build(card)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        if not hyperparameters:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in hyperparameters.items())
        usual = ", ".join(f"{key}={find_card(name).hyperparameters[key]!r}" for key in hyperparameters)
        raise UsageError(
            f"{name} cannot be built with {given}", why=str(error), fix=f"use values like {usual}"
        ) from error
    if saved:
        load_checkpoint(model, saved, model_name=card.name)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def _packaged_weights(card: ModelCard) -> Path | None:
    if card.checkpoint is None:
        return None
    path = Path(__file__).parent / "weights" / card.checkpoint
    if not path.exists():
        raise ModelError(
            f"the weights of {card.name} are missing from this installation",
            why=f"{path} does not exist",
            fix="pip install --force-reinstall vitdeploy",
        )
    return path

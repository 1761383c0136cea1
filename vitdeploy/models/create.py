"""From a name to a module with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import MissingDependencyError, ModelError, UsageError
from vitdeploy.models.registry import ModelCard, as_image_size, build, find_card

if TYPE_CHECKING:
    from torch import nn


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network called `name` in eval mode; `.card` describes it.

    `hyperparameters` replaces some of the card's, e.g. `{"windows": (8, 8, 16, 8)}` for QnA-ViT at 256 pixels.

    Without a checkpoint (given, or part of a tagged name like `lemevit_tiny.eurosat`) the weights are random with a
    fixed seed, and `model.card.weights.kind` says `random`.
    `forward([N, 3, H, W]) -> [N, num_classes]`; `forward_features` gives the pyramid, high resolution first.
    Raises UsageError for an unknown name or hyperparameter, ModelError for a size the network does not admit and
    CheckpointError for a checkpoint that does not fit.
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
            raise UsageError(f"a classifier needs at least one class, not {num_classes}")
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
        raise UsageError(f"{name} cannot be built with {given}", why=str(error), fix=f"values like {usual}") from error
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

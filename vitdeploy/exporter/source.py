"""What the user wants exported: a name of the zoo, a module in memory, or a function in a file that makes one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError
from vitdeploy.models.create import create_model
from vitdeploy.models.registry import ModelCard, Weights, as_image_size
from vitdeploy.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn


def resolve(
    source: str | nn.Module,
    *,
    num_classes: int | None,
    image_size: int | tuple[int, int] | None,
    checkpoint: str | Path | None,
    labels: Sequence[str] | None,
    hyperparameters: Mapping[str, Any] | None,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
) -> tuple[nn.Module, ModelCard]:
    """The module in eval mode and its card.

    `source` is a name of the zoo, a module, or `file.py:function` / `package.module:function` that returns one. A
    module that is not of the zoo needs `image_size`. `preprocessing` replaces what the card records, or fields of that;
    where nothing is recorded the card's `assumption` says what is taken.
    """
    module = _from_function(source) if isinstance(source, str) and ":" in source else source
    if isinstance(module, str):
        model = create_model(
            module,
            num_classes=num_classes,
            image_size=image_size,
            checkpoint=checkpoint,
            hyperparameters=hyperparameters,
        )
        card: ModelCard = model.card  # type: ignore[assignment]
    else:
        if checkpoint is not None or num_classes is not None or hyperparameters:
            raise UsageError(
                "--checkpoint, --num-classes and --set belong to models of the zoo",
                why="a module of your own arrives with its weights",
                fix="load them in the function that makes the module",
            )
        model = module.eval()
        card = _describe(model, image_size)
    if preprocessing:
        card = card.preprocessed(preprocessing)
    if labels is not None:
        if len(labels) != card.num_classes and card.num_classes:
            raise UsageError(f"{len(labels)} labels for {card.num_classes} classes", fix="one line for each class")
        card = replace(card, labels=tuple(labels))
    return model, card


def _describe(model: nn.Module, image_size: int | tuple[int, int] | None) -> ModelCard:
    known = getattr(model, "card", None)
    if isinstance(known, ModelCard):
        if image_size is not None and as_image_size(image_size) != known.image_size:
            raise UsageError(
                f"{known.name} was built for {known.image_size[0]}x{known.image_size[1]} pixels",
                fix="give image_size to create_model",
            )
        return replace(known, weights=Weights("module", f"live module of {known.name}"))
    if image_size is None:
        raise UsageError(
            f"{type(model).__name__} does not say which image size it takes", fix="--image-size 224 (or HEIGHTxWIDTH)"
        )
    size, name = as_image_size(image_size), type(model).__name__
    return ModelCard(
        name=name,
        family="custom",
        network=f"{type(model).__module__}:{type(model).__qualname__}",
        hyperparameters={},
        preprocessing=Preprocessing(size=size),
        parameters=sum(p.numel() for p in model.parameters()),
        source="user module",
        image_size=size,
        num_classes=0,
        weights=Weights("module", "live module"),
        assumption=f"{name} does not say how its images were preprocessed, the way of ImageNet is taken",
    )


def _from_function(source: str) -> nn.Module:
    place, _, function = source.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            namespace = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = namespace
            spec.loader.exec_module(namespace)
        else:
            namespace = importlib.import_module(place)
    except (ImportError, OSError, SyntaxError) as error:
        raise UsageError(f"cannot import {place}", why=str(error), fix="path/to/file.py:function") from error
    build = getattr(namespace, function, None)
    if not callable(build):
        raise UsageError(f"{place} has no function {function!r}", fix="path/to/file.py:function")
    module: nn.Module = build()
    if not hasattr(module, "state_dict"):
        raise UsageError(
            f"{source} returned {type(module).__name__}, not a torch module",
            fix=f"let {function} return a torch.nn.Module",
        )
    return module

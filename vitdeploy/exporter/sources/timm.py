"""`timm:NAME`: a network of timm, with the preprocessing and the labels that timm records for its weights."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vitdeploy.errors import MissingDependencyError, ModelError, UsageError
from vitdeploy.exporter.inputs import InputSpec
from vitdeploy.exporter.sources.live import assumed_recipe, in_single
from vitdeploy.exporter.sources.stand_in import without_torchvision
from vitdeploy.exporter.sources.subject import Subject, card_of
from vitdeploy.models.checkpoints import load_checkpoint, read_checkpoint
from vitdeploy.models.outputs import IMAGES
from vitdeploy.models.registry import RANDOM_SEED, Weights, as_image_size
from vitdeploy.preprocess import Preprocessing

if TYPE_CHECKING:
    from vitdeploy.exporter.request import ExportRequest

log = logging.getLogger(__name__)

PREFIX = "timm:"
_MODES = {"center": "resize_crop", "squash": "stretch", "border": "border"}


def find_timm(request: ExportRequest) -> Callable[[], Subject]:
    """What makes the network that `timm:NAME` names.

    Its weights are those of `checkpoint`, or timm's own; with `--set pretrained=False` seeded random ones. Raises
    MissingDependencyError without timm, and UsageError for a name that timm does not know; what is returned raises
    UsageError for an argument that timm does not know, and ModelError where the weights cannot be fetched.
    """
    name = str(request.source).removeprefix(PREFIX)
    library = _timm()
    _check_name(library, name)
    return lambda: _describe(library, name, request)


def _describe(library: Any, name: str, request: ExportRequest) -> Subject:
    arguments = dict(request.hyperparameters or {})
    wanted = arguments.pop("pretrained", True)
    known = library.get_pretrained_cfg(name)
    pretrained = bool(wanted) and request.checkpoint is None and known is not None and known.has_weights
    model = _create(library, name, {**arguments, **_sizes(request)}, pretrained, request.num_classes)
    weights = _weights(library, model, name, request.checkpoint, pretrained)
    channels, size = _input(model, arguments, request.image_size)
    recipe, assumption = _recipe(name, model, channels, size)
    module, notes = in_single(model.eval())
    classes = int(getattr(model, "num_classes", 0) or 0)
    card = card_of(
        model,
        name,
        family="timm",
        preprocessing=recipe,
        source=f"timm {library.__version__}",
        image_size=size,
        num_classes=classes,
        labels=_labels(library, model, classes) if pretrained else (),
        weights=weights,
        assumption=assumption,
    )
    return Subject(module, card, (InputSpec(IMAGES, (channels, *size), image=True),), notes=notes)


def closest(name: str) -> list[str]:
    """Names of timm like `name`; empty where timm is not installed or has none."""
    if importlib.util.find_spec("timm") is None:
        return []
    try:
        return get_close_matches(name, _timm().list_models(), n=3, cutoff=0.6)
    except Exception:  # a broken installation of timm says nothing about the name
        log.debug("timm cannot be asked", exc_info=True)
        return []


def _timm() -> Any:
    try:
        with without_torchvision():
            import timm
            import timm.data
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise MissingDependencyError(str(error.name), needed_for="timm", extra="timm") from error
        raise MissingDependencyError("timm", needed_for=f"a source {PREFIX}NAME", extra="timm") from None
    return timm


def _check_name(library: Any, name: str) -> None:
    if library.is_model(name.partition(".")[0]):
        tags = library.list_pretrained(f"{name.partition('.')[0]}.*")
        if "." not in name or name in tags:
            return
        raise UsageError(f"timm has no weights {name!r}", fix=" or ".join(f"{PREFIX}{tag}" for tag in tags[:3]))
    close = get_close_matches(name, library.list_models(), n=3, cutoff=0.4)
    raise UsageError(
        f"timm has no network called {name!r}",
        fix=" or ".join(f"{PREFIX}{one}" for one in close) if close else "python -c 'import timm; timm.list_models()'",
    )


def _sizes(request: ExportRequest) -> dict[str, Any]:
    return {} if request.image_size is None else {"img_size": as_image_size(request.image_size)}


def _create(library: Any, name: str, arguments: Mapping[str, Any], pretrained: bool, classes: int | None) -> nn.Module:
    """The network, which may have no use for `img_size`: then it takes every size."""
    given = {**arguments, **({} if classes is None else {"num_classes": classes})}
    attempts = [given, {key: value for key, value in given.items() if key != "img_size"}]
    for index, attempt in enumerate(attempts):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_SEED)
                model: nn.Module = library.create_model(name, pretrained=pretrained, **attempt)
            return model
        except TypeError as error:
            if index == 0 and "img_size" in given and "img_size" in str(error):
                continue
            shown = ", ".join(f"{key}={value!r}" for key, value in attempt.items())
            raise UsageError(
                f"timm cannot make {name} with {shown or 'its defaults'}",
                why=str(error),
                fix="--set NAME=VALUE with an argument of the network, or leave it out",
            ) from error
        except (RuntimeError, ValueError, AssertionError) as error:
            if pretrained:
                raise _not_fetched(name, error) from error
            raise UsageError(f"timm cannot make {name}", why=_first_line(error), fix="other --set values") from error
        except Exception as error:  # the hub and its transport have many kinds of errors
            if not pretrained:
                raise
            raise _not_fetched(name, error) from error
    raise AssertionError("the second attempt returns or raises")


def _not_fetched(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"the weights of {name} cannot be fetched",
        why=_first_line(error),
        fix="--checkpoint FILE with them, or --set pretrained=False for seeded random ones",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _weights(library: Any, model: nn.Module, name: str, checkpoint: str | Path | None, pretrained: bool) -> Weights:
    if checkpoint is None:
        if pretrained:
            cfg = getattr(model, "pretrained_cfg", {})
            return Weights("checkpoint", str(cfg.get("hf_hub_id") or cfg.get("url") or name))
        return Weights("random", f"seed {RANDOM_SEED}")
    saved = read_checkpoint(Path(checkpoint))
    convert = inspect.getmodule(type(model))
    change = getattr(convert, "checkpoint_filter_fn", None)
    state = dict(saved.state)
    if callable(change):  # official files in another layout than timm's
        with contextlib.suppress(Exception):
            state = dict(change(state, model))
    load_checkpoint(model, replace(saved, state=state), model_name=name)
    return Weights("checkpoint", Path(checkpoint).name, saved.sha256)


def _input(
    model: nn.Module, arguments: Mapping[str, Any], asked: int | tuple[int, int] | None
) -> tuple[int, tuple[int, int]]:
    """Channels, and (height, width) in pixels."""
    channels, height, width = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    channels = int(arguments.get("in_chans", channels))
    if asked is not None:
        return channels, as_image_size(asked)
    return channels, as_image_size(arguments.get("img_size", (height, width)))


def _recipe(name: str, model: nn.Module, channels: int, size: tuple[int, int]) -> tuple[Preprocessing, str]:
    """The preprocessing that timm records, and what of it had to be assumed."""
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    if channels != 3 or not cfg.get("mean"):
        return assumed_recipe(name, size, channels)
    interpolation, mode = str(cfg.get("interpolation", "bicubic")), str(cfg.get("crop_mode") or "center")
    notes = []
    if interpolation not in ("bicubic", "bilinear"):
        notes.append(f"{name} was evaluated with {interpolation} interpolation, bicubic is taken")
        interpolation = "bicubic"
    ratio = float(cfg.get("crop_pct") or 0.875)
    if ratio > 1 or (ratio < 1 and mode == "squash"):
        notes.append(f"{name} was evaluated with crop_pct {ratio:g} and crop_mode {mode}, crop_pct 1 is taken")
        ratio = 1.0
    recipe = Preprocessing(
        size=size,
        mode=_MODES.get(mode, "resize_crop"),
        crop_ratio=ratio,
        interpolation=interpolation,
        mean=tuple(map(float, cfg["mean"])),
        std=tuple(map(float, cfg["std"])),
    )
    return recipe, "; ".join(notes)


def _labels(library: Any, model: nn.Module, classes: int) -> tuple[str, ...]:
    """The names of the classes where timm knows them, distinct ones, else nothing."""
    with contextlib.suppress(Exception):
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(model)
        if subset:
            info = ImageNetInfo(subset)
            names = tuple(info.index_to_label_name(index) for index in range(classes))
            return names if len(set(names)) == classes else ()
    return ()

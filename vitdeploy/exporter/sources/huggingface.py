"""`hf:FOLDER_OR_ID`: a network of transformers, through its Auto classes, with its image processor's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vitdeploy.errors import MissingDependencyError, ModelError, UsageError
from vitdeploy.exporter.inputs import InputSpec
from vitdeploy.exporter.sources.live import assumed_recipe, in_single
from vitdeploy.exporter.sources.subject import Subject, card_of
from vitdeploy.models.registry import Weights, as_image_size
from vitdeploy.preprocess import Preprocessing

if TYPE_CHECKING:
    from vitdeploy.exporter.request import ExportRequest

PREFIX = "hf:"

# What the name of an architecture ends with, and the class that loads it.
_AUTO = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForImageClassificationWithTeacher": "AutoModelForImageClassification",
    "ForSemanticSegmentation": "AutoModelForSemanticSegmentation",
    "ForUniversalSegmentation": "AutoModelForUniversalSegmentation",
    "ForObjectDetection": "AutoModelForObjectDetection",
    "ForDepthEstimation": "AutoModelForDepthEstimation",
    "Backbone": "AutoBackbone",
}
_PILLOW = {2: "bilinear", 3: "bicubic"}


def find_huggingface(request: ExportRequest) -> Callable[[], Subject]:
    """What makes the network of a folder that `save_pretrained` wrote, or of an id of the hub.

    Raises MissingDependencyError without transformers, and ModelError for a configuration that cannot be loaded; what
    is returned raises ModelError for weights that cannot be.
    """
    where = str(request.source).removeprefix(PREFIX)
    transformers = _transformers()
    config = _loaded(where, lambda: transformers.AutoConfig.from_pretrained(where))
    return lambda: _describe(transformers, where, config, request)


def _describe(transformers: Any, where: str, config: Any, request: ExportRequest) -> Subject:
    architecture = str((getattr(config, "architectures", None) or [""])[0])
    auto = next((auto for end, auto in _AUTO.items() if architecture.endswith(end)), "AutoModel")
    model = _loaded(where, lambda: getattr(transformers, auto).from_pretrained(where))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where} gives no torch module", why=f"it is a {type(model).__name__}", fix="another model")
    name = Path(where).name
    channels = int(getattr(config, "num_channels", 3) or 3)
    processor = _processor(transformers, where)
    size = _size(request, config, processor)
    recipe, assumption = _recipe(name, processor, size, channels)
    module, notes = in_single(model.eval())
    labels = _labels(config)
    card = card_of(
        model,
        name,
        family="transformers",
        preprocessing=recipe,
        source=f"transformers {transformers.__version__}",
        image_size=size,
        num_classes=len(labels),
        labels=labels,
        weights=Weights("checkpoint", where),
        assumption=assumption,
    )
    entry = str(getattr(model, "main_input_name", "pixel_values"))
    return Subject(module, card, (InputSpec(entry, (channels, *size), image=True),), notes=notes)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        missing = "transformers" if error.name == "transformers" else str(error.name)
        raise MissingDependencyError(missing, needed_for=f"a source {PREFIX}FOLDER_OR_ID", extra="hf") from None
    return transformers


def _loaded(where: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # the hub, its transport and each architecture have their own
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        folder = Path(where)
        fix = (
            f"{PREFIX} with a folder that model.save_pretrained wrote, with config.json and model.safetensors"
            if folder.exists()
            else f"hf download {where} --local-dir FOLDER on a machine with a network, and {PREFIX}FOLDER"
        )
        raise ModelError(f"transformers cannot load {where}", why=first, fix=fix) from error


def _processor(transformers: Any, where: str) -> Mapping[str, Any]:
    """The configuration of the image processor; empty where the folder has none."""
    try:
        found, _ = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(where)
    except Exception:  # a network without an image processor is taken with what is known of it
        return {}
    return dict(found)


def _size(request: ExportRequest, config: Any, processor: Mapping[str, Any]) -> tuple[int, int]:
    if request.image_size is not None:
        return as_image_size(request.image_size)
    for key in ("crop_size", "size"):
        given = processor.get(key)
        if key == "crop_size" and not processor.get("do_center_crop"):
            continue
        if isinstance(given, int):
            return as_image_size(given)
        if isinstance(given, Mapping) and {"height", "width"} <= given.keys():
            return as_image_size((given["height"], given["width"]))
        if isinstance(given, Mapping) and "shortest_edge" in given:
            return as_image_size(given["shortest_edge"])
    known = getattr(config, "image_size", None)
    if known is None:
        raise UsageError("neither the network nor its image processor says an image size", fix="--image-size 224")
    return as_image_size(tuple(known) if isinstance(known, (list, tuple)) else known)


def _recipe(name: str, processor: Mapping[str, Any], size: tuple[int, int], channels: int) -> tuple[Preprocessing, str]:
    if not processor or channels != 3:
        return assumed_recipe(name, size, channels)
    resized = processor.get("size")
    shortest = resized if isinstance(resized, int) else (resized or {}).get("shortest_edge")
    crops = bool(processor.get("do_center_crop")) or shortest is not None
    ratio = processor.get("crop_pct") or (min(size) / shortest if crops and shortest else 1.0)
    scale = 1 / float(processor.get("rescale_factor") or 1 / 255) if processor.get("do_rescale", True) else 1.0
    normalises = processor.get("do_normalize", True)
    known = processor.get("resample")
    interpolation = _PILLOW.get(known, "bicubic") if isinstance(known, int) else "bilinear"
    recipe = Preprocessing(
        size=size,
        mode="resize_crop" if crops else "stretch",
        crop_ratio=min(1.0, float(ratio)),
        interpolation=interpolation,
        mean=tuple(map(float, processor.get("image_mean") or (0.0,) * 3)) if normalises else (0.0,) * 3,
        std=tuple(map(float, processor.get("image_std") or (1.0,) * 3)) if normalises else (1.0,) * 3,
        channels="BGR" if processor.get("do_flip_channel_order") else "RGB",
        scale=scale,
    )
    return recipe, ""


def _labels(config: Any) -> tuple[str, ...]:
    """`id2label` in the order of its numbers; empty where it only numbers the classes."""
    known = {int(key): str(value) for key, value in (getattr(config, "id2label", None) or {}).items()}
    names = tuple(known[index] for index in sorted(known))
    numbers_only = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return () if numbers_only or len(set(names)) != len(names) else names

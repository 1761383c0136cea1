"""From what the user typed, or passed in Python, to the network that is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import ExportError, UsageError
from vitdeploy.exporter.inputs import freed, image_inputs
from vitdeploy.exporter.onnx_import.read import OnnxFile
from vitdeploy.exporter.sources.subject import Subject
from vitdeploy.models.registry import ModelCard, cards
from vitdeploy.preprocess import Preprocessing

if TYPE_CHECKING:
    from vitdeploy.exporter.request import ExportRequest

# Of a protobuf message less what the graph itself takes.
LARGEST_WEIGHTS = 2**31 - 2**26

FORMS = "a name of `vitdeploy models`, timm:NAME, hf:FOLDER_OR_ID, file.py:function, model.pt2 or model.onnx"


# Builds the network, which was found.
Builder = Callable[[], Subject]


def find_network(request: ExportRequest) -> Builder:
    """What builds the network of `request`, in eval mode, and says what is known of it.

    Raises UsageError for a source that is not there and for options that it does not take, and MissingDependencyError
    for a library that is not installed. What is returned raises UsageError for options that do not fit the network,
    ModelError and CheckpointError where it cannot be built.
    """
    build = _found(request)
    return lambda: _completed(build(), request)


def _completed(subject: Subject, request: ExportRequest) -> Subject:
    """The network with the preprocessing and the labels that were asked for, which have to fit it."""
    card = subject.card
    if request.preprocessing:
        card = card.preprocessed(request.preprocessing)
    _check_channels(subject, card)
    _check_free(subject, request)
    _check_weights(subject)
    if request.labels is not None:
        card = replace(card, labels=tuple(request.labels))
        if card.num_classes:
            check_labels(card)
    return replace(subject, card=card)


def _check_channels(subject: Subject, card: ModelCard) -> None:
    """UsageError where the images of the network have another number of channels than its preprocessing."""
    images = next((spec for spec in subject.inputs if spec.image), None)
    if images is not None and images.shape[0] != card.preprocessing.depth:
        count = images.shape[0]
        raise UsageError(
            f"{card.name} takes images of {count} channels, and its preprocessing gives {card.preprocessing.depth}",
            fix="--preprocessing channels=L"
            if count == 1
            else f"--preprocessing with {count} means and deviations: channels=bands,mean=…,std=…",
        )


def _check_free(subject: Subject, request: ExportRequest) -> None:
    """UsageError for free axes besides the batch where an engine is built, which takes a range of batches alone."""
    free = next((spec for spec in subject.inputs if spec.free), None)
    if free is not None and request.row.for_nvidia_alone:
        raise UsageError(
            f"the input {free.name} has free axes besides the batch: {', '.join(filter(None, free.free))}",
            why=f"an engine of {request.target} is built for fixed sizes, and for a range of batches",
            fix="numbers in --input, or --target portable",
        )


def _check_weights(subject: Subject) -> None:
    """ExportError for weights that no single file of ONNX can hold, before the minutes that a capture takes."""
    if isinstance(subject.model, OnnxFile):
        return  # its reader has refused it
    tensors = {id(one): one for one in (*subject.model.parameters(), *subject.model.buffers())}
    size = sum(one.numel() * one.element_size() for one in tensors.values())
    if size >= LARGEST_WEIGHTS:
        raise ExportError(
            f"the weights of {subject.card.name} take {size / 1e9:.1f} GB",
            why="a bundle keeps them in model.onnx, and a file of ONNX holds less than 2 GB, in FP32 while it is made",
            fix="a smaller variant of the network",
        )


def check_labels(card: ModelCard) -> None:
    """UsageError where the network has another number of classes than there are labels."""
    if card.labels and len(card.labels) != card.num_classes:
        raise UsageError(
            f"{len(card.labels)} labels for {card.num_classes} classes",
            fix="--labels with one line for each class, in the order of the logits",
        )


def _found(request: ExportRequest) -> Builder:
    source = request.source
    if not isinstance(source, (str, Path)):
        return lambda: _live(request, source, "the source")
    text = str(source)
    for prefix, find in _PREFIXES.items():
        if text.startswith(prefix):
            return find(request)
    if text.endswith((".pt2", ".onnx")):
        path = Path(text)
        if not path.is_file():
            raise UsageError(f"there is no file {path}", fix=f"check the path: ls {path.parent}")
        return lambda: _file(request, path)
    if text in cards():
        return lambda: _zoo(request, text)
    if ":" in text:
        from vitdeploy.exporter.sources.function import find_call

        call = find_call(text, request.hyperparameters or {})
        return lambda: _live(request, call(), text, called=True)
    raise _unknown(text)


def _file(request: ExportRequest, path: Path) -> Subject:
    if path.suffix == ".onnx":
        return _onnx(request, path)
    from vitdeploy.exporter.sources.program import load_program

    return _live(request, load_program(path), str(path))


def _zoo(request: ExportRequest, name: str) -> Subject:
    from vitdeploy.models.create import create_model

    model = create_model(
        name,
        num_classes=request.num_classes,
        image_size=request.image_size,
        checkpoint=request.checkpoint,
        hyperparameters=request.hyperparameters,
    )
    card: ModelCard = model.card  # type: ignore[assignment]
    return _with_free_axes(Subject(model, card, image_inputs(card.image_size, 3)), request)


def _with_free_axes(subject: Subject, request: ExportRequest) -> Subject:
    return replace(subject, inputs=freed(subject.inputs, request.specs, subject.card.name))


def _timm(request: ExportRequest) -> Builder:
    from vitdeploy.exporter.sources.timm import find_timm

    describe = find_timm(request)
    return lambda: _with_free_axes(describe(), request)


def _huggingface(request: ExportRequest) -> Builder:
    from vitdeploy.exporter.sources.huggingface import find_huggingface

    _refuse(request, {"--checkpoint": request.checkpoint, "--num-classes": request.num_classes})
    describe = find_huggingface(request)
    return lambda: _with_free_axes(describe(), request)


def _onnx(request: ExportRequest, path: Path) -> Subject:
    from vitdeploy.exporter.sources.onnx_file import describe_onnx

    options = {"--checkpoint": request.checkpoint, "--num-classes": request.num_classes}
    _refuse(request, {**options, "--set": request.hyperparameters or None})
    return describe_onnx(path, request, LARGEST_WEIGHTS)


_PREFIXES: Mapping[str, Callable[[ExportRequest], Builder]] = {"timm:": _timm, "hf:": _huggingface}


def _live(request: ExportRequest, made: object, where: str, *, called: bool = False) -> Subject:
    from vitdeploy.exporter.sources.live import describe_live

    given = None if called else request.hyperparameters
    _refuse(request, {"--checkpoint": request.checkpoint, "--num-classes": request.num_classes, "--set": given or None})
    channels = _channels(request.preprocessing)
    return describe_live(
        made,
        where,
        image_size=request.image_size,
        inputs=request.specs,
        channels=channels,
        reference=request.reference_arrays,
    )


def _channels(asked: Preprocessing | Mapping[str, Any] | None) -> int:
    """The channels of images, as far as the preprocessing that was asked for tells."""
    if isinstance(asked, Preprocessing):
        return asked.depth
    given = asked or {}
    means = given.get("mean")
    if given.get("channels") == "bands" and isinstance(means, Sequence) and not isinstance(means, str):
        return len(means)
    return 1 if given.get("channels") == "L" else 3


def _refuse(request: ExportRequest, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        source = request.source if isinstance(request.source, (str, Path)) else "a module"
        raise UsageError(
            f"{' and '.join(given)} does not belong to {source}",
            why="such a network arrives with its weights and its classes",
            fix="load them in the function that makes the module; "
            "--set NAME=VALUE goes to the arguments of a function file.py:function",
        )


def _unknown(text: str) -> UsageError:
    """What was meant, perhaps: a name of the zoo or of timm, or a file."""
    from vitdeploy.exporter.sources.timm import closest

    path = Path(text)
    if path.suffix == ".py":
        why = f"{path} is a file of Python" if path.is_file() else f"there is no file {path}"
        return UsageError(
            f"{text!r} names no function", why=why, fix=f"{text}:build, the function that makes the module"
        )
    if path.suffix in (".pth", ".pt", ".safetensors", ".ckpt", ".bin"):
        return UsageError(
            f"{text} is a file of weights, or TorchScript",
            why="weights alone do not say which network they belong to",
            fix=f"vitdeploy export NAME --checkpoint {text}, or timm:NAME --checkpoint {text}, or file.py:function",
        )
    offers = get_close_matches(text, cards(), n=3, cutoff=0.5)
    offers += [f"timm:{name}" for name in closest(text)]
    return UsageError(
        f"there is no model called {text!r}",
        why="it is neither in the zoo nor a file here",
        fix=" or ".join(offers) if offers else FORMS,
    )

"""`model.onnx`: a graph that any exporter wrote. What it gives in ONNX Runtime is what a bundle is proven against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.exporter.capture import BATCH
from vitdeploy.exporter.inputs import DTYPES, InputSpec, check_size, lengths, sized, with_images
from vitdeploy.exporter.onnx_import.read import OnnxFile, read_onnx
from vitdeploy.exporter.onnx_import.shapes import state_inputs
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.exporter.sources.live import assumed_recipe
from vitdeploy.exporter.sources.subject import Subject
from vitdeploy.graph.edit import Builder
from vitdeploy.models.registry import ModelCard, Weights, as_image_size

_CHANNELS = (1, 3, 4)  # of images that have their channels last


def describe_onnx(path: Path, request: ExportRequest, largest: int) -> Subject:
    """The graph in the file, in the shapes that `request` asks for; its weights take less than `largest` bytes.

    Images that the file takes with the channels last are taken with the channels first, as everywhere: its graph gets
    the Transpose in between. Raises UsageError for shapes that the file does not take, and what `read_onnx` raises.
    """
    file = read_onnx(path, largest)
    graph = file.graph.graph
    ports = [_port(path, value) for value in graph.inputs]
    _check_asked(path, ports, request)
    asked = {spec.name: spec for spec in request.specs}
    batch = _batch(path, ports, request)
    size = None if request.image_size is None else as_image_size(request.image_size)
    shapes = {port.name: _shape(path, port, asked.get(port.name), size) for port in ports}
    specs = with_images(sized([shapes[port.name] for port in ports], size, request.reference_arrays))
    state_inputs(file.graph, {spec.name: (batch, *lengths(spec)) for spec in specs})
    notes = _notes(file)
    for value, spec in zip(list(graph.inputs), specs, strict=True):
        if _channels_last(spec):
            specs = tuple(_channels_first(spec) if one is spec else one for one in specs)
            _transpose(file.graph, value)
            notes += (f"{spec.name} has its channels last in {path.name}, and first in the bundle",)
    specs = with_images(specs)
    return Subject(file, _card(file, specs), specs, notes=notes)


@dataclass(frozen=True)
class _Port:
    """An input of the file: free axes by name, or None where they have none; `axes` is None without a known rank."""

    name: str
    axes: tuple[int | str | None, ...] | None
    dtype: str


def _port(path: Path, value: ir.Value) -> _Port:
    dtype = "none" if value.dtype is None else str(value.dtype.numpy())
    if dtype not in DTYPES:
        raise UsageError(
            f"the input {value.name} of {path} is {value.dtype}",
            fix=f"an .onnx whose inputs are {', '.join(DTYPES)}",
        )
    if value.shape is None:
        return _Port(str(value.name), None, dtype)
    # Zero and less mean free in the files of some exporters.
    axes = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
    free = tuple(None if isinstance(axis, int) and axis < 1 else axis for axis in axes)
    if not free:
        raise UsageError(
            f"the input {value.name} of {path} has no batch axis",
            why="every input has the batch as its first axis",
            fix="make what is the same for all samples a constant of the graph",
        )
    return _Port(str(value.name), free, dtype)


def _check_asked(path: Path, ports: Sequence[_Port], request: ExportRequest) -> None:
    """UsageError for options that do not fit the file's inputs."""
    if request.features:
        raise UsageError(
            f"{path} has no feature pyramid",
            why="a graph has the outputs that it was exported with",
            fix="leave --features out, or export the maps as outputs of the .onnx",
        )
    check_size(request.specs, None if request.image_size is None else as_image_size(request.image_size))
    if not ports:
        raise UsageError(f"{path} takes no inputs", fix="an .onnx that takes the images as an input")
    known = {port.name: port for port in ports}
    for spec in request.specs:
        port = known.get(spec.name)
        if port is None:
            raise UsageError(
                f"{path} has no input {spec.name}",
                why=f"its inputs are {', '.join(map(_text, ports))}",
                fix=f"--input {ports[0].name}=SHAPE",
            )
        if port.dtype != spec.dtype:
            raise UsageError(
                f"the input {spec.name} of {path} is {port.dtype}",
                why=f"--input says {spec.dtype}",
                fix=f"--input {spec.name}=SHAPE:{port.dtype}",
            )


def _batch(path: Path, ports: Sequence[_Port], request: ExportRequest) -> int | str:
    """The batch of every input; UsageError where the file has another than was asked for."""
    fixed = {port.name: port.axes[0] for port in ports if port.axes and isinstance(port.axes[0], int)}
    sizes = set(fixed.values())
    if len(sizes) > 1:
        raise UsageError(
            f"the inputs of {path} have batches of {' and '.join(str(size) for size in sorted(map(int, sizes)))}",
            why=f"the batch is the first axis of every input: {', '.join(map(_text, ports))}",
            fix="make what is the same for all samples a constant of the graph",
        )
    wanted = request.fixed_batch
    if sizes and wanted not in sizes:
        (size,) = sizes
        raise UsageError(
            f"{path} takes batches of {size} alone",
            why=f"its inputs are {', '.join(map(_text, ports))}",
            fix=f"--batch {size}, or export the .onnx with a free first axis",
        )
    return BATCH if wanted is None else wanted


def _shape(path: Path, port: _Port, asked: InputSpec | None, image_size: tuple[int, int] | None) -> InputSpec:
    """The input with the shape of one sample, what the file leaves open as it was asked for."""
    if port.axes is None:
        if asked is None:
            raise UsageError(
                f"{path} does not say the shape of its input {port.name}",
                fix=f"--input {port.name}=1x3x224x224, or whatever it takes",
            )
        return asked
    axes = list(port.axes[1:])
    if asked is not None:
        fits = len(asked.shape) == len(axes) and all(
            not isinstance(axis, int) or axis == size for axis, size in zip(axes, asked.shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"{path} does not take {asked.name} as {_dims((1, *lengths(asked)))}",
                why=f"its input is {_text(port)}",
                fix=f"--input {port.name}={_dims(port.axes)} with a number for each free axis",
            )
        return asked
    if image_size is not None and port.dtype == "float32" and len(axes) == 3:
        at = slice(0, 2) if axes[-1] in _CHANNELS else slice(1, 3)
        for axis, length in zip(axes[at], image_size, strict=True):
            if isinstance(axis, int) and axis != length:
                raise UsageError(
                    f"{path} takes no images of {image_size[0]}x{image_size[1]} pixels",
                    why=f"its input is {_text(port)}",
                    fix="leave --image-size out, or export the .onnx for that size",
                )
        axes[at] = image_size
    free = [index + 1 for index, axis in enumerate(axes) if not isinstance(axis, int)]
    if free:
        image = port.dtype == "float32" and len(axes) == 3
        raise UsageError(
            f"{path} leaves axis {' and '.join(map(str, free))} of its input {port.name} open",
            why=f"it is {_text(port)}",
            fix=("--image-size 224 (or HEIGHTxWIDTH), or " if image else "")
            + f"--input {port.name}={_dims(port.axes)} with numbers, or with words for what is to stay open",
        )
    return InputSpec(port.name, tuple(axis for axis in axes if isinstance(axis, int)), port.dtype)


def _text(port: _Port) -> str:
    return f"{port.name} {port.dtype} [{'…' if port.axes is None else ', '.join(map(_axis, port.axes))}]"


def _dims(axes: Sequence[int | str | None]) -> str:
    return "x".join(map(_axis, axes))


def _axis(axis: int | str | None) -> str:
    return "?" if axis is None else str(axis)


def _channels_last(spec: InputSpec) -> bool:
    return spec.image and spec.shape[-1] in _CHANNELS and spec.shape[0] not in _CHANNELS


def _channels_first(spec: InputSpec) -> InputSpec:
    height, width, channels = spec.shape
    return replace(spec, shape=(channels, height, width), free=(*spec.free[2:], *spec.free[:2]))


def _transpose(model: ir.Model, value: ir.Value) -> None:
    """Let the input be [N, C, H, W], and its uses see it as the [N, H, W, C] that it was."""
    batch, height, width, channels = list(value.shape or ())
    uses = list(value.uses())
    out = Builder(model.graph, model.graph[0]).op(
        "Transpose", [value], [batch, height, width, channels], perm=[0, 2, 3, 1]
    )
    for node, index in uses:
        node.replace_input_with(index, out)
    value.shape = ir.Shape([batch, channels, height, width])


def _notes(file: OnnxFile) -> tuple[str, ...]:
    if not file.floats:
        return ()
    return (f"{file.path.name} holds floats in {' and '.join(file.floats)}, the reference is computed in FP32",)


def _card(file: OnnxFile, specs: Sequence[InputSpec]) -> ModelCard:
    images = next((spec for spec in specs if spec.image), None)
    size = (images.shape[1], images.shape[2]) if images else (1, 1)
    recipe, assumption = assumed_recipe(file.path.name, size, images.shape[0] if images else 3)
    weights = sum(tensor.size for tensor in _floats(file.graph))
    return ModelCard(
        name=file.path.stem,
        family="onnx",
        network=file.path.name,
        hyperparameters={},
        preprocessing=recipe,
        parameters=weights,
        source=_producer(file.graph),
        image_size=size,
        num_classes=0,
        weights=Weights("onnx", file.path.name, file.sha256),
        assumption=assumption if images else "",
    )


def _floats(model: ir.Model) -> list[ir.TensorProtocol]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor for tensor in tensors if tensor is not None and tensor.dtype == ir.DataType.FLOAT]


def _producer(model: ir.Model) -> str:
    named = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    return f"an .onnx file of {named}" if named else "an .onnx file"

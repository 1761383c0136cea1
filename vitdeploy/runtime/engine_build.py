"""An engine from an ONNX file, through polygraphy: TensorRT 8.5 to 11, each told the types that the graph states."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.errors import BackendError

# Images a call takes where the batch is free: at least, tuned for, at most.
BATCH_PROFILE = (1, 8, 32)

STRONGLY_TYPED_SINCE = (10, 0)

# What builders say, and what helps; the first that matches counts.
_REMEDIES = (
    (
        r"out of memory|OutOfMemory|insufficient memory|Cuda failure: 2\b",
        "stop other programs, or export with --batch 1",
    ),
    (
        r"driver version is insufficient|CUDA initialization failure|no CUDA-capable|Cuda failure: (35|100)\b",
        "a driver that this TensorRT supports; on a Jetson the TensorRT of its own JetPack",
    ),
    (r"libnvinfer_builder_resource", "another TensorRT: this one lacks a library (ultralytics/ultralytics#24367)"),
    (
        r"No importer registered|UNSUPPORTED_NODE|[Uu]nsupported|Could not parse|could not find any implementation",
        "vitdeploy check BUNDLE --target tensorrt{version}, which says what to change",
    ),
)


class Built(NamedTuple):
    """A serialized engine and what the builder said."""

    engine: bytes
    log: str


def version_of(text: str) -> tuple[int, int]:
    """(10, 3) for `10.3.0.post1`."""
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise BackendError(f"TensorRT calls its version {text!r}", why="that is not a version")
    return int(found[1]), int(found[2])


def build(model: bytes, *, timing: Path) -> Built:
    """Parses and builds `model`.

    From TensorRT 10 on the network is strongly typed; before, see `hold_types`. A free batch gets BATCH_PROFILE.
    `timing` is read where it exists and brought up to date.

    Raises BuildError with the builder's own words.
    """
    import tensorrt as trt
    from polygraphy.backend import trt as poly

    with builder_log() as lines:
        try:
            typed = version_of(trt.__version__) >= STRONGLY_TYPED_SINCE
            network = poly.network_from_onnx_bytes(model, **({"strongly_typed": True} if typed else {}))
            settings: dict[str, Any] = {} if typed else hold_types(network[1])
            profile = poly.Profile()
            for name, shape in _free_inputs(network[1]):
                profile.add(name, *([images, *shape[1:]] for images in BATCH_PROFILE))
            settings["profiles"] = [profile] if profile else None
            settings["load_timing_cache"] = str(timing) if timing.exists() else None
            config = poly.CreateConfig(**{name: value for name, value in settings.items() if value is not None})
            engine = poly.engine_bytes_from_network(network, config=config, save_timing_cache=str(timing))
            return Built(bytes(engine), "\n".join(lines))
        except Exception as error:
            raise BuildError(lines, error, trt.__version__) from error


class BuildError(BackendError):
    """A model that TensorRT does not parse or build; `log` is all that it said."""

    def __init__(self, lines: list[str], error: Exception, version: str) -> None:
        self.log = "\n".join([*lines, str(error)])
        patterns = (r"\[[EF]\]", r"(?i).*\berror\b")
        spoken = [line for pattern in patterns for line in lines if re.match(pattern, line)] or [str(error)]
        remedy = next((fix for pattern, fix in _REMEDIES if re.search(pattern, self.log)), None)
        short = ".".join(map(str, version_of(version)))
        super().__init__(
            f"TensorRT {version} does not build this model",
            why=spoken[0].strip(),
            fix=(remedy or "vitdeploy check BUNDLE --target tensorrt{version}").format(version=short),
        )


def hold_types(network: Any) -> dict[str, Any]:
    """The builder settings of a weakly typed network, whose FP32 layers are told to stay what they are.

    The flags allow FP16 and INT8 where the graph has such tensors; without the constraint the builder would use them on
    what the graph keeps in FP32. A layer that reads dequantized tensors is left free: it is meant to run in INT8.
    """
    import tensorrt as trt

    # Their outputs' types are theirs to state; CAST came with 8.6.
    names = ("CONSTANT", "SHAPE", "IDENTITY", "CAST", "QUANTIZE")
    stating = {getattr(trt.LayerType, name) for name in names if hasattr(trt.LayerType, name)}
    settings: dict[str, Any] = {}
    single: list[Any] = []
    dequantized: set[str] = set()
    for layer in network:
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        sources = [layer.get_input(index) for index in range(layer.num_inputs)]
        quantized = any(tensor is not None and tensor.name in dequantized for tensor in sources)
        kinds = {tensor.dtype for tensor in outputs}
        if trt.float16 in kinds:
            settings["fp16"] = True
        if layer.type == trt.LayerType.DEQUANTIZE:
            settings["int8"] = True
            dequantized.update(tensor.name for tensor in outputs)
        elif layer.type not in stating and kinds == {trt.float32} and not quantized:
            single.append(layer)
    if settings and single:
        settings["precision_constraints"] = "obey"
        for layer in single:
            layer.precision = trt.float32
            for index in range(layer.num_outputs):
                layer.set_output_type(index, trt.float32)
    return settings


def _free_inputs(network: Any) -> Iterator[tuple[str, list[int]]]:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = list(tensor.shape)
        if -1 in shape[1:]:
            raise BackendError(
                f"the input {tensor.name} has free axes besides the batch", fix="vitdeploy export, which fixes them"
            )
        if shape[0] == -1:
            yield tensor.name, shape


@contextlib.contextmanager
def builder_log() -> Iterator[list[str]]:
    """What TensorRT and polygraphy say meanwhile, line by line, instead of on standard output."""
    from polygraphy.logger import G_LOGGER

    lines: list[str] = []

    class _Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(record.getMessage().splitlines())

    # For good: standard output belongs to the program, and with colours on polygraphy prints there that it has none.
    G_LOGGER.use_python_logging_system, G_LOGGER.colors = True, False
    logger, handler = G_LOGGER.python_logger, _Collect()
    before: Mapping[str, Any] = {"level": logger.level, "propagate": logger.propagate}
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        with G_LOGGER.verbosity(G_LOGGER.VERBOSE):
            yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before["level"])
        logger.propagate = before["propagate"]

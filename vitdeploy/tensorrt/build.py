"""An engine from an ONNX file, through polygraphy: TensorRT 8.5 to 11, each told the types that the graph states."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError, UsageError
from vitdeploy.platforms.capabilities import missing_dla
from vitdeploy.tensorrt.cache import keep
from vitdeploy.tensorrt.error_patterns import explain
from vitdeploy.tensorrt.options import BuildOptions

STRONGLY_TYPED_SINCE = (10, 0)
# The accelerator takes strongly typed networks from here on; before, it wants the precision flags.
STRONGLY_TYPED_DLA_SINCE = (11, 0)


@dataclass(frozen=True)
class Built:
    """A serialized engine, what the builder said, and which layers the accelerator computes.

    on_dla, off_dla  kinds of layers and how many of them; empty where no accelerator was asked for
    layers           what the engine consists of, in the form of the inspector's JSON, where the builder says it
    """

    engine: bytes
    log: str
    on_dla: Mapping[str, int] = field(default_factory=dict)
    off_dla: Mapping[str, int] = field(default_factory=dict)
    layers: str = ""


class BuildError(BackendError):
    """A model that is not parsed or not built; `log` is all that was said."""

    def __init__(self, what: str, *, log: str, why: str, fix: str) -> None:
        self.log = log
        super().__init__(what, why=why, fix=fix)


def _refused(lines: list[str], error: Exception, version: str) -> BuildError:
    """The error for a model that TensorRT does not parse or build, from everything that it said."""
    log = "\n".join([*lines, str(error)])
    patterns = (r"\[[EF]\]", r"(?i).*\berror\b")
    spoken = [line for pattern in patterns for line in lines if re.match(pattern, line)] or [str(error)]
    cause, fix = explain(log, version)
    words = spoken[0].strip()
    why = f"{cause} ({words})" if cause else words
    return BuildError(f"TensorRT {version} does not build this model", log=log, why=why, fix=fix)


def version_of(text: str) -> tuple[int, int]:
    """(10, 3) for `10.3.0.post1`."""
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise BackendError(f"TensorRT reports the invalid version {text!r}", fix="install TensorRT again")
    return int(found[1]), int(found[2])


def is_strongly_typed(version: tuple[int, ...], options: BuildOptions) -> bool:
    """Whether the network's types are the graph's by construction, and not by flags and constraints."""
    return version >= (STRONGLY_TYPED_SINCE if options.dla is None else STRONGLY_TYPED_DLA_SINCE)


def build(model: bytes, options: BuildOptions, *, timing: Path | None = None, board: str | None = None) -> Built:
    """Parses and builds `model`, on `board` where that is a Jetson.

    From TensorRT 10 on the network is strongly typed; before, see `hold_types`. `timing` is read where it exists and
    brought up to date.

    Raises UsageError for options that do not fit the model, the version or the machine, and BuildError with the
    builder's own words.
    """
    import tensorrt as trt
    from polygraphy.backend import trt as poly

    version = version_of(trt.__version__)
    exact = tuple(map(int, re.findall(r"\d+", trt.__version__)[:3]))
    reason = None if options.dla is None else missing_dla(exact, board)
    if reason:
        raise UsageError("there is no DLA to build for", why=reason, fix="leave --dla out")
    with builder_log() as lines:
        try:
            typed = is_strongly_typed(version, options)
            network = poly.network_from_onnx_bytes(model, **({"strongly_typed": True} if typed else {}))
            settings: dict[str, Any] = {} if typed else hold_types(network[1])
            settings |= _settings(network[1], options, version, poly)
            if timing is not None and timing.exists():
                settings["load_timing_cache"] = str(timing)
            config = poly.create_config(*network[:2], **settings)
            on, off = _place_on_dla(network, config, options.dla) if options.dla is not None else ({}, {})
            engine = bytes(poly.engine_bytes_from_network(network, config=config))
            timings = config.get_timing_cache()
            if timing is not None and timings is not None:
                keep(timing, bytes(timings.serialize()))
            return Built(engine, "\n".join(lines), on, off)
        except UsageError:
            raise
        except Exception as error:
            raise _refused(lines, error, trt.__version__) from error


def _settings(network: Any, options: BuildOptions, version: tuple[int, int], poly: Any) -> dict[str, Any]:
    """What polygraphy's configuration is told, besides the types."""
    import tensorrt as trt

    settings: dict[str, Any] = {"tf32": options.tf32, "profiling_verbosity": trt.ProfilingVerbosity.DETAILED}
    profile = poly.Profile()
    for name, shape in _free_inputs(network):
        if options.dla is not None and len(set(options.profile)) > 1:
            raise UsageError(
                "a DLA takes no free batch", why="its loadables are built for one shape", fix="--profile 1"
            )
        profile.add(name, *([images, *shape[1:]] for images in options.profile))
    if profile:
        settings["profiles"] = [profile]
    if options.workspace is not None:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace}
    if version == (8, 6):
        # What 8.6 does by default for its own kernels, said aloud: engines that need neither cuBLAS nor cuDNN.
        settings["tactic_sources"] = [trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS]
    return settings


def _place_on_dla(network: Any, config: Any, core: int) -> tuple[dict[str, int], dict[str, int]]:
    """Has the accelerator compute what it can, the GPU the rest; kinds of layers on it and off it."""
    import tensorrt as trt

    builder, layers = network[0], network[1]
    cores = int(builder.num_DLA_cores)
    if core >= cores:
        why = f"this device has {cores}" if cores else "this device has none"
        raise UsageError(f"there is no DLA core {core}", why=why, fix="--dla 0" if cores else "leave --dla out")
    if not any(_is_reduced(layer, trt) for layer in layers):
        raise UsageError(
            "a DLA computes in FP16 and INT8 only", why="this graph is FP32", fix="vitdeploy export MODEL --fp16"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    on: Counter[str] = Counter()
    off: Counter[str] = Counter()
    for layer in layers:
        (on if config.can_run_on_DLA(layer) else off)[str(layer.type).rpartition(".")[2]] += 1
    return dict(on.most_common()), dict(off.most_common())


def _is_reduced(layer: Any, trt: Any) -> bool:
    """Whether the layer computes in FP16, or feeds one that computes in INT8."""
    kinds = {layer.get_output(index).dtype for index in range(layer.num_outputs)}
    return trt.float16 in kinds or bool(layer.type == trt.LayerType.DEQUANTIZE)


def hold_types(network: Any) -> dict[str, Any]:
    """The builder settings of a weakly typed network, whose FP32 layers are told to stay what they are.

    The flags allow FP16 and INT8 where the graph has such tensors. INT8 then goes where Q/DQ stand and nowhere else;
    but FP16 would be taken for what the graph keeps in FP32 too: hence the constraint. A layer that reads dequantized
    tensors is left free: it is meant to run in INT8.
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
    if "fp16" in settings and single:
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
                f"the input {tensor.name} has free axes besides the batch",
                fix="vitdeploy export MODEL, which fixes them",
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

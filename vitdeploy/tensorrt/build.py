"""An engine from an ONNX file: TensorRT 8.5 to 11, each told the types that the graph states."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError, UsageError
from vitdeploy.tensorrt.error_patterns import explain
from vitdeploy.tensorrt.logger import collector, worded
from vitdeploy.tensorrt.options import BuildOptions
from vitdeploy.tensorrt.progress import show_progress
from vitdeploy.tensorrt.timings import read_timings, save_timings

STRONGLY_TYPED_SINCE = (10, 0)
# The accelerator takes strongly typed networks from here on; before, it wants the precision flags.
STRONGLY_TYPED_DLA_SINCE = (11, 0)
LEVELS_SINCE = (8, 6)


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

    From TensorRT 10 on the network is strongly typed; before, see `hold_types`. `timing` is read where it exists, and
    what was measured is added. Builds of several threads share nothing, their loggers neither.

    Raises UsageError for options that do not fit the model, the version or the machine, and BuildError with the
    builder's own words.
    """
    import tensorrt as trt
    from polygraphy.backend import trt as poly

    from vitdeploy.platforms.boards import missing_dla

    version = version_of(trt.__version__)
    exact = tuple(map(int, re.findall(r"\d+", trt.__version__)[:3]))
    reason = None if options.dla is None else missing_dla(exact, board)
    if reason:
        raise UsageError("there is no DLA to build for", why=reason, fix="leave --dla out")
    _keep_off_standard_output()
    logger, lines = collector(trt)
    try:
        typed = is_strongly_typed(version, options)
        builder = trt.Builder(logger)
        network = builder.create_network(_network_flags(trt.NetworkDefinitionCreationFlag, typed))
        _parse(trt.OnnxParser(network, logger), model, lines)
        settings: dict[str, Any] = {} if typed else hold_types(network)
        settings |= _settings(network, options, version, poly)
        known = read_timings(timing)
        if known:
            settings["load_timing_cache"] = io.BytesIO(known)
        config = poly.create_config(builder, network, **settings)
        show_progress(trt, config)
        on, off = _place_on_dla(builder, network, config, options.dla) if options.dla is not None else ({}, {})
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError("TensorRT made no engine and did not say why")
        engine = bytes(plan)
        if timing is not None:
            save_timings(timing, config)
        return Built(engine, "\n".join(lines), on, off)
    except UsageError:
        raise
    except Exception as error:
        raise _refused(lines, error, trt.__version__) from error


def _network_flags(kinds: Any, typed: bool) -> int:
    """A bit for each kind; their numbers change with the version, and 10 dropped what 8 insists on."""
    wanted = "STRONGLY_TYPED" if typed else "EXPLICIT_BATCH"
    return 1 << int(getattr(kinds, wanted)) if hasattr(kinds, wanted) else 0


def _parse(parser: Any, model: bytes, lines: list[str]) -> None:
    """Fills the parser's network; RuntimeError where the model is refused, the reasons among `lines`."""
    parsed = parser.parse(model)
    errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
    lines.extend(line for error in errors for line in worded("ERROR", error))
    if errors or not parsed:
        raise RuntimeError("Failed to parse ONNX model")


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
    if options.optimization_level is not None:
        if version < LEVELS_SINCE:
            raise UsageError(
                f"TensorRT {trt.__version__} has no optimization levels",
                why="they came with 8.6",
                fix="leave --optimization-level out",
            )
        settings["builder_optimization_level"] = options.optimization_level
    if version == (8, 6):
        # What 8.6 does by default for its own kernels, said aloud: engines that need neither cuBLAS nor cuDNN.
        settings["tactic_sources"] = [trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS]
    return settings


def _place_on_dla(builder: Any, network: Any, config: Any, core: int) -> tuple[dict[str, int], dict[str, int]]:
    """Has the accelerator compute what it can, the GPU the rest; kinds of layers on it and off it."""
    import tensorrt as trt

    cores = int(builder.num_DLA_cores)
    if core >= cores:
        why = f"this device has {cores}" if cores else "this device has none"
        raise UsageError(f"there is no DLA core {core}", why=why, fix="--dla 0" if cores else "leave --dla out")
    if not any(_is_reduced(layer, trt) for layer in network):
        raise UsageError(
            "a DLA computes in FP16 and INT8 only", why="this graph is FP32", fix="vitdeploy export MODEL --fp16"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    on: Counter[str] = Counter()
    off: Counter[str] = Counter()
    for layer in network:
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


def _keep_off_standard_output() -> None:
    """For good: standard output is the program's, and with colours on polygraphy prints there that it has none."""
    from polygraphy.logger import G_LOGGER

    G_LOGGER.use_python_logging_system, G_LOGGER.colors = True, False
    if not G_LOGGER.python_logger.handlers:  # else its errors, which are raised too, would go to standard error
        G_LOGGER.python_logger.addHandler(logging.NullHandler())

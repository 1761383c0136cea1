"""Running a graph on this machine: the one place where an ONNX Runtime session is opened on a graph of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import REPORT, BackendError, MissingDependencyError
from vitdeploy.machine.settings import default_threads, exact_entries

if TYPE_CHECKING:  # a device without the package onnx_ir runs files
    import onnx_ir as ir

Array = NDArray[Any]

Mode = Literal["as_written", "qdq", "optimized"]
Inputs = Mapping[str, Array]  # by name, each with the samples along its first axis


def open_session(
    model: ir.Model | bytes,
    mode: Mode = "optimized",
    *,
    arena: bool = True,
    threads: int | None = None,
    optimized: Path | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, whose threads do not spin between calls.

    model      a graph, or the bytes of an ONNX file
    mode       `as_written`: no optimization, the nodes in the order in which the graph lists them
               `qdq`: optimized, but QuantizeLinear and DequantizeLinear are computed as the ONNX standard says
               `optimized`: all optimizations, integer kernels included, as in use
    arena      whether memory is kept from one run to the next, which is faster (by 1.16 for LeMeViT-Tiny in batches of
               16), or goes back to the system as soon as a tensor is not needed any more
    threads    that one run uses; None for as many as are usable
    optimized  where ONNX Runtime writes the graph that it executes, if anywhere

    Raises BackendError for a graph that ONNX Runtime refuses, MissingDependencyError where it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError("onnxruntime", needed_for="running a graph", extra="onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    for entry in exact_entries():
        options.add_session_config_entry(*entry)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads or default_threads() or 0  # 0 leaves it to ONNX Runtime
    if mode == "as_written":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # by default leaves may wait for the end
    if mode == "qdq":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    payload = model if isinstance(model, bytes) else _serialized(model)
    try:
        return onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class of their own
        raise BackendError("ONNX Runtime cannot load the graph", why=_last_line(error), fix=REPORT) from error


def _serialized(model: ir.Model) -> bytes:
    import onnx_ir as ir
    from onnx_ir.passes import common

    if model.functions:  # ONNX Runtime 1.23 mixes up the overloads of a function
        model = model.clone()
        common.InlinePass()(model)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


class Runner:
    """A graph opened once and run on any number of samples; the arguments are those of `open_session`.

    inputs, outputs  names, in the order of the graph
    batch            samples that the graph takes at once; None where it takes any number
    """

    def __init__(self, model: ir.Model | bytes, mode: Mode = "optimized", *, threads: int | None = None) -> None:
        self._session = open_session(model, mode, threads=threads)
        ports = self._session.get_inputs()
        self.inputs = tuple(port.name for port in ports)
        self.outputs = tuple(port.name for port in self._session.get_outputs())
        first = ports[0].shape[:1] if ports else []
        self.batch: int | None = first[0] if first and isinstance(first[0], int) else None
        # An output without the batch in front is one of all samples that were passed together.
        self._whole = self.batch is None and not all(
            port.shape and isinstance(port.shape[0], str) for port in self._session.get_outputs()
        )

    def __call__(self, inputs: Inputs, step: int | None = None) -> dict[str, Array]:
        """All outputs by name, those of the batches one after another along the first axis; see `batches`."""
        parts = list(self.batches(inputs, None if self._whole else step))
        several = self.batch is not None
        return {name: joined([part[name] for part in parts], several=several) for name in self.outputs}

    def batches(self, inputs: Inputs, step: int | None = None) -> Iterator[dict[str, Array]]:
        """The outputs of one batch after another, by name.

        inputs  by name, each with the samples along its first axis, at least one
        step    samples at once where the graph leaves that open; None for all

        Too few samples for a fixed batch are filled up with copies of the last one, see `take`. Raises BackendError
        for what ONNX Runtime refuses.
        """
        count = samples_in(inputs)
        step = self.batch or step or count
        for start in range(0, count, step):
            part = rows(inputs, start, start + step)
            size = samples_in(part)
            if self.batch is not None and size < self.batch:
                part = {name: fill(array, self.batch) for name, array in part.items()}
            try:
                made = self._session.run(self.outputs, part)
            except Exception as error:
                raise BackendError("ONNX Runtime cannot run the graph", why=_last_line(error), fix=REPORT) from error
            full = self.batch or size
            yield {name: take(array, size, full) for name, array in zip(self.outputs, made, strict=True)}


def run(model: ir.Model | bytes, inputs: Inputs, mode: Mode = "optimized", step: int | None = None) -> dict[str, Array]:
    """All outputs of a graph by name, for any number of samples; the arguments are those of `Runner`."""
    return Runner(model, mode)(inputs, step)


def samples_in(inputs: Inputs) -> int:
    """How many samples there are."""
    return len(next(iter(inputs.values())))


def rows(inputs: Inputs, start: int, stop: int) -> dict[str, Array]:
    """The samples from `start` to `stop`."""
    return {name: array[start:stop] for name, array in inputs.items()}


def joined(parts: Sequence[Array], *, several: bool) -> Array:
    """The outputs of calls one after another; `several` calls of a scalar give one value each, [calls]."""
    return np.concatenate(list(map(np.atleast_1d, parts))) if several or len(parts) > 1 else parts[0]


def fill(array: Array, batch: int) -> Array:
    """`array` with copies of its last sample behind it, so that there are `batch` samples."""
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])


def take(array: Array, count: int, batch: int) -> Array:
    """What belongs to the first `count` of `batch` samples: the whole array where the samples do not lie in front."""
    if count == batch or not array.ndim or len(array) % batch:
        return array
    return array[: len(array) // batch * count]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

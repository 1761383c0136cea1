"""A deserialized engine that runs: contexts with their memory and stream, and what they do recorded as a CUDA graph."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from queue import LifoQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle.manifest import TensorSpec
from vitdeploy.errors import REPORT, BackendError, UsageError, VitDeployError
from vitdeploy.tensorrt.cuda import Buffer, Cuda, CudaError, Graph, open_cuda
from vitdeploy.tensorrt.library import Library

Array = NDArray[Any]

log = logging.getLogger(__name__)

PROFILES_SHARED_SINCE = (10, 0)


class EngineError(BackendError):
    """An engine that its library refuses to load."""


class Port(NamedTuple):
    """One tensor of the engine; `profile` is the min, opt and max images a call where the batch is free."""

    spec: TensorSpec
    dtype: np.dtype[Any]
    profile: tuple[int, int, int] | None = None

    def opt_shape(self) -> dict[str, tuple[int, ...]]:
        """The shape that kernels are tuned for, by name; empty where it is fixed anyway."""
        fixed = tuple(axis for axis in self.spec.shape[1:] if isinstance(axis, int))
        return {self.spec.name: (self.profile[1], *fixed)} if self.profile else {}


class Engine:
    """An engine and the contexts that serve one call each at a time; freed when nobody holds it.

    Raises EngineError for bytes that the library refuses, and UsageError where this version cannot run so many at once.
    """

    def __init__(self, serialized: bytes, library: Library, contexts: int = 1) -> None:
        self._idle: LifoQueue[_Context] = LifoQueue()
        self._library = library
        self.cuda = open_cuda()
        self.cuda.enter()
        with library.log() as lines:
            try:
                self._engine = library.deserialize(serialized)
                self.inputs, self.outputs = _ports(self._engine, library.module)
                self._check(contexts)
                for _ in range(contexts):
                    self._idle.put(_Context(self._engine, library, self.cuda, self.inputs, self.outputs))
            except VitDeployError:
                raise
            except Exception as error:
                why = next((line for line in lines if line.startswith("[E]")), str(error))
                raise EngineError(
                    "the engine cannot be loaded", why=why.strip() or None, fix=f"{library.command} --rebuild"
                ) from error

    @property
    def batch(self) -> tuple[int, int] | None:
        """Fewest and most images of one call; None where their number is fixed."""
        profile = self.inputs[0].profile
        return None if profile is None else (profile[0], profile[-1])

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, as new arrays; waits for a context that is free."""
        self.cuda.enter()
        context = self._idle.get()
        try:
            return context.infer(inputs)
        finally:
            self._idle.put(context)

    def describe(self) -> dict[str, Any]:
        """How it runs, as JSON values: `cuda_graph`, `host_memory`, and `device_memory_bytes` of the activations."""
        context = self._idle.get()
        try:
            replay = context.replay
        finally:
            self._idle.put(context)
        return {
            "cuda_graph": replay,
            "host_memory": "mapped" if self.cuda.integrated else "pinned",
            "device_memory_bytes": _activation_bytes(self._engine),
        }

    def inspect(self) -> str:
        """What the engine consists of: the inspector's JSON, for the opt shapes where the batch is free."""
        trt = self._library.module
        inspector = self._engine.create_engine_inspector()
        context = self._idle.get()
        try:
            shapes = {name: shape for port in self.inputs for name, shape in port.opt_shape().items()}
            if shapes:
                # Formats and types depend on the shape: without a context the inspector says that they are unknown.
                context.set_shapes(shapes)
                inspector.execution_context = context.native
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        finally:
            self._idle.put(context)

    def _check(self, contexts: int) -> None:
        if contexts > 1 and self.batch is not None and self._library.rules < PROFILES_SHARED_SINCE:
            raise UsageError(
                f"{self._library.product} {self._library.version} computes one call at a time where the batch is free",
                why="its contexts cannot share an optimization profile",
                fix="leave num_requests out, or export with --batch and a number",
            )

    def __del__(self) -> None:
        while not self._idle.empty():
            self._idle.get().free()


class _Context:
    """One execution context. `replay` tells whether its work is launched as a graph, or why not."""

    def __init__(
        self, engine: Any, library: Library, cuda: Cuda, inputs: Sequence[Port], outputs: Sequence[Port]
    ) -> None:
        self.native = library.create_context(engine)
        if not self.native:
            raise EngineError(
                f"{library.product} could not create an execution context",
                why="usually the GPU has too little free memory",
                fix="end other processes on the GPU, or compute fewer calls at once (num_requests)",
            )
        self._library, self._cuda, self._inputs, self._outputs = library, cuda, inputs, outputs
        self._stream = cuda.stream()
        self._buffers: dict[str, Buffer] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Graph | None = None
        self._calls = 0
        self._unrecordable = ""

    @property
    def replay(self) -> str:
        """`replayed`, `from the second call of a shape on`, or why it is not."""
        if self._unrecordable:
            return f"no: {self._unrecordable}"
        return "replayed" if self._graph else "from the second call of a shape on"

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One call: copy in, compute, copy out."""
        self.set_shapes({name: array.shape for name, array in inputs.items()})
        for port in self._inputs:
            name = port.spec.name
            self._buffers[name].array(port.dtype, self._shapes[name])[...] = inputs[name]
        self._calls += 1
        # The first call of a shape prepares what a recording may not contain: TensorRT's guide asks for it.
        if self._graph is None and self._calls == 2 and not self._unrecordable:
            self._record()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)
        return {
            port.spec.name: self._buffers[port.spec.name].array(port.dtype, self._shapes[port.spec.name]).copy()
            for port in self._outputs
        }

    def set_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Makes these the shapes of the inputs, and gives every tensor memory for them."""
        if all(self._shapes.get(name) == tuple(shape) for name, shape in shapes.items()):
            return
        self._forget_graph()
        self._shapes = {}
        for name, shape in shapes.items():
            if not self.native.set_input_shape(name, tuple(shape)):
                raise BackendError(
                    f"the engine does not take {name} of shape {list(shape)}",
                    fix=f"`{self._library.command} --profile MIN,OPT,MAX`, with this number of samples in it",
                )
        found: dict[str, tuple[int, ...]] = {}
        for port in (*self._inputs, *self._outputs):
            name = port.spec.name
            found[name] = tuple(int(axis) for axis in self.native.get_tensor_shape(name))
            if min(found[name], default=0) < 0:
                raise BackendError(f"the shape of {name} depends on the values", fix="a graph with TopK of a constant")
            self._reserve(name, _bytes(port.dtype, found[name]))
        self._shapes = found

    def free(self) -> None:
        """Gives everything back; errors at the end of the process do not matter any more."""
        with contextlib.suppress(CudaError):
            self._cuda.enter()
            self._forget_graph()
            for buffer in self._buffers.values():
                buffer.free()
            self._cuda.destroy_stream(self._stream)
        self._buffers = {}

    def _reserve(self, name: str, size: int) -> None:
        if name not in self._buffers or self._buffers[name].size < size:
            # Freed first, since both may not fit; forgotten first, since the new one may fit neither.
            old = self._buffers.pop(name, None)
            if old is not None:
                old.free()
            self._buffers[name] = Buffer(self._cuda, size)
        if not self.native.set_tensor_address(name, self._buffers[name].device):
            raise BackendError(f"{self._library.product} rejected the memory for {name}", fix=REPORT)

    def _enqueue(self) -> None:
        for port in self._inputs:
            name = port.spec.name
            self._buffers[name].upload(_bytes(port.dtype, self._shapes[name]), self._stream)
        if not self.native.execute_async_v3(self._stream):
            raise BackendError(
                f"{self._library.product} could not run the engine", fix=f"{self._library.command} --rebuild"
            )
        for port in self._outputs:
            name = port.spec.name
            self._buffers[name].download(_bytes(port.dtype, self._shapes[name]), self._stream)

    def _record(self) -> None:
        # TensorRT for RTX tells beforehand; the others only by failing.
        capturable = getattr(self.native, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream):
            self._unrecordable = f"{self._library.product} says that this engine cannot be recorded"
            return
        try:
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        except BackendError as error:
            # Some engines cannot be recorded, e.g. with parts on a DLA; they run as they did before.
            self._unrecordable = " ".join(filter(None, (error.what, error.why)))
            log.info("this engine runs without a CUDA graph: %s", self._unrecordable)

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
        self._graph, self._calls = None, 0


def _ports(engine: Any, trt: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs as the engine reports them through its bindings."""
    sides: dict[Any, list[Port]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        shape = tuple("?" if axis < 0 else int(axis) for axis in engine.get_tensor_shape(name))
        mode, profile = engine.get_tensor_mode(name), None
        if mode == trt.TensorIOMode.INPUT and "?" in shape:
            minimum, opt, maximum = (int(next(iter(bound))) for bound in engine.get_tensor_profile_shape(name, 0))
            profile = (minimum, opt, maximum)
        sides[mode].append(Port(TensorSpec(name, dtype.name, shape), dtype, profile))
    return tuple(sides[trt.TensorIOMode.INPUT]), tuple(sides[trt.TensorIOMode.OUTPUT])


def _activation_bytes(engine: Any) -> int:
    """Device memory of one context; the name changed with 10.1, and the old one is gone with 11."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def _bytes(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

"""A CUDA driver without a GPU: libcuda's functions over ordinary memory, as strict as they are where it matters."""

# ruff: noqa: N802, N815 -- the names are libcuda's

from __future__ import annotations

import ctypes
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from vitdeploy.machine.gpus import Gpu
from vitdeploy.tensorrt.cuda import PROTOTYPES

INVALID_CONTEXT, INVALID_VALUE, CAPTURE_UNSUPPORTED = 201, 1, 900
NO_DEVICE, INVALID_DEVICE, OUT_OF_MEMORY = 100, 101, 2
ORIN = Gpu("Orin", 87, uuid="6b0f3f1e-0000-4000-8000-000000000087")


class Function:
    """One function of the library: converts its arguments as ctypes would, and refuses what ctypes would."""

    def __init__(self, driver: FakeDriver, name: str) -> None:
        self.driver, self.name = driver, name
        self.argtypes: list[Any] = []
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        assert self.restype is ctypes.c_int
        assert len(arguments) == len(self.argtypes), self.name
        for parameter, argument in zip(self.argtypes, arguments, strict=True):
            parameter.from_param(argument)
        self.driver.calls[self.name] += 1
        if self.name in self.driver.fails:
            if self.name == "cuStreamEndCapture":  # a recording that failed has ended all the same
                self.driver.recording.pop(arguments[0])
            return self.driver.fails[self.name]
        return getattr(self.driver, f"_{self.name.removesuffix('_v2')}")(*map(_plain, arguments)) or 0


class FakeDriver:
    """The library. Device memory is memory of its own unless the GPU is `integrated`.

    `devices` are those of the machine in the order of nvidia-smi; CUDA_VISIBLE_DEVICES chooses among them. `room` is
    how many bytes can be allocated, host and device together; None for any number. `fails` maps function names to the
    error that they return; `launches` counts replayed graphs.
    """

    def __init__(self, *, integrated: bool = False, devices: Sequence[Gpu] = (ORIN,)) -> None:
        self.integrated, self.devices = integrated, list(devices)
        self.room: int | None = None
        self.fails: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self._thread = threading.local()
        self._functions: dict[str, Function] = {}
        self._handles = iter(range(1000, 10**9))

    def __getattr__(self, name: str) -> Function:
        if name not in PROTOTYPES:
            raise AttributeError(name)
        return self._functions.setdefault(name, Function(self, name))

    @property
    def leaks(self) -> int:
        """Allocations, streams and graphs that nobody gave back."""
        return len(self.memory) + len(self.streams) + len(self.graphs)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Does the work now, or records it."""
        assert stream in self.streams
        if stream in self.recording:
            self.recording[stream].append(work)
        else:
            work()

    def holds(self, address: int, size: int) -> bool:
        """Whether so many bytes from there belong to one allocation."""
        return any(start <= address and address + size <= start + len(data) for start, data in self.memory.items())

    def _visible(self) -> list[int]:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        return list(range(len(self.devices))) if named is None else [int(one) for one in named.split(",") if one]

    def _cuInit(self, flags: int) -> int:
        assert flags == 0
        return 0 if self._visible() else NO_DEVICE

    def _cuDeviceGet(self, device: Any, ordinal: int) -> int:
        if ordinal >= len(self._visible()):
            return INVALID_DEVICE
        device.value = 7 + self._visible()[ordinal]
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        major, minor = divmod(self.devices[device - 7].sm or 0, 10)
        value.value = {18: int(self.integrated), 75: major, 76: minor}[attribute]

    def _cuDeviceGetName(self, name: Any, size: int, device: int) -> None:
        text = self.devices[device - 7].name.encode()
        assert len(text) < size == len(name)
        name.value = text

    def _cuDeviceGetUuid(self, found: Any, device: int) -> None:
        text = self.devices[device - 7].uuid
        found.raw = uuid.UUID(text).bytes if text else bytes(16)

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        assert device - 7 in self._visible()
        context.value = 99

    def _cuCtxSetCurrent(self, context: int) -> None:
        assert context == 99
        self._thread.context = context

    def _current(self) -> int:
        return 0 if getattr(self._thread, "context", None) else INVALID_CONTEXT

    def _allocate(self, pointer: Any, size: int) -> int:
        if self.recording:
            return CAPTURE_UNSUPPORTED
        if self.room is not None and size + sum(map(len, self.memory.values())) > self.room:
            return OUT_OF_MEMORY
        data = ctypes.create_string_buffer(size)
        pointer.value = ctypes.addressof(data)
        self.memory[pointer.value] = data
        return self._current()

    def _cuMemAlloc(self, pointer: Any, size: int) -> int:
        return self._allocate(pointer, size)

    def _cuMemHostAlloc(self, pointer: Any, size: int, flags: int) -> int:
        assert flags == (3 if self.integrated else 1)
        return self._allocate(pointer, size)

    def _cuMemHostGetDevicePointer(self, device: Any, host: int, flags: int) -> int:
        assert self.integrated
        device.value = host
        return self._current()

    def _cuMemFree(self, address: int) -> int:
        return 0 if self.memory.pop(address, None) is not None else INVALID_VALUE

    _cuMemFreeHost = _cuMemFree

    def _cuMemGetInfo(self, free: Any, total: Any) -> int:
        free.value, total.value = 3 * 2**30, 8 * 2**30
        return self._current()

    def _copy(self, target: int, source: int, size: int, stream: int) -> int:
        if not (self.holds(target, size) and self.holds(source, size)):
            return INVALID_VALUE
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size) and None)
        return self._current()

    _cuMemcpyHtoDAsync = _cuMemcpyDtoHAsync = _copy

    def _cuStreamCreate(self, stream: Any, flags: int) -> int:
        assert flags == 1
        stream.value = next(self._handles)
        self.streams.add(stream.value)
        return self._current()

    def _cuStreamSynchronize(self, stream: int) -> int:
        assert stream in self.streams
        return CAPTURE_UNSUPPORTED if stream in self.recording else self._current()

    def _cuStreamDestroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> int:
        assert mode == 1
        self.recording[stream] = []
        return self._current()

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> None:
        graph.value = next(self._handles)
        self.graphs[graph.value] = self.recording.pop(stream)

    def _cuGraphInstantiateWithFlags(self, executable: Any, graph: int, flags: int) -> None:
        executable.value = next(self._handles)
        self.graphs[executable.value] = list(self.graphs[graph])

    def _cuGraphLaunch(self, executable: int, stream: int) -> int:
        self.launches += 1
        for work in self.graphs[executable]:
            self.enqueue(stream, work)
        return self._current()

    def _cuGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    _cuGraphExecDestroy = _cuGraphDestroy

    def _cuGetErrorString(self, code: int, text: Any) -> None:
        text.value = f"error number {code}".encode()


def _plain(argument: Any) -> Any:
    """An integer, or for what is passed by reference the object itself."""
    if isinstance(argument, (int, ctypes.Array)):
        return argument
    return argument._obj if hasattr(argument, "_obj") else argument.value

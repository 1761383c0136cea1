"""The part of CUDA's driver API that runs an engine: memory, copies, streams, graphs. Only ctypes, no torch.

The driver's library comes with every driver and every JetPack, while libcudart is part of the toolkit and may be
missing. Both work in the device's primary context, so TensorRT, which uses libcudart, takes what is made here.
"""

from __future__ import annotations

import ctypes
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import BackendError
from vitdeploy.machine.gpus import Gpu

LIBRARY = "libcuda.so.1"

UuidBytes = c_char * 16  # CUuuid

# The exported symbols and their parameters, from cuda.h of CUDA 11.4 (JetPack 5) to 12.9; each returns a CUresult.
PROTOTYPES: Mapping[str, Sequence[Any]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetUuid_v2": (POINTER(UuidBytes), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemHostGetDevicePointer_v2": (POINTER(c_uint64), c_void_p, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}

_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_PORTABLE, _MAPPED = 1, 2  # CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTALLOC_DEVICEMAP
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not spoil the capture


class CudaError(BackendError):
    """A call of the driver that failed."""


# The GPU is short of memory in most cases; other errors last until the process ends.
_CUDA_FAILED = "end other processes on the GPU (nvidia-smi, or tegrastats on a Jetson) and start again"


class Buffer:
    """Page-locked host memory and the device memory that belongs to it, both `size` bytes.

    `mapped`: on a GPU that shares the memory of the CPU they are the same bytes, and nothing is copied.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self.size, self.mapped = cuda, size, cuda.integrated
        host, device = c_void_p(), c_uint64()
        self.host = self.device = 0
        room = max(size, 1)
        cuda.call("cuMemHostAlloc", byref(host), room, _PORTABLE | (_MAPPED if self.mapped else 0))
        self.host = int(host.value or 0)
        try:
            if self.mapped:
                cuda.call("cuMemHostGetDevicePointer_v2", byref(device), self.host, 0)
            else:
                cuda.call("cuMemAlloc_v2", byref(device), room)
        except CudaError:
            self.free()
            raise
        self.device = int(device.value)

    def array(self, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
        """The host memory as an array; it ends with the buffer."""
        count = int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(self.host)
        array: NDArray[Any] = np.ndarray(tuple(shape), dtype, buffer=memoryview(memory))
        return array

    def upload(self, size: int, stream: int) -> None:
        """Has the stream copy the first `size` bytes to the device."""
        if not self.mapped:
            self._cuda.call("cuMemcpyHtoDAsync_v2", self.device, self.host, size, stream)

    def download(self, size: int, stream: int) -> None:
        """Has the stream copy the first `size` bytes to the host."""
        if not self.mapped:
            self._cuda.call("cuMemcpyDtoHAsync_v2", self.host, self.device, size, stream)

    def free(self) -> None:
        """Gives both back; the array must not be used any more."""
        host, device = self.host, self.device
        self.host = self.device = self.size = 0  # also where a call fails: an address that was given back is none
        if device and not self.mapped:
            self._cuda.call("cuMemFree_v2", device)
        if host:
            self._cuda.call("cuMemFreeHost", host)


class Graph:
    """Work that was recorded once and is launched as a whole."""

    def __init__(self, cuda: Cuda, executable: int) -> None:
        self._cuda, self._executable = cuda, executable

    def launch(self, stream: int) -> None:
        """Has the stream do it again."""
        self._cuda.call("cuGraphLaunch", self._executable, stream)

    def free(self) -> None:
        """Forgets it."""
        self._cuda.call("cuGraphExecDestroy", self._executable)


class Cuda:
    """The first device that CUDA sees: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER decide which one that is.

    gpu         what the driver says that it is
    integrated  whether it shares the memory of the CPU

    Its primary context, some 100 MB, is made when it is first entered.
    """

    def __init__(self, library: Any) -> None:
        self._functions: dict[str, Callable[..., int]] = {}
        for name, parameters in PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = list(parameters), c_int
            self._functions[name] = function
        device = c_int()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(device), 0)
        self._device, self._context = device, c_void_p()
        self._entering = threading.Lock()
        self.integrated = bool(self._attribute(_INTEGRATED))
        sm = 10 * self._attribute(_CAPABILITY_MAJOR) + self._attribute(_CAPABILITY_MINOR)
        self.gpu = Gpu(self._name(), sm, uuid=self._uuid())

    def _attribute(self, number: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _name(self) -> str:
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("cuDeviceGetName", name, _NAME_BYTES, self._device)
        return name.value.decode("utf-8", "replace").strip()

    def _uuid(self) -> str:
        """That of the board, or of the MIG part of it; empty where the driver has none."""
        found = UuidBytes()
        try:
            self.call("cuDeviceGetUuid_v2", byref(found), self._device)
        except CudaError:
            return ""
        return str(uuid.UUID(bytes=found.raw)) if any(found.raw) else ""

    def call(self, name: str, *arguments: Any) -> None:
        """Calls the driver; CudaError with its own words where it fails."""
        result = self._functions[name](*arguments)
        if result:
            text = c_char_p()
            self._functions["cuGetErrorString"](result, byref(text))
            words = (text.value or b"unknown error").decode()
            raise CudaError(f"CUDA: {words}", why=f"{name} returned {result}", fix=_CUDA_FAILED)

    def enter(self) -> None:
        """Makes the context that of this thread: the driver, unlike libcudart, does not do so by itself."""
        with self._entering:
            if not self._context:
                context = c_void_p()
                self.call("cuDevicePrimaryCtxRetain", byref(context), self._device)
                self._context = context
        self.call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """A new stream, as the number that TensorRT takes."""
        handle = c_void_p()
        self.call("cuStreamCreate", byref(handle), _NON_BLOCKING)
        return int(handle.value or 0)

    def synchronize(self, stream: int) -> None:
        """Waits until the stream has done everything."""
        self.call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Gives a stream back."""
        self.call("cuStreamDestroy_v2", stream)

    def memory(self) -> tuple[int, int]:
        """Bytes of the device's memory that are free, and all of them."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        """The graph of what `work` has the stream do, which is recorded and not done.

        Raises CudaError where something in it cannot be recorded, and what `work` raises; the stream is usable again.
        """
        graph, executable = c_void_p(), c_void_p()
        with self._recording(stream, graph):
            work()
        try:
            self.call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self.call("cuGraphDestroy", graph)
        return Graph(self, int(executable.value or 0))

    @contextmanager
    def _recording(self, stream: int, graph: c_void_p) -> Iterator[None]:
        self.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            yield
        except BaseException:
            # A recording that was spoiled has to be ended too; that it is no use is known already.
            self._functions["cuStreamEndCapture"](stream, byref(graph))
            if graph:
                self.call("cuGraphDestroy", graph)
            raise
        self.call("cuStreamEndCapture", stream, byref(graph))


@cache
def open_cuda() -> Cuda:
    """The driver of this machine, loaded once; BackendError where there is none or it is too old."""
    try:
        return Cuda(ctypes.CDLL(LIBRARY))
    except (OSError, AttributeError) as error:
        raise BackendError(
            "the CUDA driver cannot be used", why=str(error), fix="an NVIDIA driver for CUDA 11.4 or newer, or JetPack"
        ) from error


def opened_gpu() -> Gpu:
    """The GPU that engines are built and run on here; BackendError where CUDA opens none.

    The tools of the system list others too, and in another order.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        return open_cuda().gpu
    except BackendError as error:
        among = f"; CUDA_VISIBLE_DEVICES is {visible!r}" if visible is not None else ""
        raise BackendError(
            "CUDA opens no GPU here",
            why=f"{'; '.join(filter(None, (error.what, error.why)))}{among}",
            fix="nvidia-smi, which lists the GPUs; leave CUDA_VISIBLE_DEVICES out, or name one of them",
        ) from error

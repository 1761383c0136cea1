"""What runs an engine: memory, streams and recorded graphs, over a driver that is played by ordinary memory."""

from __future__ import annotations

import threading
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p

import numpy as np
import pytest

from tests.bundles import tiny_images, tiny_logits, tiny_model
from tests.tensorrt.engines import loaded
from tests.tensorrt.fake_cuda import CAPTURE_UNSUPPORTED, INVALID_CONTEXT, FakeDriver
from tests.tensorrt.fake_tensorrt import EIGHT, ELEVEN, TEN, World
from vitdeploy.errors import BackendError
from vitdeploy.runtime.backends import Backend
from vitdeploy.tensorrt import cuda as cuda_module
from vitdeploy.tensorrt.cuda import PROTOTYPES, Buffer, Cuda, CudaError


def backend(model: bytes | None = None) -> Backend:
    return loaded(tiny_model(2) if model is None else model)


def check(loaded: Backend, images: np.ndarray) -> None:
    np.testing.assert_allclose(loaded.run({"images": images})["logits"], tiny_logits(images), rtol=0, atol=1e-6)


def test_from_the_second_call_on_one_launch_does_everything(world: World) -> None:
    loaded, driver = backend(), world.driver
    images = tiny_images(8)
    check(loaded, images[:2])
    assert (driver.launches, loaded.describe()["cuda_graph"]) == (0, "from the second call of a shape on")
    copies = driver.calls["cuMemcpyHtoDAsync_v2"] + driver.calls["cuMemcpyDtoHAsync_v2"]
    for start in (2, 4, 6):
        check(loaded, images[start : start + 2])
    assert (driver.launches, loaded.describe()["cuda_graph"]) == (3, "replayed")
    recorded = driver.calls["cuMemcpyHtoDAsync_v2"] + driver.calls["cuMemcpyDtoHAsync_v2"]
    assert recorded == 2 * copies, "the copies were asked for once more, while they were recorded"
    loaded.close()
    assert driver.leaks == 0


def test_another_shape_is_recorded_anew(world: World) -> None:
    loaded = backend(tiny_model())
    images = tiny_images(6)
    for count in (2, 2, 5, 5, 5, 2, 2):
        check(loaded, images[:count])
    assert world.driver.launches == 4, "one for the first twos, two for the fives, one for the twos again"
    assert loaded.describe()["cuda_graph"] == "replayed"
    loaded.close()
    assert world.driver.leaks == 0


@pytest.mark.parametrize("obstacle", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_an_engine_that_cannot_be_recorded_runs_all_the_same(world: World, obstacle: str) -> None:
    world.driver.fails[obstacle] = CAPTURE_UNSUPPORTED
    loaded = backend()
    for start in (0, 2, 4):
        check(loaded, tiny_images(6)[start : start + 2])
    assert world.driver.launches == 0
    assert world.driver.calls[obstacle] == 1, "it is not tried again"
    assert f"{obstacle} returned {CAPTURE_UNSUPPORTED}" in loaded.describe()["cuda_graph"]


def test_a_refusal_of_tensorrt_to_be_recorded_leaves_the_stream_usable(world: World) -> None:
    world.refuses_recording = True
    loaded = backend()
    for start in (0, 2, 4):
        check(loaded, tiny_images(6)[start : start + 2])
    assert loaded.describe()["cuda_graph"].startswith("no: TensorRT could not run the engine")
    assert not world.driver.recording
    loaded.close()
    assert world.driver.leaks == 0


@pytest.mark.parametrize("integrated", [False, True])
def test_on_an_integrated_gpu_nothing_is_copied(
    world: World, monkeypatch: pytest.MonkeyPatch, integrated: bool
) -> None:
    world.driver = FakeDriver(integrated=integrated)
    world.install(monkeypatch)
    loaded = backend()
    for start in (0, 2, 4):
        check(loaded, tiny_images(6)[start : start + 2])
    assert loaded.describe()["host_memory"] == ("mapped" if integrated else "pinned")
    assert bool(world.driver.calls["cuMemcpyHtoDAsync_v2"]) is not integrated
    assert bool(world.driver.calls["cuMemAlloc_v2"]) is not integrated
    loaded.close()
    assert world.driver.leaks == 0


def test_every_thread_enters_the_context(world: World) -> None:
    loaded, found = backend(), []
    thread = threading.Thread(target=lambda: found.append(loaded.run({"images": tiny_images(2)})["logits"]))
    thread.start()
    thread.join()
    np.testing.assert_allclose(found[0], tiny_logits(tiny_images(2)), rtol=0, atol=1e-6)


def test_a_call_of_the_driver_that_fails_reaches_the_caller(world: World) -> None:
    loaded = backend()
    world.driver.fails["cuMemcpyHtoDAsync_v2"] = 719
    with pytest.raises(BackendError, match=r"error number 719\n.*cuMemcpyHtoDAsync_v2 returned 719"):
        loaded.run({"images": tiny_images(2)})
    world.driver.fails.clear()
    check(loaded, tiny_images(2))


def test_memory_that_is_only_half_there_is_given_back(world: World) -> None:
    cuda = Cuda(world.driver)
    cuda.enter()
    world.driver.fails["cuMemAlloc_v2"] = 2
    with pytest.raises(CudaError):
        Buffer(cuda, 64)
    assert world.driver.leaks == 0


@pytest.mark.parametrize("integrated", [False, True])
def test_after_an_allocation_that_failed_a_smaller_call_is_right(
    world: World, monkeypatch: pytest.MonkeyPatch, integrated: bool
) -> None:
    """Whichever of the buffers does not fit: none that was given back may be used again."""
    world.driver = FakeDriver(integrated=integrated)
    world.install(monkeypatch)
    loaded, images = backend(tiny_model()), tiny_images(32)
    check(loaded, images[:4])
    small = sum(map(len, world.driver.memory.values()))
    refused = 0
    for room in range(small, 9 * small, 97):
        world.driver.room = room
        try:
            check(loaded, images)
        except CudaError:
            refused += 1
        check(loaded, images[:4])
        check(loaded, images[:1])
    assert refused > 10
    loaded.close()
    assert world.driver.leaks == 0


def test_a_buffer_that_cannot_be_given_back_is_not_used_again(world: World) -> None:
    cuda = Cuda(world.driver)
    cuda.enter()
    buffer = Buffer(cuda, 64)
    world.driver.fails["cuMemFree_v2"] = 700
    with pytest.raises(CudaError):
        buffer.free()
    assert (buffer.host, buffer.device, buffer.size) == (0, 0, 0)


def test_a_thread_without_the_context_is_refused_by_the_driver(world: World) -> None:
    """The stand-in is as strict as the driver: else the test above would prove nothing."""
    cuda = Cuda(FakeDriver())
    with pytest.raises(CudaError, match=str(INVALID_CONTEXT)):
        cuda.stream()


@pytest.mark.parametrize("version", [EIGHT, TEN, ELEVEN])
def test_the_memory_of_the_activations_is_known_under_either_name(
    world: World, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    world.version = version
    world.install(monkeypatch)
    assert backend().describe()["device_memory_bytes"] == 4096


def test_the_free_memory_is_the_drivers(world: World) -> None:
    cuda = Cuda(world.driver)
    cuda.enter()
    assert cuda.memory() == (3 * 2**30, 8 * 2**30)


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "LIBRARY", "libcuda.so.no-such-version")
    cuda_module.open_cuda.cache_clear()
    with pytest.raises(BackendError, match="CUDA driver cannot be used"):
        cuda_module.open_cuda()


def test_the_prototypes_are_those_of_the_header() -> None:
    """From cuda.h of CUDA 12.9, written with `p` for a pointer to the type that follows and `v` for a handle."""
    header = {
        "cuInit": "u",
        "cuDeviceGet": "pi i",
        "cuDeviceGetAttribute": "pi i i",
        "cuDeviceGetName": "s i i",
        "cuDeviceGetUuid_v2": "pb i",
        "cuDevicePrimaryCtxRetain": "pv i",
        "cuCtxSetCurrent": "v",
        "cuMemAlloc_v2": "pd z",
        "cuMemFree_v2": "d",
        "cuMemGetInfo_v2": "pz pz",
        "cuMemHostAlloc": "pv z u",
        "cuMemHostGetDevicePointer_v2": "pd v u",
        "cuMemFreeHost": "v",
        "cuMemcpyHtoDAsync_v2": "d v z v",
        "cuMemcpyDtoHAsync_v2": "v d z v",
        "cuStreamCreate": "pv u",
        "cuStreamSynchronize": "v",
        "cuStreamDestroy_v2": "v",
        "cuStreamBeginCapture_v2": "v i",
        "cuStreamEndCapture": "v pv",
        "cuGraphInstantiateWithFlags": "pv v l",
        "cuGraphLaunch": "v v",
        "cuGraphExecDestroy": "v",
        "cuGraphDestroy": "v",
        "cuGetErrorString": "i ps",
    }
    kinds = {
        "u": c_uint,
        "i": c_int,
        "z": c_size_t,
        "d": c_uint64,
        "l": c_ulonglong,
        "v": c_void_p,
        "s": c_char_p,
        "b": c_char * 16,
    }
    wanted = {
        name: tuple(POINTER(kinds[kind[1]]) if kind[0] == "p" else kinds[kind] for kind in words.split())
        for name, words in header.items()
    }
    assert {name: tuple(parameters) for name, parameters in PROTOTYPES.items()} == wanted

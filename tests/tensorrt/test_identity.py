"""Whose engine it is: that of the GPU that CUDA opened, whatever other GPUs the machine has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from tests.tensorrt.fake_cuda import FakeDriver
from tests.tensorrt.fake_tensorrt import World
from tests.transformer import write_bundle, wrong_fused_attention
from vitdeploy import build, load
from vitdeploy.errors import BackendError
from vitdeploy.machine.gpus import Gpu
from vitdeploy.tensorrt import backend as backend_module
from vitdeploy.tensorrt import cuda as cuda_module
from vitdeploy.tensorrt import engine as engine_module
from vitdeploy.tensorrt.backend import TensorRtBackend
from vitdeploy.tensorrt.cache import EngineCache
from vitdeploy.tensorrt.cuda import Cuda, opened_gpu
from vitdeploy.tensorrt.options import BuildOptions

ADA = Gpu("NVIDIA GeForce RTX 4090", 89, uuid="00000000-0000-4000-8000-000000000001")
TURING = Gpu("Tesla T4", 75, uuid="00000000-0000-4000-8000-000000000002")
TWIN = Gpu("Tesla T4", 75, uuid="00000000-0000-4000-8000-000000000003")


@pytest.fixture
def several(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with three GPUs, which nvidia-smi lists whatever CUDA_VISIBLE_DEVICES says."""
    machine = [ADA, TURING, TWIN]
    world.driver = FakeDriver(devices=machine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for place in (cuda_module, engine_module):
        monkeypatch.setattr(place, "open_cuda", lambda: Cuda(world.driver))
    rows = tuple(Gpu(gpu.name, gpu.sm, 16384) for gpu in machine)
    monkeypatch.setattr(backend_module, "read_gpus", lambda: rows)
    return world


@pytest.mark.parametrize(("visible", "gpu"), [(None, ADA), ("0", ADA), ("1", TURING), ("2,0", TWIN)])
def test_an_engine_is_named_after_the_gpu_that_cuda_opens(
    several: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, gpu: Gpu
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert opened_gpu() == gpu
    bundle = write_tiny_bundle(tmp_path / "b")
    report = build(bundle).to_dict()
    assert (report["device"], report["sm"], report["uuid"]) == (gpu.name, gpu.sm, gpu.uuid)
    cache = EngineCache()
    key = TensorRtBackend.key(bundle.read("model.onnx"), BuildOptions())
    assert (key.gpu, key.sm, key.uuid) == (gpu.name, gpu.sm, gpu.uuid)
    assert json.loads((cache.folder / f"{key.name}.json").read_text())["key"]["uuid"] == gpu.uuid
    assert cache.timing_file(key).exists()
    assert len(list(cache.folder.glob("timing-*.cache"))) == 1
    with load(bundle, runtime="tensorrt") as session:
        assert session.describe()["device"] == gpu.name


def test_another_gpu_gets_an_engine_of_its_own_and_an_equal_one_shares_the_timings(
    several: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    for visible in ("0", "1", "2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(BackendError, match="no proven TensorRT engine"):
            load(bundle, runtime="tensorrt")
        assert not build(bundle).cached
    assert len(list(EngineCache().folder.glob("*.engine"))) == 3
    assert len(list(EngineCache().folder.glob("timing-*.cache"))) == 2
    for visible in ("0", "1", "2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert build(bundle).cached


def test_what_a_workaround_needs_is_asked_of_the_gpu_that_cuda_opens(
    several: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 takes compute capability 8.0: the first GPU of the machine has it, and the one in use has not."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    several.miscompile = wrong_fused_attention
    report = build(write_bundle(tmp_path / "b", half=True), workarounds="bf16").to_dict()
    assert "compute capability 8.0" in report["attempts"][-1]["skipped"]


def test_a_gpu_that_is_hidden_from_cuda_is_none(
    several: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for call in (TensorRtBackend.require, lambda: build(write_tiny_bundle(tmp_path / "b"))):
        with pytest.raises(BackendError, match=r"CUDA opens no GPU here\n.*CUDA_VISIBLE_DEVICES is ''"):
            call()
    assert TensorRtBackend.gpu() is None


def test_looking_at_the_gpu_takes_no_memory_of_it(world: World) -> None:
    cuda = Cuda(world.driver)
    assert cuda.gpu == world.gpu
    assert world.driver.calls["cuDevicePrimaryCtxRetain"] == 0
    cuda.enter()
    cuda.enter()
    assert world.driver.calls["cuDevicePrimaryCtxRetain"] == 1


@pytest.mark.parametrize("uuid", ["", "00000000-0000-0000-0000-000000000000"])
def test_a_driver_without_a_uuid_leaves_it_open(world: World, uuid: str) -> None:
    world.driver.devices = [Gpu("Orin", 87, uuid=uuid)]
    assert Cuda(world.driver).gpu == Gpu("Orin", 87)
    world.driver.fails["cuDeviceGetUuid_v2"] = 801
    assert Cuda(world.driver).gpu == Gpu("Orin", 87)

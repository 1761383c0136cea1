"""TensorRT for RTX on a GPU, played by ONNX Runtime; its objects admit what tensorrt_api.json records of the bindings.

The engines are those that `fake/tensorrt_rtx_bindings.py` builds in the worker's process.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from tests.tensorrt.fake_tensorrt import PREFIX, Context, Engine, Recorded, Runtime, World
from vitdeploy.machine.gpus import Gpu

RTX = "rtx-1.7.1.116"
ADA = Gpu("NVIDIA GeForce RTX 4070", 89, uuid="6b0f3f1e-0000-4000-8000-000000000089")
KERNELS = b"kernels of "


class RuntimeCache(Recorded):
    real = "IRuntimeCache"

    def __init__(self, world: RtxWorld) -> None:
        self.world = world

    def deserialize(self, blob: bytes) -> bool:
        self.world.remembered.append(bytes(blob))
        return True

    def serialize(self) -> bytes:
        return KERNELS + self.world.gpu.name.encode()


class RuntimeConfig(Recorded):
    real = "IRuntimeConfig"
    own = frozenset({"cache"})

    def __init__(self, world: RtxWorld) -> None:
        self.world, self.cache = world, None
        self.dynamic_shapes_kernel_specialization_strategy = world.enum(
            "DynamicShapesKernelSpecializationStrategy"
        ).LAZY

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.world)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RtxEngine(Engine):
    def get_tensor_profile_shape(self, name: str, index: int) -> list[Any]:
        assert index == 0
        (found,) = (one.value for one in onnx.load_from_string(self._model).metadata_props if one.key == "profile")
        return list(json.loads(found)[name])

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.world)

    def create_execution_context(self, config: RuntimeConfig) -> Context:
        strategy = config.dynamic_shapes_kernel_specialization_strategy
        assert strategy.name == "EAGER", "other kernels than the proven ones would run later"
        assert config.cache is not None
        return super().create_execution_context()


class RtxRuntime(Runtime):
    def deserialize_cuda_engine(self, data: bytes) -> RtxEngine | None:
        """As the real one: no exception, but words for the logger and nothing returned."""
        if self.world.refuses_engines or not data.startswith(PREFIX):
            self._logger.log("Severity.INFO", "Loaded engine size: 0 MiB")
            self._logger.log("Severity.ERROR", "Error Code 6: the engine plan file is not compatible")
            return None
        return RtxEngine(self.world, self.world.runs(data))


class RtxWorld(World):
    """`gpu` is what the machine has, None for none; `runs` makes of an engine the one that really runs."""

    def __init__(self) -> None:
        super().__init__(RTX)
        self.gpu = ADA
        self.remembered: list[bytes] = []
        self.runs = lambda engine: engine

    def modules(self) -> dict[str, ModuleType]:
        """The bindings and the package of their libraries."""
        bindings, libraries = ModuleType("tensorrt_rtx_bindings"), ModuleType("tensorrt_rtx_libs")
        for module in (bindings, libraries):
            module.__spec__ = ModuleSpec(module.__name__, None)
        bindings.__dict__.update(
            {name: self.enum(name) for name in self.api["enums"]},
            __version__=RTX.removeprefix("rtx-"),
            nptype=np.dtype,
            ILogger=type("ILogger", (), {"__init__": lambda self: None}),
            Runtime=lambda logger: RtxRuntime(self, logger),
        )
        return {module.__name__: module for module in (bindings, libraries)}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Puts the stand-ins in the place of the packages, the driver and the GPU."""
        for name, module in self.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        self.install_gpu(monkeypatch)


def miscomputed(engine: bytes) -> bytes:
    """The same engine with other numbers."""
    model = onnx.load_from_string(engine.removeprefix(PREFIX))
    (weight,) = model.graph.initializer
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) + 0.5).tobytes()
    return PREFIX + model.SerializeToString()

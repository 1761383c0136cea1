"""A stand-in for the builder of TensorRT for RTX, which plays what `play.json` beside it says.

What it builds is the model itself behind `ENGINE`, with its profile as metadata; `told.json` gets what it was told.

log, errors   what is said and refused, always
parsed, built  what comes out
crash_on, fail_on  node name: a model that holds it ends the process by a segmentation fault, or does not build
sleep         seconds that the build takes
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx

HERE = Path(__file__).parent
PLAY: dict[str, Any] = json.loads((HERE / "play.json").read_text())
if "unusable" in PLAY:
    raise ImportError(PLAY["unusable"])
__version__ = "1.7.1.116"
ComputeCapability = SimpleNamespace(SM75=75, SM80=80, SM86=86, SM89=89, SM120=120, SM121=121)
ProfilingVerbosity = SimpleNamespace(DETAILED=2)
BuilderFlag = SimpleNamespace(TF32="TF32")
MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")


class Severity:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"Severity.{self.name}"


class ILogger:
    def log(self, severity: Severity, message: str) -> None: ...


class Network:
    model = onnx.ModelProto()


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
        self.shapes[name] = (low, usual, high)


class Config:
    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.told: dict[str, Any] = {"flags": ["TF32"], "sm": []}

    def set_compute_capability(self, value: int, index: int) -> bool:
        assert index == len(self.told["sm"]) < self.num_compute_capabilities
        self.told["sm"].append(value)
        return True

    def clear_flag(self, flag: str) -> None:
        self.told["flags"].remove(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.told[pool] = size

    def add_optimization_profile(self, profile: Profile) -> None:
        assert profile.shapes
        self.told["profile"] = profile.shapes


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> Any:
        for severity, message in PLAY.get("log", ()):
            self.logger.log(Severity(severity), message)
        time.sleep(PLAY.get("sleep", 0))
        (HERE / "told.json").write_text(json.dumps(config.told))
        nodes = [node.name for node in network.model.graph.node]
        if PLAY.get("crash_on") in nodes:
            os.kill(os.getpid(), signal.SIGSEGV)
        if PLAY.get("fail_on") in nodes or not PLAY.get("built", True):
            return None
        profile = network.model.metadata_props.add()
        profile.key, profile.value = "profile", json.dumps(config.told.get("profile", {}))
        return memoryview(b"ENGINE" + network.model.SerializeToString())


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network = network
        self._errors = [
            SimpleNamespace(**{name: (lambda value=value: value) for name, value in error.items()})
            for error in PLAY.get("errors", ())
        ]
        self.num_errors = len(self._errors)

    def parse(self, data: bytes) -> bool:
        self._network.model = onnx.load_model_from_string(data)
        return bool(PLAY.get("parsed", True))

    def get_error(self, index: int) -> Any:
        return self._errors[index]

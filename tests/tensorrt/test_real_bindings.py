"""The record that the stand-ins follow, held against NVIDIA's own bindings where they are installed.

TensorRT's are a wheel of 1.3 MB without its libraries (`tensorrt-cu12-bindings`, of the extra `dev`), those of TensorRT
for RTX are in the extra `nvidia`. Names and signatures are the bindings' own; of the libraries stand-ins do, which are
never called. What vitdeploy asks of them is read from its sources, so that nothing is used that is not recorded.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from tests.tensorrt.fake_tensorrt import API, EIGHT
from tests.tensorrt.record_tensorrt_api import BINDINGS, ask, record
from vitdeploy.tensorrt import build as engine_build
from vitdeploy.tensorrt import engine as engine_run
from vitdeploy.tensorrt import library as engine_library
from vitdeploy.tensorrt import logger as engine_logger
from vitdeploy.tensorrt import progress as engine_progress
from vitdeploy.tensorrt import timings as engine_timings
from vitdeploy.tensorrt.rtx import backend as rtx_backend
from vitdeploy.tensorrt.rtx import worker as rtx_worker

RTX = tuple(version for version in API if version.startswith("rtx-"))
TENSORRT = tuple(version for version in API if version not in RTX)
TOOLS = ("gcc", "nm", "readelf")

# What the variables of the sources are in the bindings.
RUNS = {
    "native": "IExecutionContext",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "inspector": "EngineInspector",
}
SOURCES: Mapping[ModuleType, tuple[Mapping[str, str], tuple[str, ...]]] = {
    engine_run: (RUNS, (*TENSORRT, *RTX)),
    engine_build: (
        {
            "builder": "Builder",
            "config": "IBuilderConfig",
            "layer": "ILayer",
            "network": "INetworkDefinition",
            "parser": "OnnxParser",
            "tensor": "ITensor",
        },
        TENSORRT,
    ),
    # TensorRT 8 has no monitor, and is not asked for one.
    engine_progress: ({"config": "IBuilderConfig"}, tuple(version for version in TENSORRT if version != EIGHT)),
    engine_library: ({"_runtime": "Runtime", "engine": "ICudaEngine"}, (*TENSORRT, *RTX)),
    engine_timings: ({"config": "IBuilderConfig", "timings": "ITimingCache"}, TENSORRT),
    rtx_worker: (
        {
            "builder": "Builder",
            "config": "IBuilderConfig",
            "network": "INetworkDefinition",
            "parser": "OnnxParser",
            "profile": "IOptimizationProfile",
            "plan": "IHostMemory",
            "error": "ParserError",
        },
        RTX,
    ),
    rtx_backend: (
        {
            "engine": "ICudaEngine",
            "config": "IRuntimeConfig",
            "compiled": "IRuntimeCache",
            "_compiled": "IRuntimeCache",
        },
        RTX,
    ),
}
# Of some versions alone; the sources look before they ask.
LOOKED_FOR = {
    ("ICudaEngine", "device_memory_size"),
    ("ICudaEngine", "device_memory_size_v2"),
    ("ILayer", "precision"),
    ("ILayer", "set_output_type"),
}


class Use(NamedTuple):
    """A member that a source asks for; `given` are the arguments of a call, None where it is none."""

    real: str
    member: str
    given: int | None
    assigned: bool


def uses(module: ModuleType) -> Iterator[Use]:
    """What a source asks of the bindings' objects, by the names of its variables."""
    variables, _ = SOURCES[module]
    tree = ast.parse(Path(str(module.__file__)).read_text())
    calls = {
        id(node.func): len(node.args) + len(node.keywords) for node in ast.walk(tree) if isinstance(node, ast.Call)
    }
    spread = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and any(isinstance(one, ast.Starred) for one in node.args)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        base = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        if base in variables:
            given = None if id(node) in spread else calls.get(id(node))
            yield Use(variables[base], node.attr, given, isinstance(node.ctx, ast.Store))


@pytest.mark.parametrize("module", SOURCES, ids=lambda module: module.__name__)
def test_what_the_sources_ask_of_the_bindings_is_recorded_with_those_arguments(module: ModuleType) -> None:
    found = set(uses(module))
    assert found, "the sources are really read"
    for version in SOURCES[module][1]:
        classes = API[version]["classes"]
        for use in found:
            if (use.real, use.member) in LOOKED_FOR:
                continue
            assert use.member in classes[use.real], f"{version} has no {use.real}.{use.member}"
            signatures = classes[use.real][use.member]
            if use.given is not None:
                assert signatures, f"{version}: {use.real}.{use.member} is called and is no method"
                assert any(use.given <= len(names) for names in signatures), (version, use)
            if use.assigned:
                assert signatures is None, f"{version}: {use.real}.{use.member} is a method, and assigned to"


def test_the_names_that_the_sources_for_rtx_take_from_the_module_are_recorded() -> None:
    """As tests/tensorrt/test_build.py does for TensorRT: `trt.X` and `trt.X.Y`."""
    text = "\n".join(
        Path(str(module.__file__)).read_text()
        for module in (rtx_worker, rtx_backend, engine_run, engine_library, engine_logger)
    )
    found = set(re.findall(r"\btrt\.([A-Za-z]\w+)(?:\.([A-Z]\w+))?", text))
    assert len(found) > 8
    for version in RTX:
        api = API[version]
        for name, member in found:
            there = member in api["enums"][name] if member else name in (*api["names"], *api["classes"], *api["enums"])
            assert there, f"{version}: {name}.{member}"


def test_a_member_that_no_version_has_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "made_up.py"
    source.write_text("self.native.set_wishes(1)\nengine.hope = 3\nother.thing()\nself._engine.add(*rest)\n")
    module = ModuleType("made_up")
    module.__file__ = str(source)
    monkeypatch.setitem(SOURCES, module, (RUNS, ()))  # type: ignore[arg-type]
    assert list(uses(module)) == [
        Use("ICudaEngine", "hope", None, True),
        Use("IExecutionContext", "set_wishes", 1, False),
        Use("ICudaEngine", "add", None, False),
    ]


def test_the_stand_in_for_the_builder_has_nothing_that_the_bindings_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "builder_stand_in.py"
    fake.write_text((Path(__file__).parent / "rtx" / "fake" / "tensorrt_rtx_bindings.py").read_text())
    (tmp_path / "play.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    stand_in = importlib.import_module("builder_stand_in")
    (api,) = (API[version] for version in RTX)
    played = {"Builder": "Builder", "OnnxParser": "OnnxParser", "Config": "IBuilderConfig"}
    played["Profile"] = "IOptimizationProfile"
    for name, real in played.items():
        for member, method in inspect.getmembers(getattr(stand_in, name), inspect.isfunction):
            if member.startswith("_"):
                continue
            taken = len(inspect.signature(method).parameters) - 1
            assert any(taken <= len(names) for names in api["classes"][real][member]), (name, member)
    for name in ("BuilderFlag", "ComputeCapability", "MemoryPoolType", "ProfilingVerbosity"):
        assert set(vars(getattr(stand_in, name))) <= set(api["enums"][name])


# Against the bindings themselves


def installed(module: str) -> Path:
    """The folder that holds the bindings; skips where they are missing."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        pytest.skip(f"{module} is not installed: pip install 'vitdeploy[dev]'")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"stand-ins for the libraries are made with {', '.join(missing)}")
    return Path(found.origin).parents[1]


@pytest.mark.nvidia
@pytest.mark.parametrize("module", BINDINGS)
def test_the_record_is_what_the_real_bindings_say(module: str) -> None:
    found: dict[str, Any] = record(installed(module), module)
    version = found.pop("version")
    assert version in API, f"tests/tensorrt/record_tensorrt_api.py records {version}"
    assert found["classes"].keys() == API[version]["classes"].keys()
    for real, members in found["classes"].items():
        assert members == API[version]["classes"][real], real
    assert found == API[version]


SETTABLE = """
import json
wanted = {wanted!r}
print(json.dumps([one for one in wanted if getattr(getattr(getattr(trt, one[0]), one[1]), "fset", None) is None]))
"""


@pytest.mark.nvidia
@pytest.mark.parametrize("module", BINDINGS)
def test_what_is_assigned_can_be_assigned(module: str) -> None:
    versions = RTX if BINDINGS[module] else TENSORRT
    wanted = sorted(
        {
            (use.real, use.member)
            for source, (_, of) in SOURCES.items()
            if set(versions) <= set(of)
            for use in uses(source)
            if use.assigned and (use.real, use.member) not in LOOKED_FOR
        }
    )
    assert wanted
    assert json.loads(ask(installed(module), module, SETTABLE.format(wanted=wanted))) == []


@pytest.mark.nvidia
def test_the_types_have_the_numpy_types_that_an_engines_ports_are_read_by() -> None:
    code = "import json; print(json.dumps([trt.nptype(getattr(trt, name)).__name__ for name in {names!r}]))"
    for module in BINDINGS:
        names = ["float32", "float16", "int64", "int32", "int8", "uint8"]
        assert json.loads(ask(installed(module), module, code.format(names=names))) == names

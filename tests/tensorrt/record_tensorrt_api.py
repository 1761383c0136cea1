"""Records what TensorRT's Python bindings offer, from the bindings themselves, into tensorrt_api.json beside this file.

    python record_tensorrt_api.py FOLDER…

Each FOLDER holds an unpacked wheel of bindings (`pip download --no-deps tensorrt-bindings==8.6.1`, or
`tensorrt-cu12-bindings==10.3.0`, or `tensorrt-rtx-cu12-bindings==1.7.1.116`, and unzip). The libraries are not needed:
the bindings import a dozen functions of them, for which gcc makes stand-ins that are never called.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# The folder of each product's bindings, and what the names of its records begin with.
BINDINGS = {"tensorrt_bindings": "", "tensorrt_rtx_bindings": "rtx-"}
CLASSES = (
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "DeviceType",
    "DynamicShapesKernelSpecializationStrategy",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
    "TacticSource",
    "TensorIOMode",
)
NAMES = ("bfloat16", "bool", "float16", "float32", "int32", "int64", "int8", "nptype", "uint8")

PROBE = """
import json, re
def arguments(line):
    inside = re.search(r"\\((.*)\\)", line)[1]
    names = re.findall(r"(?:^|, )(\\*{0,2}\\w+)(?::|$|,|=)", inside)
    return [name for name in names if name != "self" and not name.startswith("*")]
def member(found):
    if not callable(found):
        return None
    lines = [line for line in (found.__doc__ or "").splitlines() if re.match(r"(\\d+\\. )?\\w+\\(self", line)]
    return [arguments(line) for line in lines]
print(json.dumps({
    "version": trt.__version__,
    "classes": {name: {key: member(getattr(getattr(trt, name), key)) for key in dir(getattr(trt, name))
                       if not key.startswith("_")} for name in %r if hasattr(trt, name)},
    "enums": {name: list(getattr(trt, name).__members__) for name in %r if hasattr(trt, name)},
    "names": [name for name in %r if hasattr(trt, name)],
}))
"""


def record(folder: Path, module: str) -> dict[str, object]:
    """What the bindings called `module` in `folder` offer; see BINDINGS for what `version` begins with."""
    found: dict[str, object] = json.loads(ask(folder, module, PROBE % (CLASSES, ENUMS, NAMES)))
    return {**found, "version": f"{BINDINGS[module]}{found['version']}"}


def ask(folder: Path, module: str, code: str) -> str:
    """What `code` prints in a process of its own, where `trt` are the bindings called `module` in `folder`."""
    library = next((folder / module).glob("tensorrt*.so"))
    needed = set(re.findall(r"\[(lib(?:nv|tensorrt)\w+\.so\.\d+)\]", run("readelf", "-d", str(library))))
    undefined = re.findall(r" U (\S+)$", run("nm", "-D", "--undefined-only", str(library)), re.MULTILINE)
    wanted = [name for name in undefined if "@" not in name and not re.match(r"_?Py", name)]
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "standin.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
        for name in needed:
            run("gcc", "-shared", "-fPIC", "-o", str(Path(place) / name), str(source), f"-Wl,-soname,{name}")
        program = f"import {module} as trt\n{code}"
        environment = {"LD_LIBRARY_PATH": place, "PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
        said = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
    return said.stdout


def run(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    found = [(Path(folder), name) for folder in sys.argv[1:] for name in BINDINGS if (Path(folder) / name).is_dir()]
    recorded = [record(folder, name) for folder, name in found]
    target = Path(__file__).with_name("tensorrt_api.json")
    lines = [f"{json.dumps(one.pop('version'))}: {json.dumps(one, sort_keys=True)}" for one in recorded]
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(target, target.stat().st_size, "bytes")

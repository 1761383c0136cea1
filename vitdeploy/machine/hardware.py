"""What this machine is: processor, Jetson, TensorRT libraries, Python. Read-only, standard library only.

Every function takes the text, folder or command it reads, so that a device can be described by a folder of files.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.machine.probe import ROOT, read_text, run_probe

# Flag of /proc/cpuinfo: the name people know, and the precision whose kernels it speeds up.
X86_FEATURES: Mapping[str, tuple[str, str]] = {
    "avx2": ("AVX2", "FP32"),
    "avx512f": ("AVX512", "FP32"),
    "f16c": ("F16C", "FP16"),
    "avx512_fp16": ("AVX512-FP16", "FP16"),
    "amx_fp16": ("AMX-FP16", "FP16"),
    "avx512_bf16": ("AVX512-BF16", "bf16"),
    "amx_bf16": ("AMX-BF16", "bf16"),
    "avx_vnni": ("AVX-VNNI", "INT8"),
    "avx512_vnni": ("AVX512-VNNI", "INT8"),
    "amx_int8": ("AMX-INT8", "INT8"),
}
ARM_FEATURES: Mapping[str, tuple[str, str]] = {
    "sve": ("sve", "FP32"),
    "asimdhp": ("asimdhp", "FP16"),
    "bf16": ("bf16", "bf16"),
    "asimddp": ("asimddp", "INT8"),
    "i8mm": ("i8mm", "INT8"),
}

# L4T (major, minor, patch) from which a JetPack starts: developer.nvidia.com/embedded/jetpack-archive, and for 39.2 the
# sources of `vitdeploy.platforms.boards`.
JETPACK_OF_L4T: Sequence[tuple[tuple[int, ...], str]] = (
    ((35, 2), "5.1"),
    ((36, 3), "6.0"),
    ((36, 4), "6.1"),
    ((36, 4, 3), "6.2"),
    ((36, 4, 4), "6.2.1"),
    ((36, 5), "6.2.2"),
    ((38,), "7.0"),
    ((38, 4), "7.1"),
    ((39, 2), "7.2"),
    ((39, 2, 1), "7.2.1"),
)
# Compute capability of the modules that TensorRT serves.
SM_OF_JETSON: Mapping[str, int] = {"Xavier": 72, "Orin": 87, "Thor": 110}

LIBRARY_FOLDERS = (
    "usr/lib/*-linux-gnu",
    "usr/lib",
    "usr/lib64",
    "usr/local/lib",
    "usr/local/cuda*/lib64",
    "usr/local/cuda*/targets/*/lib",
    "usr/local/tensorrt*/lib",
    "opt/tensorrt*/lib",
)

_CUDART_PROBE = """
import ctypes, sys
version = ctypes.c_int()
ctypes.CDLL(sys.argv[1]).cudaRuntimeGetVersion(ctypes.byref(version))
print(version.value)
"""


@dataclass(frozen=True)
class Cpu:
    """The processor; `features` has for each precision its instruction sets, and whether they are present."""

    architecture: str
    name: str
    cores: int
    features: Mapping[str, Mapping[str, bool]]

    @property
    def kind(self) -> str:
        """Architecture and instruction sets: what decides how a runtime computes here."""
        present = [label for labels in self.features.values() for label, here in labels.items() if here]
        return " ".join([self.architecture, *sorted(present)])

    @property
    def vnni(self) -> bool:
        """Whether INT8 products accumulate in 32 bits, in one instruction."""
        return any(self.features.get("INT8", {}).values())

    @property
    def saturates(self) -> bool:
        """Whether pairs of INT8 products are added in 16 bits, which overflow: x86-64 without VNNI, or unknown."""
        return self.architecture in ("x86_64", "AMD64") and not self.vnni

    @property
    def bf16(self) -> bool:
        """Whether runtimes may choose bf16 on their own."""
        return any(self.features.get("bf16", {}).values())


@dataclass(frozen=True)
class Jetson:
    """An NVIDIA Jetson; versions are None where the files that tell them are missing."""

    model: str
    l4t: str | None
    jetpack: str | None

    @property
    def sm(self) -> int | None:
        """Ten times the compute capability, from the name of the module."""
        return next((sm for name, sm in SM_OF_JETSON.items() if name in self.model), None)


def read_cpu(root: Path = ROOT, architecture: str | None = None) -> Cpu:
    """The processor from `/proc/cpuinfo` and, on Arm, the name of the board."""
    architecture = architecture or platform.machine()
    text = read_text(root / "proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    arm = architecture in ("aarch64", "arm64")
    flags = set((fields.get("Features") or fields.get("flags") or "").split())
    known = ARM_FEATURES if arm else X86_FEATURES
    name = fields.get("model name") or read_board(root) or architecture
    cores = len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or os.cpu_count() or 1
    features: dict[str, dict[str, bool]] = {}
    for flag, (label, precision) in known.items():
        features.setdefault(precision, {})[label] = flag in flags
    return Cpu(architecture, name, cores, features)


def read_board(root: Path = ROOT) -> str | None:
    """Name of the board in its device tree; None for a machine that has none."""
    return read_text(root / "proc/device-tree/model").strip() or None


def read_jetson(root: Path = ROOT) -> Jetson | None:
    """The Jetson that this is, from the device tree, `/etc/nv_tegra_release` and the package database."""
    model = read_board(root) or ""
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release"))
    if release is None and not re.search(r"Jetson|Tegra|Orin|Xavier|Thor", model):
        return None
    l4t = f"{release[1]}.{release[2]}" if release else None
    packaged = debian_version("nvidia-jetpack", root)
    jetpack = packaged.partition("+")[0] if packaged else jetpack_of_l4t(l4t)
    return Jetson(model or "NVIDIA Jetson (no device tree)", l4t, jetpack)


def jetpack_of_l4t(l4t: str | None) -> str | None:
    """The JetPack that an L4T release belongs to: the last one that had started by then."""
    numbers = [int(part) for part in re.findall(r"\d+", l4t or "")]
    release = (*numbers, *[0] * (3 - len(numbers)))
    same = [(start, jetpack) for start, jetpack in JETPACK_OF_L4T if start[:1] == release[:1] and start <= release]
    return max(same)[1] if same else None


def debian_version(package: str, root: Path = ROOT) -> str | None:
    """Version of an installed Debian package, from dpkg's own database."""
    stanza = re.search(
        rf"^Package: {re.escape(package)}\n(?:.+\n)*", read_text(root / "var/lib/dpkg/status"), re.MULTILINE
    )
    if stanza is None or "Status: install ok installed" not in stanza[0]:
        return None
    version = re.search(r"^Version: (?:\d+:)?(\S+)", stanza[0], re.MULTILINE)
    return version[1] if version else None


def driver_version(root: Path = ROOT) -> str | None:
    """Version of NVIDIA's kernel module."""
    found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", read_text(root / "proc/driver/nvidia/version"))
    return found[1] if found else None


def find_libraries(stem: str, root: Path = ROOT, folders: Sequence[str | Path] = ()) -> list[Path]:
    """Files `stem.so*` in the usual folders, in LD_LIBRARY_PATH (for the live system) and in `folders`."""
    places = [str(root / pattern) for pattern in LIBRARY_FOLDERS] + [str(folder) for folder in folders]
    if root == ROOT:
        places += [place for place in os.environ.get("LD_LIBRARY_PATH", "").split(":") if place]
    found = {path for place in places for path in glob.glob(f"{place}/{stem}.so*")}  # noqa: PTH207
    return [Path(path) for path in sorted(found)]


def library_version(paths: Sequence[Path]) -> str | None:
    """The longest version in the file names, e.g. `10.3.0` for `libnvinfer.so.10.3.0`."""
    versions = [path.name.partition(".so.")[2] for path in paths]
    return max((v for v in versions if re.fullmatch(r"[\d.]+", v)), key=lambda v: v.count("."), default=None)


def cudart_version(root: Path = ROOT) -> str | None:
    """Version of the CUDA runtime library, asked of the library itself in a process of its own."""
    libraries = find_libraries("libcudart", root)
    if not libraries:
        return None
    text = run_probe([sys.executable, "-I", "-c", _CUDART_PROBE, str(libraries[-1])]).strip() if root == ROOT else ""
    if text.isdigit() and int(text):
        return f"{int(text) // 1000}.{int(text) % 1000 // 10}"
    return library_version(libraries)


def hides_system_packages(prefix: Path | None = None) -> bool:
    """Whether this Python is a virtual environment that does not see the system's packages."""
    settings = read_text((prefix or Path(sys.prefix)) / "pyvenv.cfg")
    return bool(re.search(r"^include-system-site-packages\s*=\s*false", settings, re.MULTILINE | re.IGNORECASE))


def system_binding_pythons(root: Path = ROOT) -> list[str]:
    """Versions (`3.10`) of the system's Pythons for which TensorRT's binding is installed as a system package."""
    found = sorted(glob.glob(str(root / "usr/lib/python3*/dist-packages/tensorrt/__init__.py")))  # noqa: PTH207
    names = [Path(path).parents[2].name.removeprefix("python") for path in found]
    return [_system_python(root) if name == "3" else name for name in names]


def _system_python(root: Path) -> str:
    """The version that `/usr/bin/python3` leads to; `dist-packages` without a minor version belongs to it."""
    link = os.path.realpath(root / "usr/bin/python3")
    return Path(link).name.removeprefix("python")


def describe_python() -> dict[str, Any]:
    """This interpreter, as JSON values."""
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "virtual_environment": sys.prefix != sys.base_prefix,
        "hides_system_packages": hides_system_packages(),
    }

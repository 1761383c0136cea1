"""The light runtime on an emulated aarch64 machine: install, verify, predict, and keep what it said.

    python tests/aarch64/run.py ROOT [BUNDLE…]        (as root, from an environment that can export)

ROOT is a folder with a Debian for aarch64; where there is none, `../shared/arm64/make_root.sh` makes one, which takes
about 4 minutes. numpy, Pillow, onnx, onnxruntime and this package are fetched here and installed there without a
network, in a fresh virtual environment. Each BUNDLE is verified there and classifies an image, for which it has to name
the class that it names here; without any, LeMeViT-Tiny is exported in FP32, in FP16, and in FP16 with its preprocessing
in the graph. Emulated time says nothing about speed, so none is kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import vitdeploy

REPOSITORY = Path(__file__).resolve().parents[2]
MAKE_ROOT = REPOSITORY.parent / "shared" / "arm64" / "make_root.sh"
RESULTS = REPOSITORY / "benchmarks" / "results" / "aarch64.json"
IMAGE = REPOSITORY / "examples" / "water.png"

PACKAGES = ("numpy", "pillow", "onnx", "onnxruntime")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
ABSENT = ("torch", "onnx-ir", "onnxscript", "onnxsim", "safetensors")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class Device:
    """The folder with the other processor's programs, run through the emulator."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / "usr/bin/python3").exists():
            subprocess.run(["bash", MAKE_ROOT, root], check=True)

    def run(self, *command: str, refuse: bool = True) -> str:
        """What a command prints there; where it fails, its words and the end of this run (unless not `refuse`)."""
        done = subprocess.run(
            ["/usr/sbin/chroot", self.root, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode and refuse:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def install(self) -> None:
        """A fresh /venv with numpy, Pillow, onnx, onnxruntime and the package as it is in the working tree."""
        wheels = self.root / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--quiet"]
        python = self.run("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
        platforms = [f"--platform={platform}_aarch64" for platform in PLATFORMS]
        abis = [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
        target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *abis, *platforms]
        pinned = ["-c", str(REPOSITORY / "constraints.txt")]
        subprocess.run([*pip, "download", *target, *pinned, "-d", str(wheels), *PACKAGES], check=True)
        with tempfile.TemporaryDirectory() as folder:  # a copy: a build leaves folders beside the sources
            shutil.copytree(REPOSITORY / "vitdeploy", Path(folder, "vitdeploy"))
            for name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(REPOSITORY / name, folder)
            subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), folder], check=True)
        self.run("/usr/bin/python3", "-m", "venv", "--clear", "/venv")
        offline = ("--quiet", "--no-index", "--find-links", "/wheels")
        self.run("/venv/bin/pip", "install", *offline, "vitdeploy[onnxruntime]")

    def copy(self, source: Path, name: str) -> str:
        """Where a file or folder is there, under the name given."""
        place = self.root / "srv" / name
        shutil.rmtree(place, ignore_errors=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
        return f"/srv/{name}"

    def ask(self, *command: str) -> dict[str, Any]:
        """The JSON object that a command of vitdeploy prints there, also where its gate failed."""
        answer: dict[str, Any] = json.loads(self.run("/venv/bin/vitdeploy", *command, "--json", refuse=False))
        return answer


def judge(device: Device, bundle: Path) -> dict[str, Any]:
    """What the device makes of one bundle, beside what this machine makes of it."""
    place = device.copy(bundle, "bundle")
    report = device.ask("verify", place, "--runtime", "onnxruntime")
    told = device.ask("predict", place, device.copy(IMAGE, IMAGE.name), "--runtime", "onnxruntime", "--top-k", "3")
    there = told["images"][0]["predictions"]
    with vitdeploy.load(bundle, runtime="onnxruntime") as session:
        manifest = session.bundle.manifest
        here = [vars(one) for one in session.predict(IMAGE, top_k=3)[0]]
    return {
        "bundle": bundle.name,
        "model": manifest.model.name,
        "precision": manifest.precision,
        "target": manifest.target,
        "passed": report["passed"] and there[0]["label"] == here[0]["label"],
        "parity": report["parity"],
        "preprocessing_in_graph": manifest.preprocessing_in_graph,
        "predictions": {"aarch64": there, platform.machine(): here},
    }


def export_bundles(folder: Path) -> list[Path]:
    """The packaged network in every precision that needs no calibration images."""
    network = "lemevit_tiny.eurosat"
    plain = [vitdeploy.export(network, folder / f"{network}-{kind}", precision=kind) for kind in ("fp32", "fp16")]
    baked = vitdeploy.export(network, folder / f"{network}-fp16-baked", precision="fp16", bake_preprocessing=True)
    return [bundle.path for bundle in (*plain, baked)]


def main() -> int:
    """Write the results and exit 1 where a bundle did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name}")
    args = parser.parse_args()
    device = Device(args.root.resolve())
    device.install()
    found = device.ask("doctor")
    packages = {item["name"]: item["version"] for part in ("base", "runtimes", "export") for item in found[part]}
    intruders = [name for name in ABSENT if packages[name]]
    if intruders:
        sys.exit(f"the light runtime brought {', '.join(intruders)}")
    with tempfile.TemporaryDirectory() as folder:
        bundles = args.bundles or export_bundles(Path(folder))
        judged = [judge(device, bundle) for bundle in bundles]
    release = dict(line.partition("=")[::2] for line in (device.root / "etc/os-release").read_text().splitlines())
    system = release["PRETTY_NAME"].strip('"')
    emulator = device.run("/usr/bin/qemu-aarch64-static", "--version").splitlines()[0]
    result = {
        "schema_version": 1,
        "date": date.today().isoformat(),
        "processor": found["machine"]["cpu"]["architecture"],
        "system": system,
        "emulator": emulator,
        "python": found["machine"]["python"]["version"],
        "versions": {"vitdeploy": vitdeploy.__version__, **{name: packages[name] for name in PACKAGES}},
        "bundles": judged,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for one in judged:
        best = one["predictions"]["aarch64"][0]
        print(f"{one['bundle']}: {'passed' if one['passed'] else 'FAILED'}, {best['label']} {best['probability']:.2%}")
    return 0 if all(one["passed"] for one in judged) else 1


if __name__ == "__main__":
    sys.exit(main())

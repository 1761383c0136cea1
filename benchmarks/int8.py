"""INT8 against the quantizers of others: accuracy, size, cost and latency, in one run.

    python benchmarks/int8.py --folder FILES --peers-python peers/bin/python --aimet-python aimet/bin/python \\
        --quark-python quark/bin/python [--network NAME] [--shape 224x1] [--method NAME] [--runtime NAME] [--save NAME]

Every tool starts from the same FP32 graph, the one that `vitdeploy export` writes (better ground than plain
torch.onnx.export), and from the same images of `eurosat_train.zip`. What is not there (a tool, a runtime) is left out.
How to make the environments of the peers: int8_peers.py.

Accuracy: all images of `eurosat_val.zip`, at the size that the network was trained at, batch 1.
Cost:     whole processes; ours captures the network from PyTorch and proves the bundle too, `quantize_seconds` is the
          part that compares with the others.
Latency:  candidates of a runtime take turns in random order; processor time of one thread, which holds on a busy
          machine too. Ratios are taken round by round, ours in the denominator.
          One large product in floats and in INT8 takes turns with them: what the machine can at most (ceiling.py).
          Files of other sizes and batches are calibrated on few images: time does not depend on the ranges.
Networks of timm have random weights: of them only time and the distance from FP32 mean something.
`--save` writes benchmarks/results/int8.json, `--save NAME` benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ceiling
import numpy as np
from failure import without_paths
from int8_peers import METHODS
from sessions import RUNTIMES, Call, open_onnxruntime
from timing import environment, finished, interleave, process, ratio, size_and_batch

from vitdeploy import Bundle
from vitdeploy.data import Dataset, open_data

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"

NETWORKS = {
    "lemevit_tiny.eurosat": [],
    "dualvit_s": ["--checkpoint", str(SHARED / "weights/dualvit_s_eurosat.safetensors"), "--num-classes", "10"],
    "timm:deit_tiny_patch16_224": ["--set", "pretrained=False"],
    "timm:convnextv2_atto": ["--set", "pretrained=False"],
}
TARGETS = ("onnxruntime", "openvino", "portable")
NATIVE = 64
SHAPES = tuple((size, batch) for size in (NATIVE, 224) for batch in (1, 8))
SAME = ("onnx", "onnxruntime", "openvino")  # which both sides have
FEW = 32  # images, enough for a range of some kind


class Files:
    """The files of one network at one input shape: FP32, ours and the peers', made when they are asked for."""

    def __init__(self, name: str, size: int, batch: int, folder: Path, samples: int, args: argparse.Namespace) -> None:
        self.folder, self.samples, self.args = folder, samples, args
        self.command = [sys.executable, "-m", "vitdeploy", "export", name, *NETWORKS[name]]
        self.command += ["--image-size", str(size), "--batch", str(batch)]
        self.train = args.data / "eurosat_train.zip"
        self.shape = (samples // batch, batch, 3, size, size)
        self.paths: dict[str, Path] = {}
        self.cost: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, str] = {}  # by a runtime, with its message

    def make(self) -> None:
        """All of them; one that cannot be made has its error in `cost` and no path. Files of an earlier run stay."""
        record = self.folder / "cost.json"
        if record.exists():
            self.cost = json.loads(record.read_text())
            self.paths = {name: self._path(name) for name, found in self.cost.items() if "error" not in found}
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._ours("fp32", [])
        for target in self.args.target or TARGETS:
            int8 = ["--int8", "--calibration", str(self.train), "--samples", str(self.samples), "--target", target]
            int8.append("--accept-loss")  # the accuracy is measured here, and the others have no gate
            self._ours(f"vitdeploy {target}", int8)
        images = self.folder / "images.npy"
        np.save(images, self._calibration())
        for method in self.args.method or METHODS:
            python = {"aimet": self.args.aimet_python, "quark": self.args.quark_python}.get(method.split("-")[0])
            command = [python or self.args.peers_python, str(HERE / "int8_peers.py"), method]
            self._run(method, [*command, str(self.paths["fp32"]), str(images), str(self._path(method))])
        record.write_text(json.dumps(self.cost))

    def bundle(self, name: str = "fp32") -> Bundle:
        return Bundle.open(self.folder / name.replace(" ", "_"))

    def _path(self, name: str) -> Path:
        suffix = ".xml" if "openvino" in name else ".onnx"
        return self.folder / (f"{name}{suffix}" if name in METHODS else f"{name.replace(' ', '_')}/model{suffix}")

    def _ours(self, name: str, options: list[str]) -> None:
        self._run(name, [*self.command, *options, "-o", str(self._path(name).parent)])
        if name in self.paths and options:
            seconds = self.bundle(name).manifest.graph["seconds"]
            self.cost[name]["quantize_seconds"] = next(s for step, s in seconds.items() if "quantizing" in step)

    def _run(self, name: str, command: list[str]) -> None:
        path = self._path(name)
        print(f"{self.folder.name}: {name} …", file=sys.stderr)
        try:
            found = process(command)
        except SystemExit as error:
            self.cost[name] = {"error": str(error).strip().splitlines()[-1]}
            return
        weights = path.with_suffix(".bin")
        size = path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
        self.paths[name] = path
        self.cost[name] = {
            "seconds": round(found["seconds"], 1),
            "peak_mb": round(found["peak_mb"]),
            "megabytes": round(size / 1e6, 2),
        }

    def _calibration(self) -> Any:
        data, recipe = open_data(self.train), self.bundle().manifest.preprocessing
        order = data.sample(self.shape[0] * self.shape[1])
        return np.stack([data.tensor(index, recipe) for index in order]).reshape(self.shape)


def accuracy(files: Files, data: Dataset) -> dict[str, Any]:
    """Top-1, agreement and signal-to-noise with FP32 in ONNX Runtime, by runtime and file."""
    recipe = files.bundle().manifest.preprocessing
    order = data.sample(files.args.images)
    targets = np.asarray(data.targets)[list(order)]
    images = np.stack([data.tensor(index, recipe) for index in order])[:, None]
    reference = _logits(open_onnxruntime(files.paths["fp32"], 1), images)
    results: dict[str, Any] = {}
    signal = np.sum(reference**2, dtype=np.float64)
    for runtime in files.args.runtime or RUNTIMES:
        for name, call in _opened(files, runtime, 1):
            print(f"accuracy of {name} in {runtime} …", file=sys.stderr)
            logits = _logits(call, images)
            noise = np.sum((logits - reference) ** 2, dtype=np.float64)
            results.setdefault(runtime, {})[name] = {
                "top1": round(100 * float(np.mean(logits.argmax(1) == targets)), 3),
                "agreement": round(100 * float(np.mean(logits.argmax(1) == reference.argmax(1))), 3),
                "snr_db": round(10 * float(np.log10(signal / max(noise, 1e-30))), 2),
            }
    return results


def latency(files: Files, rounds: int) -> dict[str, Any]:
    """Milliseconds of a call and the ratio to ours, by runtime and file.

    `cpu_share` is the part that a file reaches of what this machine can in INT8, or in floats where it is the FP32
    file: the rate of its multiplications over that of one large product, which takes turns with the files.
    """
    images = np.random.default_rng(0).standard_normal(files.shape[1:], dtype=np.float32)
    products, matrix = ceiling.write_products(files.folder), ceiling.images()
    macs = ceiling.macs(files.paths["fp32"])
    results: dict[str, Any] = {}
    for runtime in files.args.runtime or RUNTIMES:
        calls = dict(_opened(files, runtime, 1))
        turns = {name: (lambda call=call: call(images)) for name, call in calls.items()}
        large = {kind: RUNTIMES[runtime](path, 1) for kind, path in products.items()}
        turns |= {f"ceiling {kind}": (lambda call=call: call(matrix)) for kind, call in large.items()}
        seconds = interleave(turns, rounds=rounds, clock=time.process_time)
        most = {kind: ceiling.rate(seconds.pop(f"ceiling {kind}")) for kind in large}
        results.setdefault("ceiling", {})[runtime] = most
        ours = seconds.get(f"vitdeploy {runtime.split()[0]}")
        for name, found in seconds.items():
            rate = macs / statistics.median(found) / 1e9
            row = {
                "cpu_ms": round(1e3 * statistics.median(found), 3),
                "cpu_share": round(rate / most["fp32" if name == "fp32" else "int8"], 3),
            }
            results.setdefault(runtime, {})[name] = row | ({"cpu_ratio": ratio(found, ours)} if ours else {})
    return results


def _opened(files: Files, runtime: str, threads: int) -> Iterator[tuple[str, Call]]:
    """Every file that is meant for a runtime and that it can read."""
    for name, path in files.paths.items():
        other = "openvino" if runtime == "onnxruntime" else "onnxruntime"
        if name == f"vitdeploy {other}" or (path.suffix == ".xml" and runtime == "onnxruntime"):
            continue
        try:
            call = RUNTIMES[runtime](path, threads)
            call(np.zeros(files.shape[1:], np.float32))
        except Exception as error:  # each runtime raises kinds of its own
            files.refused[f"{name} in {runtime}"] = without_paths(str(error).splitlines()[0])[-300:]
            print(f"{runtime} cannot run {name}: {files.refused[f'{name} in {runtime}']}", file=sys.stderr)
            continue
        yield name, call


def _logits(call: Call, images: Any) -> Any:
    return np.concatenate([call(batch) for batch in images])


def peers_versions(python: str, tools: Sequence[str]) -> Mapping[str, str]:
    """Versions of `tools` and of what runs the files, in an environment of peers."""
    code = (
        f"import json; from importlib import metadata as m; names = {(*tools, *SAME)!r};"
        "here = {d.metadata['Name'].lower() for d in m.distributions()};"
        "print(json.dumps({n: m.version(n) for n in names if n in here}))"
    )
    found: Mapping[str, str] = json.loads(subprocess.check_output([python, "-c", code]))
    for name, version in found.items():
        if name in SAME and name != "onnx" and version != metadata.version(name):
            sys.exit(f"{python} has {name} {version}, this environment {metadata.version(name)}: make them the same")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: all of them")
    parser.add_argument(
        "--shape",
        type=size_and_batch,
        action="append",
        metavar="SIZExBATCH",
        help="default: 64x1, 64x8, 224x1 and 224x8",
    )
    parser.add_argument("--data", type=Path, default=SHARED / "data/eurosat")
    parser.add_argument("--peers-python", default=sys.executable, help="of an environment that has the other tools")
    parser.add_argument("--aimet-python", help="of one that has AIMET (default: that of the other tools)")
    parser.add_argument("--quark-python", help="of one that has AMD Quark (default: that of the other tools)")
    parser.add_argument("--method", choices=METHODS, action="append", help="default: all of them")
    parser.add_argument("--target", choices=TARGETS, action="append", help="of ours; default: all of them")
    parser.add_argument("--runtime", choices=RUNTIMES, action="append", help="default: all of them")
    parser.add_argument("--samples", type=int, default=512, help="calibration images at the size of the accuracy")
    parser.add_argument("--images", type=int, help="of the validation set, by class; default: all of them")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--folder", type=Path, required=True, help="for the files; those of an earlier run are used")
    parser.add_argument("--save", nargs="?", const="int8", help="after each part, so that nothing is lost")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "environment": environment(["torch", "onnx", "onnxruntime", "openvino", "numpy"]),
        "peers": {
            **peers_versions(args.aimet_python or args.peers_python, ("aimet-onnx",)),
            **peers_versions(args.quark_python or args.peers_python, ("amd-quark",)),
            **peers_versions(args.peers_python, ("nncf", "onnxsim")),
        },
        "samples": args.samples,
        "images": args.images,
        "networks": {},
    }
    for network in args.network or NETWORKS:
        found = report["networks"].setdefault(network, {"latency": {}})
        for size, batch in args.shape or SHAPES:
            native = (size, batch) == (NATIVE, 1)
            samples = args.samples if native else FEW
            files = Files(network, size, batch, args.folder / f"{network} {size}x{batch}", samples, args)
            files.make()
            if native:
                found["cost"] = files.cost
                found["accuracy"] = accuracy(files, open_data(args.data / "eurosat_val.zip"))
            found["latency"][f"{size} px, batch {batch}"] = latency(files, args.rounds)
            found.setdefault("refused", {}).update(files.refused)
            if args.save:
                (HERE / f"results/{args.save}.json").write_text(json.dumps(finished(report), indent=1) + "\n")
    print(json.dumps(finished(report), indent=1))


if __name__ == "__main__":
    main()

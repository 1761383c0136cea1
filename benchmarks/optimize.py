"""`vitdeploy optimize` against the searches of others: NNCF's accuracy-aware mode, Olive and our own `--tune-latency`.

    python benchmarks/optimize.py --folder FILES --peers-python peers/bin/python --olive-python olive/bin/python \\
        [--network NAME] [--size N] [--runtime NAME] [--minutes 15] [--save NAME] [--search]
    python benchmarks/optimize.py --table NAME…

All of them get the same labelled images of `eurosat_train.zip`, the same time and one thread, and may lose
`MAX_DROP` points. The peers start from the FP32 file that `vitdeploy export` writes for any runtime. What does not end
in its time is stopped, and counts as having found nothing, as somebody who has that time sees it. How to make the
environments of the peers: optimize_peers.py. Searches of several cases may run side by side, one pinned to each core
(`taskset --cpu-list 0 python benchmarks/optimize.py … --search`); a later run without --search measures what they left.

What each left is then measured in one run, on images that none of them saw, of `eurosat_val.zip`: the points of top-1
that it loses against FP32 with the 95 % interval, its ratio to noise, and the processor time of one thread as a ratio
to FP32 on the same runtime, calls in turns. A point of ours dominates where it is as fast and loses as little, and is
better in one of the two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from failure import without_paths
from optimize_peers import METHODS
from sessions import RUNTIMES, Call
from timing import environment, finished, interleave, ratio

from vitdeploy import Bundle
from vitdeploy.data import open_data
from vitdeploy.statistics import pair

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
CHECKPOINT = str(SHARED / "weights/dualvit_s_eurosat.safetensors")
NETWORKS = {
    "lemevit_tiny.eurosat": [],
    "dualvit_s": ["--checkpoint", CHECKPOINT, "--num-classes", "10"],
}
SIZES, SEARCHED = (64, 224), ("onnxruntime", "openvino")
CALIBRATE, JUDGE = 300, 256
MAX_DROP = 0.5
FRONT = "front.json"  # what `optimize` prints


class Case:
    """One network at one size on one runtime, and the files that the searches leave in `folder`."""

    def __init__(self, network: str, size: int, runtime: str, args: argparse.Namespace) -> None:
        self.network, self.size, self.runtime, self.args = network, size, runtime, args
        self.folder = args.folder / f"{network}-{size}-{runtime}"
        self.data = args.folder / "images.zip"
        self.found: dict[str, dict[str, Any]] = {}

    def search(self) -> None:
        """Run every search; how long each took, and the error of one that failed or did not end."""
        record = self.folder / "found.json"
        if record.exists():
            self.found = json.loads(record.read_text())
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        source = [self.network, *NETWORKS[self.network], "--image-size", str(self.size)]
        ours = [sys.executable, "-m", "vitdeploy"]
        self._run("fp32", [*ours, "export", *source, "-o", str(self.folder / "fp32")])
        self._images()
        tuned = ["--int8", "--calibration", str(self.data), "--samples", str(CALIBRATE), "--tune-latency", self.runtime]
        tuned += ["--target", self.runtime, "--accept-loss", "-o", str(self.folder / "tuned")]
        self._run("tune-latency", [*ours, "export", *source, *tuned])
        front = ["--data", str(self.data), "--runtime", self.runtime, "--threads", "1", "--max-drop", str(MAX_DROP)]
        front += ["--minutes", str(self.args.minutes), "--samples", str(CALIBRATE), "--images", str(JUDGE)]
        front += ["--json", "-o", str(self.folder / "front")]
        self._run("optimize", [*ours, "optimize", *source, *front], limit=None)
        for method in METHODS:
            if method.endswith(self.runtime):
                python = self.args.olive_python if method.startswith("olive") else self.args.peers_python
                script = [str(HERE / "optimize_peers.py"), method, str(self.folder), str(MAX_DROP)]
                self._run(method, [python, *script, str(self.args.minutes)])
        record.write_text(json.dumps(self.found))

    def files(self) -> dict[str, tuple[Path, bool]]:
        """Everything that was left, by name, and whether its session computes in bfloat16 where the processor has it.

        Ours are the points of the front, of which that is a part; files of others are measured in both.
        """
        bf16 = (False, True) if self.runtime == "openvino" else (False,)
        found = {"fp32": (self.folder / "fp32/model.onnx", False)}
        for point in json.loads((self.folder / FRONT).read_text())["points"]:
            name, hint = Path(point["path"]).name, point["plan"]["compute_precision"]
            path = self.folder / "front" / name / "model.onnx"
            found[f"ours {name}{'' if hint is None else f', {hint}'}"] = (path, hint == "bf16")
        others = [(f"{path.parent.name} {path.stem.removeprefix('peer-')}", path) for path in self._peers()]
        if "error" not in self.found["tune-latency"]:
            others.insert(0, ("tune-latency", self.folder / "tuned/model.onnx"))
        return found | {f"{name}{', bf16' if half else ''}": (path, half) for name, path in others for half in bf16}

    def _peers(self) -> list[Path]:
        return sorted([*self.folder.glob("*/peer-*.onnx"), *self.folder.glob("*/peer-*.xml")])

    def _run(self, name: str, command: list[str], limit: float | None = -1.0) -> None:
        print(f"{self.folder.name}: {name} …", file=sys.stderr)
        limit = 60 * self.args.minutes if limit == -1 else limit
        start = time.perf_counter()
        self.found[name] = {}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            fine = (0, 1) if name == "optimize" else (0,)  # 1: no bundle keeps what was asked, but all are there
            if done.returncode not in fine:
                lines = done.stderr.strip().splitlines()
                said = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
                if done.returncode < 0:
                    said = f"ended by signal {-done.returncode}"
                self.found[name]["error"] = without_paths(said)
                print(done.stderr[-3000:], file=sys.stderr)
            elif name == "optimize":
                (self.folder / FRONT).write_text(done.stdout)
        except subprocess.TimeoutExpired:
            self.found[name]["error"] = f"not done after {self.args.minutes:g} minutes"
        self.found[name]["seconds"] = round(time.perf_counter() - start, 1)

    def _images(self) -> None:
        """The images for the peers: `CALIBRATE` of them, then `JUDGE` with their classes."""
        data, recipe = open_data(self.data), Bundle.open(self.folder / "fp32").manifest.preprocessing
        order = data.sample(CALIBRATE + JUDGE)
        np.save(self.folder / "images.npy", np.stack([data.tensor(index, recipe) for index in order])[:, None])
        np.save(self.folder / "classes.npy", np.asarray(data.targets)[list(order)])


def subset(source: Path, target: Path, images: int) -> None:
    """A zip with so many of the images of another one, spread over its classes."""
    data = open_data(source)
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        by_class: dict[str, list[str]] = {}
        for name in names:
            by_class.setdefault(name.rsplit("/", 1)[0], []).append(name)
        each = -(-images // len(by_class))
        assert len(data) == len(names)
        with zipfile.ZipFile(target, "w") as out:
            for found in by_class.values():
                for name in found[:: max(1, len(found) // each)][:each]:
                    out.writestr(name, archive.read(name))


def measured(case: Case, images: int, rounds: int) -> dict[str, Any]:
    """Every file on images that no search saw, and its time."""
    data = open_data(case.args.data / "eurosat_val.zip")
    recipe = Bundle.open(case.folder / "fp32").manifest.preprocessing
    order = data.sample(images)
    arrays = [data.tensor(index, recipe)[None] for index in order]
    classes = np.asarray(data.targets)[list(order)]
    calls: dict[str, Call] = {}
    files = case.files()
    for name, (path, half) in files.items():
        opened = RUNTIMES["openvino f32" if case.runtime == "openvino" and not half else case.runtime]
        calls[name] = opened(path, 1)
    logits = {name: np.concatenate([call(image) for image in arrays]) for name, call in calls.items()}
    turns = {name: (lambda call=call: call(arrays[0])) for name, call in calls.items()}
    seconds = interleave(turns, rounds=rounds, clock=time.process_time)
    right = logits["fp32"].argmax(1) == classes
    rows = {}
    for name, found in logits.items():
        paired = pair(right, found.argmax(1) == classes)
        noise = float(np.sum((found - logits["fp32"]) ** 2, dtype=np.float64))
        rows[name] = {
            "ratio": ratio(seconds[name], seconds["fp32"]),
            "cpu_ms": round(1e3 * statistics.median(seconds[name]), 3),
            "drop": round(paired.drop, 3),
            "interval": [round(end, 3) for end in paired.interval()],
            "snr_db": round(10 * float(np.log10(np.sum(logits["fp32"] ** 2, dtype=np.float64) / max(noise, 1e-30))), 2),
            "megabytes": round(_bytes(files[name][0]) / 1e6, 2),
        }
    return {"searches": case.found, "images": images, "files": rows, "dominated": _dominated(rows)}


def _bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.exists())


def _dominated(rows: Mapping[str, Any]) -> dict[str, str | None]:
    """By file of the others the one of ours that is at least as good in both and better in one."""
    values = {name: (row["ratio"]["median"], row["drop"]) for name, row in rows.items()}
    ours = {name: value for name, value in values.items() if name.startswith("ours") or name == "fp32"}
    return {
        name: next((mine for mine, own in ours.items() if _beats(own, value)), None)
        for name, value in values.items()
        if name not in ours
    }


def table(report: Mapping[str, Any]) -> str:
    """What was saved, as Markdown, without points of ours that another one beats in time, points and noise."""
    lines = []
    for case, found in report["cases"].items():
        lines += [f"| {case} | time to FP32 | points lost | SNR |", "| --- " * 4 + "|"]
        rows = {name: row for name, row in found["files"].items() if name != "fp32"}
        own = {
            name: (row["ratio"]["median"], row["drop"], -row["snr_db"])
            for name, row in rows.items()
            if name.startswith("ours")
        }
        for name, row in rows.items():
            if name in own and any(_beats(other, own[name]) for other in own.values()):
                continue
            median, low, high = (row["ratio"][key] for key in ("median", "q1", "q3"))
            least, most = row["interval"]
            cells = [_words(name), f"{median:.3f} ({low:.3f} to {high:.3f})"]
            cells += [f"{row['drop']:.1f} ({least:.2f} to {most:.2f})", f"{row['snr_db']:.1f} dB"]
            lines.append(f"| {' | '.join(cells)} |")
        for name, search in found["searches"].items():
            if "error" in search:
                lines.append(f"| {name}: {search['error']} | | | |")
        seconds = {name: search["seconds"] for name, search in found["searches"].items()}
        lines += ["", f"Seconds: {seconds}; dominated by: {found['dominated']}", ""]
    return "\n".join(lines)


def _words(name: str) -> str:
    """`ours int8-4-in-float-85f0217d, bf16` in words."""
    if not name.startswith("ours "):
        return name.replace(", bf16", ", the rest in bf16")
    file, _, hint = name.removeprefix("ours ").partition(", ")
    precision, *more = file.split("-")
    rest = f", {'the rest in ' if precision == 'int8' else 'in '}{hint}" if hint else ""
    return f"`optimize`: {precision.upper()}{f', {more[0]} groups in float' if more else ''}{rest}"


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: all of them")
    parser.add_argument("--size", type=int, choices=SIZES, action="append", help="default: both")
    parser.add_argument("--runtime", choices=SEARCHED, action="append", help="default: both")
    parser.add_argument("--data", type=Path, default=SHARED / "data/eurosat")
    parser.add_argument("--peers-python", default=sys.executable, help="of an environment that has NNCF")
    parser.add_argument("--olive-python", default=sys.executable, help="of one that has Olive")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--searched", type=int, default=1000, help="images that the searches get")
    parser.add_argument("--images", type=int, default=1000, help="that judge in the end")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="for the files; those of an earlier run are used")
    parser.add_argument("--save", nargs="?", const="optimize", help="after each part, so that nothing is lost")
    parser.add_argument("--search", action="store_true", help="search only: a later run measures what was found")
    parser.add_argument("--table", nargs="+", metavar="NAME", help="print what was saved")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(json.loads((HERE / f"results/{name}.json").read_text())) for name in args.table))
        return
    if args.folder is None:
        parser.error("--folder is missing")
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "images.zip").exists():
        subset(args.data / "eurosat_train.zip", args.folder / "images.zip", args.searched)
    report: dict[str, Any] = {
        "environment": environment(["torch", "onnx", "onnxruntime", "openvino", "numpy", "optuna"]),
        "minutes": args.minutes,
        "max_drop": MAX_DROP,
        "searched": args.searched,
        "cases": {},
    }
    for network in args.network or NETWORKS:
        for size in args.size or SIZES:
            for runtime in args.runtime or SEARCHED:
                case = Case(network, size, runtime, args)
                case.search()
                if args.search:
                    continue
                report["cases"][f"{network}, {size}, {runtime}"] = measured(case, args.images, args.rounds)
                if args.save:
                    text = json.dumps(finished(report), indent=1)
                    (HERE / f"results/{args.save}.json").write_text(text + "\n")
    print(json.dumps(finished(report), indent=1))


if __name__ == "__main__":
    main()

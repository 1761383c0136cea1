"""Commands killed at random moments: `python -m tests.fuzz.kills --moments 50` tells the counts of each command.

Half of the moments are points in time, half are changes of files, before one of which the process dies. Whatever the
moment, a bundle at the destination is whole and proven, a killed replacement leaves the old one or the new one, and
the next run of the same command ends as if there had been no other.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.bundles import write_tiny_bundle
from tests.cli.conftest import SOURCE
from vitdeploy.bundle import Bundle, BundleWriter
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 40


class Outcome(NamedTuple):
    """Of one command: moments at which it was killed, how often a bundle was at its destination, and what was wrong."""

    kills: int
    there: int
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """A command on a folder of its own.

    prepare  makes what the command reads
    reset    removes of what runs left what the next one has to make; with True also what it could go on from
    command  its words
    result   what a whole run leaves; equal after kills and without
    """

    prepare: Callable[[Path], None]
    reset: Callable[[Path, bool], None]
    command: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def with_source(folder: Path) -> None:
    """A network in a file, and images to calibrate on."""
    (folder / "tiny.py").write_text(SOURCE)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 24, 3), np.uint8)
    np.savez(folder / "images.npz", images=images)


def with_old_bundle(folder: Path) -> None:
    """The same, and a bundle at the destination."""
    with_source(folder)
    write_tiny_bundle(folder / "out/b")


def with_images(folder: Path) -> None:
    """A bundle, its baseline, and labelled images."""
    write_tiny_bundle(folder / "out/b", precision="fp16")
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 1, 3), np.uint8).repeat(12, 1).repeat(16, 2)
    with load(write_tiny_bundle(folder / "baseline"), runtime="onnxruntime") as session:
        best = [labels[0].index for labels in session.predict(list(images), top_k=1)]
    np.savez(folder / "data.npz", images=images, labels=best)


def with_bundle(folder: Path) -> None:
    """A bundle to build for."""
    write_tiny_bundle(folder / "out/b")


def to_replace(folder: Path, whole: bool) -> None:
    """The old bundle again, or whatever is there."""
    if whole:
        removed(folder / "out")
        write_tiny_bundle(folder / "out/b")


def to_make(folder: Path, whole: bool) -> None:
    """No bundle, and with `whole` nothing that killed runs left."""
    removed(folder / "out" if whole else folder / "out/b")
    (folder / "out").mkdir(exist_ok=True)


def removed(folder: Path) -> None:
    """No such folder."""
    shutil.rmtree(folder, ignore_errors=True)


def export(folder: Path, *words: str) -> list[str]:
    """`export` of the network in the folder."""
    return ["export", f"{folder}/tiny.py:build", "--image-size", "16x24", "-o", f"{folder}/out/b", *words]


def exported(folder: Path) -> Any:
    """Names in the folder of the destination, and what of the bundle does not depend on time."""
    manifest = Bundle.open(folder / "out/b").manifest
    return names(folder / "out"), manifest.precision, sorted(manifest.files)


def validated(folder: Path) -> Any:
    """What was recorded."""
    document = json.loads((folder / "out/b" / MANIFEST).read_text())
    entries = document["accuracy"]
    for entry in entries:
        entry.pop("date", None)
    return names(folder / "out"), entries


def built(folder: Path) -> Any:
    """How many files of each kind there are: names have the key of the engine, timings the process."""
    return names(folder / "out"), sorted(Path(name).suffix for name in names(folder / "cache"))


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


SCENARIOS = {
    "export --fp16 --force": Scenario(with_old_bundle, to_replace, lambda f: export(f, "--fp16", "--force"), exported),
    "export --int8": Scenario(
        with_source, to_make, lambda f: export(f, "--int8", "--calibration", f"{f}/images.npz"), exported
    ),
    "validate": Scenario(
        with_images,
        lambda folder, whole: removed(folder / "logits") if whole else None,
        lambda f: [
            *("validate", f"{f}/out/b", "--baseline", f"{f}/baseline", "--data", f"{f}/data.npz"),
            *("--logits", f"{f}/logits"),
        ],
        validated,
    ),
    "build": Scenario(
        with_bundle,
        lambda folder, whole: removed(folder / "cache") if whole else None,
        lambda f: ["build", f"{f}/out/b", "--cache", f"{f}/cache"],
        built,
    ),
}


def run(folder: Path, command: list[str], unit: str, amount: float) -> dict[str, Any] | None:
    """What a run told of itself; None where it was killed. Raises AssertionError for any other end."""
    line = [sys.executable, "-m", "tests.fuzz.killed", str(folder), unit, str(amount), *command]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode < 0:
        return None
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"code": done.stderr}
    assert told["code"] == 0, f"{' '.join(command)}: {told['code']}\n{done.stderr[-3000:]}"
    return told


def kill(name: str, moments: int, seed: int) -> Outcome:
    """Kill the command of a scenario at `moments` random moments, and look at what is there after each one."""
    scenario, rng = SCENARIOS[name], random.Random(f"{name}/{seed}")
    kills = there = 0
    faults = []
    with tempfile.TemporaryDirectory(prefix="vitdeploy-kills-") as place:
        clean, folder = Path(place) / "clean", Path(place) / "killed"
        for one in (clean, folder):
            (one / "out").mkdir(parents=True)
            scenario.prepare(one)
        whole = run(clean, scenario.command(clean), "seconds", 10**6)
        assert whole is not None
        for number in range(moments):
            unit = ("seconds", "changes")[number % 2]
            amount = rng.uniform(0, whole[unit]) if unit == "seconds" else rng.randrange(whole[unit])
            scenario.reset(folder, rng.random() < 0.5)
            held = (folder / "out/b").exists()
            if run(folder, scenario.command(folder), unit, amount) is not None:
                continue
            kills += 1
            there += (folder / "out/b").exists()
            faults += [f"{unit} {amount}: {fault}" for fault in left_behind(folder, held)]
        scenario.reset(folder, False)
        run(folder, scenario.command(folder), "seconds", 10**6)
        if scenario.result(folder) != scenario.result(clean):
            faults.append(f"a whole run then leaves {scenario.result(folder)}, not {scenario.result(clean)}")
    return Outcome(kills, there, tuple(faults))


def left_behind(folder: Path, held: bool) -> list[str]:
    """What is wrong with the bundle at the destination, or with there being none."""
    path = folder / "out/b"
    if not path.exists():
        if not held:
            return []
        with BundleWriter(path):  # the next one who writes there puts back what was being replaced
            pass
        if not path.exists():
            return ["the old bundle is lost"]
    try:
        Bundle.open(path).check_files()
        return [] if verify(path, runtime="onnxruntime").passed else ["the bundle does not verify"]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def main() -> int:
    """Exit 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="(default: all)")
    args = parser.parse_args()
    found = {}
    for name in args.scenario or SCENARIOS:
        found[name] = outcome = kill(name, args.moments, args.seed)
        print(
            f"{name:22} killed at {outcome.kills} of {args.moments} moments, a bundle was there after {outcome.there}, "
            f"{len(outcome.faults)} faults",
            *outcome.faults,
            sep="\n  ",
            flush=True,
        )
    return int(any(outcome.faults for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())

"""One of several processes that build the same engine, with stand-ins; see test_concurrent.py.

    python concurrent_build.py BUNDLE FOLDER SECONDS

Says `ready`, waits until FOLDER/go is there, builds with FOLDER/cache, and prints the report. Every build that is begun
adds a line to FOLDER/begun and takes SECONDS.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.tensorrt.fake_tensorrt import World
from vitdeploy import build


def main(bundle: str, folder: Path, seconds: float) -> None:
    world = World()
    world.timing = f"timings of {os.getpid()}".encode()
    world.install(pytest.MonkeyPatch())

    def while_building(model: bytes) -> None:
        with (folder / "begun").open("a") as begun:
            begun.write(f"{os.getpid()}\n")
        time.sleep(seconds)

    world.while_building = while_building
    print("ready", flush=True)
    while not (folder / "go").exists():
        time.sleep(0.01)
    report = build(bundle, cache=folder / "cache", timing_cache=folder / "kernels.cache")
    print(json.dumps(report.to_dict()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))

"""The fuzzers: `python -m tests.fuzz.run --seconds 3600` tries until the time is over and tells the counts a group.

One number gives one try: `--seed NUMBER --group NAME --tries 1` repeats it. A try that takes more than 20 seconds ends
the run with its stack, since nothing that hangs can be told to stop from within.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz import bundle_cases, outside_cases
from vitdeploy.latency.worker import peak_memory

GROUPS: dict[str, Callable[[Path, random.Random], None]] = {
    "damage": bundle_cases.damage_file,
    "manifest": bundle_cases.change_manifest,
    "reference": bundle_cases.change_reference,
    "graph": bundle_cases.change_graph,
    "image": outside_cases.change_image,
    "data": outside_cases.change_data,
    "command": outside_cases.change_command,
}
LONGEST = 20.0  # seconds
LARGEST_MEMORY = 10**9  # bytes


class Count(NamedTuple):
    """Of one group: tries, the seeds that failed with what was raised, and the longest try in seconds.

    growth   bytes by which one try moved the peak of the memory, at most, and the seed of that try
    """

    tries: int
    failures: dict[int, str]
    longest: float
    growth: tuple[int, int] = (0, 0)


def attempt(group: str, seed: int, folder: Path) -> str | None:
    """One try; what was raised that is not ours, or None."""
    rng = random.Random(f"{group}/{seed}")
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    try:
        GROUPS[group](folder, rng)
    except Exception:
        return traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def run(groups: tuple[str, ...], first: int, seconds: float, tries: int | None = None) -> dict[str, Count]:
    """Try the groups in turn, from seed `first` on, until the time is over or each had `tries`."""
    logging.getLogger("vitdeploy").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    found = {group: Count(0, {}, 0.0) for group in groups}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="vitdeploy-fuzz-") as name:
        folder = Path(name)
        bundle_cases.honest(folder)
        number = 0
        while time.monotonic() < end and (tries is None or number < tries):
            for group in groups:
                print(f"{group} {first + number}", file=sys.stderr, flush=True, end="\r")
                start, before = time.monotonic(), peak()
                failure = attempt(group, first + number, folder)
                count = found[group]
                failures = count.failures | ({first + number: failure} if failure else {})
                longest = max(count.longest, time.monotonic() - start)
                growth = max(count.growth, (peak() - before, first + number))
                found[group] = Count(count.tries + 1, failures, longest, growth)
            number += 1
    return found


def peak() -> int:
    """The largest resident memory of this process in bytes, 0 where the system does not tell."""
    return peak_memory() or 0


def main() -> int:
    """Exit 0 where nothing failed and the memory stayed small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None, help="the first one (default: of the clock)")
    parser.add_argument("--group", action="append", choices=GROUPS, help="(default: all)")
    parser.add_argument("--tries", type=int, default=None, help="for each group")
    args = parser.parse_args()
    first = int(time.time()) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="vitdeploy-fuzz-") as caches:
        os.environ["XDG_CACHE_HOME"] = caches
        found = run(tuple(args.group or GROUPS), first, args.seconds, args.tries)
    for group, count in found.items():
        grown, seed = count.growth
        print(
            f"{group:10} {count.tries:6} tries, {len(count.failures)} failures, longest {count.longest:.1f} s, "
            f"peak moved by {grown >> 20} MiB at most (--seed {seed})"
        )
        for seed, text in list(count.failures.items())[:5]:
            print(f"--- {group} --seed {seed}\n{text}")
    told: dict[str, Any] = {"seed": first, "peak_memory_mib": peak() >> 20}
    print(json.dumps(told))
    if told["peak_memory_mib"] > LARGEST_MEMORY >> 20:
        print(f"the memory peaked above {LARGEST_MEMORY >> 20} MiB")
        return 1
    return int(any(count.failures for count in found.values()))


if __name__ == "__main__":
    sys.exit(main())

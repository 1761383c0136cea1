"""Entries of a table of devices: what `benchmark` measured of one bundle on one device, a file each.

An entry says what was measured on what. It has no name, address or user of a machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically
from vitdeploy.latency.report import BenchmarkReport
from vitdeploy.machine.hardware import read_board

VERSION = 1


def add_to_table(folder: str | Path, report: BenchmarkReport) -> list[Path]:
    """Write an entry for each bundle that was measured on this machine, in place of the one that was there.

    Args:
        folder: Of the table; it is made where there is none.
        report: What `benchmark` measured. Its bundles are opened again, for what their manifests say.

    Returns:
        The files.

    Raises:
        BundleError: A bundle is no longer there, or damaged.
        UsageError: The folder cannot be written.
    """
    result, board, written = report.to_dict(), read_board(), []
    for path in dict.fromkeys(one["bundle"] for one in result["candidates"]):
        own = [one for one in result["candidates"] if one["bundle"] == path]
        written.append(write_entry(Path(folder), entry_of(Bundle.open(path), {**result, "candidates": own}, board)))
    return written


def write_entry(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Writes an entry to the file of its device and bundle; UsageError where the folder cannot be written."""
    path = folder / f"{_word(entry['device'])}-{_word(entry['model'])}-{entry['manifest_sha256'][:16]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(entry, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}", why=error.strerror, fix="give --device-table another path") from error
    return path


def entry_of(bundle: Bundle, result: Mapping[str, Any], board: str | None) -> dict[str, Any]:
    """The entry of one benchmark, as JSON values; latencies in milliseconds for a call of `batch` images.

    Args:
        bundle: The bundle that was measured.
        result: What `benchmark --json` prints, with candidates of this bundle alone.
        board: Name of the board in its device tree; None for a device that has none.

    Raises:
        KeyError: The result lacks something.
        TypeError, ValueError: A value of it is none that `benchmark` prints.
    """
    manifest, machine = bundle.manifest, result["machine"]
    processor = _text(machine["settings"]["processor"])
    load = machine["before"].get("load_average")
    return {
        "schema_version": VERSION,
        "device": board or processor,
        "measured": _text(result["created"]),
        "vitdeploy": _text(result["vitdeploy"]),
        "model": manifest.model.name,
        "precision": manifest.precision,
        "target": manifest.target,
        "manifest_sha256": bundle.manifest_sha256,
        "inputs": manifest.to_dict()["inputs"],
        "processor": processor,
        "power_mode": machine["settings"].get("power_mode"),
        "load_average": None if load is None else _number(load),
        "runs": [_run(one) for one in result["candidates"]],
    }


def _run(found: Mapping[str, Any]) -> dict[str, Any]:
    settings, latency = found["settings"], found["latency_ms"]
    threads = settings["threads"]
    if not isinstance(threads, (int, str)):
        raise ValueError(repr(threads))
    return {
        "runtime": _text(found["runtime"]),
        "version": _text(settings["version"]),
        "device": _text(settings["device"]),
        "threads": threads,
        "batch": int(_number(found["batch"])),
        "p50_ms": _number(latency["p50"]),
        "p90_ms": _number(latency["p90"]),
        "p99_ms": _number(latency["p99"]),
        "images_per_second": _number(found["images_per_second"]),
    }


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(repr(value))
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(repr(value))
    return value


def _word(text: str) -> str:
    """What a file may be called after a text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "device"

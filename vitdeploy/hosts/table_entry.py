"""Entries of a table of devices: what `fleet benchmark` measured of one bundle on one device, a file each.

An entry says what was measured on what. It has no name, address or user of a host.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically
from vitdeploy.hosts.outcome import Outcome

log = logging.getLogger(__name__)

VERSION = 1


def write_entries(folder: Path, bundle: Bundle, outcomes: Sequence[Outcome]) -> list[Path]:
    """Writes an entry for each host that passed, in place of the one of the same device and bundle.

    A result without what an entry needs is left out with a warning. UsageError where the folder cannot be written.
    """
    written = []
    for one in outcomes:
        if not one.passed or one.result is None:
            continue
        try:
            entry = entry_of(bundle, one)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s is left out of the table: its result has no usable %s", one.host, error)
            continue
        path = folder / f"{_word(entry['device'])}-{_word(entry['model'])}-{entry['manifest_sha256'][:16]}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(entry, indent=2) + "\n")
        except OSError as error:
            raise UsageError(
                f"cannot write {path}", why=error.strerror, fix="give --device-table another path"
            ) from error
        written.append(path)
    return written


def entry_of(bundle: Bundle, outcome: Outcome) -> dict[str, Any]:
    """The entry of one benchmark, as JSON values; KeyError, TypeError or ValueError for a result that has not got it.

    latencies in milliseconds for a call of `batch` images
    """
    result, manifest = outcome.result, bundle.manifest
    if result is None:
        raise ValueError("result")
    machine = result["machine"]
    processor = _text(machine["settings"]["processor"])
    load = machine["before"].get("load_average")
    return {
        "schema_version": VERSION,
        "device": outcome.board or processor,
        "measured": _text(result["created"]),
        "vitdeploy": _text(result["vitdeploy"]),
        "model": manifest.model.name,
        "precision": manifest.precision,
        "target": manifest.target,
        "manifest_sha256": bundle.manifest_sha256,
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

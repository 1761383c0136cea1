"""The small files beside an engine: reading what may be nonsense, writing what is complete or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError
from vitdeploy.files import write_atomically


def keep(path: Path, data: bytes) -> None:
    """Write a file that is complete or not there; BackendError where it cannot be written."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> BackendError:
    """The error for a file or folder that cannot be written."""
    return BackendError(f"cannot write {path}", why=error.strerror, fix="free some space, or --cache DIR")


def devices_of(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Hashes of what the engine reproduces, by device."""
    found = sidecar.get("proven_on")
    return found if isinstance(found, dict) else {}


def references_of(sidecar: Mapping[str, Any], device: str | None = None) -> list[str]:
    """Hashes of what the engine reproduces: on `device`, or where the key's GPU is."""
    found = sidecar.get("references_sha256") if device is None else devices_of(sidecar).get(device)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none that can be read."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def dump(document: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file."""
    return (json.dumps(document, indent=2) + "\n").encode()

"""Engines that were built, each with a sidecar that says for what; an engine is native code.

KEY.engine        what the builder wrote, nothing before it: trtexec and DeepStream read it as it is
KEY.json          the key in full, the hashes of the engine and of the reference that it reproduces
KEY.log           what the builder said
KEY.report.json  what was tried and what held, also of a build that failed
KEY.DEVICE.kernels  what a device compiled of an engine that is compiled to the end where it runs

A key that names no GPU is of an engine that was built ahead, for several kinds of devices: what it reproduces is then
noted by device, and where nothing is noted it is not proven.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError
from vitdeploy.files import cache_folder, write_atomically

_WRITABLE_BY_OTHERS = 0o022


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on: sha256 of the ONNX file, TensorRT version, GPU and `BuildOptions.identity`.

    `gpu` is empty and `sm` None for an engine that was built ahead of any GPU; the options say for which kinds.
    """

    model: str
    tensorrt: str
    gpu: str
    sm: int | None
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """A file name that no other key has."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class EngineCache:
    """The engines in one folder, which nobody else may write to.

    Raises BackendError where the folder cannot be made or belongs to somebody else.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = cache_folder("engines") if folder is None else Path(folder)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
        except OSError as error:
            raise BackendError(
                f"cannot keep engines in {self.folder}", why=error.strerror, fix="another folder: XDG_CACHE_HOME=…"
            ) from error
        if found.st_uid != os.getuid() or found.st_mode & _WRITABLE_BY_OTHERS:
            raise BackendError(
                f"engines are not read from {self.folder}",
                why="others can write there, and an engine is a program",
                fix=f"chmod go-w {self.folder}, as its owner",
            )

    def find(self, key: EngineKey, *, reference: str | None = None, device: str | None = None) -> bytes | None:
        """The engine of `key`; None where there is none, or where its sidecar or its hash is not right.

        With `reference`, the hash of a bundle's reference file, only one that was seen to reproduce that reference, on
        `device` where the key names no GPU.
        """
        sidecar = _json(self._path(key, "json"))
        if sidecar is None or sidecar.get("key") != json.loads(json.dumps(asdict(key))):
            return None
        if reference is not None and reference not in _references(sidecar, device):
            return None
        try:
            engine = self._path(key, "engine").read_bytes()
        except OSError:
            return None
        return engine if sidecar.get("engine_sha256") == hashlib.sha256(engine).hexdigest() else None

    def store(
        self,
        key: EngineKey,
        engine: bytes,
        *,
        reference: str | None,
        workaround: str,
        seconds: float,
        device: str | None = None,
    ) -> Path:
        """Keep an engine and say where. The sidecar comes last: without it the engine does not count.

        reference   hash of the reference file that it reproduces; None where no device has proven it yet
        workaround  what made it right; empty where nothing had to
        seconds     that building it took
        device      where it reproduces the reference, for a key that names no GPU
        """
        sidecar = {
            "key": asdict(key),
            "engine_sha256": hashlib.sha256(engine).hexdigest(),
            "engine_bytes": len(engine),
            "references_sha256": [reference] if reference and device is None else [],
            **({"proven_on": {device: [reference]}} if reference and device else {}),
            "workaround": workaround,
            "build_seconds": round(seconds, 3),
            "built": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        }
        path = self._path(key, "engine")
        self._path(key, "json").unlink(missing_ok=True)
        keep(path, engine)
        for old in self.folder.glob(f"{key.name}.*.kernels"):
            old.unlink(missing_ok=True)
        keep(self._path(key, "json"), _dump(sidecar))
        return path

    def add_reference(self, key: EngineKey, reference: str, *, device: str | None = None) -> None:
        """Note that the engine of `key` was seen to reproduce another reference too, or the same on another device."""
        sidecar = _json(self._path(key, "json"))
        if sidecar is not None and reference not in _references(sidecar, device):
            known = [*_references(sidecar, device), reference]
            if device is None:
                sidecar["references_sha256"] = known
            else:
                sidecar["proven_on"] = {**_devices(sidecar), device: known}
            keep(self._path(key, "json"), _dump(sidecar))

    def workaround(self, key: EngineKey) -> str:
        """What made the engine of `key` right; empty where nothing had to, or where there is no engine."""
        return str((_json(self._path(key, "json")) or {}).get("workaround") or "")

    def latest_options(
        self, key: EngineKey, fits: Callable[[Mapping[str, Any]], bool] = lambda options: True
    ) -> dict[str, Any] | None:
        """The options of the engine that was built last for the same model, TensorRT and GPU, and that `fits`."""
        same = {name: value for name, value in asdict(key).items() if name != "options"}
        sidecars = (_json(path) for path in self.folder.glob("*.json") if not path.name.endswith(".report.json"))
        found = [
            (str(sidecar.get("built")), sidecar["key"]["options"])
            for sidecar in sidecars
            if sidecar is not None
            and isinstance(sidecar.get("key"), dict)
            and same.items() <= sidecar["key"].items()
            and isinstance(sidecar["key"].get("options"), dict)
            and (_references(sidecar) or not key.gpu)
            and fits(sidecar["key"]["options"])
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def write_report(self, key: EngineKey, report: Mapping[str, Any]) -> Path:
        """Keeps what was tried and what held."""
        path = self.report_file(key)
        keep(path, _dump(report))
        return path

    def read_report(self, key: EngineKey) -> dict[str, Any] | None:
        """What `write_report` kept; None where there is nothing or nothing that can be read."""
        return _json(self.report_file(key))

    def report_file(self, key: EngineKey) -> Path:
        """Where `write_report` keeps it."""
        return self._path(key, "report.json")

    def write_log(self, key: EngineKey, text: str) -> Path:
        """Keeps what the builder said, also of a build that failed."""
        path = self._path(key, "log")
        keep(path, text.encode())
        return path

    def log_file(self, key: EngineKey) -> Path:
        """Where `write_log` keeps it."""
        return self._path(key, "log")

    def engine_file(self, key: EngineKey) -> Path:
        """Where `store` keeps the engine."""
        return self._path(key, "engine")

    def timing_file(self, key: EngineKey) -> Path:
        """Where the kernel timings of this TensorRT on this GPU are kept, for every model."""
        gpu = hashlib.sha256(f"{key.gpu} {key.sm}".encode()).hexdigest()[:16]
        return self.folder / f"timing-{key.tensorrt}-{gpu}.cache"

    def kernels_file(self, key: EngineKey, device: str) -> Path:
        """Where the kernels that `device` compiled for the engine of `key` are kept."""
        return self._path(key, f"{hashlib.sha256(device.encode()).hexdigest()[:16]}.kernels")

    def _path(self, key: EngineKey, suffix: str) -> Path:
        return self.folder / f"{key.name}.{suffix}"


def keep(path: Path, data: bytes) -> None:
    """Write a file that is complete or not there; BackendError where it cannot be written."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise BackendError(
            f"cannot write {path}", why=error.strerror, fix="free some space, or another place"
        ) from error


def _devices(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    found = sidecar.get("proven_on")
    return found if isinstance(found, dict) else {}


def _references(sidecar: Mapping[str, Any], device: str | None = None) -> list[str]:
    """Hashes of what the engine reproduces: on `device`, or where the key's GPU is."""
    found = sidecar.get("references_sha256") if device is None else _devices(sidecar).get(device)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()

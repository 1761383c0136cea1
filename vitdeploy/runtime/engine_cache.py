"""Engines that were built on this device, each with a sidecar that says for what; an engine is native code.

KEY.engine   what TensorRT wrote, nothing before it: trtexec and DeepStream read it as it is
KEY.json     the key in full and the engine's hash
KEY.log      what the builder said
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError

_WRITABLE_BY_OTHERS = 0o022


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on: sha256 of the ONNX file, TensorRT version, GPU and build options."""

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


def default_folder() -> Path:
    """`~/.cache/vitdeploy/engines`, or below XDG_CACHE_HOME where that is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitdeploy" / "engines"


class EngineCache:
    """The engines in one folder, which nobody else may write to.

    Raises BackendError where the folder cannot be made or belongs to somebody else.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
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

    def find(self, key: EngineKey) -> bytes | None:
        """The engine of `key`; None where there is none, or where its sidecar or its hash is not right."""
        try:
            sidecar = json.loads(self._path(key, "json").read_bytes())
            engine = self._path(key, "engine").read_bytes()
        except (OSError, ValueError):
            return None
        if not isinstance(sidecar, dict) or sidecar.get("key") != json.loads(json.dumps(asdict(key))):
            return None
        return engine if sidecar.get("engine_sha256") == hashlib.sha256(engine).hexdigest() else None

    def store(self, key: EngineKey, engine: bytes, *, seconds: float) -> None:
        """Keeps the engine. The sidecar comes last: without it the engine does not count."""
        sidecar = {
            "key": asdict(key),
            "engine_sha256": hashlib.sha256(engine).hexdigest(),
            "engine_bytes": len(engine),
            "build_seconds": round(seconds, 3),
        }
        self._path(key, "json").unlink(missing_ok=True)
        self._write(self._path(key, "engine"), engine)
        self._write(self._path(key, "json"), (json.dumps(sidecar, indent=2) + "\n").encode())

    def forget(self, key: EngineKey) -> None:
        """Removes an engine that turned out to be of no use."""
        for suffix in ("json", "engine"):
            self._path(key, suffix).unlink(missing_ok=True)

    def write_log(self, key: EngineKey, text: str) -> Path:
        """Keeps what the builder said, also of a build that failed."""
        path = self._path(key, "log")
        self._write(path, text.encode())
        return path

    def timing_file(self, key: EngineKey) -> Path:
        """Where the kernel timings of this TensorRT on this GPU are kept, for every model."""
        gpu = hashlib.sha256(f"{key.gpu} {key.sm}".encode()).hexdigest()[:16]
        return self.folder / f"timing-{key.tensorrt}-{gpu}.cache"

    def _path(self, key: EngineKey, suffix: str) -> Path:
        return self.folder / f"{key.name}.{suffix}"

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise BackendError(f"cannot write {path}", why=error.strerror, fix="free some space") from error
        finally:
            temporary.unlink(missing_ok=True)

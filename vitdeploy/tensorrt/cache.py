"""Engines that were built, each with a sidecar that says for what; an engine is native code.

KEY.json                 the key in full, the hashes of the engine and of the reference that it reproduces
KEY.HASH.engine          what the builder wrote, nothing before it: trtexec and DeepStream read it as it is
KEY.HASH.log             what the builder said
KEY.HASH.report.json     what was tried and what held
KEY.HASH.DEVICE.kernels  what a device compiled of an engine that is compiled to the end where it runs
KEY.attempt.log, KEY.attempt.report.json   the same of a build that failed or is under way
KEY.lock                 held by who builds it

HASH is the engine's. The sidecar names it and is replaced in one step, so that whatever ends a build, the engine that
was proven before is there until another one is.

A key that names no GPU is of an engine that was built ahead, for several kinds of devices: what it reproduces is then
noted by device, and where nothing is noted it is not proven.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.caches import Cache
from vitdeploy.errors import BackendError
from vitdeploy.locks import locked
from vitdeploy.tensorrt.sidecar import devices_of, dump, keep, not_written, read_json, references_of

_WRITABLE_BY_OTHERS = 0o022
_HASH = 16  # characters of a hash in a file's name


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on: sha256 of the ONNX file, TensorRT version, GPU and `BuildOptions.identity`.

    `gpu`, `sm` and `uuid` are those of the device that CUDA opened. `gpu` and `uuid` are empty and `sm` None for an
    engine that was built ahead of any GPU; the options say for which kinds.

    The UUID is part of it although an equal board can run the engine: the proof was made on one board, kernels were
    timed on it, and MIG parts of different sizes have one name. Building again costs minutes on a board that is new;
    engines for many boards are those that are built ahead, whose keys name none.
    """

    model: str
    tensorrt: str
    gpu: str
    sm: int | None
    options: Mapping[str, Any]
    uuid: str = ""

    @property
    def name(self) -> str:
        """A file name that no other key has."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Files(NamedTuple):
    """Where an engine is, or would be, and what is told of it; `engine` is None for an attempt."""

    engine: Path | None
    log: Path
    report: Path

    def to_dict(self) -> dict[str, str | None]:
        """JSON values."""
        return {name: None if path is None else str(path) for name, path in self._asdict().items()}


class EngineCache:
    """The engines in one folder, which nobody else may write to.

    Raises BackendError where the folder cannot be made or belongs to somebody else.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._cache = Cache("engines", None if folder is None else Path(folder))
        self.folder = self._cache.folder
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
        except OSError as error:
            raise BackendError(
                f"cannot keep engines in {self.folder}",
                why=error.strerror,
                fix="another folder: --cache DIR, or XDG_CACHE_HOME=…",
            ) from error
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            raise BackendError(
                f"engines are not read from {self.folder}",
                why=f"it belongs to the user {found.st_uid} and not to you ({os.getuid()}), and an engine is a program",
                fix=f"run as its owner (docker run --user {found.st_uid}), or another folder: --cache DIR, or "
                "XDG_CACHE_HOME=…",
            )
        if found.st_mode & _WRITABLE_BY_OTHERS:
            raise BackendError(
                f"engines are not read from {self.folder}",
                why="others can write there, and an engine is a program",
                fix=f"chmod go-w {self.folder}",
            )

    @contextmanager
    def lock(self, key: EngineKey) -> Iterator[None]:
        """Hold `key`, as to build its engine: others that want to build it wait, and it is not removed.

        It ends with the process, however that ends. BackendError where the folder cannot be written to.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._cache.lock(key.name, what="builds this engine"))
            except OSError as error:
                raise not_written(self.folder, error) from error
            yield

    def find(self, key: EngineKey, *, reference: str | None = None, device: str | None = None) -> bytes | None:
        """The engine of `key`; None where there is none, or where its sidecar or its hash is not right.

        With `reference`, the hash of a bundle's reference file, only one that was seen to reproduce that reference, on
        `device` where the key names no GPU.
        """
        for _ in range(2):  # once more where the engine was replaced between its sidecar and itself
            sidecar = self._sidecar(key)
            if sidecar is None or (reference is not None and reference not in references_of(sidecar, device)):
                return None
            place = self._files(key, str(sidecar.get("engine_sha256"))).engine
            try:
                engine = place.read_bytes() if place is not None else b""
            except OSError:
                continue
            if place is None or sidecar.get("engine_sha256") != hashlib.sha256(engine).hexdigest():
                return None
            self._cache.touch(place)
            return engine
        return None

    def store(
        self,
        key: EngineKey,
        engine: bytes,
        report: Mapping[str, Any],
        *,
        reference: str | None,
        workaround: str,
        seconds: float,
        device: str | None = None,
    ) -> dict[str, Any]:
        """Keep an engine, the last attempt's log and the report; the report, with where they are.

        The sidecar is replaced last: until then, and where anything fails before, the engine that was there counts.

        reference   hash of the reference file that it reproduces; None where no device has proven it yet
        workaround  what made it right; empty where nothing had to
        seconds     that building it took
        device      where it reproduces the reference, for a key that names no GPU
        """
        sha256 = hashlib.sha256(engine).hexdigest()
        files, attempt = self._files(key, sha256), self.attempt(key)
        sidecar = {
            "key": asdict(key),
            "engine_sha256": sha256,
            "engine_bytes": len(engine),
            "references_sha256": [reference] if reference and device is None else [],
            **({"proven_on": {device: [reference]}} if reference and device else {}),
            "workaround": workaround,
            "build_seconds": round(seconds, 3),
            "built": _now(),
        }
        kept = {**report, **files.to_dict()}
        try:
            if files.engine is not None:
                keep(files.engine, engine)
            if attempt.log.exists():
                keep(files.log, attempt.log.read_bytes())
            keep(files.report, dump(kept))
            with self._editing(key):
                keep(self._path(key, "json"), dump(sidecar))
        except BaseException:
            self._remove_others(key, str((self._sidecar(key) or {}).get("engine_sha256")), "attempt")
            raise
        self._remove_others(key, sha256)
        self._cache.evict(keep=(key.name, self.timing_file(key).name))
        return kept

    def add_reference(self, key: EngineKey, engine: bytes, reference: str, *, device: str | None = None) -> None:
        """Note that `engine` was seen to reproduce another reference too, or the same on another device.

        Nothing is noted where it is not the engine of `key` any more.
        """
        with self._editing(key):
            sidecar = self._sidecar(key)
            if sidecar is None or sidecar.get("engine_sha256") != hashlib.sha256(engine).hexdigest():
                return
            if reference in references_of(sidecar, device):
                return
            known = [*references_of(sidecar, device), reference]
            if device is None:
                sidecar["references_sha256"] = known
            else:
                sidecar["proven_on"] = {**devices_of(sidecar), device: known}
            keep(self._path(key, "json"), dump(sidecar))

    def prefer(self, key: EngineKey) -> None:
        """Have a load that asks for nothing take the engine of `key`, though others were built later."""
        with self._editing(key):
            sidecar = self._sidecar(key)
            if sidecar is not None:
                keep(self._path(key, "json"), dump({**sidecar, "preferred": _now()}))

    def workaround(self, key: EngineKey) -> str:
        """What made the engine of `key` right; empty where nothing had to, or where there is no engine."""
        return str((self._sidecar(key) or {}).get("workaround") or "")

    def latest_options(
        self, key: EngineKey, fits: Callable[[Mapping[str, Any]], bool] = lambda options: True
    ) -> dict[str, Any] | None:
        """The options of the engine of the same model, TensorRT and GPU that was built or preferred last and `fits`."""
        same = {name: value for name, value in asdict(key).items() if name != "options"}
        sidecars = (read_json(path) for path in self.folder.glob("*.json") if not path.name.endswith(".report.json"))
        found = [
            (str(sidecar.get("preferred") or sidecar.get("built")), sidecar["key"]["options"])
            for sidecar in sidecars
            if sidecar is not None
            and isinstance(sidecar.get("key"), dict)
            and same.items() <= sidecar["key"].items()
            and isinstance(sidecar["key"].get("options"), dict)
            and (references_of(sidecar) or not key.gpu)
            and fits(sidecar["key"]["options"])
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def files(self, key: EngineKey) -> Files:
        """Where the engine of `key` is; those of an attempt where there is none."""
        sidecar = self._sidecar(key)
        return self.attempt(key) if sidecar is None else self._files(key, str(sidecar.get("engine_sha256")))

    def attempt(self, key: EngineKey) -> Files:
        """Where is told of a build that failed or is under way."""
        return Files(None, self._path(key, "attempt.log"), self._path(key, "attempt.report.json"))

    def read_report(self, key: EngineKey) -> dict[str, Any] | None:
        """The report of the engine of `key`, with where it is now; None where there is nothing that can be read."""
        files = self.files(key)
        report = read_json(files.report)
        return None if report is None else {**report, **files.to_dict()}

    def write_report(self, files: Files, report: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps what was tried and what held; the report, with where that is."""
        kept = {**report, **files.to_dict()}
        keep(files.report, dump(kept))
        return kept

    def write_log(self, key: EngineKey, text: str) -> Path:
        """Keeps what the builder said in an attempt, also of a build that failed."""
        path = self.attempt(key).log
        keep(path, text.encode())
        return path

    def timing_file(self, key: EngineKey) -> Path:
        """Where the kernel timings of this TensorRT on this GPU are kept, for every model."""
        gpu = hashlib.sha256(f"{key.gpu} {key.sm}".encode()).hexdigest()[:16]
        return self.folder / f"timing-{key.tensorrt}-{gpu}.cache"

    def kernels_file(self, key: EngineKey, device: str) -> Path:
        """Where the kernels that `device` compiled for the engine of `key` are kept."""
        sha256 = str((self._sidecar(key) or {}).get("engine_sha256"))
        return self._path(key, f"{sha256[:_HASH]}.{hashlib.sha256(device.encode()).hexdigest()[:_HASH]}.kernels")

    def _files(self, key: EngineKey, sha256: str) -> Files:
        stem = sha256[:_HASH]
        return Files(*(self._path(key, f"{stem}.{suffix}") for suffix in ("engine", "log", "report.json")))

    def _sidecar(self, key: EngineKey) -> dict[str, Any] | None:
        """What is noted of the engine of `key`; None where that is of another key or no sidecar."""
        found = read_json(self._path(key, "json"))
        if found is None or found.get("key") != json.loads(json.dumps(asdict(key))):
            return None
        return found if re.fullmatch(r"[0-9a-f]{64}", str(found.get("engine_sha256"))) else None

    @contextmanager
    def _editing(self, key: EngineKey) -> Iterator[None]:
        """For a moment, alone with the sidecar: loading an engine adds to it too, and does not wait for a builder."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.folder / f"{key.name}.sidecar.lock"))
            except OSError as error:
                raise not_written(self.folder, error) from error
            yield

    def _remove_others(self, key: EngineKey, sha256: str, *besides: str) -> None:
        """Remove what belongs to other engines of `key` than this one, and unless something failed its old kernels."""
        for path in self.folder.glob(f"{key.name}.*"):
            words = path.name.split(".")
            stale = len(words) > 2 and words[1] not in (sha256[:_HASH], "sidecar", *besides)
            if stale or (path.suffix == ".kernels" and not besides):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, key: EngineKey, suffix: str) -> Path:
        return self.folder / f"{key.name}.{suffix}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")

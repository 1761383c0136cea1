"""What became of one host: a status, the device's own result or why there is none, and its main figures in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

PASSED, FAILED, STALE = "passed", "failed", "stale engine"
STATUSES = (
    *(PASSED, FAILED, STALE, "error", "no vitdeploy", "unreachable", "host key", "login refused", "timed out"),
    *("connection lost", "copy failed", "no result"),
)


class TroubleError(Exception):
    """Why a host has no result: a status, what happened, why, and what to type next."""

    def __init__(self, status: str, what: str, *, why: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.status, self.what, self.why, self.fix = status, what, why, fix


def now() -> str:
    """This second in UTC, ISO 8601."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Asked:
    """What a host was asked; two that are equal have the same answer.

    Attributes:
        verb: The command.
        manifest_sha256: Of the bundle.
        place: `user@address:port` of the host.
        words: The command line on the device.
    """

    verb: str
    manifest_sha256: str
    place: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one host.

    Attributes:
        host: Its name.
        status: One of STATUSES.
        asked: What it was asked.
        what: What happened in a sentence; empty where it passed.
        why: The cause, where it is known.
        fix: What to type next, where it is known.
        seconds: From the connection to the answer.
        finished: When that was, in UTC.
        exit_code: Of the device's command; None where it gave none.
        board: Name of the board in its device tree; None where it has none.
        vitdeploy: Version on the device; None where it is not known.
        copied: Whether the bundle was sent now; False where it was there; None where it did not come to that.
        result: The JSON that the device printed, a failure's too; None without.
        said: The end of the device's standard error where it gave no result.
        kept: Whether it is of an earlier run.
    """

    host: str
    status: str
    asked: Asked
    what: str = ""
    why: str | None = None
    fix: str | None = None
    seconds: float = 0.0
    finished: str = field(default_factory=now)
    exit_code: int | None = None
    board: str | None = None
    vitdeploy: str | None = None
    copied: bool | None = None
    result: Mapping[str, Any] | None = None
    said: str = ""
    kept: bool = False

    @property
    def passed(self) -> bool:
        """Whether the device's command passed."""
        return self.status == PASSED

    @property
    def figures(self) -> Figures:
        """The main figures of the result."""
        if self.result is None or "error" in self.result:
            return Figures()
        return figures_of(self.asked.verb, self.result)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "asked": {**asdict(self.asked), "words": list(self.asked.words)}}

    @classmethod
    def from_dict(cls, document: Any) -> Outcome:
        """The outcome that `to_dict` gave; ValueError for anything else."""
        if not isinstance(document, dict) or document.keys() != {one.name for one in fields(cls)}:
            raise ValueError("it has other keys than a result of a host")
        asked = document["asked"]
        if not isinstance(asked, dict) or asked.keys() != {one.name for one in fields(Asked)}:
            raise ValueError("it does not say what was asked")
        if document["status"] not in STATUSES or not isinstance(asked["words"], list):
            raise ValueError(f"it has the status {document['status']!r}")
        if not isinstance(document["result"], (dict, type(None))) or not isinstance(document["seconds"], (int, float)):
            raise ValueError("its result is none of a command")
        return cls(**{**document, "asked": Asked(**{**asked, "words": tuple(map(str, asked["words"]))})})


@dataclass(frozen=True)
class Figures:
    """What a row of the table says: what computed, the runtime with its version, and the numbers."""

    device: str = ""
    runtime: str = ""
    numbers: str = ""


def figures_of(verb: str, result: Mapping[str, Any]) -> Figures:
    """The main figures of a device's result; what it does not have is left empty, whatever else it is."""
    if verb == "verify":
        ran = dig(result, "runtime")
        return Figures(_words(ran, "device"), _words(ran, "backend", "version"), _parity(result))
    if verb == "build":
        proven = _parity(result) or ("not proven" if dig(result, "unproven") else "")
        return Figures(_words(result, "device"), _words(result, "product", "tensorrt"), proven)
    if verb == "benchmark":
        return _fastest(result)
    run = next(iter(_list(result, "runs")), None)
    loss = _number(run, "drop", ".2f")
    numbers = ", ".join(filter(None, (_number(run, "top1", ".2f", " % top-1"), loss and f"drop {loss}")))
    return Figures("", clean(dig(run, "name")), numbers)


def clean(value: object, longest: int = 400) -> str:
    """A text of a device in one printable line: it must not write to the terminal what a terminal obeys."""
    text = value if isinstance(value, str) else ""
    line = re.sub(r"\s+", " ", text).strip()
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line)
    return shown if len(shown) <= longest else f"{shown[: longest - 2]} …"


def _parity(result: Mapping[str, Any]) -> str:
    """The lowest ratio of the outputs in decibels; null stands for no error."""
    outputs = _list(dig(result, "parity"), "outputs")
    ratios = [ratio for one in outputs if isinstance(ratio := dig(one, "snr_db"), (int, float))]
    if ratios:
        return f"{min(ratios):.1f} dB"
    return "no error" if outputs and all(dig(one, "passed") is True for one in outputs) else ""


def _fastest(result: Mapping[str, Any]) -> Figures:
    """Of several candidates the one of the lowest median."""
    timed = [one for one in _list(result, "candidates") if isinstance(dig(one, "latency_ms", "p50"), (int, float))]
    if not timed:
        return Figures()
    best = min(timed, key=lambda one: float(one["latency_ms"]["p50"]))
    settings = dig(best, "settings")
    runtime = " ".join(filter(None, (_words(best, "runtime"), _words(settings, "version"))))
    batch = _number(best, "batch", ".0f")
    return Figures(_words(settings, "device"), runtime, f"{best['latency_ms']['p50']:.3g} ms, batch {batch}")


def dig(value: Any, *keys: str) -> Any:
    """What stands below the keys; None where that is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _list(value: Any, key: str) -> list[Any]:
    found = dig(value, key)
    return found if isinstance(found, list) else []


def _words(value: Any, *keys: str) -> str:
    return " ".join(filter(None, (clean(dig(value, key), 60) for key in keys)))


def _number(value: Any, key: str, form: str, unit: str = "") -> str:
    found = dig(value, key)
    return f"{found:{form}}{unit}" if isinstance(found, (int, float)) else ""

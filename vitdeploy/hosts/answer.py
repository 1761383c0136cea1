"""What a device's command printed and how it ended, as an outcome: a result, a failure of its own, or neither."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitdeploy.hosts.outcome import FAILED, PASSED, STALE, TroubleError, clean, dig

LONGEST = 64 << 20  # bytes of standard output that are read

_BUILD = re.compile(r"\bvitdeploy build\b")
_SAID = 2000  # characters of standard error that are kept
# Exit codes of shells for a command that is not there or cannot be run.
NOT_FOUND = (126, 127)


class Ended(NamedTuple):
    """How a command on a device ended.

    exit_code  None where a signal ended it, or where the connection did
    signal     name of that signal
    """

    exit_code: int | None
    signal: str | None
    output: bytes
    errors: bytes


class Judged(NamedTuple):
    """An answer and what it means."""

    status: str
    what: str
    why: str | None
    fix: str | None
    result: Mapping[str, Any] | None


def judge(verb: str, ended: Ended) -> Judged:
    """What the end of `verb` means; TroubleError where the device gave no result.

    A failure that tells to build an engine, of a command that builds none, is that of an engine that an update of the
    device has made stale, or that was never built.
    """
    if ended.exit_code is None and ended.signal is None:
        raise TroubleError(
            "connection lost",
            "the connection ended before the answer was there",
            why="the device was switched off, restarted, or lost its network",
            fix="run the same command again",
        )
    result = parse(ended.output)
    if ended.signal is not None or ended.exit_code not in (0, 1, 2):
        raise _died(ended)
    if result is None or ("error" in result) != _is_failure(result) or (ended.exit_code == 0 and _is_failure(result)):
        raise TroubleError(
            "no result",
            f"the answer to {verb} is not what vitdeploy prints",
            why=_line(ended.errors) or _line(ended.output) or "nothing was printed",
            fix="run the command on the device, and install the vitdeploy there that is here",
        )
    if _is_failure(result):
        what, why, fix = (result[key] for key in ("error", "why", "try"))
        if verb != "build" and _BUILD.search(fix or ""):
            return Judged(STALE, what, why, fix, result)
        return Judged("error" if ended.exit_code == 2 else FAILED, what, why, fix, result)
    if ended.exit_code == 0:
        return Judged(PASSED, "", None, None, result)
    reasons = dig(result, "failures") or dig(result, "parity", "failures")
    why = "; ".join(map(str, reasons)) if isinstance(reasons, list) else None
    return Judged(FAILED, f"{verb} failed", why or None, None, result)


def parse(output: bytes) -> dict[str, Any] | None:
    """The object in what a command printed, which is all of it or, behind what a login prints, its last line.

    None where it is anything else: no JSON, no object, a number that is not finite or of more than 64 bits.
    """
    text = output.decode("utf-8", "replace").strip()
    for part in (text, text.rpartition("\n")[2]):
        try:
            found = json.loads(part, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def said(errors: bytes) -> str:
    """The end of a standard error."""
    return errors.decode("utf-8", "replace")[-_SAID:].strip()


def _is_failure(result: Mapping[str, Any]) -> bool:
    """Whether it is the object that --json prints of a failure."""
    texts = (result.get("why"), result.get("try"))
    whole = {"error", "why", "try", "exit_code"} <= result.keys()
    return whole and isinstance(result["error"], str) and all(isinstance(one, (str, type(None))) for one in texts)


def _died(ended: Ended) -> TroubleError:
    if ended.exit_code in NOT_FOUND:
        return no_vitdeploy(_line(ended.errors))
    killed = ended.signal == "KILL" or ended.exit_code == 137
    how = f"the signal {ended.signal}" if ended.signal else f"the exit code {ended.exit_code}"
    return TroubleError(
        "no result",
        f"the command ended with {clean(how)}",
        why="the device has too little memory, or somebody ended it" if killed else _line(ended.errors) or None,
        fix="run the command on the device",
    )


def no_vitdeploy(why: str) -> TroubleError:
    """For a device that lacks the command."""
    return TroubleError(
        "no vitdeploy",
        "there is no vitdeploy on the device",
        why=why or "its shell does not find the command",
        fix="pip install 'vitdeploy[onnxruntime]' there, or name the command: vitdeploy = \"venv/bin/vitdeploy\"",
    )


def _line(text: bytes) -> str:
    """The last line of a text that says something."""
    lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return clean(lines[-1]) if lines else ""


def _whole(digits: str) -> int:
    number = int(digits)
    if abs(number) >= 1 << 63:
        raise ValueError(f"{digits} has more than 64 bits")
    return number


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is no finite number")
    return number

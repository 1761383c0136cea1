"""What became of the hosts of a fleet, as a table and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitdeploy.errors import shell
from vitdeploy.hosts.outcome import FAILED, PASSED, STALE, Outcome, clean
from vitdeploy.hosts.words import build_options
from vitdeploy.table import render

_HEADER = ("host", "board", "runtime", "verdict", "figures", "seconds")


@dataclass(frozen=True)
class FleetReport:
    """The outcome of `vitdeploy.fleet`; `str()` is a table with a row for each host.

    Attributes:
        verb: The command that the hosts ran.
        bundle: The bundle.
        manifest_sha256: Hash of its manifest, in hexadecimal.
        hosts: File of the hosts.
        outcomes: What became of each host, in the order of the file.
        output: Folder of the results; None where none are kept.
        entries: Files that were added to a table of devices.
    """

    verb: str
    bundle: str
    manifest_sha256: str
    hosts: str
    outcomes: tuple[Outcome, ...]
    output: str | None = None
    entries: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every host passed."""
        return all(one.passed for one in self.outcomes)

    @property
    def stale(self) -> tuple[str, ...]:
        """The commands that build the engines which hosts lack, or which an update made stale."""
        groups: dict[str, list[str]] = {}
        for one in self.outcomes:
            if one.status == STALE:
                groups.setdefault(build_options(one.fix or ""), []).append(one.host)
        return tuple(self._build_command(names, options) for options, names in groups.items())

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "passed": self.passed,
            "verb": self.verb,
            "bundle": self.bundle,
            "manifest_sha256": self.manifest_sha256,
            "output": self.output,
            "hosts": [one.to_dict() for one in self.outcomes],
            "stale": list(self.stale),
            "entries": list(self.entries),
        }

    def __str__(self) -> str:
        passed = sum(one.passed for one in self.outcomes)
        lines = [
            f"{self.verb} of {self.bundle} on {len(self.outcomes)} host{'s' if len(self.outcomes) != 1 else ''}",
            render([_row(one) for one in self.outcomes], header=_HEADER, align="<<<<<>"),
        ]
        for one in self.outcomes:
            if not one.passed:
                lines += _reasons(one)
        lines += [f"written: {path}" for path in self.entries]
        lines.append(f"{'passed' if self.passed else 'FAILED'}: {passed} of {len(self.outcomes)} hosts passed")
        if self.stale:
            lines += ["engines are missing, or stale since an update of the device; to build them:"]
            lines += [f"  {command}" for command in self.stale]
        return "\n".join(lines)

    def _build_command(self, names: Sequence[str], options: str) -> str:
        typed = f"vitdeploy fleet build {shell(self.bundle)} --hosts {shell(self.hosts)} --only {','.join(names)}"
        return f"{typed} -- {options}" if options else typed


def _row(one: Outcome) -> list[str]:
    found = one.figures
    device = ", ".join(filter(None, (one.board, found.device)))
    verdict = {PASSED: "passed", FAILED: "FAILED"}.get(one.status, one.status)
    return [
        one.host,
        clean(device, 48),
        clean(found.runtime, 40),
        f"{verdict} (kept)" if one.kept else verdict,
        found.numbers,
        f"{one.seconds:.1f}",
    ]


def _reasons(one: Outcome) -> list[str]:
    said = one.said.splitlines()[-1] if one.said and one.why is None else None
    labelled = [("why", one.why or said), ("try", one.fix)]
    return [
        f"{one.host}: {clean(one.what or one.status)}",
        *(f"  {label}: {clean(text, 800)}" for label, text in labelled if text),
    ]

"""What building an engine gave, as its report records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitdeploy.tensorrt.fusion import FusionReport


@dataclass(frozen=True)
class BuildReport:
    """The outcome of `vitdeploy.build`; `str()` is for people.

    Attributes:
        contents: What the report beside the engine holds.
        cached: Whether the engine was there already.
    """

    contents: Mapping[str, Any]
    cached: bool

    @property
    def passed(self) -> bool:
        """Whether there is an engine that reproduces the bundle's reference on this device."""
        return bool(self.contents.get("passed"))

    @property
    def failed(self) -> bool:
        """Whether there is none because its outputs are others; False also where no device here could run it."""
        return self.contents.get("passed") is False

    @property
    def engine(self) -> str | None:
        """Path of the engine; None where none reproduces the reference."""
        return self.contents.get("engine")

    @property
    def report(self) -> str:
        """Path of the report."""
        return str(self.contents.get("report"))

    @property
    def failures(self) -> tuple[str, ...]:
        """What does not hold, in words."""
        return tuple(self.contents.get("failures", ()))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**self.contents, "cached": self.cached}

    def __str__(self) -> str:
        of = self.contents
        builder = f"{of.get('product', 'TensorRT')} {of['tensorrt']} {_where(of)}"
        lines = [
            f"{of['bundle']}: {of['model']}, {of['precision']}, {builder}",
            f"engine: {of['engine'] or 'none'}{', built before' if self.cached else ''}",
            f"log: {of['log']}",
            f"report: {of['report']}",
            *_attempts(of["attempts"]),
            *_int8(of.get("int8")),
            *_diagnosis(of),
            *_dla(of["dla"]),
        ]
        if of.get("fusion"):
            lines.append(str(FusionReport.from_dict(of["fusion"])))
        measures = [
            f"{output['name']}: relative error {_number(output['max_relative'], '.2e')}, "
            f"{_number(output['snr_db'], '.1f')} dB"
            for output in (of["parity"] or {"outputs": ()})["outputs"]
        ]
        return "\n".join([*lines, *measures, self._verdict()])

    def _verdict(self) -> str:
        if self.passed or self.failed:
            return "passed" if self.passed else "FAILED"
        return f"BUILT, NOT PROVEN ({self.contents.get('unproven')}); the device that first loads it proves it"


def _where(of: Mapping[str, Any]) -> str:
    """The device that the engine is for, or the compute capabilities where it was built ahead."""
    kinds = ", ".join(f"{sm // 10}.{sm % 10}" for sm in of["options"].get("sm", ()))
    return " ".join(filter(None, (kinds and f"for compute capability {kinds}", of["device"] and f"on {of['device']}")))


def _attempts(attempts: list[Mapping[str, Any]]) -> list[str]:
    lines = []
    for attempt in attempts:
        title = f"tried {attempt['workaround']}" + (f" ({attempt['what']})" if attempt["what"] else "")
        if "skipped" in attempt:
            lines.append(f"{title}: skipped, {attempt['skipped']}")
        elif attempt["passed"] is None:
            lines.append(f"{title}: built, {attempt['build_seconds']:.0f} s")
        elif attempt["passed"]:
            lines.append(f"{title}: reproduces the reference, {attempt['build_seconds']:.0f} s")
        else:
            lines.append(f"{title}: {'; '.join(attempt['failures'])}")
    return lines


def _int8(found: Mapping[str, Any] | None) -> list[str]:
    """Where INT8 stayed, and what was measured."""
    if found is None:
        return []
    lines = [
        f"INT8 kept in {', '.join(found['kept']) or 'nothing'}; dropped in {', '.join(found['dropped']) or 'nothing'}"
    ]
    for region in found["regions"]:
        speedup = f" ({region['speedup']:.3f} times)" if "speedup" in region else ""
        lines.append(f"  {region['layers']} {region['name']}: {region.get('why', 'no layer')}{speedup}")
    lines += [f"  measured: {row['speedup']:.3f} times as fast, {row['what']}" for row in found["races"]]
    return [*lines, f"  {found['builds']} of at most {found['max_builds']} builds, batch {found['batch']}"]


def _diagnosis(of: Mapping[str, Any]) -> list[str]:
    found = of.get("diverges")
    lines = [f"first block that diverges: {found['block']} (at {found['tensor']})"] if found else []
    return lines + ([str(of["diagnosis"])] if of.get("diagnosis") else [])


def _dla(placed: Mapping[str, Mapping[str, int]]) -> list[str]:
    on, off = placed.get("on_dla", {}), placed.get("off_dla", {})
    if not on and not off:
        return []
    total = sum(on.values()) + sum(off.values())
    left = ", ".join(f"{count} {kind}" for kind, count in off.items())
    return [f"DLA: {sum(on.values())} of {total} layers; on the GPU: {left or 'nothing'}"]


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)

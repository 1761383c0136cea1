"""What each part costs, as a table for people, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vitdeploy.costs.reasons import Reason
from vitdeploy.costs.trials import Part
from vitdeploy.errors import UsageError
from vitdeploy.quantize.latency import Saving
from vitdeploy.statistics import Paired, json_number
from vitdeploy.table import render

SCHEMA_VERSION = 1
SORTS = ("snr", "points", "ms", "order")


@dataclass(frozen=True)
class Cost:
    """What one part costs when it is alone in the precision.

    Attributes:
        part: The layer or the block: its name, kind, nodes and multiply-accumulates.
        outputs: Signal-to-noise ratio of each floating-point output against FP32 in dB, by its name; empty where all of
            the part stays in FP32.
        own_db: The same of what the part itself makes, as far as its statistics tell.
        share: Of the noise of all parts at the output that is worst with all together, 0 to 1; None where unknown.
        drop: Top-1 that it loses, paired; None without labels.
        saving: Milliseconds that it saves; None where they were not measured.
        reasons: Why it is costly, the best reason first.
    """

    part: Part
    outputs: Mapping[str, float]
    own_db: float
    share: float | None = None
    drop: Paired | None = None
    saving: Saving | None = None
    reasons: Sequence[Reason] = ()

    @property
    def snr_db(self) -> float | None:
        """Of the worst output; None where nothing of the part changes its precision."""
        return min(self.outputs.values(), default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.part.name,
            "kind": self.part.kind,
            "nodes": list(self.part.nodes),
            "macs": self.part.macs,
            "snr_db": json_number(self.snr_db, 2),
            "outputs": {name: json_number(ratio, 2) for name, ratio in self.outputs.items()},
            "own_db": json_number(self.own_db, 2),
            "share": json_number(self.share, 4),
            **points(self.drop),
            **_milliseconds(self.saving),
            "reason": self.reasons[0].kind if self.reasons else None,
            "reasons": [reason.to_dict() for reason in self.reasons],
        }


@dataclass(frozen=True)
class SensitivityReport:
    """What `sensitivity` measured; `str()` is a table, the costliest part first.

    Attributes:
        source: Name of the network.
        precision: `int8` or `fp16`.
        target: In whose form the graph is.
        by: `layer` or `block`.
        parts: One for each, in the order that was asked for.
        together: Signal-to-noise ratio of each output with all parts in the precision, in dB.
        drop: Top-1 lost with all of them; None without labels.
        fp32_top1: Percent; None without labels.
        images: How many images calibrated, measured the noise and, with labels, judged top-1.
        runtime: What milliseconds were measured on; None where they were not.
        left: Products that stay in float, by name, with the reason.
        notes: What the figures do not tell, in words.
        total: How many parts there are.
        interrupted: Whether it was interrupted before all of them were measured.
    """

    source: str
    precision: str
    target: str
    by: str
    parts: Sequence[Cost]
    together: Mapping[str, float]
    drop: Paired | None
    fp32_top1: float | None
    images: Mapping[str, int]
    runtime: str | None
    left: Mapping[str, str]
    notes: Sequence[str] = field(default_factory=tuple)
    total: int = 0
    interrupted: bool = False

    @property
    def snr_db(self) -> float:
        """Of the worst output with all parts in the precision, dB."""
        return min(self.together.values(), default=math.inf)

    @property
    def sum_db(self) -> float | None:
        """What all parts together would keep there if their powers of noise added up, dB; None while some are missing.

        It is near `snr_db` where the roundings of different parts are independent.
        """
        if len(self.parts) < self.total or not self.together:
            return None
        worst = worst_output(self.together)
        return decibels_of(sum(power(cost.outputs.get(worst, math.inf)) for cost in self.parts))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not finite is null."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "precision": self.precision,
            "target": self.target,
            "by": self.by,
            "runtime": self.runtime,
            "images": dict(self.images),
            "fp32_top1": json_number(self.fp32_top1, 4),
            "together": {
                "snr_db": json_number(self.snr_db, 2),
                "sum_db": json_number(self.sum_db, 2),
                "outputs": {name: json_number(ratio, 2) for name, ratio in self.together.items()},
                **points(self.drop),
            },
            "total": self.total,
            "parts": [cost.to_dict() for cost in self.parts],
            "left": dict(self.left),
            "notes": list(self.notes),
            "interrupted": self.interrupted,
        }

    def to_csv(self) -> str:
        """A line for each part under a line of names; units are in the names."""
        text = io.StringIO()
        rows = [_csv_line(cost) for cost in self.parts]
        writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def table(self, top: int | None = None) -> str:
        """The report in words with the first `top` parts; None for all."""
        shown = list(self.parts)[:top]
        with_points, with_ms = self.fp32_top1 is not None, self.runtime is not None
        header = [self.by, "kind", "SNR dB", "noise", *["points (95 %)"] * with_points, *["ms (95 %)"] * with_ms, "why"]
        if self.by == "block":
            header.remove("kind")
        rows = []
        for cost in shown:
            cells = [cost.part.name] + [cost.part.kind] * (self.by != "block")
            cells += [_db(cost.snr_db), "-" if cost.share is None else f"{100 * cost.share:.1f} %"]
            cells += [_in_points(cost.drop)] * with_points + [_in_ms(cost.saving)] * with_ms
            rows.append([*cells, _why(cost)])
        align = "".join("<" if name in (self.by, "kind", "why") else ">" for name in header)
        lines = [render(rows, header=header, align=align, rule=False)]
        hidden = len(self.parts) - len(shown)
        if hidden:
            lines.append(f"… and {hidden} more {self.by}s, which --json and --csv have")
        return "\n".join([*lines, "", *self._summary()])

    def __str__(self) -> str:
        return self.table()

    def _summary(self) -> list[str]:
        precision = self.precision.upper()
        sum_db = "" if self.sum_db is None else f"; the noise of each alone adds up to {_db(self.sum_db)} dB"
        lines = [
            f"{self.source}, target {self.target}: each {self.by} alone in {precision}, the others in FP32",
            f"all together keep {_db(self.snr_db)} dB{sum_db}",
        ]
        if self.fp32_top1 is not None and self.drop is not None:
            what = f"FP32 has {self.fp32_top1:.2f} % top-1 on {self.images['judge']:,} images"
            lines.append(f"{what}, all together lose {_in_points(self.drop)} points")
        if self.images["calibrate"]:
            lines.append(f"calibrated on {self.images['calibrate']} images, noise measured on {self.images['noise']}")
        else:
            lines.append(f"noise measured on {self.images['noise']} images")
        if self.runtime is not None:
            lines.append(f"ms: saved of a call on {self.runtime} on this machine, 95 % interval; below 0 it is slower")
        if self.left:
            lines += [
                f"{number} product{'s' if number > 1 else ''} left in float: {why}"
                for why, number in Counter(self.left.values()).items()
            ]
        lines += list(self.notes)
        if self.interrupted:
            lines.append(f"INTERRUPTED: {len(self.parts)} of {self.total} {self.by}s were measured{self._timed()}")
        return lines

    def _timed(self) -> str:
        timed = sum(cost.saving is not None for cost in self.parts)
        return "" if self.runtime is None else f", milliseconds of {timed}"


def ranked(costs: Sequence[Cost], sort: str) -> list[Cost]:
    """The costliest first, or for `ms` what saves most; `order` is that of the graph.

    Raises UsageError for another word.
    """
    if sort == "order":
        return list(costs)
    return sorted(costs, key=_KEYS[sort])


def check_sort(sort: str) -> None:
    """Raise UsageError for a word that `ranked` does not know."""
    if sort not in SORTS:
        raise UsageError(f"parts cannot be sorted by {sort!r}", fix=f"--sort {' or '.join(SORTS)}")


def shared(costs: Sequence[Cost], together: Mapping[str, float]) -> list[Cost]:
    """The costs with their shares of the noise at the output that is worst with all of them together."""
    worst = worst_output(together)
    powers = [power(cost.outputs.get(worst, math.inf)) for cost in costs]
    total = sum(powers)
    shares = [one / total if 0 < total < math.inf else None for one in powers]
    return [replace(cost, share=share) for cost, share in zip(costs, shares, strict=True)]


def worst_output(ratios: Mapping[str, float]) -> str:
    """The name of the output with the least dB; empty without outputs."""
    return min(ratios, key=lambda name: ratios[name], default="")


def power(ratio_db: float) -> float:
    """Noise over signal of a ratio in dB."""
    return math.inf if ratio_db == -math.inf else 10 ** (-ratio_db / 10)


def decibels_of(noise: float) -> float:
    """The ratio in dB of noise over signal."""
    return math.inf if noise == 0 else -math.inf if noise == math.inf else -10 * math.log10(noise)


def points(drop: Paired | None) -> dict[str, Any]:
    """A drop as JSON values, null without one."""
    low, high = (None, None) if drop is None else drop.interval()
    return {
        "drop": None if drop is None else drop.drop,
        "drop_low": low,
        "drop_high": high,
        "drop_images": None if drop is None else drop.total,
    }


def _milliseconds(saving: Saving | None) -> dict[str, Any]:
    ms, low, high = saving or (None, None, None)
    return {"ms": json_number(ms, 5), "ms_low": json_number(low, 5), "ms_high": json_number(high, 5)}


_CSV_COLUMNS = (
    "name",
    "kind",
    "nodes",
    "macs",
    "snr_db",
    "own_db",
    "share",
    "drop_points",
    "drop_low_points",
    "drop_high_points",
    "saved_ms",
    "saved_low_ms",
    "saved_high_ms",
    "reason",
    "why",
)


def _csv_line(cost: Cost) -> dict[str, Any]:
    found = cost.to_dict()
    values = [found[key] for key in ("name", "kind")] + [" ".join(cost.part.nodes)]
    values += [found[key] for key in ("macs", "snr_db", "own_db", "share", "drop", "drop_low", "drop_high")]
    values += [found[key] for key in ("ms", "ms_low", "ms_high", "reason")]
    values.append("; ".join(reason.text for reason in cost.reasons))
    return dict(zip(_CSV_COLUMNS, values, strict=True))


_KEYS: Mapping[str, Callable[[Cost], float]] = {
    "snr": lambda cost: math.inf if cost.snr_db is None else cost.snr_db,
    "points": lambda cost: math.inf if cost.drop is None else -cost.drop.drop,
    "ms": lambda cost: math.inf if cost.saving is None else -cost.saving.ms,
}


def _why(cost: Cost) -> str:
    if not cost.reasons:
        return ""
    first = cost.reasons[0]
    return f"{first.kind}: {first.text}" if first.kind != "none" else first.text


def _db(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}"


def _in_points(drop: Paired | None) -> str:
    if drop is None:
        return "-"
    low, high = drop.interval()
    return f"{drop.drop:.2f} ({low:.2f} to {high:.2f})"


def _in_ms(saving: Saving | None) -> str:
    if saving is None:
        return "-"
    interval = "" if saving.low is None or saving.high is None else f" ({saving.low:.2f} to {saving.high:.2f})"
    return f"{saving.ms:.2f}{interval}"

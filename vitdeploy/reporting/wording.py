"""Figures in words."""

from __future__ import annotations

import math
from collections.abc import Callable

from vitdeploy.latency.report import digits
from vitdeploy.reporting.findings import Interval, Loss, Speed


def plain(value: float | None, places: int = 2) -> str | None:
    """With so many decimals and no sign before zero; None for what is not known."""
    return None if value is None else f"{round(value, places) + 0.0:.{places}f}"


def small(value: float | None) -> str | None:
    """With two decimals, or with the digits that a small value needs."""
    if value is None:
        return None
    return plain(value) if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def milliseconds(value: float | None) -> str | None:
    """With at least three digits."""
    return None if value is None or not math.isfinite(value) else digits(value)


def megabytes(size: float | None) -> str | None:
    """Of so many bytes."""
    return None if size is None else f"{size / 1e6:.1f}"


def with_interval(value: Interval, write: Callable[[float | None], str | None] = small) -> str | None:
    """`0.10 (-0.05 to 0.25)`; `write` makes a text of each number."""
    if value.value is None:
        return None
    return f"{write(value.value)}{_ends(value, ' ({} to {})', write)}"


def speedup(ratio: Interval) -> Interval:
    """How many times faster, of a time over another."""
    if ratio.value is None:
        return Interval(None)
    return Interval(1 / ratio.value, *(None if end is None else 1 / end for end in (ratio.high, ratio.low)))


def speed_in_words(speed: Speed) -> str:
    """`1.72x faster than FP32 (95 %: 1.70 to 1.75)`, or the time alone where there is no FP32 to compare with."""
    ratio = speed.ratio
    if ratio is None or ratio.value is None:
        return f"{milliseconds(speed.latency.get('p50'))} ms a call (median)"
    if ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high:
        return f"no difference in speed from FP32 shown ({plain(speedup(ratio).value)}x{_ends(speedup(ratio))})"
    faster = ratio.value <= 1
    shown = speedup(ratio) if faster else ratio
    sure = _ends(shown, " (95 %: {} to {})") or " (too few rounds for an interval)"
    return f"{plain(shown.value)}x {'faster' if faster else 'slower'} than FP32{sure}"


def loss_in_words(loss: Loss, unit: str) -> str:
    """`drop 0.10 points (95 %: -0.05 to 0.25): no loss shown`."""
    drop = loss.drop
    if drop.value is None:
        return "drop unknown: its outputs are not finite"
    told = f"drop {small(drop.value)} {unit}{_ends(drop, ' (95 %: {} to {})')}"
    if drop.low is None or drop.high is None:
        return told
    return told + (
        ": accuracy is lost" if drop.low > 0 else ": accuracy is won" if drop.high < 0 else ": no loss shown"
    )


def _ends(value: Interval, form: str = ", 95 %: {} to {}", write: Callable[[float | None], str | None] = small) -> str:
    known = value.low is not None and value.high is not None
    return form.format(write(value.low), write(value.high)) if known else ""

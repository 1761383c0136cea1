"""A benchmark as an image: SVG, which browsers, GitHub and word processors show."""

from __future__ import annotations

import math
from html import escape

from vitdeploy.latency.report import BenchmarkReport, digits

ROW, LEFT, WIDTH, RIGHT, TOP = 34, 16, 640, 200, 54
BAR, TAIL, INK, RULE = "#4477aa", "#bb5566", "#222222", "#cccccc"


def to_svg(report: BenchmarkReport) -> str:
    """For every candidate a bar of its median latency and a line on to p90, p95 and p99, on an axis from zero."""
    latencies = [one.latency_ms() for one in report.measurements]
    step = _step(max(one["p99"] for one in latencies) / 5)
    ticks = math.ceil(max(one["p99"] for one in latencies) / step)
    scale = WIDTH / (step * ticks)
    bottom = TOP + 2 * ROW * len(latencies)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{bottom + 40}" '
        f'font-family="sans-serif" font-size="13" fill="{INK}">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(LEFT, 24, "Milliseconds a call: bar to the median, line to p99 with marks at p90 and p95"),
    ]
    for number in range(ticks + 1):
        x = LEFT + number * step * scale
        parts.append(f'<path d="M{x:.1f} {TOP - 12}V{bottom}" stroke="{RULE}"/>')
        parts.append(_text(x, bottom + 18, f"{number * step:g}", anchor="middle"))
    for row, (label, latency, one) in enumerate(zip(report.labels(), latencies, report.measurements, strict=True)):
        y = TOP + 2 * ROW * row
        p50, p90, p95, p99 = (LEFT + latency[name] * scale for name in ("p50", "p90", "p95", "p99"))
        parts += [
            _text(LEFT, y + 10, label),
            f'<rect x="{LEFT}" y="{y + 18}" width="{p50 - LEFT:.1f}" height="20" fill="{BAR}"/>',
            f'<path d="M{p50:.1f} {y + 28}H{p99:.1f}" stroke="{TAIL}" stroke-width="3"/>',
            *(f'<path d="M{x:.1f} {y + 20}v16" stroke="{TAIL}" stroke-width="2"/>' for x in (p90, p95, p99)),
            _text(p99 + 8, y + 33, f"{digits(latency['p50'])} ms, {digits(one.images_per_second)} images/s"),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'

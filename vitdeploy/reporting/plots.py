"""The pictures of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.reporting.findings import ClassLoss, Confusion, Interval, Speed
from vitdeploy.reporting.markup import Markup
from vitdeploy.reporting.svg import GRID, GROUND, INK, SERIES, WIDTH, drawing, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Runs differ in shape and in colour.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
ROW, FRAME = 24.0, 64.0  # units of a line, and of what is above and below the lines
LONGEST = 30
WIDEST = 20.0  # from the shortest to the longest time on an even scale


def look(place: int) -> tuple[str, str]:
    """Colour and shape of the run at a place; no two of the first 64 have both the same."""
    turn, colour = divmod(place, len(SERIES))
    return SERIES[colour], MARKERS[(colour + turn) % len(MARKERS)]


class Point(NamedTuple):
    """A run in the picture of figures against time."""

    name: str
    x: Interval
    y: Interval
    front: bool


class Bar(NamedTuple):
    """A line of a picture of intervals; `series` is its colour and shape."""

    name: str
    value: Interval
    series: int = 0


def short(name: str) -> str:
    """A name that fits into a picture."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"


def front(
    ident: str,
    title: str,
    points: Sequence[Point],
    *,
    x: str,
    y: str,
    level: Interval | None = None,
    level_name: str = "",
) -> Markup:
    """Points with their intervals, and a line through those that no other dominates.

    `level` is a line across the picture, which is called `level_name`.
    """
    shown = [point for point in points if point.x.value is not None and point.y.value is not None]
    with drawing(270 + 16 * (len(shown) + (level is not None))) as figure:
        axes = figure.add_subplot()
        if level is not None and level.value is not None:
            axes.axhline(level.value, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=level_name)
        best = sorted((_at(point.x), _at(point.y)) for point in shown if point.front)
        if len(best) > 1:
            axes.plot(*zip(*best, strict=True), color=GRID, linewidth=5, solid_capstyle="round", zorder=1)
        for place, point in enumerate(shown):
            colour, marker = look(place)
            axes.errorbar(
                [_at(point.x)],
                [_at(point.y)],
                xerr=_arms(point.x),
                yerr=_arms(point.y),
                color=colour,
                marker=marker,
                markersize=8,
                linestyle="none",
                capsize=3,
                label=short(point.name),
                markerfacecolor=colour if point.front else GROUND,
                zorder=3,
            )
        axes.set(xlabel=x, ylabel=y)
        axes.margins(0.12)
        _legend(figure)
        best_names = ", ".join(point.name for point in shown if point.front)
        return inline(figure, ident, title, f"{len(shown)} points; not dominated: {best_names}.")


def _legend(figure: Figure) -> None:
    """Below the picture: marks without the bars of their intervals."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    marks = [one[0] if isinstance(one, tuple) else one for one in handles]
    figure.legend(marks, labels, loc="outside lower left", fontsize=10, handlelength=1.6)


def _at(value: Interval) -> float:
    return math.nan if value.value is None else value.value


def _arms(value: Interval) -> list[list[float]] | None:
    """The lengths of the two sides of an interval; None where there is none, or where it is all on one side."""
    if value.value is None or value.low is None or value.high is None:
        return None
    return [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]


def intervals(ident: str, title: str, bars: Sequence[Bar], *, x: str, filled: bool = False) -> Markup:
    """A line for each value, with its interval, against zero; `filled` draws a bar from zero."""
    shown = [bar for bar in bars if bar.value.value is not None]
    with drawing(FRAME + ROW * max(2, len(shown))) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1)
        for place, bar in enumerate(shown):
            colour, marker = look(bar.series)
            if filled:
                axes.barh([place], [_at(bar.value)], height=0.62, color=colour, alpha=0.75)
            axes.errorbar(
                [_at(bar.value)],
                [place],
                xerr=_arms(bar.value),
                color=INK if filled else colour,
                capsize=3,
                marker="none" if filled else marker,
                markersize=7,
                linestyle="none",
            )
        _lines(axes, [short(bar.name) for bar in shown])
        axes.set_xlabel(x)
        told = "; ".join(f"{bar.name}: {bar.value.value:.3g}" for bar in shown[:12])
        return inline(figure, ident, title, f"{told}.")


def _lines(axes: Axes, names: Sequence[str]) -> None:
    """One name a line, the first on top."""
    axes.set_yticks(range(len(names)), labels=list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def classes(
    ident: str, title: str, runs: Sequence[tuple[str, Sequence[ClassLoss]]], series: Sequence[int], *, unit: str
) -> Markup:
    """The drop of each class in each run; `series` are the colours and shapes of the runs."""
    names = list(dict.fromkeys(one.name for _, losses in runs for one in losses))
    with drawing(FRAME + 18 * len(runs) + ROW * max(2, len(names))) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1)
        for place, (name, losses) in enumerate(runs):
            colour, marker = look(series[place])
            spread = 0.5 * (place - (len(runs) - 1) / 2) / max(len(runs), 2)
            found = [(one.drop, names.index(one.name) + spread) for one in losses if one.drop is not None]
            axes.plot(
                *([list(side) for side in zip(*found, strict=True)] if found else [[], []]),
                color=colour,
                marker=marker,
                markersize=6,
                linestyle="none",
                label=short(name),
            )
        _lines(axes, [short(name) for name in names])
        axes.grid(visible=True, axis="y")
        axes.set_xlabel(f"lost, {unit}")
        _legend(figure)
        return inline(figure, ident, title, f"{len(names)} classes of {len(runs)} runs; see the table for all figures.")


def confusion(ident: str, title: str, matrix: Confusion) -> Markup:
    """Right classes by line, chosen classes by column; the darker, the larger the share of the line."""
    from matplotlib.patches import Rectangle

    size = len(matrix.classes)
    with drawing(WIDTH) as figure:
        axes = figure.add_subplot()
        for row, counts in enumerate(matrix.counts):
            total = max(1, sum(counts))
            for column, count in enumerate(counts):
                change = matrix.change[row][column]
                if not count and not change:
                    continue
                colour = SERIES[0] if row == column else SERIES[1]
                axes.add_patch(
                    Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=0.5 * count / total, linewidth=0)
                )
                text = f"{count}\n{change:+d}" if change else f"{count}"
                axes.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    fontsize=min(10, 100 / size),
                    color=INK,
                    linespacing=1.05,
                )
        labels = [short(name)[:22] for name in matrix.classes]
        axes.set_xticks(range(size), labels=labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), labels=labels)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="chosen class", ylabel="right class")
        wrong = sum(sum(counts) for counts in matrix.counts) - sum(matrix.counts[i][i] for i in range(size))
        return inline(figure, ident, title, f"{size} classes; {wrong} images beside the diagonal.")


def latencies(ident: str, title: str, speeds: Sequence[Speed]) -> Markup:
    """The time of a call: each round's median as a dot; from p50 to p90 a box, p99 a tick; the whole range a line."""
    with drawing(FRAME + 12 + 40 * len(speeds)) as figure:
        axes = figure.add_subplot()
        highest = 0.0
        for place, one in enumerate(speeds):
            colour, known = SERIES[place % len(SERIES)], one.latency
            line = place + 0.16
            if {"p50", "p90"} <= known.keys():
                axes.barh([line], [known["p90"] - known["p50"]], left=[known["p50"]], height=0.24, color=colour)
            ends = [known[name] for name in ("min", "p99") if name in known]
            axes.plot(ends, [line] * len(ends), color=colour, linewidth=1.5)
            axes.plot(ends[1:], [line] * len(ends[1:]), color=colour, marker="|", markersize=10, markeredgewidth=1.5)
            axes.plot(
                _thinned(one.rounds),
                [place - 0.16] * len(_thinned(one.rounds)),
                color=colour,
                marker="o",
                markersize=4,
                alpha=0.35,
                markeredgewidth=0,
                linestyle="none",
            )
            highest = max([highest, *ends, *one.rounds])
        _lines(axes, [_two_lines(one) for one in speeds])
        lowest = min(value for one in speeds for value in one.rounds)
        if highest > WIDEST * lowest:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda *_: "")
        else:
            axes.set_xlim(0, 1.05 * highest)
        axes.set_xlabel("milliseconds of a call")
        told = "; ".join(f"{one.name}: {one.latency.get('p50', math.nan):.3g} ms" for one in speeds)
        return inline(figure, ident, title, f"Medians: {told}.")


def _thinned(values: Sequence[float], most: int = 120) -> Sequence[Any]:
    """At most so many of the values, evenly from the smallest to the largest."""
    ordered = sorted(values)
    return ordered if len(ordered) <= most else [ordered[i * (len(ordered) - 1) // (most - 1)] for i in range(most)]


def _two_lines(one: Speed) -> str:
    second = one.key.runtime if one.batch == 1 else f"{one.key.runtime}, batch {one.batch}"
    return f"{short(one.key.bundle)}\n{second}"

"""The parts of a page about layers and plans: what each costs alone, and what a search tried."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.reporting import plots
from vitdeploy.reporting.findings import Cost, Findings, Interval
from vitdeploy.reporting.markup import Markup, Section, bullets, element, figure, join, missing, table
from vitdeploy.reporting.wording import milliseconds, plain, with_interval

MOST_COSTS = 20  # bars of a picture
MOST_PLANS = 16  # points of one


def sensitivity(found: Findings) -> Section:
    """What each block and each layer costs alone."""
    title, what = "What each layer costs", found.sensitivity
    if what is None:
        commands = (
            "vitdeploy sensitivity SOURCE --data DATA --json > sensitivity.json",
            f"vitdeploy report {found.words} --sensitivity sensitivity.json -o report.html",
        )
        told = "What each block and each layer costs alone in the low precision was not given."
        return Section("sensitivity", title, missing(told, *commands), present=False)
    parts = "blocks" if what.by_block else "layers"
    pictures = []
    if not what.by_block:
        pictures.append(_blocks(what.costs))
    if any(one.share for one in what.costs):
        pictures.append(_noise("noise", f"Noise of {parts} alone", what.costs))
    if any(one.drop.value is not None for one in what.costs):
        pictures.append(_points(parts, what.costs))
    if not any(pictures):
        pictures = [_table(parts, what.costs)]
    return Section("sensitivity", title, join([bullets(what.told), element("div", *pictures, class_="pictures")]))


def _blocks(costs: Sequence[Cost]) -> Markup:
    """The noise of each block: what its layers make alone adds up, since their roundings are all but independent."""
    shares: dict[str, float] = {}
    for one in costs:
        shares[one.block] = shares.get(one.block, 0.0) + (one.share or 0.0)
    ranked = sorted(((share, name) for name, share in shares.items() if share > 0), reverse=True)
    if not ranked:
        return Markup()
    bars = [plots.Bar(name, Interval(100 * share)) for share, name in ranked[:MOST_COSTS]]
    title = "Noise of blocks, the sum of that of their layers"
    drawn = plots.intervals("plot-blocks", title, bars, x="share of the noise of all, %", filled=True)
    shown = table(title, ["block", "share of the noise, %"], [[name, plain(100 * share)] for share, name in ranked])
    return figure(drawn, f"{title}.{_part(len(ranked))}", shown)


def _noise(ident: str, title: str, costs: Sequence[Cost]) -> Markup:
    ranked = sorted(costs, key=lambda one: -(one.share or 0.0))
    bars = [plots.Bar(one.name, Interval(100 * (one.share or 0.0))) for one in ranked[:MOST_COSTS]]
    drawn = plots.intervals(f"plot-{ident}", title, bars, x="share of the noise of all, %", filled=True)
    return figure(drawn, f"{title}.{_part(len(ranked))}", _table(title, ranked))


def _points(parts: str, costs: Sequence[Cost]) -> Markup:
    known = [one for one in costs if one.drop.value is not None]
    ranked = sorted(known, key=lambda one: -(one.drop.value or 0.0))
    bars = [plots.Bar(one.name, one.drop) for one in ranked[:MOST_COSTS]]
    title = f"Points lost by {parts} alone"
    drawn = plots.intervals("plot-points", title, bars, x="points of top-1 lost (95 % interval)", filled=True)
    shown = table(title, ["name", "lost, points (95 %)"], [[one.name, with_interval(one.drop)] for one in ranked])
    return figure(drawn, f"{title}.{_part(len(ranked))}", shown)


def _part(count: int) -> str:
    return f" The {MOST_COSTS} of {count} that cost most." if count > MOST_COSTS else ""


def _table(title: str, costs: Sequence[Cost]) -> Markup:
    header = ["name", "why", "SNR, dB", "noise, %", "lost, points (95 %)", "saved, ms (95 %)"]
    rows = [
        [
            one.name,
            one.reason,
            plain(one.snr_db, 1),
            plain(None if one.share is None else 100 * one.share),
            with_interval(one.drop),
            with_interval(one.saved),
        ]
        for one in costs
    ]
    return table(title, header, rows, words=2)


def tried(found: Findings) -> Section:
    """The plans that `optimize` tried, and the front of them."""
    title = "What optimize tried"
    if not found.tried:
        commands = (
            "vitdeploy optimize SOURCE --data DATA --runtime R -o DIR --json > optimize.json",
            f"vitdeploy report {found.words} --optimize optimize.json -o report.html",
        )
        return Section("tried", title, missing("The search for a faster plan was not given.", *commands), present=False)
    points = [
        plots.Point(
            f"{one.name} on {one.runtime}" if one.runtime else one.name,
            Interval(one.milliseconds),
            Interval(*(None if end is None else -end for end in (one.drop.value, one.drop.high, one.drop.low))),
            one.front,
        )
        for one in found.tried
    ]
    header = ["plan", "runtime", "precision", "ms", "time / FP32 (95 %)", "lost (95 %)", "SNR, dB", "MB", "by", "front"]
    rows = [
        [
            one.name,
            one.runtime,
            one.precision,
            milliseconds(one.milliseconds),
            with_interval(one.ratio),
            with_interval(one.drop),
            plain(one.snr_db, 1),
            plain(one.megabytes, 1),
            one.by,
            "yes" if one.front else "no",
        ]
        for one in found.tried
    ]
    shown = table("Plans", header, rows, words=3)
    if not any(point.x.value is not None and point.y.value is not None for point in points):
        return Section("tried", title, join([shown]))
    drawn = plots.front(
        "plot-tried",
        title,
        points[:MOST_PLANS],
        x="milliseconds",
        y="points against FP32",
        level=Interval(0.0),
        level_name="FP32",
    )
    part = "" if len(points) <= MOST_PLANS else f" The first {MOST_PLANS} of {len(points)} plans."
    caption = f"Up and to the left is better. A filled mark is on the front.{part}"
    return Section("tried", title, join([figure(drawn, caption, shown)]))

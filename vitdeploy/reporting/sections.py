"""The parts of a page about what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.reporting import plots
from vitdeploy.reporting.documents import median_of
from vitdeploy.reporting.findings import KINDS, Accuracy, Findings, Flip, Interval, Key, Loss
from vitdeploy.reporting.markup import (
    Markup,
    Section,
    beside,
    bullets,
    element,
    figure,
    join,
    missing,
    paragraph,
    table,
)
from vitdeploy.reporting.pictures import MOST_PICTURES
from vitdeploy.reporting.wording import (
    loss_in_words,
    megabytes,
    milliseconds,
    plain,
    speed_in_words,
    with_interval,
)

MOST_MATRICES = 6
MOST_CLASSES = 24  # in the picture of the drop of each class; the table has all


def verdicts(found: Findings) -> list[tuple[Key, str]]:
    """Of each run one sentence."""
    said = []
    for key in found.keys:
        speed, loss = found.speed(key), found.loss(key)
        parts = [] if speed is None else [speed_in_words(speed)]
        if found.accuracy is not None and key == found.accuracy.baseline_key:
            parts.append("the baseline of the accuracy")
        elif found.accuracy is not None and loss is not None:
            parts.append(loss_in_words(loss, found.accuracy.unit))
        said.append((key, ", ".join(parts)))
    return said


def title_of(found: Findings, key: Key) -> str:
    """`lemevit-int8: INT8 for onnxruntime`."""
    return f"{key.bundle}: {found.precision(key)} for {key.runtime}"


def head(found: Findings) -> Markup:
    """A sentence for each run, and what is wrong."""
    lines = [
        element("li", element("strong", title_of(found, key)), f"{told}.", class_=_state(found.loss(key)))
        for key, told in verdicts(found)
    ]
    problems = [] if found.accuracy is None else found.accuracy.problems
    warned = [paragraph(problem, class_="problem") for problem in problems]
    if not lines:
        nothing = "Nothing was measured: this page tells what the bundles say of themselves."
        return join([*warned, missing(nothing, _with_data(found))])
    return join([*warned, element("ul", *lines, class_="verdicts")])


def _state(loss: Loss | None) -> str | None:
    """`lost` where accuracy is lost beyond doubt."""
    if loss is None:
        return None
    return "lost" if loss.drop.value is None or (loss.drop.low is not None and loss.drop.low > 0) else None


def _with_data(found: Findings) -> str:
    return f"vitdeploy report {found.words} --data DATA -o report.html"


def summary(found: Findings) -> Section | None:
    """One line for each run."""
    accuracy = found.accuracy
    lost = ["lost"] if accuracy is None else [accuracy.figure, f"lost, {accuracy.unit} (95 %)", "SNR, dB"]
    header = ["bundle", "runtime", "precision", "median, ms", "time / FP32 (95 %)", *(lost if accuracy else []), "MB"]
    rows = []
    for key in found.keys:
        speed, loss = found.speed(key), found.loss(key)
        cells: list[object] = [
            key.bundle,
            key.runtime,
            found.precision(key),
            milliseconds(speed.latency.get("p50")) if speed else None,
            with_interval(speed.ratio) if speed and speed.ratio else None,
        ]
        if accuracy is not None:
            cells += [
                plain(loss.figure) if loss else None,
                with_interval(loss.drop) if loss else None,
                plain(loss.snr_db, 1) if loss else None,
            ]
        rows.append([*cells, megabytes(found.sizes.get(key.bundle))])
    if not rows:
        return None
    caption = "Every bundle on every runtime. A time below 1 is faster than the FP32 bundle on the same runtime."
    return Section("summary", "Summary", join([table(caption, header, rows, words=3)]))


def front(found: Findings) -> Section:
    """The accuracy of each run against its time."""
    title = "Accuracy against latency"
    accuracy, latency = found.accuracy, found.latency
    if accuracy is None or latency is None:
        lacks = " and the ".join(name for name, one in (("accuracy", accuracy), ("latency", latency)) if one is None)
        return Section(
            "front", title, missing(f"This picture needs the {lacks} of the runs.", _with_data(found)), present=False
        )
    points = []
    for key in found.keys:
        loss = found.loss(key)
        for speed in found.speeds(key) if loss else ():
            points.append((speed.name, median_of(speed.image_ms), _height(loss, accuracy)))
    drawn = [
        plots.Point(name, x, y, front=not any(_dominates(other, (x, y)) for _, *other in points))
        for name, x, y in points
    ]
    if not drawn:
        return Section("front", title, join([paragraph("No run has both an accuracy and a latency.")]))
    absolute = _absolute(accuracy)
    label = accuracy.figure if absolute else f"lost, {accuracy.unit} (less is higher)"
    level = Interval(accuracy.before if absolute else 0.0)
    name = f"baseline: {accuracy.baseline}"
    picture = plots.front(
        "plot-front",
        title,
        drawn,
        x="milliseconds an image (median of the rounds)",
        y=label,
        level=level,
        level_name=plots.short(name),
    )
    rows = [
        [point.name, with_interval(point.x, milliseconds), with_interval(point.y), "yes" if point.front else "no"]
        for point in drawn
    ]
    header = ["run", "ms an image (95 %)", f"{label} (95 %)", "on the front"]
    caption = (
        "Up and to the left is better. A filled mark is on the front: no other run is both faster and more accurate. "
        "Bars are 95 % intervals, those of accuracy of the difference from the baseline."
    )
    return Section("front", title, join([beside(picture, caption, table(title, header, rows))]))


def _absolute(accuracy: Accuracy) -> bool:
    """Whether the figure and its drop have the same unit."""
    return accuracy.before is not None and accuracy.unit.startswith("points")


def _height(loss: Loss | None, accuracy: Accuracy) -> Interval:
    if loss is None or loss.drop.value is None:
        return Interval(None)
    start = accuracy.before if _absolute(accuracy) else 0.0
    value, low, high = loss.drop
    ends = [None if end is None or start is None else start - end for end in (value, high, low)]
    return Interval(*ends)


def _dominates(other: Sequence[Interval], one: Sequence[Interval]) -> bool:
    """Whether the other is at least as fast and as accurate, and one of them more."""
    (x, y), (own_x, own_y) = ([axis.value for axis in point] for point in (other, one))
    if x is None or y is None or own_x is None or own_y is None:
        return False
    return x <= own_x and y >= own_y and (x < own_x or y > own_y)


def accuracy(found: Findings) -> Section:
    """What each run lost, all together and of each class."""
    title, what = "Accuracy lost", found.accuracy
    if what is None:
        return Section("accuracy", title, missing("Accuracy was not measured.", _with_data(found)), present=False)
    told = [
        paragraph(f"On {what.data}, against {what.baseline}."),
        *([bullets(f"left out: {line}" for line in what.skipped)] if what.skipped else []),
    ]
    bars = [plots.Bar(str(run.key), run.drop, found.keys.index(run.key)) for run in what.runs]
    pictures = []
    if any(bar.value.value is not None for bar in bars):
        drawn = plots.intervals("plot-drop", "Drop of each run", bars, x=f"lost, {what.unit} (95 % interval)")
        rows = [
            [str(run.key), plain(run.figure), with_interval(run.drop), plain(run.agreement), plain(run.snr_db, 1)]
            for run in what.runs
        ]
        header = ["run", what.figure, f"lost, {what.unit} (95 %)", "agreement, %", "SNR, dB"]
        caption = "An interval that holds 0 shows no loss; one to the right of it does."
        pictures.append(figure(drawn, caption, table("Drop of each run", header, rows)))
    pictures += _classes(what, found.keys)
    worst: list[Markup] = []
    for run in what.runs:
        if run.changed:
            worst += [element("h3", f"Images that changed most, {run.key}"), bullets(run.changed)]
    return Section("accuracy", title, join([*told, element("div", *pictures, class_="pictures"), *worst]))


def _classes(what: Accuracy, keys: Sequence[Key]) -> list[Markup]:
    runs = [(str(run.key), run.per_class) for run in what.runs if run.per_class]
    if not runs:
        return []
    largest: dict[str, float] = {}
    for _, losses in runs:
        for one in losses:
            largest[one.name] = max(largest.get(one.name, 0.0), abs(one.drop or 0.0))
    order = sorted(largest, key=lambda name: -largest[name])[:MOST_CLASSES]
    rank = {name: place for place, name in enumerate(order)}
    shown = [
        (name, sorted((one for one in losses if one.name in rank), key=lambda one: rank[one.name]))
        for name, losses in runs
    ]
    title = "Drop of each class"
    series = [keys.index(run.key) for run in what.runs if run.per_class]
    drawn = plots.classes("plot-classes", title, shown, series, unit=what.unit)
    header = ["class", what.counted, "before, %", "after, %", "lost"]
    tables = [
        table(
            name,
            header,
            ((one.name, one.size, plain(one.before), plain(one.after), plain(one.drop)) for one in losses),
        )
        for name, losses in runs
    ]
    part = "" if len(order) == len(largest) else f" The {len(order)} of {len(largest)} classes that changed most."
    return [figure(drawn, f"To the right of the line a class is worse than with the baseline.{part}", *tables)]


def confusions(found: Findings) -> Section | None:
    """What is taken for what, before and after."""
    if found.accuracy is None or found.accuracy.task != "classification":
        return None
    title = "What is taken for what"
    figures = []
    held = [run for run in found.accuracy.runs if run.confusion is not None]
    changed = [run for run in held if run.confusion and any(map(any, run.confusion.change))]
    for place, run in enumerate((changed or held[:1])[:MOST_MATRICES]):
        matrix = run.confusion
        if matrix is None:
            continue
        name = str(run.key)
        drawn = plots.confusion(f"plot-confusion-{place}", f"Confusion of {name}", matrix)
        pairs = [
            (right, chosen, matrix.counts[i][j], f"{matrix.change[i][j]:+d}" if matrix.change[i][j] else "0")
            for i, right in enumerate(matrix.classes)
            for j, chosen in enumerate(matrix.classes)
            if i != j and (matrix.counts[i][j] or matrix.change[i][j])
        ]
        header = ["right class", "chosen class", "images", "change"]
        part = "" if len(matrix.classes) == matrix.of else f" {len(matrix.classes)} of {matrix.of} classes, see above."
        caption = f"{name}. Images, and below them the change from the baseline where there is one.{part}"
        figures.append(figure(drawn, caption, table("Wrong answers", header, pairs, words=2)))
    same = [str(run.key) for run in held if run not in changed]
    told = [paragraph(f"As the baseline: {', '.join(same)}.")] if same else []
    if not figures:
        command = _with_data(found)
        return Section(
            "confusion",
            title,
            missing("A file of an earlier run does not hold the confusions.", command),
            present=False,
        )
    return Section("confusion", title, join([*told, element("div", *figures, class_="pictures")]))


def flips(found: Findings) -> Section | None:
    """The images whose best class changed, with both answers."""
    runs = [] if found.accuracy is None else [run for run in found.accuracy.runs if run.flips is not None]
    if found.accuracy is None or not runs:
        return None
    title = "Images whose answer changed"
    rows = [
        [str(run.key), len(run.flips or ()), *(sum(one.kind == kind for one in run.flips or ()) for kind in KINDS)]
        for run in runs
    ]
    counts = table("Changed answers of each run", ["run", "changed", *KINDS], rows)
    shown = found.accuracy.flipped_images(MOST_PICTURES)
    together: dict[Flip, list[str]] = {}
    for run in runs:
        for flip in run.flips or ():
            together.setdefault(flip, []).append(str(run.key))
    cards = [
        _card(flip, names, found.accuracy.pictures.get(flip.image))
        for image in shown
        for flip, names in together.items()
        if flip.image == image
    ]
    every = {flip.image for flip in together}
    part = [] if len(shown) == len(every) else [paragraph(f"{len(shown)} of {len(every)} images, lost ones first.")]
    return Section("flips", title, join([counts, *part, element("ul", *cards, class_="flips")]))


def _card(flip: Flip, runs: Sequence[str], address: str | None) -> Markup:
    alt = f"{flip.image}: {flip.label}, answered {flip.before} before and {flip.after} after"
    picture = [] if address is None else [element("img", src=address, alt=alt, width=128, height=128)]
    name = flip.image.rpartition("/")[2]
    lines = join(part for line in (f"is {flip.label}", name, *runs) for part in (line, element("br")))
    kind = flip.kind if flip.kind in ("lost", "won") else None
    answers = element("span", f"{flip.before} → {flip.after}")
    return element("li", *picture, element("b", flip.kind), answers, element("span", lines, class_="soft"), class_=kind)


def latency(found: Findings) -> Section:
    """The times of the calls."""
    title, what = "Latency", found.latency
    if what is None:
        command = f"vitdeploy report {found.words} --seconds 10 -o report.html"
        return Section("latency", title, missing("Latency was not measured.", command), present=False)
    header = ["run", "p50, ms", "p90", "p95", "p99", "images/s", "peak MB"]
    rows = [
        [
            one.name,
            *(milliseconds(one.latency.get(f"p{p}")) for p in (50, 90, 95, 99)),
            milliseconds(one.images_per_second),
            megabytes(one.peak_bytes),
        ]
        for one in what.candidates
    ]
    caption = (
        f"{what.rounds} rounds, every candidate once a round in random order. Box: from the median call to the 90th "
        "percentile; line: from the shortest call to the 99th. Dots: the median of each round."
    )
    told = bullets([*what.notes, *(f"left out: {line}" for line in what.skipped)])
    notes = [told] if what.notes or what.skipped else []
    drawn = plots.latencies("plot-latency", "Time of a call", what.candidates)
    return Section("latency", title, join([*notes, beside(drawn, caption, table("Time of a call", header, rows))]))

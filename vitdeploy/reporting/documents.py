"""Files that commands printed with `--json`, as what a page shows. Each command has one reader."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.errors import UsageError, shell
from vitdeploy.graph.names import block_of
from vitdeploy.reporting.findings import (
    KINDS,
    Accuracy,
    ClassLoss,
    Cost,
    Flip,
    Interval,
    Key,
    Latency,
    Loss,
    Sensitivity,
    Speed,
    Tried,
)
from vitdeploy.reporting.wording import with_interval
from vitdeploy.statistics import median_interval, paired_ratio

Document = Mapping[str, Any]

# Of each task the key of what it judges, its name, the unit of its drop, and what a class is counted in.
_JUDGED = {
    "classification": ("top1", "top-1, %", "points", "images"),
    "segmentation": ("mean_iou", "mIoU, %", "points of mIoU", "pixels"),
    "features": ("cosine", "cosine similarity", "% of cosine similarity", "images"),
    "metric": ("", "", "of its figure", "images"),
}
# Keys that only the output of one command has.
_MARKS = {
    "validate": ("task", "baseline", "runs", "data"),
    "benchmark": ("candidates", "machine"),
    "optimize": ("points", "searches"),
    "sensitivity": ("parts", "together"),
    "export": ("bundle", "files"),
}
_OPTIONS = {"validate": "validation", "benchmark": "benchmark", "optimize": "optimize", "sensitivity": "sensitivity"}
_CHANGED = 5  # images that are named where there are no flips


class Names:
    """The names that the page calls bundles by: those of their folders, or their paths where two are the same."""

    def __init__(self, paths: Sequence[Path]) -> None:
        folders = [Path(os.path.realpath(path)).name for path in paths]
        clash = len(set(folders)) < len({os.path.realpath(path) for path in paths})
        self._known = {
            os.path.realpath(path): str(path) if clash else name for path, name in zip(paths, folders, strict=True)
        }

    def of(self, path: object) -> str:
        """The name of the bundle at a path; of one that was not given, the name of its folder alone."""
        known = self._known.get(os.path.realpath(str(path)))
        if known is not None:
            return known
        folder = Path(str(path)).name
        return folder or str(path)

    def __contains__(self, name: str) -> bool:
        return name in self._known.values()


def read_json(path: Path, printer: str) -> Any:
    """The values in a file that the command `printer` printed.

    Raises UsageError where it cannot be read, is damaged, or is the output of another command.
    """
    fix = f"give what {printer} prints with --json"
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror, fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON", why=str(error), fix=fix) from None
    found = _command_of(document)
    if found is not None and found != printer:
        option = _OPTIONS.get(found)
        raise UsageError(
            f"{path} is not what {printer} prints with --json",
            why=f"it looks like that of {found}",
            fix=f"--{option} {shell(path)}" if option else fix,
        )
    return document


def _command_of(document: Any) -> str | None:
    keys = document.keys() if isinstance(document, dict) else set()
    return next((command for command, marks in _MARKS.items() if keys >= set(marks)), None)


def misread(path: Path, printer: str, error: Exception) -> UsageError:
    """What to say of a file that lacks something, or has it in another form."""
    return UsageError(
        f"{path} is not what {printer} prints with --json",
        why=f"{type(error).__name__}: {error}",
        fix=f"give what {printer} prints with --json",
    )


def number(value: Any) -> float | None:
    """A finite number; None for anything else, NaN among it."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if usable and math.isfinite(value) else None


def _interval(record: Document, name: str = "drop") -> Interval:
    return Interval(*(number(record.get(key)) for key in (name, f"{name}_low", f"{name}_high")))


def accuracy_of(document: Document, names: Names) -> Accuracy:
    """The values that `validate` prints. Raises KeyError, TypeError, ValueError and AttributeError for others."""
    task, data, baseline = str(document["task"]), document["data"], document["baseline"]
    key, figure, unit, counted = _JUDGED[task]
    runs = [_loss(run, key, names) for run in document["runs"]]
    if task == "metric":
        figure = str(document["runs"][0]["judged"]) if runs else "figure"
    problems = [f"the baseline is broken: {problem}" for problem in baseline["problems"]]
    problems += [str(one) for one in document["failures"] if one not in problems]
    return Accuracy(
        task=task,
        figure=figure,
        unit=unit,
        counted=counted,
        data=f"{int(data['images'])} of {int(data['of'])} images of {Path(str(data['name'])).name}",
        baseline=str(baseline["kind"]),
        before=_judged(baseline, key),
        baseline_key=None if baseline["backend"] == "torch" else Key(names.of(baseline["bundle"]), baseline["backend"]),
        problems=problems,
        runs=runs,
        skipped=_skipped(document["skipped"], names),
    )


def _judged(run: Document, key: str) -> float | None:
    if key:
        return number(run.get(key))
    figures = run["figures"]
    return number(figures.get(run.get("judged", next(iter(figures), None))))


def _loss(run: Document, key: str, names: Names) -> Loss:
    flipped = run.get("flipped")
    flips = [
        Flip(inside(one["image"]), *(str(one[name]) for name in ("label", "baseline", "run"))) for one in flipped or ()
    ]
    flips.sort(key=lambda one: KINDS.index(one.kind))
    changed = run.get("images", {})
    same = 100.0 if key == "mean_iou" else 1.0
    found = ((value, name) for name, one in changed.items() if (value := number(one)) is not None)
    worst = sorted(one for one in found if one[0] < same)[:_CHANGED]
    told = "agreement with the baseline" if key == "mean_iou" else "cosine similarity"
    return Loss(
        key=Key(names.of(run["bundle"]), str(run["backend"])),
        figure=_judged(run, key),
        drop=_interval(run),
        agreement=number(run.get("agreement")),
        snr_db=number(run.get("snr_db")),
        per_class=[_class(one) for one in run.get("per_class", ())],
        flips=None if flipped is None else flips,
        changed=[f"{inside(name)}: {told} {value:.6g}{' %' if key == 'mean_iou' else ''}" for value, name in worst],
    )


def _class(one: Document) -> ClassLoss:
    figure = "top1" if "top1" in one else "iou"
    return ClassLoss(
        str(one["class"]),
        int(one["images" if figure == "top1" else "pixels"]),
        number(one[f"baseline_{figure}"]),
        number(one[figure]),
        number(one["drop"]),
    )


def inside(name: object) -> str:
    """The name of an image in its data, without the machine's folders where it is a whole path."""
    return path.name if (path := Path(str(name))).is_absolute() else str(name)


def _skipped(records: Any, names: Names) -> list[str]:
    return [f"{names.of(one['bundle'])} on {one['runtime']}: {one['reason']}" for one in records]


def latency_of(document: Document, names: Names) -> Latency:
    """The values that `benchmark` prints. Raises KeyError, TypeError, ValueError and AttributeError for others."""
    machine, records = document["machine"], document["candidates"]
    speeds = [_speed(record, names) for record in records]
    notes = [f"changed while measuring: {text}" for text in machine["changed"]]
    load, cores = number(machine["before"].get("load_average")), number(machine["settings"].get("cores"))
    if load is not None and cores is not None and load > cores / 2:
        notes.append(f"the machine was busy (load average {load:g} on {cores:g} cores): trust ratios more than times")
    if document["interrupted"]:
        notes.append("interrupted: only complete rounds count")
    return Latency(
        created=str(document["created"]),
        rounds=int(document["rounds"]),
        candidates=[_against_fp32(one, speeds) for one in speeds],
        machine=dict(machine["settings"]),
        notes=notes,
        skipped=_skipped(document["skipped"], names),
    )


def _speed(record: Document, names: Names) -> Speed:
    settings, batch = dict(record["settings"]), int(record["batch"])
    seconds = [float(one) for one in record["image_seconds"]]
    if not seconds or not all(math.isfinite(one) and one > 0 for one in seconds):
        raise ValueError("image_seconds holds no times")
    together = batch * int(settings.get("callers", 1))
    known = {name: number(one) for name, one in record["latency_ms"].items()}
    return Speed(
        key=Key(names.of(record["bundle"]), str(record["runtime"])),
        batch=batch,
        precision=str(record["precision"]),
        latency={name: one for name, one in known.items() if one is not None},
        rounds=[1000 * one * together for one in seconds],
        image_ms=[1000 * one for one in seconds],
        images_per_second=number(record["images_per_second"]),
        peak_bytes=number(record["peak_memory_bytes"]),
        settings=settings,
    )


def _against_fp32(one: Speed, speeds: Sequence[Speed]) -> Speed:
    def same(other: Speed) -> bool:
        return other.precision == "fp32" and (other.key.runtime, other.batch) == (one.key.runtime, one.batch)

    base = next((other for other in speeds if same(other)), None)
    if base is None or one is base:
        return one
    found = paired_ratio(one.image_ms, base.image_ms)
    return Speed(**{**one.__dict__, "ratio": Interval(found.value, found.low, found.high)})


def median_of(values: Sequence[float]) -> Interval:
    """The median with its interval; the ends are None for fewer than six values."""
    ordered = sorted(values)
    low, high = median_interval(ordered, 0.95)
    return Interval(ordered[len(ordered) // 2], low, high)


def sensitivity_of(document: Document) -> Sensitivity:
    """The values that `sensitivity` prints. Raises KeyError, TypeError, ValueError and AttributeError for others."""
    precision, together = str(document["precision"]).upper(), document["together"]
    rows = list(document["parts"])
    # While parts are missing it prints no shares: then they are of those that were measured.
    noise = [0.0 if (snr := number(row["snr_db"])) is None else 10 ** (-snr / 10) for row in rows]
    shares = [number(row["share"]) or (one / sum(noise) if one else None) for row, one in zip(rows, noise, strict=True)]
    costs = [_cost(row, share) for row, share in zip(rows, shares, strict=True)]
    snr, drop = number(together["snr_db"]), _interval(together)
    told = [] if snr is None else [f"All in {precision} together keep {snr:.1f} dB."]
    if drop.value is not None:
        told.append(f"All in {precision} together lose {with_interval(drop)} points.")
    if document["interrupted"]:
        told.append(f"It was interrupted: {len(rows)} of {int(document['total'])} were measured.")
    return Sensitivity(precision, document["by"] == "block", costs, [*told, *map(str, document["notes"])])


def _cost(row: Document, share: float | None) -> Cost:
    name, reasons = str(row["name"]), row["reasons"]
    reason = "" if not reasons else f"{reasons[0]['kind']}: {reasons[0]['text']}"
    return Cost(
        name,
        name if row["kind"] == "block" else block_of(name),
        number(row["snr_db"]),
        share,
        _interval(row),
        _interval(row, "ms"),
        reason.removeprefix("none: "),
    )


def tried_of(document: Document) -> list[Tried]:
    """The points that `optimize` prints. Raises KeyError, TypeError, ValueError and AttributeError for others."""
    return [
        Tried(
            str(point["name"]),
            str(point.get("runtime") or ""),
            str(point.get("precision") or ""),
            number(point.get("milliseconds")),
            _interval(point, "ratio"),
            _interval(point),
            number(point.get("snr_db")),
            number(point.get("megabytes")),
            point.get("front") is True,
            str(point.get("by") or ""),
        )
        for point in document["points"]
    ]

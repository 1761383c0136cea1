"""Measuring the accuracy that a bundle loses against FP32 on the user's images, with its confidence interval."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.accuracy.check import Check
from vitdeploy.accuracy.cluster import check_engine, compute_on_ray, shards_for
from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.accuracy.rows import RowStore, compute_rows
from vitdeploy.accuracy.sharded import merge_shards
from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.data import DataSource
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.runtime.options import Options
from vitdeploy.tasks.choose import Asked, Targets
from vitdeploy.tasks.metric import Metric, MetricFunction
from vitdeploy.tasks.task import Task

if TYPE_CHECKING:
    from vitdeploy.tensorrt.options import BuildOptions

log = logging.getLogger(__name__)


@checked_arguments
def validate(
    bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
    data: DataSource,
    *,
    runtime: str | Sequence[str] = "auto",
    baseline: Bundle | str | Path | None = None,
    checkpoint: str | Path | None = None,
    task: str | None = None,
    metric: str | MetricFunction | None = None,
    output: str | None = None,
    ignore_index: int | None = None,
    targets: Targets | None = None,
    samples: int | None = None,
    seed: int = 0,
    max_drop: float | None = None,
    logits: str | Path | None = None,
    merge: str | Path | None = None,
    engine: str | None = None,
    workers: int | None = None,
    record: bool = True,
    threads: int | None = None,
    num_requests: int | None = None,
    compute_precision: str | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    build: BuildOptions | Mapping[str, Any] | None = None,
    untrusted: bool | None = None,
) -> AccuracyReport:
    """Compare bundles of one network, on one or several runtimes, with its FP32 on the same samples.

    Args:
        bundle: One or several bundles, or their folders.
        data: Images with what is true of them: classes (see `open_data`; they are found among the bundle's labels by
            name), or masks (see `open_masks`); images alone for features; for a network of several inputs an `.npz`, or
            a mapping, with an array for each input.
        runtime: Names of runtimes, `auto`, or `all` for those that are installed and can run the bundle.
        baseline: An FP32 bundle of the same network. By default PyTorch is the baseline; where it or the weights are
            missing, the first FP32 bundle of `bundle`.
        checkpoint: File with the weights, for PyTorch.
        task: `classification`, `segmentation` or `features`; by default what the bundle's outputs and `data` leave.
        metric: A figure of your own instead of a task's: `function(outputs, targets)`, or `file.py:function`. Both are
            mappings from names to arrays with all samples along the first axis: the network's outputs, and what `data`
            knows, `labels`, `masks` in the network's frame, or the other arrays of the `.npz`. It returns a number,
            numbers by name, or instead of a number an array of one for each sample, whose mean is the figure.
        output: The output that is judged, where several may be.
        ignore_index: The number in masks of pixels that are not judged, 255 by default.
        targets: Where `data` is an iterable, what is true of its items: class numbers, or masks [H, W]; for `metric`
            arrays by name.
        samples: Number of images to take instead of all; every class gets its share.
        seed: Seed of the choice of samples.
        max_drop: The gate: what a run may lose, in points of top-1 or of the mean intersection over union, in percent
            of the cosine similarity of the worst output, or in the unit of the first figure of `metric`.
        logits: Folder that keeps what was computed, so that an interrupted check can be continued; by default a folder
            of the user's cache.
        merge: Folder of all shards that `validate_shard` computed with the same arguments: the report is that of a
            single process, and nothing is computed.
        engine: `ray` to compute on a cluster of Ray, by workers that share `logits`: in shards, of which those that
            are there already are kept, and then merged. None to compute in this process.
        workers: Of an engine; None for as many as the cluster has processors for.
        record: Whether to write the result into the manifest of each bundle.
        threads: Threads of computation, see `vitdeploy.load`.
        num_requests: Calls that are computed at once, see `vitdeploy.load`.
        compute_precision: `fp32`, `bf16` or `fp16`, see `vitdeploy.load`.
        device: What computes, see `vitdeploy.load`.
        cache: Folder of compiled models, see `vitdeploy.load`.
        build: Which engine, see `vitdeploy.load`.
        untrusted: Whether the bundles are a stranger's, see `vitdeploy.load`.

    Returns:
        The report. It fails where a run drops by more than `max_drop` or the baseline is no better than chance.

    Raises:
        InputError: DATA cannot be read, has no labels or masks, or has other classes than the network.
        UsageError: The bundles are of different networks, there is no FP32 baseline, it is not certain which task is
            meant, or `metric` fails.
        BundleError: A bundle is damaged or altered, or contradicts itself.
        BackendError: A runtime refuses the model, or has no engine for it.
        GateError: `auto` finds no runtime that reproduces the reference.
    """
    options = Options(
        threads=threads,
        num_requests=num_requests,
        compute_precision=compute_precision,
        device=device,
        cache=cache,
        build=build,
        untrusted=untrusted,
        checkpoint=checkpoint,
    )
    asked = Asked(task, metric, output, ignore_index, targets=targets)
    check = Check.of(bundle, data, asked, options, runtime=runtime, baseline=baseline, samples=samples, seed=seed)
    _check_gate(max_drop, check.task)
    if engine is not None:
        check_engine(engine, data=data, metric=metric, logits=logits, merge=merge, workers=workers)
        named = {"runtime": runtime, "baseline": baseline, "samples": samples, "seed": seed}
        given = {"bundle": bundle, "data": data, "asked": asked, "options": options, **named}
        compute_on_ray(given, Path(str(logits)), shards_for(len(check.indices)), workers)
        merge, logits = logits, None
    if merge is not None:
        if logits is not None:
            raise UsageError(
                "logits and merge exclude each other", why="a merge computes nothing", fix="leave --logits out"
            )
        ran, skipped, rows, keys = merge_shards(check, Path(merge))
    else:
        with ExitStack() as closing:
            ran, sources, skipped = check.open(closing)
            rows, keys = compute_rows(check.task, check.indices, sources, RowStore(logits))
    report = check.report(check.task.images(check.indices, keys), ran, rows, skipped, max_drop)
    if record:
        _record([(check.bundle_of(one).path, one.facts) for one in ran[1:]], report)
    return report


def _check_gate(max_drop: float | None, task: Task) -> None:
    if max_drop is None:
        return
    if not (math.isfinite(max_drop) and max_drop >= 0) or (max_drop > 100 and not isinstance(task, Metric)):
        limits = "0 or more" if isinstance(task, Metric) else "0 to 100"
        what = {"classification": "points of top-1", "segmentation": "points of mIoU", "features": "percent of cosine"}
        raise UsageError(
            f"invalid max_drop {max_drop}: expected {limits} {what.get(task.name, 'of the figure')}",
            fix="--max-drop 0.1",
        )


def _record(runs: Sequence[tuple[Path, Mapping[str, Any]]], report: AccuracyReport) -> None:
    """Writes the results into the manifests; where that fails, a warning is logged and the manifest is unchanged."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = report.images.to_dict()
    data["name"] = Path(data["name"]).name
    for path in dict.fromkeys(path for path, _ in runs):
        found = [
            {
                "runtime": facts["backend"],
                **{key: facts[key] for key in ("version", "device", "compute_precision")},
                "data": data,
                "task": report.images.task,
                "baseline": {"kind": report.kind, **report.baseline.judged(), "problems": list(report.problems)},
                **comparison.measures(),
                "date": date,
            }
            for (of, facts), comparison in zip(runs, report.runs, strict=True)
            if of == path
        ]
        try:
            bundle = Bundle.open(path)
            replaced = [_key(entry) for entry in found]
            kept = [entry for entry in bundle.manifest.accuracy if _key(entry) not in replaced]
            bundle.update_results(accuracy=[*kept, *found])
        except BundleError as error:
            log.warning("the result could not be written to the manifest of %s: %s", path, error)


def _key(entry: dict[str, Any]) -> list[Any]:
    """The key of an entry of the manifest: a new entry replaces an earlier one with the same key."""
    data = entry.get("data")
    computed = entry.get("compute_precision", entry.get("precision"))  # the name that bundles of 0.1.0 have
    task = entry.get("task", "classification")  # the only one that there was before there were others
    sha256 = data.get("sha256") if isinstance(data, dict) else None
    return [entry.get("runtime"), entry.get("device"), computed, task, sha256]

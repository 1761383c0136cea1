"""Measuring the accuracy that a bundle loses against FP32 on the user's images, with its confidence interval."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitdeploy.accuracy.baseline import find_problems
from vitdeploy.accuracy.comparison import Answers, Comparison, ImageSet
from vitdeploy.accuracy.logits import LogitsStore, compute_logits
from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.accuracy.runs import Run, check_same_network, open_baseline, open_runs
from vitdeploy.bundle import Bundle
from vitdeploy.data import Dataset, DataSource, open_data
from vitdeploy.errors import BundleError, InputError, UsageError
from vitdeploy.runtime.options import Options

Array = NDArray[Any]

log = logging.getLogger(__name__)


def validate(
    bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
    data: DataSource,
    *,
    runtime: str | Sequence[str] = "auto",
    baseline: Bundle | str | Path | None = None,
    checkpoint: str | Path | None = None,
    targets: Sequence[int] | Array | None = None,
    samples: int | None = None,
    seed: int = 0,
    max_drop: float | None = None,
    logits: str | Path | None = None,
    record: bool = True,
    threads: int | None = None,
    num_requests: int | None = None,
    compute_precision: str | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
) -> AccuracyReport:
    """Compare bundles of one network, on one or several runtimes, with its FP32 on the same labelled images.

    Args:
        bundle: One or several bundles, or their folders.
        data: Labelled images, see `open_data`; their classes are found among the bundle's labels by name.
        runtime: Names of runtimes, `auto`, or `all` for those that are installed and can run the bundle.
        baseline: An FP32 bundle of the same network. By default PyTorch is the baseline; where it or the weights are
            missing, the first FP32 bundle of `bundle`.
        checkpoint: File with the weights, for PyTorch.
        targets: Class numbers, where `data` is an iterable.
        samples: Number of images to take instead of all; every class gets its share.
        seed: Seed of the choice of samples.
        max_drop: The gate: points of top-1 that a run may lose.
        logits: Folder that keeps computed logits, so that an interrupted check can be continued; by default a folder of
            the user's cache.
        record: Whether to write the result into the manifest of each bundle.
        threads, num_requests, compute_precision, device, cache: See `load`.

    Returns:
        The report. It fails where a run drops by more than `max_drop` or the baseline is no better than chance.

    Raises:
        InputError: DATA cannot be read, has no labels, or has other classes than the network.
        UsageError: The bundles are of different networks, or there is no FP32 baseline.
        BundleError, BackendError, GateError: As for `load`.
    """
    given = [bundle] if isinstance(bundle, (Bundle, str, Path)) else list(bundle)
    bundles = [_opened(one) for one in given]
    runtimes = [runtime] if isinstance(runtime, str) else list(runtime)
    if not bundles or not runtimes:
        raise UsageError("there is nothing to validate", fix="give at least one bundle and one runtime")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"invalid max_drop {max_drop}: expected 0 to 100 points of top-1", fix="--max-drop 0.1")
    check_same_network(bundles)
    labels, classes = _classes(bundles)
    dataset = open_data(data, labels=labels, targets=targets)
    numbers = _class_numbers(dataset, classes, bundles[0])
    indices = dataset.sample(samples, seed) if samples is not None else tuple(range(len(dataset)))
    options = Options(
        threads=threads, num_requests=num_requests, compute_precision=compute_precision, device=device, cache=cache
    ).given()
    with ExitStack() as closing:
        runs, skipped = open_runs(bundles, runtimes, options, closing)
        reference = open_baseline(
            bundles,
            None if baseline is None else _opened(baseline),
            str(runs[0].facts["backend"]),
            checkpoint,
            options,
            closing,
        )
        others = [run for run in runs if run.source.identity != reference.source.identity]
        if not others:
            raise UsageError(
                f"there is nothing to compare: {reference.name} is the baseline",
                fix="give another bundle, or another --runtime",
            )
        sources = [run.source for run in (reference, *others)]
        rows, hashes = compute_logits(dataset, indices, sources, classes, LogitsStore(logits))
    report = _report(dataset, numbers, indices, hashes, reference, others, rows, labels, skipped, max_drop)
    if record:
        _record(others, report)
    return report


def _opened(bundle: Bundle | str | Path) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def _classes(bundles: Sequence[Bundle]) -> tuple[tuple[str, ...], int]:
    """The bundles' labels, which may be empty, and how many classes there are."""
    labels = next((bundle.manifest.labels for bundle in bundles if bundle.manifest.labels), ())
    shapes = [spec.shape for spec in bundles[0].manifest.outputs if spec.name == "logits"]
    shapes = shapes or [spec.shape for spec in bundles[0].manifest.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not isinstance(shapes[0][1], int):
        raise UsageError(
            f"{bundles[0].path} is not a classifier",
            why="it has no output logits [N, classes]",
            fix="export the network without --features",
        )
    return labels, shapes[0][1]


def _class_numbers(dataset: Dataset, classes: int, bundle: Bundle) -> Array:
    """The class number of each image, int64 [N]; InputError unless they are certainly those of the network."""
    if dataset.targets is None:
        raise InputError(
            f"the images of {dataset.where} have no labels",
            why="accuracy needs the right class of each",
            fix="make one folder for each class, with its images directly inside",
        )
    named = 0 if dataset.classes is None else len(dataset.classes)
    if bundle.manifest.labels or named == classes:
        return dataset.targets
    if named:
        raise InputError(
            f"{dataset.where} has {named} classes, the network {classes}",
            why=f"{bundle.path} has no class names, so DATA's classes cannot be found among the {classes}",
            fix="add a labels.txt with all classes in the network's order to DATA, or export with --labels",
        )
    if dataset.targets.max() >= classes:
        raise InputError(
            f"{dataset.where} has class number {dataset.targets.max()}",
            why=f"the network has classes 0 to {classes - 1}",
            fix="number the classes from 0, in the network's order",
        )
    return dataset.targets


def _report(
    dataset: Dataset,
    numbers: Array,
    indices: Sequence[int],
    hashes: Sequence[str],
    reference: Run,
    others: Sequence[Run],
    rows: Sequence[Array],
    labels: tuple[str, ...],
    skipped: Sequence[dict[str, str]],
    max_drop: float | None,
) -> AccuracyReport:
    targets = numbers[list(indices)]
    names = labels or dataset.classes or tuple(f"class {i}" for i in range(rows[0].shape[1]))
    lines = sorted(f"{digest} {target}\n" for digest, target in zip(hashes, targets.tolist(), strict=True))
    images = ImageSet(dataset, indices, targets, names, hashlib.sha256("".join(lines).encode()).hexdigest())
    baseline, *answers = (
        Answers(run.name, run.facts, logits, targets) for run, logits in zip((reference, *others), rows, strict=True)
    )
    by_torch = reference.is_reference
    kind = f"PyTorch FP32 (torch {reference.facts['version']})" if by_torch else f"FP32 bundle, {reference.name}"
    weights = reference.bundle.manifest.model.weights.kind
    return AccuracyReport(
        images,
        baseline,
        kind,
        find_problems(targets, baseline.chosen, names, weights=weights, by_name=bool(labels and dataset.classes)),
        tuple(Comparison(one, baseline) for one in answers),
        tuple(skipped),
        max_drop,
    )


def _record(runs: Sequence[Run], report: AccuracyReport) -> None:
    """Writes the results into the manifests; where that fails, a warning is logged and the manifest is unchanged."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = report.images.to_dict()
    data["name"] = Path(data["name"]).name
    for path in dict.fromkeys(run.bundle.path for run in runs):
        found = [
            {
                "runtime": run.facts["backend"],
                **{key: run.facts[key] for key in ("version", "device", "compute_precision")},
                "data": data,
                "baseline": {"kind": report.kind, "top1": report.baseline.top1, "problems": list(report.problems)},
                **comparison.measures(),
                "date": date,
            }
            for run, comparison in zip(runs, report.runs, strict=True)
            if run.bundle.path == path
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
    return [entry.get("runtime"), entry.get("device"), computed, data.get("sha256") if isinstance(data, dict) else None]

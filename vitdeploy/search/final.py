"""What counts at the end: the bundles themselves, in turns on the runtime and on all images of DATA."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from vitdeploy.accuracy.validate import validate
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.data import DataSource
from vitdeploy.latency.turns import interleave, warm_up
from vitdeploy.latency.worker import Worker
from vitdeploy.progress import Progress
from vitdeploy.search.plan import Plan, Trial
from vitdeploy.search.report import Point
from vitdeploy.statistics import Ratio, paired_ratio

ROUNDS = 40
WARMUP_SECONDS = 1.0

Made = tuple[Trial, Bundle]
Loss = tuple[float | None, float | None, float | None, float | None]  # drop, its interval, ratio to noise
BASELINE: Loss = (0.0, 0.0, 0.0, None)
UNKNOWN: Loss = (None, None, None, None)


def measured(
    made: Sequence[Made],
    fp32: Bundle,
    data: DataSource,
    runtime: str,
    threads: int | None,
    *,
    images: int | None,
    labelled: bool,
) -> tuple[list[Point], int]:
    """A point for each bundle and precision of its session, fastest first; and how many images judged them.

    fp32      what the others are compared with; it is one of `made`
    images    of DATA that judge, every class with its share; None for all
    labelled  whether top-1 can be measured on DATA; if not, the ratio to noise of the trials stands
    """
    speeds = _speeds(made, runtime, threads)
    if labelled:
        losses, judges = _losses(made, fp32, data, runtime, threads, images)
    else:
        losses, judges = [(None, None, None, trial.snr_db) for trial, _ in made], 0
    points = [
        Point(bundle.path, trial.plan, trial.by, *speeds[index], *losses[index], _megabytes(bundle))
        for index, (trial, bundle) in enumerate(made)
    ]
    return sorted(points, key=lambda point: point.ratio.value), judges


def _speeds(made: Sequence[Made], runtime: str, threads: int | None) -> list[tuple[float, Ratio]]:
    """Milliseconds of a call in the median, and the ratio to FP32; each bundle in a process of its own."""
    with ExitStack() as stack:
        turns = []
        for trial, bundle in made:
            batch = bundle.manifest.inputs[0].shape[0]
            options = {"threads": threads, **_opening(trial.plan)}
            worker = Worker(
                bundle.path,
                runtime,
                batch if isinstance(batch, int) else 1,
                {name: value for name, value in options.items() if value is not None},
            )
            stack.callback(worker.close)
            turns.append(partial(worker.turn, warm_up(worker.turn, WARMUP_SECONDS)))
        seconds: list[list[float]] = [[] for _ in made]
        with Progress("timing the bundles", ROUNDS) as progress:
            for results in interleave(turns, seconds=None, rounds=ROUNDS):
                for all_of_one, turn in zip(seconds, results, strict=True):
                    all_of_one.append(median(turn.seconds))
                progress.advance()
    base = next(index for index, (trial, _) in enumerate(made) if trial.plan.is_baseline)
    return [(1000 * median(one), paired_ratio(one, seconds[base])) for one in seconds]


def _losses(
    made: Sequence[Made], fp32: Bundle, data: DataSource, runtime: str, threads: int | None, samples: int | None
) -> tuple[list[Loss], int]:
    """Of each bundle the drop with its interval and the ratio to noise."""
    found: list[Loss] = [BASELINE if trial.plan.is_baseline else UNKNOWN for trial, _ in made]
    images = 0
    others = [index for index, (trial, _) in enumerate(made) if not trial.plan.is_baseline]
    for plan in {str(_opening(made[index][0].plan)): made[index][0].plan for index in others}.values():
        some = [index for index in others if _opening(made[index][0].plan) == _opening(plan)]
        report = validate(
            [made[index][1] for index in some],
            data,
            runtime=runtime,
            baseline=fp32,
            samples=samples,
            threads=threads,
            **_opening(plan),
        )
        images = len(report.images.indices)
        for index, run in zip(some, report.runs, strict=True):
            low, high = run.interval() or (None, None)
            found[index] = (run.drop, low, high, _snr_db(run.measures()))
    return found, images


def _opening(plan: Plan) -> dict[str, Any]:
    """How a session of the plan is opened, besides its threads."""
    return {"compute_precision": plan.compute_precision, "build": None if plan.build is None else dict(plan.build)}


def _snr_db(measures: Any) -> float | None:
    value = measures.get("snr_db")
    return None if value is None else float(value)


def _megabytes(bundle: Bundle) -> float:
    return bundle.manifest.files[MODEL].bytes / 1e6

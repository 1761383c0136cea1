"""The gates of INT8: what a result has to keep to become a bundle, and how many images it takes to tell."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitdeploy.errors import GateError, UsageError
from vitdeploy.quantize.options import MIN_SNR_DB, Int8Options
from vitdeploy.statistics import Paired, json_number, pairs_needed, score_interval

log = logging.getLogger(__name__)

# Labelled images that judge a drop, where there are as many: at least these, and so many times those that are needed
# if no answer changes. INT8 changes 3 of 1,000 answers (docs/int8.md); if it wins as often as it loses, the interval
# on four times as many images still ends below 0.1 points.
JUDGES = 2000
JUDGES_PER_NEEDED = 4

_FEWEST_SAMPLES = 32  # that a message proposes to calibrate on


def images_needed(points: float) -> int:
    """The fewest labelled images that can show that top-1 falls by at most `points`: where not one answer changes."""
    return pairs_needed(points / 100)


def judges_wanted(points: float) -> int:
    """How many labelled images decide about a drop of `points`, where DATA has as many."""
    return max(JUDGES, JUDGES_PER_NEEDED * images_needed(points))


def decided_by_interval(options: Int8Options, images: int) -> bool:
    """Whether that many images can show what `max_drop` asks; the drop itself decides where they cannot."""
    return options.max_drop is None or images >= images_needed(options.max_drop)


def check_images(options: Int8Options, count: int, where: str) -> None:
    """Say how many labelled images it takes to decide about `max_drop`, of the `count` images of DATA called `where`.

    Raises UsageError where DATA has fewer besides those that calibrate; where the loss is accepted, this is a warning.
    """
    if options.max_drop is None:
        return
    needed, left = images_needed(options.max_drop), max(0, count - options.samples)
    gate = f"--max-drop {options.max_drop:g}"
    log.info("%s takes %s labelled images that do not calibrate; %s has %s", gate, f"{needed:,}", where, f"{left:,}")
    if decided_by_interval(options, left):
        return
    what = f"{gate} needs {needed:,} labelled images that do not calibrate, and {where} has {left:,}"
    why = f"it has {count:,} images, of which {min(options.samples, count):,} calibrate"
    ways = [f"DATA with {needed + options.samples:,} labelled images or more"]
    if left:
        reach = 100 * score_interval(0, 0, left)[1]
        why += f"; on {left:,} images the 95 % interval of the drop reaches {reach:.2f} points if no answer changes"
        ways.append(f"--max-drop {_upward(reach)}")
    if count - needed >= _FEWEST_SAMPLES:
        ways.insert(0, f"--samples {count - needed}")
    if not options.accept_loss:
        raise UsageError(what, why=why, fix=f"{', '.join(ways)}, or --accept-loss")
    log.warning("%s (%s): the drop itself decides, not the upper end of its interval", what, why)


@dataclass(frozen=True)
class Missed:
    """A gate that a result does not pass.

    gate     the option that sets its bound: `min_snr`, `goals` or `max_drop`
    bound    dB or points
    reached  what it was compared with: a signal-to-noise ratio, or the upper end of the interval of the drop
    what     in words
    fix      what to type next
    output   that has a goal of its own
    """

    gate: str
    bound: float
    reached: float
    what: str
    fix: str
    output: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a ratio that is no number is null."""
        named = {} if self.output is None else {"output": self.output}
        reached = json_number(self.reached, 4)
        return {"gate": self.gate, **named, "bound": self.bound, "reached": reached, "what": self.what}


def check_goals(options: Int8Options, outputs: Mapping[str, Any]) -> None:
    """UsageError for a goal of an output that is not there, or of one whose values have no decibels.

    outputs  arrays by name
    """
    floats = [name for name, array in outputs.items() if array.dtype.kind == "f"]
    for name in options.goals:
        if name not in floats:
            there = f"it is {outputs[name].dtype}" if name in outputs else f"the outputs are {', '.join(outputs)}"
            raise UsageError(
                f"--goal {name} is of no output with a signal-to-noise ratio",
                why=there,
                fix=" or ".join(f"--goal {one}={options.goals[name]:g}" for one in floats) or "leave --goal out",
            )


def missed_gates(
    options: Int8Options, *, snr_db: Mapping[str, float], reference_snr_db: float, drop: Paired | None
) -> tuple[Missed, ...]:
    """The gates that a result does not pass; NaN passes none.

    snr_db            of the outputs by name, on images that were not calibrated on
    reference_snr_db  of the outputs on the images that prove the bundle
    drop              of top-1 on the labelled images, where `max_drop` is set
    """
    asked = options.min_snr is not None and options.min_snr >= MIN_SNR_DB
    bound = options.min_snr if asked and options.min_snr is not None else MIN_SNR_DB
    name = f"--min-snr {bound:g}" if asked else f"the floor of {bound:g} dB"
    found = []
    for output, goal in options.goals.items():
        ratio = snr_db.get(output, -math.inf)
        if not ratio >= goal:
            short = _short_of(ratio, goal, f"--goal {output}={goal:g}")
            what = f"INT8 keeps {short} on images that were not calibrated on"
            fix = f"--fp16, a smaller --goal {output}, or --accept-loss"
            found.append(Missed("goals", goal, ratio, what, fix, output))
    others = [ratio for output, ratio in snr_db.items() if output not in options.goals]
    worst = -math.inf if not snr_db else min(others, default=math.inf)
    worst = math.nan if any(map(math.isnan, others)) else worst
    if not worst >= bound:
        fix = f"--fp16, {'a smaller --min-snr' if asked else f'--min-snr {bound:g}'}, or --accept-loss"
        what = f"INT8 keeps {_short_of(worst, bound, name)} on images that were not calibrated on"
        found.append(Missed("min_snr", bound, worst, what, fix))
    if not reference_snr_db >= MIN_SNR_DB:
        floor = f"the floor of {MIN_SNR_DB:g} dB"
        fix = "--reference with images like those in use, a larger --min-snr, or --accept-loss"
        what = f"INT8 keeps {_short_of(reference_snr_db, MIN_SNR_DB, floor)} on the reference images"
        found.append(Missed("min_snr", MIN_SNR_DB, reference_snr_db, what, fix))
    if options.max_drop is not None:
        high = math.nan if drop is None else drop.interval()[1]
        if not high <= options.max_drop:
            told = "no drop was measured" if drop is None else in_words(drop)
            what = f"INT8 may lose more top-1 than --max-drop {options.max_drop:g}: {told}"
            found.append(Missed("max_drop", options.max_drop, high, what, _drop_fix(high)))
    return tuple(found)


def enforce(options: Int8Options, missed: Sequence[Missed]) -> None:
    """Raise GateError where a gate was missed; where the loss is accepted, log each as a warning."""
    if not options.accept_loss and missed:
        first, *others = missed
        why = "; ".join(one.what for one in others)
        why = why or "the network or its images quantize badly, and the accuracy that is left is not known"
        raise GateError(first.what, why=why, fix=first.fix)
    for one in missed:
        log.warning("accepted by --accept-loss: %s", one.what)


def unreachable_goals(options: Int8Options, reserve_db: float, snr_db: Mapping[str, float], mixture: str) -> GateError:
    """The error where no mixture of INT8 and float exceeds all bounds by `reserve_db`; the best one keeps `snr_db`."""
    bounds = options.bounds(snr_db)
    lacking = {
        name: ratio for name, ratio in snr_db.items() if name in bounds and not ratio >= bounds[name] + reserve_db
    }
    if not options.goals:
        return unreachable_snr(options, reserve_db, min(lacking.values(), default=-math.inf), mixture)
    kept = ", ".join(f"{ratio:.1f} dB of {name}" for name, ratio in lacking.items())
    reserve = f", and {reserve_db:g} dB are kept back for FP16 in the rest" if reserve_db else ""
    lower = [
        f"--goal {name}={math.floor(ratio - reserve_db)}"
        for name, ratio in lacking.items()
        if math.isfinite(ratio) and ratio - reserve_db >= MIN_SNR_DB
    ]
    wanted = [
        f"--goal {name}={bounds[name]:g}" if name in options.goals else f"--min-snr {bounds[name]:g}"
        for name in lacking
    ]
    return GateError(
        f"no mixture of INT8 and float keeps {' and '.join(dict.fromkeys(wanted))}",
        why=f"the best one, with {mixture}, keeps {kept}{reserve}",
        fix=", ".join([*lower, "--fp16, or --accept-loss"]),
    )


def unreachable_snr(options: Int8Options, reserve_db: float, snr_db: float, mixture: str) -> GateError:
    """The error where no mixture of INT8 and float exceeds `min_snr` by `reserve_db`; the best one keeps `snr_db`."""
    why = f"the best one, with {mixture}, keeps {snr_db:.1f} dB"
    if reserve_db:
        why += f", and {reserve_db:g} dB are kept back for FP16 in the rest"
    lower = [f"--min-snr {math.floor(snr_db - reserve_db)}"] if snr_db - reserve_db >= MIN_SNR_DB else []
    return GateError(
        f"no mixture of INT8 and float keeps --min-snr {options.min_snr:g}",
        why=why,
        fix=", ".join([*lower, "--fp16, or --accept-loss"]),
    )


def unreachable_drop(options: Int8Options, drop: Paired, mixture: str) -> GateError:
    """The error where no mixture of INT8 and float keeps `max_drop`; of the best one `drop` was measured."""
    limit = options.max_drop or 0.0
    why = f"with the best one, {mixture}, {in_words(drop)}"
    if not decided_by_interval(options, drop.total):
        why += f"; so few images show no drop as small as that, {images_needed(limit):,} are needed"
    elif drop.drop <= limit:
        why += "; the drop itself is small enough, and more images may show it"
    return GateError(
        f"no mixture of INT8 and float keeps --max-drop {limit:g}", why=why, fix=_drop_fix(drop.interval()[1])
    )


def in_words(drop: Paired) -> str:
    """`top-1 drops by 0.05 points (95 % interval -0.12 to 0.24, 4,050 images)`."""
    low, high = drop.interval()
    return f"top-1 drops by {drop.drop:.2f} points (95 % interval {low:.2f} to {high:.2f}, {drop.total:,} images)"


def _drop_fix(high: float) -> str:
    larger = f"--max-drop {_upward(high)}, " if 0 < high < 100 else ""
    return f"{larger}more labelled images, --fp16, or --accept-loss"


def _short_of(snr_db: float, bound: float, name: str) -> str:
    if not math.isfinite(snr_db):
        return f"no signal, less than {name},"
    return f"{snr_db:.1f} dB, {bound - snr_db:.1f} dB less than {name},"


def _upward(points: float) -> str:
    """Rounded up to hundredths."""
    return f"{math.ceil(100 * points) / 100:g}"

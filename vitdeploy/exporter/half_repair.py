"""Which blocks of a network go back to FP32 so that half precision keeps what it has to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from vitdeploy.graph.edit import Array

log = logging.getLogger(__name__)

Outputs = Mapping[str, Array]
Quality = Callable[[Outputs], float]

MAX_REPAIRS = 12
IMAGE_ALLOWANCE_DB = 5.0  # that a single image, such as a black one, may lie below the bound for all
_NUMBERS = 4096  # of each output and sample, by which the errors of blocks are compared


@dataclass(frozen=True)
class Repair:
    """One block in FP32, and the quality of the outputs before and after (dB)."""

    block: str
    before: float
    after: float


def find_repairs(
    run: Callable[[Collection[str]], Outputs],
    quality: Quality,
    blocks: Collection[str],
    exact: Outputs,
    *,
    bound: float,
    snr_db: float,
) -> list[Repair]:
    """The blocks to revert to FP32, in this order, until `quality` is `bound`.

    run      outputs of the emulated graph with these of the `blocks` in FP16
    exact    its outputs with none of them in FP16
    snr_db   the quality with all of them in FP16

    Small errors add up: what a set of blocks does to the outputs is, to first order, the sum of what each does alone.
    So every block runs once alone in FP16, which block to revert next follows from these errors, and only what has
    been chosen is measured. Blocks that turn out not to be needed go back to FP16.
    """
    if snr_db >= bound:
        return []
    log.info("half precision reaches %.1f dB of %.1f: looking for the blocks that cost most", snr_db, bound)
    errors = _Errors(exact)
    for block in blocks:
        errors.add(block, run([block]))
    done: list[Repair] = []
    left = list(blocks)
    while not snr_db >= bound and left and len(done) < MAX_REPAIRS:
        block = errors.costliest(left)
        left.remove(block)
        after = quality(run(left))
        done.append(Repair(block, snr_db, after))
        snr_db = after
    if not snr_db >= bound:
        return _best_start(done)
    return _without_spare(run, quality, blocks, done, bound)


def _best_start(done: list[Repair]) -> list[Repair]:
    """The repairs up to the one that reached most; none where nothing got better."""
    reached = [np.nan_to_num(one.after, nan=-np.inf) for one in done]
    best = int(np.argmax(reached)) if reached else 0
    gained = bool(reached) and reached[best] > np.nan_to_num(done[0].before, nan=-np.inf)
    return done[: best + 1] if gained else []


def _without_spare(
    run: Callable[[Collection[str]], Outputs],
    quality: Quality,
    blocks: Collection[str],
    done: list[Repair],
    bound: float,
) -> list[Repair]:
    """The repairs that the bound needs, tried from the first to the last but one; what is measured is told anew."""
    needed, last = [one.block for one in done], done[-1].after
    for block in [one.block for one in done[:-1] if one.after - one.before < 1]:
        fewer = [other for other in needed if other != block]
        without = quality(run([other for other in blocks if other not in fewer]))
        if without >= bound:
            needed, last = fewer, without
    if len(needed) == len(done):
        return done
    told, before = [], done[0].before
    for index, block in enumerate(needed, 1):
        final = index == len(needed)
        after = last if final else quality(run([other for other in blocks if other not in needed[:index]]))
        told.append(Repair(block, before, after))
        before = after
    return told


class _Errors:
    """What each block alone in FP16 adds to some numbers of the outputs, [samples, numbers] relative to the output."""

    def __init__(self, exact: Outputs) -> None:
        self._places: dict[str, tuple[Array, Array]] = {}
        self._of: dict[str, dict[str, Array]] = {}
        for name, array in exact.items():
            if array.dtype.kind == "f" and array.ndim and array.size:
                rows = array.reshape(len(array), -1).astype(np.float64)
                count = min(_NUMBERS, rows.shape[1])
                places = np.random.default_rng(0).choice(rows.shape[1], count, replace=False)
                self._places[name] = places, rows[:, places]

    def add(self, block: str, outputs: Outputs) -> None:
        """Remember the outputs with only `block` in FP16."""
        with np.errstate(all="ignore"):
            self._of[block] = {
                name: outputs[name].reshape(len(exact), -1)[:, places] - exact
                for name, (places, exact) in self._places.items()
            }

    def costliest(self, blocks: Collection[str]) -> str:
        """The block without which the outputs of `blocks` in FP16 are nearest to the exact ones."""
        broken = [block for block in blocks if not all(np.isfinite(e).all() for e in self._of[block].values())]
        if broken:
            return broken[0]
        sums = {name: np.sum([self._of[block][name] for block in blocks], axis=0) for name in self._places}
        return max(blocks, key=lambda block: self._snr_db({n: sums[n] - self._of[block][n] for n in sums}))

    def _snr_db(self, errors: Mapping[str, Array]) -> float:
        worst = np.inf
        for name, error in errors.items():
            signal = np.square(self._places[name][1]).sum(axis=1) + np.finfo(np.float64).tiny
            noise = np.square(error).sum(axis=1) + np.finfo(np.float64).tiny
            ratios = (
                noise.sum() / signal.sum(),
                np.mean(noise / signal),
                np.max(noise / signal) / 10 ** (IMAGE_ALLOWANCE_DB / 10),
            )
            worst = min(worst, -10 * float(np.log10(max(ratios))))
        return worst

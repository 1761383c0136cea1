"""The smallest part of a graph that still fails in a compiler or a runtime, found by leaving nodes out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vitdeploy.graph.parts import Parts

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

TRIALS = 60


def smallest_failing(
    model: onnx.ModelProto, fails: Callable[[onnx.ModelProto], bool], *, trials: int = TRIALS
) -> onnx.ModelProto:
    """The smallest part of `model` on which `fails` still holds that `trials` questions find; else `model` itself."""
    parts = Parts(model)
    kept = shrink(parts, range(len(parts.nodes)), fails, trials=trials)
    if len(kept) == len(parts.nodes):
        return model
    return parts.part(kept) or model


def shrink(
    parts: Parts, indices: Sequence[int], fails: Callable[[onnx.ModelProto], bool], *, trials: int = TRIALS
) -> list[int]:
    """Those of the nodes at `indices`, whose part fails, that still fail without the others.

    First the last node is sought by halving, then the first, then single stretches between them are left out.
    """
    asked = 0

    def holds(indices: Sequence[int]) -> bool:
        nonlocal asked
        part = parts.part(indices) if indices and asked < trials else None
        if part is None:
            return False
        asked += 1
        failing = fails(part)
        log.info("%d of %d nodes %s", len(indices), len(parts.nodes), "fail too" if failing else "do not fail")
        return failing

    kept = list(indices)
    kept = kept[: _fewest(len(kept), lambda count: holds(kept[:count]))]
    kept = kept[len(kept) - _fewest(len(kept), lambda count: holds(kept[len(kept) - count :])) :]
    size = max(len(kept) // 2, 1)
    while len(kept) > 1 and asked < trials:
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if holds(rest):
                kept = rest
                break
        else:
            if size == 1:
                break
            size = max(size // 2, 1)
            continue
        size = min(size, max(len(kept) // 2, 1))
    return kept


def _fewest(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest count for which `holds`, by halving; `most` is known to."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high

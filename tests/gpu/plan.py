"""What the acceptance run on a GPU does, in which order, and how long each part is expected to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One network a family, most wanted first: (name of the zoo, precisions in the order of their worth).
FAMILIES = ("lemevit_tiny", "dualvit_s", "qnavit_tiny", "saevit_xs", "cagevit_tiny", "lemevit_tiny.eurosat")
PRECISIONS = ("fp16", "int8", "fp32")
BATCHES = (1, 8, 32)

# Seconds, before anything was measured: a build and its proof, eager PyTorch, and one compilation.
BUILD_SECONDS, EAGER_SECONDS, COMPILE_SECONDS = 75.0, 20.0, 60.0


@dataclass(frozen=True)
class Step:
    """One part: `kind` is `tensorrt` (build, prove, measure a bundle) or `eager` or `compile` (PyTorch in FP16)."""

    kind: str
    model: str
    precision: str
    batches: tuple[int, ...]
    seconds: float

    @property
    def name(self) -> str:
        """What the step is called in the results."""
        batches = "" if len(self.batches) > 1 else f"-b{self.batches[0]}"
        return f"{self.kind}-{self.model}-{self.precision}{batches}"


def plan(bundles: Iterable[str], *, torch: bool) -> list[Step]:
    """The steps for the bundles that are there (folders `MODEL-PRECISION`), most valuable first.

    FP16 of every family beside eager PyTorch, then INT8, then compiled PyTorch, then FP32: what is cut off at the end
    of the time is what matters least.
    """
    there = set(bundles)
    models = [model for model in FAMILIES if any(f"{model}-{precision}" in there for precision in PRECISIONS)]
    steps = [_tensorrt(model, "fp16") for model in models[:1]] + [_eager(model) for model in models[:1] if torch]
    steps += [step for model in models[1:] for step in (_tensorrt(model, "fp16"), *([_eager(model)] if torch else []))]
    steps += [_tensorrt(model, "int8") for model in models]
    if torch:
        steps += [_compiled(model, batch) for batch in (1, 32) for model in models]
    steps += [_tensorrt(model, "fp32") for model in models]
    if torch:
        steps += [_compiled(model, 8) for model in models]
    return [step for step in steps if step.kind != "tensorrt" or f"{step.model}-{step.precision}" in there]


def remaining(steps: Iterable[Step], done: Mapping[str, Any]) -> list[Step]:
    """The steps without a result yet; one that failed is tried again."""
    return [step for step in steps if "error" in done.get(step.name, {"error": "never run"})]


def fits(step: Step, elapsed: float, budget: float, factor: float) -> bool:
    """Whether a step can be expected to end in time, where earlier ones took `factor` of what was expected."""
    return elapsed + step.seconds * max(factor, 0.25) <= budget


def bundle_folder(bundles: Path, step: Step) -> Path:
    """Where the bundle of a step lies."""
    return bundles / f"{step.model}-{step.precision}"


def _tensorrt(model: str, precision: str) -> Step:
    return Step("tensorrt", model, precision, BATCHES, BUILD_SECONDS)


def _eager(model: str) -> Step:
    return Step("eager", model, "fp16", BATCHES, EAGER_SECONDS)


def _compiled(model: str, batch: int) -> Step:
    return Step("compile", model, "fp16", (batch,), COMPILE_SECONDS)

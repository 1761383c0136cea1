"""What a user may ask of quantization. Light: the command line reads it before anything heavy is imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vitdeploy.argument_types import check_fields
from vitdeploy.errors import UsageError
from vitdeploy.registry import Registry

if TYPE_CHECKING:
    from vitdeploy.quantize.range_methods import RangeMethod

# Below it something is wrong with the network or the images, and no accuracy is to be expected.
MIN_SNR_DB = 20.0

AUTO = "auto"
OWN_METHODS = ("minmax", "percentile", "mse")

RANGE_METHODS: Registry[RangeMethod] = Registry(
    "vitdeploy.range_methods",
    kind="range method",
    option="--method",
    kept={name: f"vitdeploy.quantize.range_methods:{name}" for name in OWN_METHODS},
)


@dataclass(frozen=True)
class Int8Options:
    """How a network is quantized.

    Attributes:
        samples: Images to calibrate on.
        method: How the range of an activation is chosen: the name of a range method, or `auto`, which takes for each
            tensor the one that changes the layers behind it least.
        ignored_scope: Patterns of node names, as `stages.3.*`, that stay in float; one that matches nothing is an
            error.
        min_snr: Gate: dB that the outputs keep against FP32 on images that were not calibrated on, `MIN_SNR_DB` or
            more; layers are reverted to float until they do.
        goals: Gate: the same by the name of an output, in the place of `min_snr` there.
        max_drop: Gate: points of top-1 accuracy that may be lost; layers are reverted to float until the upper end of
            the 95 % interval of the drop on labelled images is no higher.
        accept_loss: Whether the result is kept where it misses a gate, with a warning and a record of what it missed.
        tune_latency: Runtime on which layers have to be faster in INT8 to become it, measured on this machine.
        seed: Seed of the choice of images.

    Raises:
        UsageError: A value makes no sense.
    """

    samples: int = 300
    method: str = AUTO
    ignored_scope: tuple[str, ...] = ()
    min_snr: float | None = None
    goals: Mapping[str, float] = field(default_factory=dict)
    max_drop: float | None = None
    accept_loss: bool = False
    tune_latency: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_method(self.method)
        if self.samples < 1:
            raise UsageError("at least 1 calibration sample is required", fix="--samples 300")
        if self.max_drop is not None and not 0 < self.max_drop <= 100:
            raise UsageError(
                f"invalid --max-drop {self.max_drop:g}",
                why="it is a number of points of accuracy above 0, at most 100: no number of images shows a drop of 0",
                fix="--max-drop 0.5",
            )
        least = -math.inf if self.accept_loss else MIN_SNR_DB
        if self.min_snr is not None and not (math.isfinite(self.min_snr) and self.min_snr >= least):
            raise UsageError(
                f"invalid --min-snr {self.min_snr:g}",
                why=f"it is a number of decibels, and less than {MIN_SNR_DB:g} is accepted with --accept-loss alone",
                fix="--min-snr 35",
            )
        for name, bound in self.goals.items():
            if not (math.isfinite(bound) and bound >= least):
                raise UsageError(
                    f"invalid --goal {name}={bound:g}",
                    why=f"it is a number of decibels, less than {MIN_SNR_DB:g} only with --accept-loss",
                    fix=f"--goal {name}=35",
                )

    def bounds(self, outputs: Iterable[str]) -> dict[str, float]:
        """The decibels that each output has to keep by `goals` and `min_snr`.

        Args:
            outputs: Names of outputs.

        Returns:
            Decibels by the name of the output; without those that have neither.
        """
        asked = {name: self.goals.get(name, self.min_snr) for name in outputs}
        return {name: bound for name, bound in asked.items() if bound is not None}


def check_method(name: str) -> None:
    """Raise UsageError unless `name` is `auto` or a range method."""
    if name != AUTO and name not in RANGE_METHODS.names():
        raise UsageError(
            f"there is no range method called {name!r}",
            why=f"there are {AUTO}, {', '.join(RANGE_METHODS.names())}",
            fix=f"--method {AUTO}",
        )

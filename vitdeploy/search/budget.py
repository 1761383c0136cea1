"""What a search may take, as it was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitdeploy.errors import UsageError
from vitdeploy.quantize.options import AUTO, check_method
from vitdeploy.search.plan import GREEDY, OPTUNA

MINUTES, IMAGES, KEEP = 15.0, 256, 4
SEARCHES = (OPTUNA, GREEDY)
INT8_OVER_FP32 = 4.0  # of writing and proving a bundle whose calibration is there
STARTED_AND_TIMED = 6.0  # seconds for each bundle


@dataclass(frozen=True)
class Budget:
    """See `vitdeploy.optimize`, whose arguments these are."""

    search: str
    minutes: float
    trials: int | None
    keep: int
    methods: tuple[str, ...]
    images: int
    final_images: int | None

    def check(self) -> None:
        """Raises UsageError for what cannot be."""
        if self.search not in SEARCHES:
            raise UsageError(f"--search cannot be {self.search!r}", fix=f"--search {' or '.join(SEARCHES)}")
        if not 0 < self.minutes < math.inf:
            what = f"invalid --minutes {self.minutes:g}: expected a number above 0"
            raise UsageError(what, fix=f"--minutes {MINUTES:g}")
        counts = {
            "trials": (self.trials, 20),
            "keep": (self.keep, KEEP),
            "images": (self.images, IMAGES),
            "final-images": (self.final_images, 4000),
        }
        for name, (value, example) in counts.items():
            if value is not None and value < 1:
                raise UsageError(f"invalid --{name} {value}: expected 1 or more", fix=f"--{name} {example}")
        if not self.methods:
            raise UsageError("there is no method to choose ranges by", fix=f"--method {AUTO}")
        for method in self.methods:
            check_method(method)


def closing_seconds(keep: int, floats: int, exported: float, images: int, each: float) -> float:
    """About how long the bundles of the front take once the search is over: export, proof, turns and images.

    keep      bundles in INT8 that will be written
    floats    bundles that are there already
    exported  seconds in which FP32 was written and proven; INT8 is judged, corrected and compared with it besides
    images    that judge each of them
    each      seconds that FP32 takes for an image
    """
    return keep * INT8_OVER_FP32 * exported + (keep + floats) * (STARTED_AND_TIMED + images * each)

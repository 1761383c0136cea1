"""What was asked of an export, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.data import DataSource
from vitdeploy.errors import UsageError
from vitdeploy.exporter.inputs import DYNAMIC, InputSpec, parse_input
from vitdeploy.platforms.boards import Platform, export_target
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.options import Int8Options
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.race import timing_runtime
from vitdeploy.targets import Int8Rules, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from vitdeploy.quantize.calibrate import Known

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class ExportRequest:
    """The arguments of `vitdeploy.export`, see there, and what follows from them alone.

    Raises UsageError for what does not fit together, and BackendError where the target's files need a runtime that is
    not installed.
    """

    source: str | Path | nn.Module
    output: Path
    precision: str = "fp32"
    target: str = "portable"
    image_size: int | tuple[int, int] | None = None
    num_classes: int | None = None
    batch: int | str | None = None
    checkpoint: str | Path | None = None
    labels: Sequence[str] | None = None
    hyperparameters: Mapping[str, Any] | None = None
    preprocessing: Preprocessing | Mapping[str, Any] | None = None
    bake_preprocessing: bool = False
    reference: NDArray[Any] | Mapping[str, NDArray[Any]] | Sequence[str | Path] | None = None
    calibration: DataSource | None = None
    int8: Int8Options | None = None
    features: bool = False
    force: bool = False
    inputs: Sequence[InputSpec | str] | None = None
    known: Known | None = None  # what a search has calibrated already

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"there is no precision {self.precision!r}", fix=f"--precision {' or '.join(PRECISIONS)}")
        if self.batch not in (None, DYNAMIC) and (not isinstance(self.batch, int) or self.batch < 1):
            raise UsageError(
                f"invalid batch {self.batch!r}",
                why=f"a batch is a positive number or {DYNAMIC!r}",
                fix=f"--batch 1 or {DYNAMIC}",
            )
        self._check_inputs()
        if self.precision != "int8" and (self.calibration is not None or self.int8 is not None):
            raise UsageError(f"{self.precision} needs no calibration", fix="--int8, or leave --calibration out")
        if self.precision == "int8":
            self._check_int8()
        if self.row.native is not None:
            find_backend(self.row.native).require()

    def _check_inputs(self) -> None:
        names = [spec.name for spec in self.specs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"the input {twice} is given twice", fix="one --input for each input")
        batches = {batch for _, batch in self._inputs if batch not in (None, 1)}
        if self.batch is not None:
            batches.add(self.batch)
        if len(batches) > 1:
            raise UsageError(
                f"the inputs and --batch give batches of {' and '.join(sorted(map(str, batches)))}",
                why="all inputs have one batch, which is their first axis",
                fix="one of them in every --input, or --batch alone",
            )

    @cached_property
    def _inputs(self) -> list[tuple[InputSpec, int | str | None]]:
        return [(one, None) if isinstance(one, InputSpec) else parse_input(one) for one in self.inputs or ()]

    @property
    def reference_arrays(self) -> Mapping[str, NDArray[Any]]:
        """The reference by the names of inputs; empty where it was given otherwise."""
        return self.reference if isinstance(self.reference, Mapping) else {}

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """The inputs that were asked for; none where the network itself says them."""
        return tuple(spec for spec, _ in self._inputs)

    def _check_int8(self) -> None:
        if self.row.int8 is None:
            raise UsageError(f"the target {self.target} has no rules for INT8", fix="--fp16, or another target")
        if self.quantization.tune_latency is not None:
            timing_runtime(self.quantization.tune_latency, self.row, "--tune-latency")
        if self.features and self.quantization.max_drop is not None:
            raise UsageError("--max-drop needs class scores, and --features has none", fix="--min-snr 35")

    @cached_property
    def _choice(self) -> tuple[Target, Platform | None]:
        row, platform = export_target(self.target)
        if self.precision not in row.absorbs_projections:
            row = replace(row, absorbs_projections=())
        return row, platform

    @property
    def row(self) -> Target:
        """The target's row as the precision wants it; UsageError for a name that nothing has."""
        return self._choice[0]

    @property
    def platform(self) -> Platform | None:
        """The board or the version of TensorRT that was named instead of a target; the bundle has to pass its rules."""
        return self._choice[1]

    @property
    def rules(self) -> Int8Rules:
        """Where the target wants integers."""
        return self.row.int8 or Int8Rules()

    @property
    def quantization(self) -> Int8Options:
        """How to quantize: what was asked, else the default."""
        return self.int8 or Int8Options()

    @property
    def fixed_batch(self) -> int | None:
        """Samples a call, 1 unless something else was asked for; None where that is left open."""
        asked = [self.batch, *(batch for _, batch in self._inputs if batch != 1)]
        batch = next((one for one in asked if one is not None), 1)
        return batch if isinstance(batch, int) else None

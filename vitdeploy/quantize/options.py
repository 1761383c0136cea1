"""What a user may ask of quantization. Light: the command line reads it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.errors import UsageError

METHODS = ("auto", "minmax", "average", "percentile", "entropy", "mse")


# On which layers can be timed while exporting.
RUNTIMES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Int8Options:
    """How a network is quantized.

    samples   calibration images
    method    range of activations: `auto` (for each tensor the one that harms its readers least) or one for all
    ignore    patterns of node names, as `stages.3.*`, that stay in float; one that matches nothing is an error
    min_snr   dB that the outputs keep against FP32 on images not calibrated on; layers go back to float until they do
    max_drop  points of top-1 accuracy that may be lost on labelled images; layers go back to float until it holds
    tune_latency  runtime on which layers have to be faster in INT8 to become it, measured here
    seed      of the choice of images
    """

    samples: int = 300
    method: str = "auto"
    ignore: tuple[str, ...] = ()
    min_snr: float | None = None
    max_drop: float | None = None
    tune_latency: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"there is no calibration method {self.method!r}", fix=f"--method {', '.join(METHODS)}")
        if self.samples < 1:
            raise UsageError(f"{self.samples} samples calibrate nothing", fix="--samples 300")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(
                f"a drop of {self.max_drop} is no goal", why="it is in points of accuracy", fix="--max-drop 0.5"
            )
        if self.tune_latency is not None and self.tune_latency not in RUNTIMES:
            raise UsageError(
                f"layers cannot be timed on {self.tune_latency!r}", fix=f"--tune-latency {' or '.join(RUNTIMES)}"
            )

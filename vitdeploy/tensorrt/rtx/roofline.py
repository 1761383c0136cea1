"""How long a network takes on a Jetson at least: a roofline over what its layers move and compute.

A layer takes as long as its bytes at the published bandwidth or its operations at the published dense peak of its
precision, whichever is longer, and layers run one after the other (Williams, Waterman and Patterson, Roofline: an
insightful visual performance model, 2009). The layers are those of another compiler than the board's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitdeploy.platforms.devices import DEVICES, Device
from vitdeploy.table import render
from vitdeploy.tensorrt.rtx.units import gigaflop, mebibytes
from vitdeploy.tensorrt.rtx.workload import LayerWork, layer_works

TITLE = "estimate (roofline, nothing was measured)"
# An assumption, and none of NVIDIA's figures: what starting a kernel costs where a CUDA graph does not hide it.
LAUNCH_MICROSECONDS = 5.0


@dataclass(frozen=True)
class Estimate:
    """A network on a device, in milliseconds.

    ms            every layer takes its tensors from memory, and starting kernels costs nothing
    launched_ms   the same, and starting each kernel costs LAUNCH_MICROSECONDS
    cached_ms     nothing but weights and the network's inputs and outputs comes from memory
    memory_ms     the part of `ms` of layers whose bytes take longer than their operations
    moving_ms     the part of `ms` of layers that only move or convert data
    moving_launched_ms  the part of `launched_ms` of the same layers
    """

    device: Device
    ms: float
    launched_ms: float
    cached_ms: float
    memory_ms: float
    moving_ms: float
    moving_launched_ms: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the published figures that they follow from."""
        times = {name: round(value, 6) for name, value in vars(self).items() if name != "device"}
        return {**times, "device": asdict(self.device)}


@dataclass(frozen=True)
class Roofline:
    """What the layers move and compute, and how long that takes on each device."""

    layers: int
    moved_bytes: int
    flop: int
    estimates: tuple[Estimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "what": TITLE,
            "layers": self.layers,
            "moved_bytes": self.moved_bytes,
            "flop": self.flop,
            "launch_microseconds": LAUNCH_MICROSECONDS,
            "estimates": [estimate.to_dict() for estimate in self.estimates],
        }

    def __str__(self) -> str:
        title = f"{TITLE}: {mebibytes(self.moved_bytes)} moved and {gigaflop(self.flop)} in {self.layers} layers"
        launches = f"+{LAUNCH_MICROSECONDS:g} µs a layer"
        header = ("  device", "ms", launches, "all cached", "memory-bound", "moving layers (launched)")
        rows = [
            [
                f"  {one.device.name}",
                *(f"{value:.3g}" for value in (one.ms, one.launched_ms, one.cached_ms)),
                _share(one.memory_ms, one.ms),
                f"{_share(one.moving_ms, one.ms)} ({_share(one.moving_launched_ms, one.launched_ms)})",
            ]
            for one in self.estimates
        ]
        return f"{title}\n{render(rows, header=header, rule=False)}"


def read_roofline(inspected: str, model: bytes, devices: Sequence[Device] = DEVICES) -> Roofline:
    """The estimate for `devices` from `Outcome.engine` and the ONNX file that it was built from.

    Raises ValueError where no layers are listed or a length is not known, as with a free batch.
    """
    works = layer_works(inspected, model)
    moved, flop = sum(work.moved for work in works), round(sum(work.flop for work in works))
    return Roofline(len(works), moved, flop, tuple(estimate(works, device) for device in devices))


def estimate(works: Sequence[LayerWork], device: Device) -> Estimate:
    """The time of `works` on `device`, one after the other."""

    def computing(work: LayerWork) -> float:
        return work.flop / device.peak(work.precision)

    def reading(size: int) -> float:
        return size / (device.bandwidth * 1e9)

    def time(work: LayerWork) -> float:
        return max(reading(work.moved), computing(work))

    def launched(work: LayerWork) -> float:
        return time(work) + (LAUNCH_MICROSECONDS * 1e-6 if work.moved else 0)  # what has no tensors is no kernel

    def total(seconds: Callable[[LayerWork], float], layers: Iterable[LayerWork] = works) -> float:
        return 1e3 * sum(map(seconds, layers))

    moving = [work for work in works if work.moves]
    return Estimate(
        device,
        ms=total(time),
        launched_ms=total(launched),
        cached_ms=total(lambda work: max(reading(work.lasting), computing(work))),
        memory_ms=total(time, (work for work in works if reading(work.moved) >= computing(work))),
        moving_ms=total(time, moving),
        moving_launched_ms=total(launched, moving),
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0%"

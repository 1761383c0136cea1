"""The arithmetic of 8-bit quantization, as ONNX's QuantizeLinear and DequantizeLinear define it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Below this a scale's reciprocal leaves float32, and a tensor that small is zero to every kernel.
MIN_SCALE = 1e-30


@dataclass(frozen=True)
class QScheme:
    """How real numbers become 8-bit integers.

    signed     int8 -128..127, else uint8 0..255
    symmetric  the zero point is the integer 0 (signed) and the range is as wide below zero as above; an asymmetric
               scheme places the range's lower end at the lowest integer, with zero exactly representable
    """

    signed: bool
    symmetric: bool

    @property
    def low(self) -> int:
        """Lowest integer."""
        return -128 if self.signed else 0

    @property
    def high(self) -> int:
        """Highest integer."""
        return 127 if self.signed else 255

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        """Type of the integers."""
        return np.int8 if self.signed else np.uint8

    def params(self, low: float, high: float) -> QuantParams:
        """Scale and zero point for real values from `low` to `high`; the range is widened to hold zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            return QuantParams(max(max(-low, high) / self.high, MIN_SCALE), 0, self)
        scale = max((high - low) / (self.high - self.low), MIN_SCALE)
        zero_point = int(np.clip(np.rint(self.low - low / scale), self.low, self.high))
        return QuantParams(scale, zero_point, self)


S8 = QScheme(signed=True, symmetric=True)
U8 = QScheme(signed=False, symmetric=False)


@dataclass(frozen=True)
class QuantParams:
    """real = (integer - zero_point) * scale, for one whole tensor."""

    scale: float
    zero_point: int
    scheme: QScheme

    def quantize(self, values: Array) -> Array:
        """Integers of the scheme's type: round half to even, saturate."""
        scaled = np.rint(values / np.float32(self.scale)) + self.zero_point
        integers: Array = np.clip(scaled, self.scheme.low, self.scheme.high).astype(self.scheme.dtype)
        return integers

    def dequantize(self, integers: Array) -> Array:
        """Real numbers, float32."""
        values: Array = (integers.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)
        return values

    def round_trip(self, values: Array) -> Array:
        """What is left of `values` after quantizing, float32."""
        return self.dequantize(self.quantize(values))

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest real value that does not saturate."""
        return (self.scheme.low - self.zero_point) * self.scale, (self.scheme.high - self.zero_point) * self.scale


class QuantizedWeight(NamedTuple):
    """A weight as int8, with a scale for each output channel.

    integers  int8 -127..127 in the shape of the weight
    scales    float32 [channels]: weight = integers * scale of their channel
    """

    integers: Array
    scales: Array

    def real(self, axis: int) -> Array:
        """The weight that is left after rounding, float32; `axis` is that of the channels."""
        values: Array = self.integers.astype(np.float32) * along(self.scales, axis, self.integers.ndim)
        return values


def quantize_weight(weight: Array, axis: int, limits: Array | None = None) -> QuantizedWeight:
    """A weight rounded to nearest, with one scale for each index of `axis`.

    `limits` [channels] is the magnitude at which each channel saturates; None for its largest. A channel of zeros gets
    the scale of the smallest channel that is not, so that no kernel divides by a denormal.
    """
    axis %= weight.ndim
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others) if limits is None else np.asarray(limits)
    alive = largest[largest > 0]
    scales = np.where(largest > 0, largest, alive.min() if len(alive) else 1.0) / 127
    scales = np.maximum(scales, MIN_SCALE).astype(np.float32)
    integers = np.clip(np.rint(weight / along(scales, axis, weight.ndim)), -127, 127).astype(np.int8)
    return QuantizedWeight(integers, scales)


def along(numbers: Array, axis: int, ndim: int) -> Array:
    """`numbers` [n] as an array of `ndim` dimensions that broadcasts along `axis`."""
    return numbers.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])

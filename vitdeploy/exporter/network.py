"""What an export needs of the network that it starts from, whatever computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vitdeploy.errors import ExportError
from vitdeploy.graph.run import Array, Inputs


class Network(Protocol):
    """A network and how it is run: a module in PyTorch, or the graph of a file in ONNX Runtime."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def batch(self) -> int | None:
        """Samples a call; None where that is left open."""

    @property
    def original(self) -> str:
        """What the outputs of a bundle are held against, for messages."""

    @property
    def scores(self) -> str | None:
        """The output that has the class scores; None where none is known to."""

    @property
    def strides(self) -> Mapping[str, int]:
        """Pixels of the image between neighbours in each map of a feature pyramid, by output."""

    @property
    def selections(self) -> tuple[str, ...]:
        """The outputs that are sets of whole numbers."""

    @property
    def float32_modules(self) -> Sequence[str]:
        """The modules that stay in FP32."""

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Its outputs by name, those of the batches one after another; ExportError where it fails."""

    def first_batch(self, inputs: Inputs) -> Inputs:
        """Of `inputs` those that one call takes."""

    def prepare_half(self, inputs: Inputs) -> None:
        """Move values into the range of FP16 where the network knows how; its function stays the same."""

    def in_double(self) -> Any:
        """The same network in float64; None where there is no such form."""


def require_finite(network: Network, outputs: Mapping[str, Array]) -> None:
    """ExportError for a reference that is no number: nothing can be held against it."""
    for name, array in outputs.items():
        broken = sum(not np.isfinite(part).all() for part in np.atleast_1d(array))
        if broken:
            raise ExportError(
                f"{network.original} itself returns NaN or Inf in {name}",
                why=f"it does for {broken} of {array.shape[0] if array.ndim else 1} reference inputs",
                fix="check the checkpoint, and what forward divides by",
            )

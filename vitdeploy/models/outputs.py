"""The outputs of a bundle: the logits, the tokens that the network selected for them, or the feature pyramid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

LOGITS = "logits"
SELECTION = "selection"


@dataclass(frozen=True)
class Outputs:
    """How to call a module for the tensors that are exported.

    call     (module, images [N, 3, H, W]) -> the tensors, batch first
    names    one for each tensor; empty where the number of tensors is only known after a run
    strides  pixels of the image between neighbours in each map of a feature pyramid
    """

    call: Callable[[Any, Tensor], tuple[Tensor, ...]]
    names: tuple[str, ...] = ()
    strides: tuple[int, ...] = ()

    def named(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The tensors of one call by name; further outputs of a user's module are numbered."""
        names = self.names or (LOGITS, *(f"output{i}" for i in range(1, len(tensors))))
        return dict(zip(names, tensors, strict=True))


def choose_outputs(model: nn.Module, *, features: bool) -> Outputs:
    """The feature pyramid with `features`, otherwise what `forward` returns.

    A network that selects tokens (`select` and `encode`) returns the selection too, so that a comparison can tell
    a runtime that selected other tokens of nearly equal score from one that computes wrongly.
    """
    if features:
        if not hasattr(model, "forward_features") or not hasattr(model, "feature_strides"):
            raise UsageError(
                f"{type(model).__name__} has no feature pyramid",
                why="it lacks forward_features or feature_strides",
                fix="leave --features out",
            )
        strides = tuple(int(stride) for stride in model.feature_strides)  # type: ignore[union-attr]
        return Outputs(_features, tuple(f"stride{stride}" for stride in strides), strides)
    if hasattr(model, "select") and hasattr(model, "encode"):
        return Outputs(_selected, (LOGITS, SELECTION))
    return Outputs(_forward)


def _features(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    return tuple(model.forward_features(images))


def _selected(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    index = model.select(images)
    return model.encode(images, index), index


def _forward(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    result = model(images)
    if isinstance(result, Mapping):
        return tuple(result.values())
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)

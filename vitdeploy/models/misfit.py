"""Whether a state dict fits a network, and if not, what is wrong and which network it would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitdeploy.models.registry import build, cards


@dataclass(frozen=True)
class Misfit:
    """Why a state dict does not fit a network; `reshaped` maps a key to its tensor in the network and in the file."""

    reshaped: Mapping[str, tuple[Tensor, Tensor]]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        problems = [
            f"{key} is {_form(own)} in the network and {_form(given)} in the file"
            for key, (own, given) in self.reshaped.items()
        ]
        problems += [f"{key} is missing from the file" for key in self.missing]
        problems += [f"{key} is not part of the network" for key in self.unexpected]
        more = len(problems) - 1
        return problems[0] + (f"; {more} more keys do not fit" if more else "")

    @property
    def class_count(self) -> int | None:
        """The number of classes in the file where nothing else differs.

        That is so where all reshaped tensors differ in their first length only, in the same way, and one is a bias.
        """
        pairs = self.reshaped.values()
        heads = all(
            own.shape != given.shape and own.shape[1:] == given.shape[1:] and given.is_floating_point()
            for own, given in pairs
        )
        counts = {(own.shape[:1], given.shape[:1]) for own, given in pairs}
        bias = any(own.ndim == 1 for own, _ in pairs)
        if self.missing or self.unexpected or not (heads and bias and len(counts) == 1):
            return None
        return int(counts.pop()[1][0])

    @property
    def positions_only(self) -> bool:
        """Whether only tables of positions have another shape."""
        return not self.missing and not self.unexpected and all("pos" in key for key in self.reshaped)


def adapt(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in the layout of the module, converted by its `adapt_state_dict` where it has one."""
    own_adapt = getattr(model, "adapt_state_dict", None)
    if own_adapt is None:
        return dict(state)
    try:
        adapted: dict[str, Tensor] = own_adapt(dict(state))
    except (IndexError, KeyError, RuntimeError, ValueError):
        # Tensors of shapes that the official layout does not have: left as they are for `find_misfit` to name.
        return dict(state)
    return adapted


def find_misfit(model: nn.Module, state: Mapping[str, Tensor]) -> Misfit | None:
    """The keys and shapes of `state` that do not fit `model`; None where all fit.

    BatchNorm's `num_batches_tracked`, which no output depends on, may be missing.
    """
    own = model.state_dict()
    misfit = Misfit(
        reshaped={key: (own[key], state[key]) for key in own if key in state and not _alike(own[key], state[key])},
        missing=[key for key in own if key not in state and not key.endswith("num_batches_tracked")],
        unexpected=[key for key in state if key not in own],
    )
    return misfit if misfit.reshaped or misfit.missing or misfit.unexpected else None


def likely_model(state: Mapping[str, Tensor]) -> str | None:
    """The network of the zoo that `state` fits, as one types it: its name, with --num-classes where that differs.

    The networks are built without memory for their weights, so that trying all of them takes a second or two.
    """
    shapes = {key: tensor.to("meta") for key, tensor in state.items()}
    for card in cards().values():
        with torch.device("meta"):
            model = build(card)
            misfit = find_misfit(model, adapt(model, shapes))
        if misfit is None:
            return card.name
        if misfit.class_count:
            return f"{card.name} --num-classes {misfit.class_count}"
    return None


def _alike(own: Tensor, given: Tensor) -> bool:
    return own.shape == given.shape and own.is_floating_point() == given.is_floating_point()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

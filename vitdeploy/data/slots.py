"""The inputs of a network as DATA fills them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vitdeploy.errors import InputError


class Slot(NamedTuple):
    """One input of a network.

    shape  of a single sample, without the batch in front; an axis that may have any length has a name
    dtype  a name of numpy
    image  whether preprocessing makes it out of an image
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    image: bool

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [N, {', '.join(map(str, self.shape))}]"


def takes_images_alone(slots: Sequence[Slot]) -> bool:
    """Whether DATA of images is all that a network takes."""
    return len(slots) == 1 and slots[0].image


def only_arrays_fit(where: str, slots: Sequence[Slot]) -> InputError:
    """The error for DATA of images where a network takes other or more inputs."""
    return InputError(
        f"{where} cannot feed the network",
        why=f"it has images alone, and the inputs are {', '.join(map(str, slots))}",
        fix="an .npz with an array for each input, by its name, with the samples along the first axis",
    )

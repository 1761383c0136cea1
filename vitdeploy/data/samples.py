"""What a container of images has, before it becomes a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Samples(NamedTuple):
    """Images in a fixed order, and what is known of their classes.

    where    the container in messages
    names    of the images
    read     the bytes of one
    kinds    the class of each by name, or None
    numbers  the class of each by number, or None
    classes  names of the classes by number, or None
    """

    where: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    kinds: Sequence[str] | None = None
    numbers: Sequence[int] | None = None
    classes: tuple[str, ...] | None = None

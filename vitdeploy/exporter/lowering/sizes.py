"""Sizes that have to be known: forms that write them into constants leave an operator alone where one is free."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch


class FreeSizeError(Exception):
    """A size that is only known when the network runs."""


def fixed(size: Any) -> int:
    """`size` as a number; raises FreeSizeError for a free one."""
    if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None:
        raise FreeSizeError
    return int(size)


def where_fixed(table: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """The same decompositions, each of which leaves the operator to the exporter where a size is free."""

    def guarded(form: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(form)
        def decomposition(*args: Any, **kwargs: Any) -> Any:
            try:
                return form(*args, **kwargs)
            except FreeSizeError:
                return NotImplemented

        return decomposition

    return {operator: guarded(form) for operator, form in table.items()}

"""What a row of any_model.py is, and what its maker makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn


@dataclass(frozen=True)
class Made:
    """A network as an export takes it.

    source     the first argument of `vitdeploy.export`
    options    further arguments of it
    outputs    what the original makes of images float32 [n, C, H, W], by output name: in float64 where `exact`
    naive      the module for `torch.onnx.export`; None where there is nothing to compare with
    half       what the original itself makes of them in FP16, where it can
    """

    source: str
    options: Mapping[str, Any]
    outputs: Callable[[np.ndarray, bool], dict[str, np.ndarray]]
    naive: nn.Module | None = None
    half: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None


@dataclass(frozen=True)
class Network:
    """A row of the table.

    name       as it is shown; with `--only`
    make       from the row and an empty folder
    size       pixels on a side of its images
    arguments  of its constructor
    """

    name: str
    make: Callable[[Network, Path], Made]
    size: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

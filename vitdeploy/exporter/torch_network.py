"""The user's module as an export runs it: the one place where PyTorch computes outputs.

A forward may write into its input, and may keep tensors from one call for the next. So it gets copies, its outputs are
copied, and gradients are off by `no_grad`: what a module keeps from a call in inference mode could not be changed in
place when it is captured later.
"""

from __future__ import annotations

import copy
import logging
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitdeploy.errors import ExportError, VitDeployError
from vitdeploy.models import outputs as calls
from vitdeploy.models.outputs import Outputs

Array = NDArray[Any]

log = logging.getLogger(__name__)

# What stands between the user's code and an operator in every stack.
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), calls.__file__)


@dataclass(frozen=True)
class TorchNetwork:
    """A module in eval mode and how it is called.

    name     for messages
    outputs  which of its outputs are exported
    batch    images a call; None where that is left open
    """

    module: nn.Module
    name: str
    outputs: Outputs
    batch: int | None = None

    def run(self, images: Array) -> dict[str, Array]:
        """Its outputs for `images` [n, 3, H, W] by name, those of the batches one after another.

        Raises ExportError where forward fails.
        """
        step = self.batch or len(images)
        parts = [self._call(torch.tensor(images[start : start + step])) for start in range(0, len(images), step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def first_batch(self, images: Array) -> Array:
        """Of `images` those that one call takes."""
        return images[: self.batch or len(images)]

    def prepare_half(self, images: Array) -> None:
        """Let a network that knows how to do it move its values into the range of FP16; its function stays the same."""
        prepare = getattr(self.module, "prepare_fp16", None)
        if callable(prepare):
            with torch.no_grad():
                prepare(torch.tensor(self.first_batch(images)))

    def in_double(self) -> TorchNetwork | None:
        """A copy that computes in float64; None for a module that cannot be copied."""
        try:
            return TorchNetwork(copy.deepcopy(self.module).double(), self.name, self.outputs, self.batch)
        except Exception:  # whatever keeps a module from being copied says nothing about the network
            log.debug("%s has no copy in float64", self.name, exc_info=True)
            return None

    def _call(self, images: Tensor) -> dict[str, Array]:
        try:
            with torch.no_grad():
                tensors = self.outputs.call(self.module, images)
        except (VitDeployError, MemoryError):
            raise
        except Exception as error:
            raise ExportError(
                f"{self.name} fails in PyTorch on images {list(images.shape)}",
                why=f"{type(error).__name__}{place(traceback.extract_tb(error.__traceback__))}: {_first_line(error)}",
                fix=("--batch 1, or " if self.batch is None else "")
                + "call the module in Python on float32 images of this shape, and repair what fails",
            ) from error
        return {name: tensor.detach().clone().numpy() for name, tensor in self.outputs.named(tensors).items()}


def place(stack: traceback.StackSummary) -> str:
    """Where in the user's own code a stack is, as ` at FILE:LINE`; empty where it passes through none."""
    own = [frame for frame in stack if not frame.filename.startswith((*_NOT_THE_USERS, "<"))]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")

"""The user's module as an export runs it: the one place where PyTorch computes outputs.

A forward may write into its input, and may keep tensors from one call for the next. So it gets copies, its outputs are
copied, and gradients are off by `no_grad`: what a module keeps from a call in inference mode could not be changed in
place when it is captured later.
"""

from __future__ import annotations

import copy
import logging
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitdeploy.errors import ExportError, VitDeployError
from vitdeploy.graph.run import Inputs, joined, rows, samples_in
from vitdeploy.models import outputs as calls
from vitdeploy.models.outputs import LOGITS, Outputs
from vitdeploy.progress import each

Array = NDArray[Any]

log = logging.getLogger(__name__)

# What stands between the user's code and an operator in every stack.
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), calls.__file__)


@dataclass(frozen=True)
class TorchNetwork:
    """A module in eval mode and how it is called.

    name     for messages
    outputs  which of its outputs are exported
    batch    samples a call; None where that is left open
    free     the names of free axes behind the batch, by input
    double   it is in float64. On AVX2 the fused attention of PyTorch 2.13 misreads a mask that forward makes in
             float32, so attention is computed by its formula
    """

    module: nn.Module
    name: str
    outputs: Outputs
    batch: int | None = None
    free: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    double: bool = False

    original: ClassVar[str] = "PyTorch"
    scores: ClassVar[str] = LOGITS

    @property
    def strides(self) -> Mapping[str, int]:
        """Pixels of the image between neighbours in each map of a feature pyramid, by output."""
        return self.outputs.strides

    @property
    def selections(self) -> tuple[str, ...]:
        """The outputs that are sets of whole numbers."""
        return self.outputs.selections

    @property
    def float32_modules(self) -> Sequence[str]:
        """The modules that the network declares to stay in FP32."""
        return tuple(getattr(self.module, "float32_modules", ()))

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Its outputs by name for inputs by name, those of the batches one after another.

        Raises ExportError where forward fails.
        """
        count = samples_in(inputs)
        step = self.batch or count
        starts = each("computing outputs", range(0, count, step))
        parts = [self._call(rows(inputs, start, start + step)) for start in starts]
        return {name: joined([part[name] for part in parts], several=self.batch is not None) for name in parts[0]}

    def first_batch(self, inputs: Inputs) -> Inputs:
        """Of `inputs` those that one call takes."""
        return rows(inputs, 0, self.batch or samples_in(inputs))

    def prepare_half(self, inputs: Inputs) -> None:
        """Let a network that knows how to do it move its values into the range of FP16; its function stays the same."""
        prepare = getattr(self.module, "prepare_fp16", None)
        if callable(prepare):
            with torch.no_grad():
                prepare(*map(torch.tensor, self.first_batch(inputs).values()))

    def in_double(self) -> TorchNetwork | None:
        """A copy that computes in float64; None for a module that cannot be copied."""
        try:
            return replace(self, module=copy.deepcopy(self.module).double(), double=True)
        except Exception:  # whatever keeps a module from being copied says nothing about the network
            log.debug("%s has no copy in float64", self.name, exc_info=True)
            return None

    def _call(self, inputs: Inputs) -> dict[str, Array]:
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH) if self.double else nullcontext():
                tensors = self.outputs.call(self.module, {name: torch.tensor(array) for name, array in inputs.items()})
        except (VitDeployError, MemoryError):
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExportError(
                f"{self.name} fails in PyTorch on {shapes}",
                why=f"{type(error).__name__}{place(traceback.extract_tb(error.__traceback__))}: {_first_line(error)}",
                fix=("--batch 1, or " if self.batch is None else "")
                + "call the module in Python on inputs of these shapes, and repair what fails",
            ) from error
        return {name: _array(tensor) for name, tensor in tensors.items()}


def _array(tensor: Tensor) -> Array:
    """A copy; what is computed in FP16 or BF16 on the way out is no less exact in FP32."""
    copied = tensor.detach().clone()
    return (copied.float() if copied.dtype in (torch.float16, torch.bfloat16) else copied).numpy()


def place(stack: traceback.StackSummary) -> str:
    """Where in the user's own code a stack is, as ` at FILE:LINE`; empty where it passes through none."""
    own = own_frames(stack)
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def own_frames(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The frames of a stack that are in the user's own code, the innermost last."""
    frames = list(stack)
    # What called vitdeploy is not what vitdeploy calls.
    ours = [index for index, frame in enumerate(frames) if frame.filename.startswith(_NOT_THE_USERS)]
    inside = frames[ours[0] :] if ours else frames
    return [frame for frame in inside if _is_the_users(frame.filename)]


def _is_the_users(filename: str) -> bool:
    standard = filename.startswith(_STANDARD_LIBRARY) and "site-packages" not in filename
    return not standard and not filename.startswith((*_NOT_THE_USERS, "<"))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")

"""What the modules of a network take and give while it runs.

The hooks are those of every module in the process, not of the network's own: modules that it keeps in a plain list are
called as well, and are those that `eval()` did not reach.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

SAMPLES = 4096  # numbers of a tensor that a trace keeps, evenly spaced

Array = NDArray[Any]


@dataclass(frozen=True)
class Event:
    """A module is about to run, with its positional inputs, or has run, with its outputs.

    caller  the module whose forward calls it; None for the outermost
    """

    module: nn.Module
    enters: bool
    caller: nn.Module | None
    tensors: tuple[Tensor, ...]


@contextlib.contextmanager
def watching(visit: Callable[[Event], None]) -> Iterator[list[nn.Module]]:
    """Call `visit` for every module that this thread runs meanwhile.

    Gives the modules that run at the moment, the outermost first.
    """
    running: list[nn.Module] = []
    thread = threading.get_ident()

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            visit(Event(module, True, running[-1] if running else None, tensors_in(args)))
            running.append(module)

    def leave(module: nn.Module, args: Any, outputs: Any) -> None:
        if threading.get_ident() == thread:
            running.pop()
            visit(Event(module, False, running[-1] if running else None, tensors_in(outputs)))

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(value: Any) -> tuple[Tensor, ...]:
    """The tensors of nested sequences, mappings and dataclasses, in their order."""
    if isinstance(value, Tensor):
        return (value,)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return tuple(tensor for part in parts for tensor in tensors_in(part))


def module_names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every dotted path of every registered module; a module may have several, the network itself has the empty one."""
    names: dict[nn.Module, tuple[str, ...]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), path)
    return names


class Labels:
    """How messages name the modules of a network."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._names = model, module_names(model)

    def __call__(self, module: nn.Module | None) -> str:
        """The path and the class; None stands for the code of the network itself."""
        if module is None or module is self._model:
            return f"{type(self._model).__name__}.forward"
        kind = type(module).__name__
        names = self._names.get(module)
        return f"{names[0]} ({kind})" if names else f"a {kind} that is no registered submodule"


@dataclass(frozen=True)
class Step:
    """An event as a trace keeps it: labels instead of modules, and numbers of the tensors."""

    module: str
    enters: bool
    caller: str
    samples: tuple[Array, ...]


@contextlib.contextmanager
def tracing(model: nn.Module) -> Iterator[list[Step]]:
    """Gives the list to which the steps of what runs meanwhile are added."""
    steps: list[Step] = []
    labels = Labels(model)

    def keep(event: Event) -> None:
        samples = tuple(_sampled(tensor) for tensor in event.tensors)
        steps.append(Step(labels(event.module), event.enters, labels(event.caller), samples))

    with watching(keep):
        yield steps


def first_difference(expected: Sequence[Step], found: Sequence[Step], tolerance: float) -> str | None:
    """The label of the first module whose own code, not that of its submodules, differs in the second trace.

    What a module is given is made by its caller. None where all tensors agree to `tolerance` of their largest value.
    """
    for old, new in zip(expected, found, strict=False):
        if (old.module, old.enters) != (new.module, new.enters):
            return old.caller if old.enters else old.module
        pairs = zip(old.samples, new.samples, strict=False)
        if len(old.samples) != len(new.samples) or any(relative_error(*pair) > tolerance for pair in pairs):
            return old.caller if old.enters else old.module
    return None


def relative_error(expected: Array, found: Array) -> float:
    """The largest difference over the largest magnitude of `expected`.

    Infinite where the shapes differ, or what is NaN or infinite.
    """
    if expected.shape != found.shape:
        return np.inf
    old, new = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) or not np.isfinite(new[finite]).all():
        return np.inf
    error, largest = np.abs(new[finite] - old[finite]).max(initial=0.0), np.abs(old[finite]).max(initial=0.0)
    return float(error / largest) if largest else np.inf if error else 0.0


def _sampled(tensor: Tensor) -> Array:
    flat = tensor.detach().flatten()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    # An odd stride visits all channels of a tensor whose channels are even in number.
    kept: Array = flat[:: len(flat) // SAMPLES | 1].double().numpy().copy()
    return kept

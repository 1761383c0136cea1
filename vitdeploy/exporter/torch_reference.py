"""What PyTorch makes of the reference images, and whether it makes the same of them every time.

No graph can reproduce a network that draws random numbers or remembers its last call. That is found here, in seconds,
and named, before the graph is captured and its precision blamed.
"""

from __future__ import annotations

import logging
import pickle
import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from vitdeploy.errors import ExportError
from vitdeploy.exporter.module_calls import Event, Labels, first_difference, relative_error, tracing, watching
from vitdeploy.exporter.network import require_finite
from vitdeploy.exporter.torch_network import TorchNetwork, place
from vitdeploy.graph.run import Inputs, rows, samples_in

Array = NDArray[Any]

log = logging.getLogger("vitdeploy.export")

SAME = 1e-5  # a tenth of what FP32 may lose; sums in another order differ by less
ATTEMPTS = 16  # calls of a network that draws random numbers: what happens rarely shows in one of them
ALONE = 1e-3  # rounding in batches of another size is far below, the statistics of other images are above

_GENERATORS: Mapping[str, Callable[[], object]] = {
    "torch": lambda: torch.get_rng_state().numpy().tobytes(),
    "numpy": lambda: pickle.dumps(np.random.get_state(legacy=False)),
    "random": random.getstate,
}


def reference_outputs(network: TorchNetwork, inputs: Inputs) -> dict[str, Array]:
    """What `network` makes of `inputs`, by output name: what everything later is compared with.

    Raises ExportError for a network that fails, that returns NaN or infinities, that normalises by the statistics of
    the batch in eval mode, or whose outputs for the same images are not the same twice.
    """
    before = _generators()
    outputs = _first_run(network, inputs)
    drawn = [name for name, state in _generators().items() if state != before[name]]
    require_finite(network, outputs)
    for _ in range(ATTEMPTS - 1 if drawn else 1):
        differing = _differing(outputs, network.run(inputs), SAME)
        if differing:
            raise _unrepeatable(network, inputs, differing, drawn)
    _refuse_a_fixed_seed(network, rows(inputs, 0, network.batch or 1))
    if network.batch is None and samples_in(inputs) > 1:
        _note_dependence(network, inputs, outputs)
    return outputs


def random_draws(network: TorchNetwork, inputs: Inputs) -> tuple[list[Draw], dict[str, Array]]:
    """Where one call of the network draws random numbers, and its outputs where each draw has another seed."""
    with watching(lambda event: None) as running:
        draws = _Draws(running, Labels(network.module))
        with draws:
            outputs = network.run(inputs)
    return draws.found, outputs


@dataclass(frozen=True)
class Draw:
    """An operator that draws random numbers.

    module    whose forward calls it
    training  whether that module is in training mode
    place     in the user's code, as ` at FILE:LINE`, or empty
    """

    operator: str
    module: str
    training: bool
    place: str

    def __str__(self) -> str:
        return f"{self.operator} draws random numbers in {self.module}{self.place}"


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the operators that draw random numbers, and lets them draw others than the network's own seed gives."""

    def __init__(self, running: Sequence[nn.Module], labels: Labels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Draw] = []
        self._running, self._labels = running, labels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        own = kwargs.get("generator")
        if own is not None:
            kwargs = {**kwargs, "generator": torch.default_generator}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(self.found) + 1)
            before = torch.get_rng_state()
            result = func(*args, **kwargs)
            drew = own is not None or not torch.equal(before, torch.get_rng_state())
        if drew:
            module = self._running[-1] if self._running else None
            name, where = func.overloadpacket.__name__.strip("_"), place(traceback.extract_stack())
            self.found.append(Draw(name, self._labels(module), module is not None and module.training, where))
        return result


def _generators() -> dict[str, object]:
    return {name: state() for name, state in _GENERATORS.items()}


def _first_run(network: TorchNetwork, inputs: Inputs) -> dict[str, Array]:
    """The outputs; ExportError where a batch normalisation runs in training mode."""
    training: list[nn.Module] = []

    def look(event: Event) -> None:
        module = event.module
        if event.enters and isinstance(module, _BatchNorm) and module.training and module.running_mean is not None:
            training.append(module)

    with watching(look):
        outputs = network.run(inputs)
    if training:
        module = Labels(network.module)(training[0])
        raise ExportError(
            f"{module} of {network.name} is in training mode",
            why="it normalises by the statistics of the batch, so that the answer for an image depends on the others",
            fix=_REACH.format(module),
        )
    return outputs


_REACH = "let model.eval() reach {}: keep modules in nn.ModuleList, not in a list, and call no .train() in forward"


def _differing(expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: float) -> tuple[str, float] | None:
    """The output that differs most, and by how much of its largest value; None where none does by more than allowed."""
    errors = {
        name: relative_error(array, found[name])
        for name, array in expected.items()
        if not np.array_equal(array, found[name])
    }
    bounds = {name: tolerance if np.issubdtype(expected[name].dtype, np.inexact) else 0.0 for name in errors}
    worst = max(errors, default=None, key=lambda name: errors[name] - bounds[name])
    return (worst, errors[worst]) if worst is not None and errors[worst] > bounds[worst] else None


def _unrepeatable(network: TorchNetwork, inputs: Inputs, differing: tuple[str, float], drawn: list[str]) -> ExportError:
    """What to say of a network whose outputs differ from call to call, with what can be found out about the cause."""
    facts, fix = [], "let forward depend on nothing but its input and its weights"
    try:
        part = network.first_batch(inputs)
        (draws, _), module, changed = random_draws(network, part), _first_module(network, part), _changed(network, part)
    except Exception:  # the network ran before, and what fails while it is watched must not hide what was found
        log.debug("looking for the cause failed", exc_info=True)
        module, changed, draws = None, [], []
    if module:
        facts.append(f"{module} is the first whose result differs while what it is given does not")
    if changed:
        facts.append(f"every call changes {', '.join(changed[:3])}")
        fix = f"change {changed[0]} in training mode only, where self.training is set"
    if draws:
        facts.append(str(draws[0]))
        trained = next((draw.module for draw in draws if draw.training), None)
        fix = _REACH.format(trained) if trained else _DROPOUT
    elif drawn:
        facts.append(f"it draws from the random numbers of {' and '.join(drawn)}")
        fix = _DROPOUT
    name, error = differing
    return ExportError(
        f"{network.name} answers the same inputs differently: "
        f"{name} changes by {error:.1e} of its largest value from call to call",
        why="; ".join(facts) or None,
        fix=fix,
    )


_DROPOUT = (
    "pass training=self.training to dropout, and leave other sampling out of forward; "
    "a fixed seed does not help, for a graph has no such generator"
)


def _refuse_a_fixed_seed(network: TorchNetwork, inputs: Inputs) -> None:
    """Raise ExportError where outputs come from random numbers that are the same in every call."""
    try:
        draws, outputs = random_draws(network, inputs)
    except ExportError:  # such as a batch of one, of which the capture says more
        return
    if draws and (differing := _differing(network.run(inputs), outputs, SAME)):
        raise ExportError(
            f"{network.name} computes {differing[0]} from random numbers with a fixed seed",
            why=str(draws[0]),
            fix=_DROPOUT,
        )


def _first_module(network: TorchNetwork, inputs: Inputs) -> str | None:
    """The first module that differs between two calls."""
    with tracing(network.module) as expected:
        network.run(inputs)
    for _ in range(ATTEMPTS):
        with tracing(network.module) as found:
            network.run(inputs)
        if module := first_difference(expected, found, SAME):
            return module
    return None


def _changed(network: TorchNetwork, inputs: Inputs) -> list[str]:
    """The buffers and parameters that a call changes."""

    def state() -> dict[str, Tensor]:
        return {**dict(network.module.named_parameters()), **dict(network.module.named_buffers())}

    before = {name: tensor.detach().clone() for name, tensor in state().items()}
    network.run(inputs)
    return [name for name, tensor in state().items() if name not in before or not torch.equal(before[name], tensor)]


def _note_dependence(network: TorchNetwork, inputs: Inputs, outputs: Mapping[str, Array]) -> None:
    """Warn of a network whose answer for a sample depends on the others in its batch."""
    try:
        alone = network.run(rows(inputs, 0, 1))
    except ExportError:
        return  # the capture says why a batch of one is not taken
    floats = {
        name: array[:1] for name, array in outputs.items() if array.ndim and np.issubdtype(array.dtype, np.inexact)
    }
    if differing := _differing(floats, alone, ALONE):
        log.warning(
            "the answer of %s for one input depends on the others in its batch: "
            "%s changes by %.1e of its largest value",
            network.name,
            *differing,
        )

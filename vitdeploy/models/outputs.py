"""How a module is called, and which tensors of what it returns become the outputs of a bundle, by which names.

A module may declare two things. `forward_for_export`, which is then called in the place of `forward` with the same
arguments. `selection_outputs`, the names of outputs that are sets of whole numbers, such as tokens: where a runtime
selects others of nearly equal score, what follows from them is another function and no numerical error.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import ExportError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGES = "images"
LOGITS = "logits"


@dataclass(frozen=True)
class Outputs:
    """How to call a module for the tensors that are exported.

    call        (module, inputs by name, each with the batch first) -> the tensors by the name of the output
    strides     pixels of the image between neighbours in each map of a feature pyramid, by the name of the output
    selections  the outputs that are sets of whole numbers
    """

    call: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    strides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    selections: tuple[str, ...] = ()


def choose_outputs(model: nn.Module, *, features: bool) -> Outputs:
    """The feature pyramid with `features`, otherwise what the module returns, see `named`."""
    if not features:
        return Outputs(call_forward, selections=tuple(getattr(model, "selection_outputs", ())))
    if not hasattr(model, "forward_features") or not hasattr(model, "feature_strides"):
        raise UsageError(
            f"{type(model).__name__} has no feature pyramid",
            why="it lacks forward_features or feature_strides",
            fix="leave --features out",
        )
    strides = [int(stride) for stride in model.feature_strides]  # type: ignore[union-attr]
    return Outputs(_features, {f"stride{stride}": stride for stride in strides})


def parameters_of(model: nn.Module) -> list[str]:
    """The names of the arguments that the module takes, in their order; without `*args` and `**kwargs`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_ONLY)
    taken = inspect.signature(entry_of(model)).parameters.values()
    return [parameter.name for parameter in taken if parameter.kind in kinds]


def call_forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a module: the inputs go to the arguments of their names, or, without such, by their order."""
    forward = model if entry_of(model) == model.forward else entry_of(model)
    if not inputs.keys() <= set(parameters_of(model)):
        return named(forward(*inputs.values()))
    bound = inspect.signature(entry_of(model)).bind(**inputs)  # hooks of modules see what comes by position only
    return named(forward(*bound.args, **bound.kwargs))


def named(result: Any) -> dict[str, Tensor]:
    """The tensors of what a forward returned, by name.

    A tensor alone is `logits`. In a mapping, a dataclass or a named tuple each has the name that it has there; in a
    list or a tuple the first is `logits`, and the others are `output1`, `output2` and so on. Names of nested ones are
    joined by a dot. None is left out, and a number becomes a tensor without axes. Raises ExportError for anything else.
    """
    import torch

    found: dict[str, Tensor] = {}
    for path, leaf in _leaves(result, ()):
        name = ".".join(path) or LOGITS
        if isinstance(leaf, (bool, int, float)):
            leaf = torch.tensor(leaf)
        if not isinstance(leaf, torch.Tensor):
            where = f" as {name}" if path else ""
            raise ExportError(
                f"forward returns a {type(leaf).__name__}{where}",
                why="a graph computes tensors",
                fix="return tensors, in lists, tuples, mappings or dataclasses where there are several",
            )
        if name == IMAGES or name in found:
            name += ".output"
        found[name] = leaf
    if not found:
        raise ExportError("forward returns no tensor", fix="return what the network computes")
    return found


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if value is None:
        return
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        parts = [(str(index), part) for index, part in enumerate(value)]
        if not path:
            parts = [(f"output{key}" if _nested(part) or key != "0" else LOGITS, part) for key, part in parts]
    else:
        yield path, value
        return
    for key, part in parts:
        yield from _leaves(part, (*path, key))


def _nested(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) or dataclasses.is_dataclass(value)


def entry_of(model: Any) -> Callable[..., Any]:
    """What is called: `forward_for_export` where the module declares it."""
    declared = getattr(model, "forward_for_export", None)
    return declared if callable(declared) else model.forward  # type: ignore[no-any-return]


def _features(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    (images,) = inputs.values()
    return {
        f"stride{stride}": one
        for stride, one in zip(model.feature_strides, model.forward_features(images), strict=True)
    }

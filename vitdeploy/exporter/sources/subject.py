"""What an export starts from, wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.exporter.inputs import InputSpec
from vitdeploy.graph.run import Array
from vitdeploy.models.outputs import parameters_of
from vitdeploy.models.registry import ModelCard

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.exporter.onnx_import.read import OnnxFile


@dataclass(frozen=True)
class Subject:
    """A network and what is known of it.

    model     a module in eval mode, or the graph of a file; all floats in FP32
    inputs    in the order in which they are given to forward
    examples  inputs by name that it is known to take, each with the batch in front; empty without any
    notes     what had to be assumed or changed, in words
    """

    model: nn.Module | OnnxFile
    card: ModelCard
    inputs: tuple[InputSpec, ...]
    examples: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """The inputs that are images."""
        return tuple(spec.name for spec in self.inputs if spec.image)


def card_of(module: nn.Module, name: str, **facts: Any) -> ModelCard:
    """The card of a network that is not of the zoo: what the module tells, and `facts`, the other fields of a card."""
    return ModelCard(
        name=name,
        network=f"{type(module).__module__}:{type(module).__qualname__}",
        hyperparameters={},
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        **facts,
    )


def name_examples(model: nn.Module, examples: Any) -> dict[str, Array]:
    """Example inputs by name: a tensor, several in the order of the arguments of forward, or a mapping.

    What is in half precision becomes float32. Raises UsageError for anything else.
    """
    if isinstance(examples, Mapping):
        given = {str(name): value for name, value in examples.items()}
    else:
        values = list(examples) if isinstance(examples, Sequence) else [examples]
        names = parameters_of(model)
        names += [f"input{index}" for index in range(len(names), len(values))]
        given = dict(zip(names, values, strict=False))
    arrays = {name: _array(name, value) for name, value in given.items()}
    if not arrays:
        raise UsageError("the example inputs are empty", fix="return (module, (tensor, …)), or the module alone")
    return arrays


def _array(name: str, value: Any) -> Array:
    import torch

    array = value.detach().cpu() if isinstance(value, torch.Tensor) else value
    if isinstance(array, torch.Tensor):
        array = (array.float() if array.is_floating_point() else array).numpy()
    if not isinstance(array, np.ndarray):
        raise UsageError(
            f"the example for the input {name} is a {type(value).__name__}",
            fix="tensors: return (module, (tensor, …)), or (module, {'name': tensor})",
        )
    return array.astype(np.float32) if array.dtype.kind == "f" else array

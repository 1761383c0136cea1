"""A module in memory, whoever made it, or a program that torch.export captured before."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vitdeploy.errors import UsageError
from vitdeploy.exporter.inputs import Array, InputSpec, check_size, freed, image_inputs, sized, specs_of, with_images
from vitdeploy.exporter.sources.subject import Subject, card_of, name_examples
from vitdeploy.models.outputs import entry_of, parameters_of
from vitdeploy.models.registry import ModelCard, Weights, as_image_size
from vitdeploy.preprocess import Preprocessing

_HALVES = (torch.float16, torch.bfloat16)


def unwrap(made: Any, where: str) -> tuple[nn.Module, Any]:
    """The module in `made`, which may be `(module, example_inputs)`, and the example inputs, None without any.

    A compiled module gives the one that was compiled, and an exported program one that runs it. Raises UsageError for
    TorchScript, and for what is no module.
    """
    module, examples = made, None
    if isinstance(made, tuple) and len(made) == 2:
        module, examples = made
    if isinstance(module, torch.export.ExportedProgram):
        given, named = module.example_inputs or ((), {})
        examples = {**name_positional(module, given), **named} if examples is None else examples
        module = _settled(module.module())
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise UsageError(
            f"{where} is TorchScript",
            why="PyTorch has given it up, and no graph can be captured from it any more",
            fix="the module that was scripted or traced: file.py:function that makes it and loads its weights",
        )
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise UsageError(
            f"{where} is a {kind}, not a torch module", fix="a torch.nn.Module, or (module, example_inputs)"
        )
    return module, examples


def _settled(module: nn.Module) -> nn.Module:
    """The module of a program, which has only the mode that it was captured in, and refuses to be asked for one."""
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    module.eval = lambda: module  # type: ignore[method-assign]
    return module


def name_positional(program: torch.export.ExportedProgram, given: Sequence[Any]) -> dict[str, Any]:
    """The positional inputs of a program by the names that its forward had for them."""
    names = list(program.graph_signature.user_inputs)
    return dict(zip(map(str, names), given, strict=False))


def describe_live(
    made: Any,
    where: str,
    *,
    image_size: int | tuple[int, int] | None,
    inputs: Sequence[InputSpec] | None,
    channels: int,
    reference: Mapping[str, Array],
) -> Subject:
    """A module of the user's own.

    inputs     as they were asked for; None to take them from the example inputs, or images of `image_size`
    channels   of these images
    reference  values that were given for the inputs, which say the lengths of free axes
    """
    module, given = unwrap(made, where)
    module, notes = in_single(module.eval())
    examples = {} if given is None else name_examples(module, given)
    known = getattr(module, "card", None)
    if isinstance(known, ModelCard):
        if image_size is not None and as_image_size(image_size) != known.image_size:
            raise UsageError(
                f"{known.name} was built for {known.image_size[0]}x{known.image_size[1]} pixels",
                fix="give image_size to create_model",
            )
        card = replace(known, weights=Weights("module", f"live module of {known.name}"))
        specs = freed(image_inputs(card.image_size, 3), inputs or (), card.name)
        return Subject(module, card, specs, notes=notes)
    name = type(module).__name__
    specs = _inputs(name, image_size, inputs, examples, channels, {**examples, **reference})
    check_names(module, name, specs)
    return Subject(module, own_card(module, name, specs), specs, examples, notes)


def in_single(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module with all its floats in FP32: a copy, where some are not."""
    tensors = [*module.parameters(), *module.buffers()]
    others = sorted({str(one.dtype).removeprefix("torch.") for one in tensors if _is_other_float(one)})
    if not others:
        return module, ()
    name = type(module).__name__
    copied = copy.deepcopy(module).float()
    return copied, (f"{name} holds weights in {' and '.join(others)}, the reference is computed in FP32",)


def _is_other_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def check_names(module: nn.Module, name: str, specs: Sequence[InputSpec]) -> None:
    """UsageError where forward cannot be called with these inputs: one is missing, or too many, or called otherwise."""
    names = [spec.name for spec in specs]
    takes = parameters_of(module)
    signature = inspect.signature(entry_of(module))
    by_name = set(names) <= set(takes)
    try:
        signature.bind(**dict.fromkeys(names)) if by_name else signature.bind(*names)
    except TypeError as error:
        raise UsageError(
            f"forward of {name} cannot be called with {', '.join(names)}: {error}",
            why=f"it takes {', '.join(takes) or 'no inputs'}",
            fix="--input NAME=SHAPE[:DTYPE] for each of them, by these names",
        ) from None
    if len(names) > 1 and not by_name and any(one in takes for one in names):
        unknown = next(one for one in names if one not in takes)
        raise UsageError(
            f"forward of {name} has no argument {unknown}",
            why=f"it takes {', '.join(takes)}",
            fix="--input NAME=SHAPE[:DTYPE] for each of them, by these names",
        )


def own_card(module: nn.Module, name: str, specs: Sequence[InputSpec]) -> ModelCard:
    """The card of a network that is not of the zoo."""
    images = next((spec for spec in specs if spec.image), None)
    size = (images.shape[1], images.shape[2]) if images else (1, 1)
    assumed, assumption = assumed_recipe(name, size, images.shape[0] if images else 3)
    return card_of(
        module,
        name,
        family="custom",
        preprocessing=assumed,
        source="user module",
        image_size=size,
        num_classes=0,
        weights=Weights("module", "live module"),
        assumption=assumption if images else "",
    )


def assumed_recipe(name: str, size: tuple[int, int], channels: int) -> tuple[Preprocessing, str]:
    """How images are preprocessed where nothing says it, and that in words."""
    unsaid = f"{name} does not say how its images were preprocessed"
    if channels == 3:
        return Preprocessing(size=size), f"{unsaid}, the way of ImageNet is taken"
    if channels == 1:
        grey = Preprocessing(size=size, channels="L", mean=(0.0,), std=(1.0,))
        return grey, f"{unsaid}, grey pixels are divided by 255"
    mean, std = (0.0,) * channels, (1.0,) * channels
    plain = Preprocessing(size=size, channels="bands", mean=mean, std=std, scale=1.0)
    return plain, f"{unsaid}, the values of the bands are taken as they are"


def _inputs(
    name: str,
    image_size: int | tuple[int, int] | None,
    inputs: Sequence[InputSpec] | None,
    examples: Any,
    channels: int,
    known: Mapping[str, Array],
) -> tuple[InputSpec, ...]:
    if inputs:
        size = None if image_size is None else as_image_size(image_size)
        check_size(inputs, size)
        return with_images(sized(inputs, size, known))
    if image_size is not None:
        return image_inputs(as_image_size(image_size), channels)
    if examples:
        return with_images(specs_of(examples))
    raise UsageError(
        f"{name} does not say which inputs it takes",
        fix="--image-size 224 (or HEIGHTxWIDTH), or --input NAME=SHAPE for each, such as --input images=1x3x224x224",
    )

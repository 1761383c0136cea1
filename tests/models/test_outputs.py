"""What a forward returns, by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import ExportError
from vitdeploy.models.outputs import call_forward, choose_outputs, named, parameters_of

A, B, C = (torch.full((2,), float(value)) for value in range(3))


@dataclass
class Answer:
    scores: Tensor
    boxes: Tensor | None = None


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["logits"]),
        ((A, B), ["logits", "output1"]),
        ([A], ["logits"]),
        ((A, [B, C]), ["logits", "output1.0", "output1.1"]),
        (([A, B], C), ["output0.0", "output0.1", "output1"]),
        ({"scores": A, "hidden": None}, ["scores"]),
        (OrderedDict(logits=A, maps=[B, {"deep": C}]), ["logits", "maps.0", "maps.1.deep"]),
        (Answer(A), ["scores"]),
        (Answer(A, B), ["scores", "boxes"]),
        (Pair(A, B), ["left", "right"]),
        ({"images": A}, ["images.output"]),
        ({"n": 3, "flag": True, "x": A}, ["n", "flag", "x"]),
        ({7: A}, ["7"]),
    ],
)
def test_outputs_have_the_names_that_they_have_in_what_is_returned(result: Any, names: list[str]) -> None:
    assert list(named(result)) == names


def test_a_number_is_a_tensor_without_axes() -> None:
    found = named({"n": 3, "flag": True, "scale": 0.5})
    assert [(one.shape, one.dtype) for one in found.values()] == [
        (torch.Size([]), torch.int64),
        (torch.Size([]), torch.bool),
        (torch.Size([]), torch.float32),
    ]


@pytest.mark.parametrize(("result", "words"), [("text", "returns a str"), (None, "no tensor"), ({"a": b"x"}, "as a")])
def test_what_is_no_tensor_is_refused(result: Any, words: str) -> None:
    with pytest.raises(ExportError) as caught:
        named(result)
    assert words in str(caught.value)


class Sum(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right


def test_inputs_go_to_the_arguments_of_their_names_or_by_their_order() -> None:
    assert parameters_of(Sum()) == ["left", "right"]
    assert torch.equal(call_forward(Sum(), {"right": B, "left": C})["logits"], C - B)
    assert torch.equal(call_forward(Sum(), {"a": B, "b": C})["logits"], B - C)


def test_only_a_declaration_makes_a_selection() -> None:
    class Undeclared(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

        select: Callable[..., Tensor] = staticmethod(torch.topk)
        encode = select

    class Declared(nn.Module):
        selection_outputs = ("kept",)

        def forward(self, images: Tensor) -> Tensor:
            return images

        def forward_for_export(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": images, "kept": images.argsort()[None]}

    assert choose_outputs(Undeclared(), features=False).selections == ()
    assert list(choose_outputs(Undeclared(), features=False).call(Undeclared(), {"images": A})) == ["logits"]
    chosen = choose_outputs(Declared(), features=False)
    assert chosen.selections == ("kept",)
    assert list(chosen.call(Declared(), {"images": A})) == ["logits", "kept"]

"""What any torch module becomes when it is captured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from tests.graph_cases import ops, run
from vitdeploy.errors import ExportError
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.composites import functions


class Small(nn.Module):
    """A module with a parameter called `meta`, a name that torch.fx itself refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.meta = nn.Parameter(torch.randn(1, 4, 8))
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = torch.cat([x, self.meta.expand(x.shape[0], -1, -1)], dim=1)
        out: Tensor = self.head(x).mean(1)
        return out


def test_a_dynamic_batch_runs_at_one_two_and_five() -> None:
    module = Small().eval()
    model = capture(module, torch.randn(1, 3, 6, 4), dynamic_batch=True, output_names=["logits"])
    (images,) = model.graph.inputs
    assert images.name == "images"
    assert images.shape is not None
    assert [str(d) if isinstance(d, ir.SymbolicDim) else d for d in images.shape] == ["batch", 3, 6, 4]
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 6, 4)
        np.testing.assert_allclose(run(model, {"images": x.numpy()})[0], module(x).detach().numpy(), atol=1e-5)


def test_nodes_are_named_after_their_modules_and_weights_after_their_keys() -> None:
    model = capture(Small().eval(), torch.randn(1, 3, 6, 4), dynamic_batch=False, output_names=["logits"])
    names = {node.name for node in model.graph}
    assert "stem/Conv" in names
    assert "head.1/MatMul" in names
    assert len(names) == len(list(model.graph))
    assert {"stem.weight", "meta", "head.1.bias"} <= set(model.graph.initializers)


def test_a_module_that_decides_by_its_data_is_refused_with_the_cause() -> None:
    class Branch(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2 if images.sum() > 0 else images

    with pytest.raises(ExportError, match="Branch cannot be captured") as caught:
        capture(Branch(), torch.randn(1, 3, 4, 4), dynamic_batch=False, output_names=["y"])
    assert "data-dependent" in str(caught.value)


def test_a_module_that_fixes_the_batch_is_refused_when_it_should_be_dynamic() -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.reshape(2, -1)

    with pytest.raises(ExportError, match="dynamic batch") as caught:
        capture(Fixed(), torch.randn(2, 3, 4, 4), dynamic_batch=True, output_names=["y"])
    assert "--batch 1" in str(caught.value)


class InPlace(nn.Module):
    """Changes its input in place as `change` says."""

    mean: Tensor

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.change = change
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))

    def forward(self, images: Tensor) -> Tensor:
        self.change(images)
        return (images - self.mean).flatten(1)


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "values": lambda x: x.mul_(1.7).clamp_(-1, 1),
    "a part": lambda x: x[:, :1].zero_(),
    "a view": lambda x: x.permute(0, 2, 3, 1)[:, ::2].add_(1),
    "by a mask": lambda x: x.masked_fill_(x < 0, 0),
    "axes": lambda x: x.transpose_(2, 3),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_module_that_changes_its_input_computes_the_same_and_shows_only_its_outputs(
    change: str, dynamic: bool
) -> None:
    module, x = InPlace(CHANGES[change]).eval(), torch.randn(2, 3, 4, 4)
    given = x.clone()
    model = capture(module, given, dynamic_batch=dynamic, output_names=["y"])
    torch.testing.assert_close(given, x, rtol=0, atol=0)
    assert [value.name for value in model.graph.outputs] == ["y"]
    (found,) = run(model, {"images": x.numpy()})
    np.testing.assert_allclose(found, module(x.clone()).numpy(), atol=1e-5)


def test_a_module_that_changes_nothing_has_no_copy_of_its_input_in_the_graph() -> None:
    model = capture(nn.Conv2d(3, 4, 2), torch.randn(1, 3, 4, 4), dynamic_batch=False, output_names=["y"])
    assert [node.op_type for node in model.graph] == ["Conv"]
    model = capture(nn.Identity(), torch.randn(1, 3, 4, 4), dynamic_batch=False, output_names=["y"])
    x = np.ones((1, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(run(model, {"images": x})[0], x)


def test_the_number_of_outputs_must_match_their_names() -> None:
    with pytest.raises(ExportError, match="1 tensors and 2 output names"):
        capture(Small().eval(), torch.randn(1, 3, 6, 4), dynamic_batch=False, output_names=["a", "b"])


def test_every_composite_has_a_body_in_standard_operators() -> None:
    for function in functions():
        assert function.domain == "vitdeploy"
        assert {node.domain for node in function} == {""}


def test_ordinary_convolutions_are_not_composites() -> None:
    model = capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 6, 6), dynamic_batch=False, output_names=["y"])
    assert ops(model)["Conv"] == 1
    assert not model.functions


class Namesakes(nn.Module):
    """Weights called like the input, the output, a node and a value of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.y, self.images = (nn.Parameter(torch.randn(4)) for _ in range(2))
        self.model = nn.Module()
        self.model.y = nn.Parameter(torch.randn(4))
        for name in ("stem/Conv", "stem/Conv_out"):
            self.register_parameter(name, nn.Parameter(torch.randn(1)))
        self.stem = nn.Conv2d(3, 4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).mean((2, 3)) * self.y + self.images * self.model.y
        return x * self.get_parameter("stem/Conv") - self.get_parameter("stem/Conv_out")


def test_weights_called_like_other_things_lose_their_names_and_nothing_else() -> None:
    module, x = Namesakes().eval(), torch.randn(2, 3, 4, 4)
    model = capture(module, x, dynamic_batch=False, output_names=["y"])
    values = [
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for node in model.graph for v in node.outputs),
    ]
    assert len({value.name for value in values}) == len(values)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["images", "y"]
    np.testing.assert_allclose(run(model, {"images": x.numpy()})[0], module(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_mean_that_leaves_its_padding_out_is_one_node(stride: int) -> None:
    pool = nn.AvgPool2d(3, stride, padding=1, ceil_mode=stride == 2, count_include_pad=False)
    model = capture(pool, torch.randn(1, 3, 6, 7), dynamic_batch=False, output_names=["y"])
    assert [node.op_type for node in model.graph] == ["AveragePool"]

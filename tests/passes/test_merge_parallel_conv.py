from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.graph_cases import batch, ops, parsed, prove, run
from vitdeploy.passes.merge_parallel_conv import MergeParallelConv


@dataclass(frozen=True)
class Branch:
    """A summand: a convolution of this kernel (0: none), whether a norm follows, and with which sign it comes in."""

    kernel: int
    norm: bool
    bias: bool
    minus: bool


class Sum(nn.Module):
    """Branches of one map, added up, then perhaps a norm, a layer scale and a shortcut."""

    def __init__(self, branches: list[Branch], groups: int, width: int, stride: int, dilation: int, tail: str) -> None:
        super().__init__()
        self.channels, self.signs, self.tail = groups * width, [-1 if one.minus else 1 for one in branches], tail
        self.branches = nn.ModuleList()
        for one in branches:
            conv: nn.Module = nn.Identity()
            if one.kernel:
                step = dilation if one.kernel > 1 else 1
                options = {"groups": groups, "stride": stride, "dilation": step, "bias": one.bias}
                pad = step * (one.kernel // 2)
                conv = nn.Conv2d(self.channels, self.channels, one.kernel, padding=pad, **options)
            norm = nn.BatchNorm2d(self.channels) if one.norm else nn.Identity()
            self.branches.append(nn.Sequential(conv, norm))
        self.norm = nn.BatchNorm2d(self.channels)
        self.scale = nn.Parameter(torch.randn(self.channels, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    nn.init.normal_(tensor)
                nn.init.uniform_(module.running_var, 0.1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branches[0](x)
        for sign, branch in zip(self.signs[1:], list(self.branches)[1:], strict=True):
            y = y + branch(x) if sign > 0 else y - branch(x)
        y = self.norm(y) if "norm" in self.tail else y
        y = self.scale * y if "scale" in self.tail else y
        return x + y if "shortcut" in self.tail else y

    def graph(self, shape: torch.Size) -> ir.Model:
        """The same as ONNX, node by node."""
        lines, weights = [], {"scale": self.scale.detach().numpy()}

        def apply(module: nn.Module, source: str, name: str) -> str:
            if isinstance(module, nn.Identity):
                return source
            tensors = {f"{name}_{key}": tensor.numpy() for key, tensor in module.state_dict().items() if tensor.ndim}
            weights.update(tensors)
            if isinstance(module, nn.Conv2d):
                pads, steps, strides = list(module.padding) * 2, list(module.dilation), list(module.stride)
                options = f"pads = {pads}, dilations = {steps}, strides = {strides}, group = {module.groups}"
                lines.append(f"{name} = Conv <{options}> ({', '.join([source, *tensors])})")
            else:
                lines.append(f"{name} = BatchNormalization ({', '.join([source, *tensors])})")
            return name

        def binary(op_type: str, first: str, second: str) -> str:
            lines.append(f"s{len(lines)} = {op_type} ({first}, {second})")
            return f"s{len(lines) - 1}"

        parts = [apply(b[1], apply(b[0], "x", f"conv{i}"), f"norm{i}") for i, b in enumerate(self.branches)]
        y = parts[0]
        for sign, part in zip(self.signs[1:], parts[1:], strict=True):
            y = binary("Add" if sign > 0 else "Sub", y, part)
        y = apply(self.norm, y, "tail") if "norm" in self.tail else y
        y = binary("Mul", "scale", y) if "scale" in self.tail else y
        y = binary("Add", "x", y) if "shortcut" in self.tail else y
        sizes = ", ".join(map(str, shape))
        return parsed(f"g (float[{sizes}] x) => (float[N, C, H, W] {y}) {{ {' '.join(lines)} }}", **weights)


def assert_float64(module: Sum, example: Tensor, nodes: int) -> None:
    module.eval().requires_grad_(False)
    model = module.graph(example.shape)
    expected = module.double()(example.double()).numpy()
    prove(MergeParallelConv, model, example.numpy(), tolerance=2e-5)
    found = run(model, {"x": example.numpy()})[0]
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    assert sum(ops(model).values()) == nodes, ops(model)


BRANCHES = st.lists(
    st.builds(Branch, st.sampled_from([0, 1, 3, 3, 5]), st.booleans(), st.booleans(), st.booleans()),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(40))
@given(
    branches=BRANCHES,
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    dilation=st.integers(1, 2),
    tail=st.sampled_from(["", "norm", "norm scale shortcut", "scale shortcut", "shortcut"]),
)
def test_branches_of_one_map_become_one_convolution(
    branches: list[Branch], groups: int, width: int, dilation: int, tail: str
) -> None:
    branches = [Branch(3, True, False, False), *branches]
    torch.manual_seed(0)
    module = Sum(branches, groups, width, 1, dilation, tail)
    assert_float64(module, torch.randn(2, groups * width, 7, 6), 1)


@settings(max_examples=examples(15))
@given(
    kernels=st.lists(st.sampled_from([1, 3, 5]), min_size=2, max_size=3), stride=st.integers(2, 3), norm=st.booleans()
)
def test_branches_with_a_stride_merge_too(kernels: list[int], stride: int, norm: bool) -> None:
    torch.manual_seed(0)
    branches = [Branch(kernel, norm, True, False) for kernel in kernels]
    assert_float64(Sum(branches, 2, 2, stride, 1, "norm"), torch.randn(2, 4, 9, 8), 1)


WEIGHTS = {
    "w3": batch(4, 4, 3, 3, seed=1),
    "w1": batch(4, 4, 1, 1, seed=2),
    "wide": batch(4, 4, 1, 5, seed=3),
    "tall": batch(4, 4, 5, 1, seed=4),
    "w2": batch(4, 4, 2, 2, seed=5),
    "dw": batch(4, 1, 3, 3, seed=6),
    "row": batch(1, 1, 1, 6, seed=7),
    **{name: batch(4, seed=8 + index) for index, name in enumerate(("gamma", "beta", "mu"))},
    "var": np.abs(batch(4, seed=11)) + 0.1,
    "factor": batch(4, 1, 1, seed=12),
}
PADDED = "Conv <pads = [1, 1, 1, 1]>"


def model_of(body: str, outputs: str = "y") -> ir.Model:
    return parsed(f"g (float[2, 4, 6, 6] x) => ({outputs}) {{ {body} }}", **WEIGHTS)


@pytest.mark.parametrize(
    "body",
    [
        f"a = {PADDED} (x, w3) b = BatchNormalization (x, gamma, beta, mu, var) y = Sub (b, a)",
        f"a = {PADDED} (x, w3) b = Mul (factor, x) y = Add (a, b)",
        f"a = {PADDED} (x, w3) b = BatchNormalization (x, gamma, beta, mu, var) c = Add (a, b) y = Sub (c, b)",
        f"a = {PADDED} (x, w3) b = Div (x, factor) y = Sub (a, b)",
        f"a = {PADDED} (x, w3) y = Sub (factor, a)",
        'a = Conv <auto_pad = "SAME_UPPER"> (x, w3) b = Conv (x, w1) y = Add (a, b)',
        'a = Conv <auto_pad = "VALID"> (x, w3) y = Mul (a, factor)',
        "a = Conv <pads = [2, 1, 0, 1]> (x, w3) b = Conv (x, w1) y = Add (a, b)",
        "a = Conv <pads = [1, 1, 0, 0]> (x, w2) b = Conv <pads = [1, 1, 0, 0]> (x, w2) c = Add (a, b) y = Add (c, x)",
    ],
)
def test_other_ways_to_write_it_merge(body: str) -> None:
    model = model_of(body)
    prove(MergeParallelConv, model, batch(2, 4, 6, 6))
    assert ops(model) == {"Conv": 1}


@pytest.mark.parametrize(
    "body",
    [
        f"a = {PADDED} (x, w3) r = Relu (x) b = Conv (r, w1) y = Add (a, b)",  # another map
        f"a = {PADDED} (x, w3) b = Conv <pads = [1, 1, 1, 1], group = 4> (x, dw) y = Add (a, b)",  # would be dense
        "a = Conv <pads = [0, 2, 0, 2]> (x, wide) b = Conv <pads = [2, 0, 2, 0]> (x, tall) y = Add (a, b)",  # 25 taps
        f"a = {PADDED} (x, w3) b = Conv (x, w1) c = Add (a, b) r = Relu (a) y = Add (c, r)",  # a is needed
        f"a = {PADDED} (x, w3) y = Add (a, row)",  # not by channel
        "y = BatchNormalization (x, gamma, beta, mu, var)",
    ],
)
def test_what_does_not_merge_stays(body: str) -> None:
    assert prove(MergeParallelConv, model_of(body), batch(2, 4, 6, 6)).changes == []

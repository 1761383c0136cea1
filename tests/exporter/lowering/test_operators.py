"""The constants behind the rewritten operators, and the refusal of operators that have no form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vitdeploy.errors import ExportError
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering import fourier, pooling, resampling
from vitdeploy.exporter.lowering.constants import attach_constants

sizes = st.integers(1, 300)


@given(old=sizes, new=sizes)
def test_the_means_of_bins_are_those_of_adaptive_pooling(old: int, new: int) -> None:
    x = torch.randn(1, 2, old, dtype=torch.float64, generator=torch.Generator().manual_seed(old))
    wanted = F.adaptive_avg_pool1d(x, new)
    torch.testing.assert_close(x @ torch.from_numpy(resampling.means(old, new)).T, wanted)
    largest = x[..., torch.from_numpy(pooling._bin_windows(old, new))].amax(-1)
    torch.testing.assert_close(largest, F.adaptive_max_pool1d(x, new))


@given(old=st.integers(1, 4096), ratio=st.floats(0.05, 8))
def test_a_scale_reaches_the_size_that_pytorch_gives_in_single_and_in_double_precision(old: int, ratio: float) -> None:
    new = math.floor(old * ratio)
    if new < 1:
        return
    scale = resampling._reaching(ratio, old, new)
    assert np.float32(scale) == scale
    assert math.floor(scale * old) == new == math.floor(np.float32(scale) * np.float32(old))
    assert abs(scale - ratio) <= 2e-7 * ratio + 1 / old * 1e-6


@given(size=st.integers(1, 64))
def test_waves_are_a_fourier_transform_exact_where_they_are_whole(size: int) -> None:
    cosine, sine = fourier._waves(size, size)
    np.testing.assert_allclose(cosine - 1j * sine, np.fft.fft(np.eye(size)), atol=1e-12)
    assert set(cosine[0]) == {1.0}
    assert set(sine[0]) == {0.0}


class _Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _Cummax()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class _Cummax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, 1)[0]


def test_an_operator_without_a_form_is_refused_with_its_module_and_line() -> None:
    with pytest.raises(ExportError, match=r"aten\.cummax\.default in module inner has no form in ONNX") as caught:
        capture(_Sorted().eval(), torch.zeros(1, 3, 8, 8), dynamic_batch=False, output_names=["y"])
    assert "torch.cummax(x, 1)" in str(caught.value.why)
    assert caught.value.fix


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        half = {"size": (5, 5), "mode": "bicubic"}
        return F.interpolate(x, **half) + F.interpolate(x * 2, **half)  # type: ignore[arg-type]


def test_equal_constants_are_one_initializer_and_capture_leaves_nothing_behind() -> None:
    model = capture(_Twice().eval(), torch.zeros(1, 3, 8, 8), dynamic_batch=False, output_names=["y"])
    matrices = [value for value in model.graph.initializers.values() if len(value.shape or ()) == 2]
    assert len(matrices) == 2  # one for the rows, one for the columns
    assert not [node for node in model.graph if node.domain == "vitdeploy"]
    attach_constants(model.graph)


def test_the_network_is_traced_once_for_the_forms_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    original = torch.export.ExportedProgram.run_decompositions

    def counted(self: torch.export.ExportedProgram, *args: object) -> torch.export.ExportedProgram:
        times.append(len(args))
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    capture(_Twice().eval(), torch.zeros(1, 3, 8, 8), dynamic_batch=False, output_names=["y"])
    assert times == [1]

"""Published figures of the Jetsons agree with each other and name where they are from."""

from __future__ import annotations

import pytest

from vitdeploy.platforms.devices import DEVICES, Device


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_a_row_states_its_bandwidth_and_dense_peaks(device: Device) -> None:
    assert f"{device.bandwidth:g} GB/s" in device.source
    assert "sparse" in device.source, "the headline figures are sparse, so the row says which it is from"
    assert device.fp16 == pytest.approx(device.int8 / 2, rel=0.04)
    assert device.fp32 < device.fp16


def test_a_kernel_of_another_type_is_as_fast_as_fp32() -> None:
    device = Device("d", 1, 8, 4, 2, "")
    kinds = ("int8", "fp8", "fp16", "bf16", "fp32", "other")
    assert [device.peak(kind) for kind in kinds] == [8e12, 8e12, 4e12, 4e12, 2e12, 2e12]

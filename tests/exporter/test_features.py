"""The feature pyramid as detection and segmentation heads read it: one named map a stride, high resolution first."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.exporter.zoo_models import SHALLOW, shallow_model, zoo_model
from vitdeploy import export, load, verify
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.errors import InputError, UsageError
from vitdeploy.proof.parity import compare_outputs

WIDE = (64, 128)

# What a head is built for: stride and channels of each map. CageViT's first two come from its guide.
PYRAMIDS = {
    "lemevit": {4: 64, 8: 128, 16: 192, 32: 320},
    "dualvit": {4: 64, 8: 128, 16: 320, 32: 448},
    "qnavit": {4: 64, 8: 128, 16: 256, 32: 512},
    "saevit": {4: 48, 8: 96, 16: 160, 32: 288},
    "cagevit": {4: 16, 8: 24, 16: 192},
}
SMALLEST = ("lemevit_tiny", "dualvit_s", "qnavit_tiny", "saevit_xs", "cagevit_tiny")


def check_pyramid(bundle: Bundle, model: nn.Module, family: str, size: tuple[int, int]) -> None:
    """Names, strides and shapes of the manifest, and on both runtimes the values of `forward_features`."""
    manifest = bundle.manifest
    names = [f"stride{stride}" for stride in PYRAMIDS[family]]
    assert [spec.name for spec in manifest.outputs] == names
    assert manifest.graph["strides"] == dict(zip(names, PYRAMIDS[family], strict=True))
    batch = manifest.inputs[0].shape[0]
    for spec, (stride, channels) in zip(manifest.outputs, PYRAMIDS[family].items(), strict=True):
        assert spec.dtype == "float32"
        assert spec.shape == (batch, channels, ceil(size[0] / stride), ceil(size[1] / stride))
    assert manifest.labels == ()

    # Images that the bundle has not seen, unlike those of `verify`.
    images = np.flip(bundle.reference().inputs["images"], axis=3)[: batch if isinstance(batch, int) else 3].copy()
    with torch.inference_mode():
        maps = model.forward_features(torch.from_numpy(images))  # type: ignore[operator]
    expected = {name: tensor.numpy() for name, tensor in zip(names, maps, strict=True)}
    for runtime in ("onnxruntime", "openvino"):
        assert verify(bundle, runtime=runtime).passed
        with load(bundle, runtime=runtime) as session:
            report = compare_outputs(expected, session.run(images), runtime=runtime, precision=manifest.precision)
            with pytest.raises(InputError, match=r"session\.run"):  # maps are no class scores
                session.predict(np.zeros((*size, 3), dtype=np.uint8))
        assert report.passed, report


@pytest.mark.parametrize("family", SHALLOW)
def test_each_family_gives_its_pyramid_for_an_image_that_is_not_square(family: str, tmp_path: Path) -> None:
    model, _ = shallow_model(family, WIDE)
    bundle = export(model, tmp_path / "bundle", features=True)
    check_pyramid(bundle, model, family, WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_whole_network_gives_its_pyramid_in_half_precision_at_another_size(name: str, tmp_path: Path) -> None:
    model, images = zoo_model(name, other_size=True)
    card = model.card
    bundle = export(model, tmp_path / "bundle", features=True, precision="fp16", batch="dynamic", reference=images)
    check_pyramid(bundle, model, card.family, card.image_size)  # type: ignore[union-attr, arg-type]
    assert bundle.manifest.precision_report["snr_db"] >= 45


def test_a_module_without_a_pyramid_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten())
    with pytest.raises(UsageError, match="no feature pyramid"):
        export(model, tmp_path / "bundle", image_size=16, features=True)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_the_command_line_exports_the_pyramid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert main(["export", "lemevit_tiny.eurosat", "--features", "--fp16", "-o", str(out), "--json"]) == 0
    parity = json.loads(capsys.readouterr().out)["parity"][0]
    assert [output["name"] for output in parity["outputs"]] == ["stride4", "stride8", "stride16", "stride32"]
    assert main(["verify", str(out)]) == 0

"""The networks of benchmarks/any_model_networks.py, where timm and transformers are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from vitdeploy import export, load
from vitdeploy.exporter.sources.stand_in import without_torchvision

sys.path.insert(0, str(ROOT / "benchmarks"))
from any_model_networks import NETWORKS, Network, find_network
from unseen import difficult, figures, within

FAST = [network.name for network in NETWORKS if network.name.startswith("timm:test_")]


def check(network: Network, folder: Path, **options: object) -> None:
    """A bundle of `network` gives what PyTorch does in float64, on images that it has not seen, in both runtimes."""
    made = network.make(network, folder)
    bundle = export(made.source, folder / "bundle", **made.options, **options)  # type: ignore[arg-type]
    images = difficult(bundle.manifest.preprocessing)
    expected, single = made.outputs(images, True), made.outputs(images, False)
    for runtime in ("onnxruntime", "openvino"):
        with load(bundle, runtime=runtime) as session:
            parts = [session.run(images[index : index + 1]) for index in range(len(images))]
        for name, wanted in expected.items():
            found = figures(wanted, np.concatenate([part[name] for part in parts]), len(images) // 2, single[name])
            assert within(bundle.manifest.precision, found), (runtime, name, found)


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    network = str(request.node.callspec.params["name"])
    with without_torchvision():
        pytest.importorskip("transformers" if network.startswith("hf:") else "timm")


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_miniature(name: str, precision: str, tmp_path: Path) -> None:
    check(find_network(name), tmp_path, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", [network.name for network in NETWORKS if network.name not in FAST])
@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"batch": "dynamic"}], ids=["fp32", "fp16", "dynamic"])
def test_every_variant_of_other_people(name: str, options: dict[str, object], tmp_path: Path) -> None:
    check(find_network(name), tmp_path, **options)

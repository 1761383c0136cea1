"""NVIDIA's compiler takes every family, for every target that TensorRT reads, in every form that an export has.

Families are shallow here, with every kind of block; layers are counted for the smallest variants as they are, and held
against benchmarks/results/graph_forms.json: they do not grow, and no attention ceases to be fused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.exporter.zoo_models import SHALLOW, SHALLOW_SIZE, shallow_model
from tests.image_cases import reference_pixels
from tests.rows import TARGETS
from vitdeploy import export
from vitdeploy.bundle import Bundle
from vitdeploy.exporter.sources.stand_in import without_torchvision
from vitdeploy.quantize.options import Int8Options
from vitdeploy.targets import find_target
from vitdeploy.tensorrt.rtx.compile import compile_check
from vitdeploy.tensorrt.rtx.requirements import unavailable, version

ROOT = Path(__file__).resolve().parents[3]
MISSING = unavailable()
pytestmark = [
    pytest.mark.nvidia,
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason="; ".join(MISSING.lines()) if MISSING else "it is there"),
]
FORMS = json.loads((ROOT / "benchmarks" / "results" / "graph_forms.json").read_text())
READ_BY_TENSORRT = [name for name, target in TARGETS.items() if target.for_nvidia]
PRECISIONS = ("fp32", "fp16", "int8")


def exported(tmp_path: Path, family: str, target: str, precision: str, **options: Any) -> Bundle:
    """A bundle of a shallow network of the family."""
    network, images = shallow_model(family)
    if precision == "int8":
        options |= {"calibration": reference_pixels(8, SHALLOW_SIZE), "int8": Int8Options(accept_loss=True)}
    if "bake_preprocessing" in options:
        images = reference_pixels(3, SHALLOW_SIZE)
    return export(network, tmp_path / "bundle", precision=precision, target=target, reference=images, **options)


def unfused(bundle: Bundle) -> list[str]:
    """The attentions that the compiler does not fuse, but those that the export keeps in FP32 for accuracy."""
    report = compile_check(bundle)
    assert report.fusion is not None, str(report)
    facts = bundle.manifest.precision_report
    kept = {entry["node"] for entry in (facts.get("half_rest") or facts)["kept_fp32"]}
    return [block.name for block in report.fusion.attention if not block.fused and block.name not in kept]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", READ_BY_TENSORRT)
@pytest.mark.parametrize("family", SHALLOW)
def test_every_family_compiles(tmp_path: Path, family: str, target: str, precision: str) -> None:
    bundle = exported(tmp_path, family, target, precision)
    if bundle.manifest.graph.get("compiled", {}).get("state", "built") != "built":
        pytest.fail(str(bundle.manifest.graph["compiled"]))
    if precision == "fp16" or (precision == "int8" and find_target(target).int8.half_rest):
        # Dual-ViT starts with one attention of one head to its semantic tokens, which is fused nowhere.
        assert unfused(bundle) in ([], ["graph/Softmax"] if family == "dualvit" else [])
    else:
        assert compile_check(bundle).passed


@pytest.mark.parametrize(
    "options",
    [{"batch": "dynamic"}, {"batch": 3}, {"features": True}, {"bake_preprocessing": True}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("family", SHALLOW)
def test_other_kinds_of_export_compile(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    bundle = exported(tmp_path, family, "tensorrt10", "fp16", **options)
    assert bundle.manifest.graph["compiled"]["state"] == "built"


@cache
def counted(network: str) -> Mapping[str, Mapping[str, Any]]:
    """What the benchmark counts of a network today, without its plain exports."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import graph_forms

    made = graph_forms.captured(network)
    rows = (("tensorrt10", "fp16"), ("tensorrt10", "fp32"), ("tensorrt11", "fp16"), ("portable", "fp16"))
    return {
        f"{target} {precision}": graph_forms.count(graph_forms.exported(made, find_target(target), precision))
        for target, precision in rows
    }


@pytest.mark.skipif(MISSING is None and version() != FORMS["compiler"], reason="counted by another version")
@pytest.mark.parametrize("network", FORMS["networks"])
def test_layers_do_not_grow_and_attention_stays_fused(network: str) -> None:
    before = FORMS["networks"][network]
    for title, now in counted(network).items():
        assert now["layers"] <= before[title]["layers"], title
        assert now["moving"] <= before[title]["moving"], title
        assert now["attention"] - now["attention_fused"] <= (
            before[title]["attention"] - before[title]["attention_fused"]
        ), title


@pytest.mark.parametrize("network", FORMS["networks"])
def test_no_network_has_more_layers_than_a_plain_export(network: str) -> None:
    """In FP16, of the results on file, which the test above holds the exports of today against."""
    rows = FORMS["networks"][network]
    ours = [row["layers"] for title, row in rows.items() if title.startswith("tensorrt") and title.endswith("fp16")]
    assert len(ours) == 3
    assert "failed" in rows["plain fp16"] or max(ours) < rows["plain fp16"]["layers"]


def test_networks_of_timm_compile(tmp_path: Path) -> None:
    """One of each kind of those in benchmarks/any_model_networks.py; the table of that benchmark has all of them."""
    with without_torchvision():
        pytest.importorskip("timm")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from timm_network import input_size, library, realistic

    for name in ("deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "efficientvit_b0"):
        size = input_size(name)
        network = realistic(library().create_model(name, pretrained=False), size)
        bundle = export(network, tmp_path / name, precision="fp16", target="tensorrt10", image_size=size)
        assert bundle.manifest.graph["compiled"]["state"] == "built", name
        assert unfused(bundle) == [], name

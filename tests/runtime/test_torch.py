"""The runtime `torch`: the very network that a bundle names with the very weights, or a clear refusal."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import tiny_images, tiny_logits, tiny_manifest, tiny_model, write_tiny_bundle
from vitdeploy.bundle import MODEL, Bundle, BundleWriter, TensorSpec, WeightsRecord
from vitdeploy.bundle.manifest import Manifest
from vitdeploy.errors import BackendError, CheckpointError
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify

torch = pytest.importorskip("torch")


@pytest.fixture
def bundle(tmp_path: Path, tiny_in_the_zoo: None) -> Bundle:
    return write_tiny_bundle(tmp_path / "b")


def changed(bundle: Bundle, **model: Any) -> Bundle:
    """The bundle in memory with other facts about its model."""
    opened = Bundle.open(bundle.path)
    opened.manifest = replace(opened.manifest, model=replace(opened.manifest.model, **model))
    return opened


def test_it_reproduces_the_reference(bundle: Bundle) -> None:
    report = verify(bundle, runtime="torch")
    assert report.passed, report
    assert report.runtime["backend"] == "torch"
    assert report.runtime["compute_precision"] == "fp32"


def test_it_rebuilds_the_network_with_the_recorded_hyperparameters(bundle: Bundle) -> None:
    images = tiny_images()
    with load(changed(bundle, hyperparameters={"factor": 3.0}), runtime="torch") as session:
        np.testing.assert_allclose(session(images), 3 * tiny_logits(images), rtol=0, atol=1e-5)


def test_a_bundle_without_hyperparameters_in_its_manifest_has_those_of_the_card() -> None:
    document = tiny_manifest().to_dict()
    del document["model"]["hyperparameters"]
    assert Manifest.from_dict(document, where="here").model.hyperparameters == {}


def test_the_feature_pyramid_comes_by_name(bundle: Bundle) -> None:
    opened, images = Bundle.open(bundle.path), tiny_images()
    outputs = (
        TensorSpec("stride4", "float32", ("batch", 3, 2, 2)),
        TensorSpec("stride2", "float32", ("batch", 3, 4, 4)),
    )
    opened.manifest = replace(opened.manifest, outputs=outputs, graph={"strides": {"stride4": 4, "stride2": 2}})
    with load(opened, runtime="torch") as session:
        maps = session.run(images)
    for spec, size in zip(outputs, (2, 4), strict=True):
        blocks = images.reshape(6, 3, size, 8 // size, size, 8 // size)
        np.testing.assert_allclose(maps[spec.name], blocks.mean(axis=(3, 5)), rtol=0, atol=1e-6)


def test_no_file_of_the_bundle_is_needed_for_the_network(bundle: Bundle) -> None:
    (bundle.path / MODEL).write_bytes(b"")
    images = tiny_images()
    np.testing.assert_allclose(load(bundle, runtime="torch")(images), tiny_logits(images), rtol=0, atol=1e-6)


# Weights


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_in_the_zoo: None) -> Path:
    from tests.runtime.tiny_network import CARD
    from vitdeploy.models.registry import build

    model = build(CARD)
    with torch.no_grad():
        model.weight.mul_(2)  # type: ignore[operator, union-attr]
    torch.save(model.state_dict(), tmp_path / "twice.pth")
    return tmp_path / "twice.pth"


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_checkpoint_that_was_exported_is_taken(bundle: Bundle, checkpoint: Path) -> None:
    opened = changed(bundle, weights=WeightsRecord("checkpoint", checkpoint.name, sha256(checkpoint)))
    images = tiny_images()
    with load(opened, runtime="torch", checkpoint=checkpoint) as session:
        np.testing.assert_allclose(session(images), 2 * tiny_logits(images), rtol=0, atol=1e-5)
    with pytest.raises(BackendError, match=r"weights of tiny are not at hand\n.*twice.pth(.|\n)*checkpoint=FILE"):
        load(opened, runtime="torch")


def test_another_checkpoint_is_refused(bundle: Bundle, checkpoint: Path) -> None:
    opened = changed(bundle, weights=WeightsRecord("checkpoint", checkpoint.name, "0" * 64))
    with pytest.raises(CheckpointError, match=r"does not hold the weights of this bundle\n.*000000000000"):
        load(opened, runtime="torch", checkpoint=checkpoint)


def test_a_module_of_the_user_is_not_at_hand(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"not at hand\n.*live module"):
        load(changed(bundle, weights=WeightsRecord("module", "live module")), runtime="torch")
    with pytest.raises(BackendError, match=r"cannot rebuild MyNet\n.*not a network of the zoo"):
        load(changed(bundle, name="MyNet"), runtime="torch")


def test_a_packaged_network_is_rebuilt_from_its_name(tmp_path: Path) -> None:
    from vitdeploy.models.create import create_model

    model = create_model("lemevit_tiny.eurosat")
    card: Any = model.card
    height, width = card.image_size
    images = np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    manifest = tiny_manifest()
    record = replace(
        manifest.model,
        name=card.name,
        image_size=card.image_size,
        num_classes=card.num_classes,
        weights=WeightsRecord("checkpoint", card.weights.detail, card.weights.sha256),
        hyperparameters=card.hyperparameters,
    )
    with BundleWriter(tmp_path / "b") as writer:
        writer.write_bytes(MODEL, tiny_model())
        writer.seal(
            replace(
                manifest,
                model=record,
                labels=(),
                inputs=(TensorSpec("images", "float32", ("batch", 3, height, width)),),
                outputs=(TensorSpec("logits", "float32", ("batch", card.num_classes)),),
            )
        )
        bundle = writer.commit()
    with load(bundle, runtime="torch") as session:
        np.testing.assert_array_equal(session(images), expected)


# What it is not


def test_it_reads_no_model_files() -> None:
    with pytest.raises(BackendError, match="it reads no ONNX"):
        find_backend("torch").load(tiny_model())


def test_no_other_runtime_imports_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = write_tiny_bundle(tmp_path / "b")
    code = f"import sys, vitdeploy; vitdeploy.load({str(bundle.path)!r}); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"

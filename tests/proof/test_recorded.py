"""A runtime is held against what the very file gave at its export: image by image, whatever hides in the noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import SIZE, tiny_images, tiny_logits, tiny_manifest, tiny_model
from tests.conftest import examples
from vitdeploy.bundle import Bundle, BundleWriter, Reference
from vitdeploy.proof.recorded import (
    _median,
    image_db,
    measure,
    natural_images,
    pick,
    pooled_db,
    record,
    record_failures,
)
from vitdeploy.statistics import snr_db

RAN = {"backend": "onnxruntime", "version": "1", "device": "CPU", "processor": "x86_64 AVX2", "compute_precision": "-"}
RNG = np.random.default_rng(0)


def noisy(array: np.ndarray, decibel: float, *, image: int | None = None) -> np.ndarray:
    """`array` with noise that lies so many decibels below its mean signal, on all images or on one."""
    noise = RNG.standard_normal(array.shape)
    noise *= np.sqrt(np.square(array).sum(1).mean() * 10 ** (-decibel / 10) / np.square(noise).sum(1))[:, None]
    if image is not None:
        noise[np.arange(len(array)) != image] = 0
    return (array + noise).astype(np.float64)


def reference(file: bool = True) -> tuple[Reference, np.ndarray]:
    images = tiny_images()
    logits = tiny_logits(images).astype(np.float64)
    exact = noisy(logits, 40)
    return Reference({"images": images}, {"logits": logits}, {"logits": exact} if file else {}), exact


def failures(ran: Mapping[str, Any], found: np.ndarray, *, made: np.ndarray, held: Reference) -> list[str]:
    manifest = tiny_manifest()
    manifest.parity.append(record(RAN, measure(held, {"logits": made})))
    return record_failures(manifest, ran, measure(held, {"logits": found}))


def test_the_ratio_of_an_image_counts_its_noise_against_the_mean_signal() -> None:
    held = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert image_db(held, held, 2) == [math.inf, math.inf]
    found = image_db(held, held + np.array([[0.0, 0.5], [0.5, 0.0]]), 2)
    assert found == pytest.approx([10 * math.log10(12.5 / 0.25)] * 2)
    assert image_db(held, np.array([[3.0, 4.0], [math.nan, 0.0]]), 2) == [math.inf, -math.inf]
    assert len(image_db(np.array(2.0), np.array(2.1), 2)) == 1


def test_the_ratio_over_all_images_is_that_of_the_whole() -> None:
    held = RNG.standard_normal((5, 7))
    held /= np.linalg.norm(held, axis=1, keepdims=True)
    found = noisy(held, 30) + noisy(np.zeros_like(held) + 1e-3, 10)
    assert pooled_db(image_db(held, found, 5)) == pytest.approx(snr_db(held, found))


def test_one_image_of_a_large_signal_hides_no_noise_of_the_others() -> None:
    """The mean signal is that of one image: 40 dB of the others look like 80 dB against it."""
    held = RNG.standard_normal((5, 7))
    held[2] *= 1000
    found, ordinary = held.copy(), [0, 1, 3, 4]
    found[ordinary] = noisy(held[ordinary], 40)
    assert max(np.array(image_db(held, found, 5))[ordinary]) < 50
    assert snr_db(held, found) > 80


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6))
@settings(max_examples=examples(40))
def test_no_image_counts_against_more_than_the_mean_signal(seed: int, sizes: list[float]) -> None:
    rng = np.random.default_rng(seed)
    held = rng.standard_normal((len(sizes), 5)) * np.array(sizes)[:, None]
    found = held + rng.standard_normal(held.shape)
    mean = np.square(held).sum(axis=1).mean()
    against_mean = 10 * np.log10(mean / np.square(found - held).sum(axis=1))
    each = np.array(image_db(held, found, len(sizes)))
    assert (each <= against_mean + 1e-9).all()
    assert pooled_db(each.tolist()) <= snr_db(held, found) + 1e-9


def test_what_came_again_passes_and_what_is_lost_in_the_noise_does_not() -> None:
    """At 40 dB from PyTorch a fault of 60 dB changes nothing that a bound for INT8 would see."""
    held, exact = reference()
    made = noisy(exact, 75)
    assert failures(RAN, made, made=made, held=held) == []
    faulty = made + (noisy(exact, 60) - exact)
    assert abs(snr_db(held.outputs["logits"], faulty) - snr_db(held.outputs["logits"], made)) < 0.5
    (failure,) = failures(RAN, faulty, made=made, held=held)
    assert "of what the file computes" in failure


def test_a_fault_of_one_image_is_seen_and_the_image_is_named() -> None:
    held, exact = reference()
    made = noisy(exact, 75)
    faulty = made + (noisy(exact, 60, image=3) - exact)
    (failure,) = failures(RAN, faulty, made=made, held=held)
    assert "image 3" in failure


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_no_gate_passes_what_is_not_finite(broken: float) -> None:
    held, exact = reference()
    faulty = exact.copy()
    faulty[0, 0] = broken
    assert failures(RAN, faulty, made=exact, held=held)
    assert failures({**RAN, "processor": "aarch64"}, faulty, made=noisy(exact, 75), held=held)


@pytest.mark.parametrize("key", ["version", "processor"])
def test_another_processor_or_version_is_held_against_the_worst_of_the_export(key: str) -> None:
    held, exact = reference()
    other = {**RAN, key: "another"}
    made = noisy(exact, 75)
    assert failures(other, noisy(exact, 72), made=made, held=held) == []
    assert failures(other, noisy(exact, 65), made=made, held=held)


def test_a_device_that_computes_in_half_precision_has_its_own_bound() -> None:
    held, exact = reference()
    gpu = {**RAN, "device": "NVIDIA Orin"}
    assert failures(gpu, noisy(exact, 50), made=noisy(exact, 75), held=held) == []


def test_half_precision_on_another_architecture_has_its_own_bound_and_int8_has_not() -> None:
    held, exact = reference()
    for precision, expected in (("fp16", 0), ("int8", 1)):
        manifest = tiny_manifest(precision=precision)
        manifest.parity.append(record(RAN, measure(held, {"logits": noisy(exact, 75)})))
        there = {**RAN, "processor": "aarch64 asimdhp"}
        assert len(record_failures(manifest, there, measure(held, {"logits": noisy(exact, 49)}))) == expected


def test_in_fp32_pytorch_is_what_the_file_computes() -> None:
    held, _ = reference(file=False)
    logits = held.outputs["logits"]
    assert failures(RAN, noisy(logits, 120), made=noisy(logits, 125), held=held) == []
    assert failures(RAN, noisy(logits, 100), made=noisy(logits, 125), held=held)


def test_a_bundle_without_records_has_nothing_to_be_held_against() -> None:
    held, exact = reference()
    assert record_failures(tiny_manifest(), RAN, measure(held, {"logits": noisy(exact, 1)})) == []


@pytest.mark.parametrize(
    "images", [None, [], {}, {"torch": 3}, {"torch": {"logits": ["x"]}}, {"torch": {"logits": []}}]
)
def test_a_record_that_says_nothing_is_a_failure_and_no_crash(images: Any) -> None:
    held, exact = reference()
    manifest = tiny_manifest()
    manifest.parity.append({"ran": RAN, "images": images})
    found = record_failures(manifest, RAN, measure(held, {"logits": exact}))
    assert found == [] if images is None or images == [] else found


def test_natural_images_are_picked_by_kind() -> None:
    chosen = natural_images(["given", "black", "photograph"])
    assert chosen.tolist() == [True, False, True]
    found = pick({"logits": np.arange(3), "scale": np.array(2.0), "two": np.arange(2)}, chosen)
    assert found["logits"].tolist() == [0, 2]
    assert found["two"].tolist() == [0, 1]


def test_the_file_side_of_a_reference_is_kept_and_read(tmp_path: Path) -> None:
    images = tiny_images()
    with BundleWriter(tmp_path / "b") as writer:
        writer.write_bytes("model.onnx", tiny_model())
        logits = tiny_logits(images)
        writer.write_reference({"images": images}, {"logits": logits}, file={"logits": logits + 1})
        writer.seal(tiny_manifest())
        writer.commit()
    held = Bundle.open(tmp_path / "b").reference()
    np.testing.assert_array_equal(held.file["logits"], logits + 1)
    assert held.inputs["images"].shape[-1] == SIZE


@given(values=st.lists(st.floats(0, 1e300) | st.just(math.nan), min_size=1, max_size=9))
def test_the_median_is_that_of_numpy(values: list[float]) -> None:
    np.testing.assert_array_equal(_median(np.array(values)), np.median(values))

"""The measures against their definitions, the bounds where they bite, and verification end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.bundles import fill, tiny_images, tiny_manifest, tiny_model, write_tiny_bundle
from tests.conftest import examples
from vitdeploy.bundle import MODEL, BundleWriter, TensorSpec
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.proof.parity import CLEAR_MARGIN, Bounds, compare, compare_outputs
from vitdeploy.proof.prove import prove, run_batches
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(16, 10)).astype(np.float32)


def with_snr(reference: np.ndarray, snr_db: float) -> np.ndarray:
    """The reference plus white noise of exactly this signal-to-noise ratio, in float64."""
    noise = RNG.normal(size=reference.shape)
    signal = np.square(reference.astype(np.float64)).sum()
    noise *= math.sqrt(signal / 10 ** (snr_db / 10) / np.square(noise).sum())
    return reference + noise


def test_measures_follow_their_definitions() -> None:
    reference = np.array([[3.0, -4.0], [0.0, 1.0]], np.float32)
    actual = np.array([[3.0, -4.5], [0.0, 1.25]], np.float32)
    result = compare("logits", reference, actual, precision="int8")
    assert result.max_abs == 0.5
    assert result.max_relative == 0.125
    assert result.snr_db == pytest.approx(10 * math.log10(26 / 0.3125))
    assert result.finite
    assert (result.top1_same, result.top1_clear) == (2, 2)
    assert result.passed


@pytest.mark.parametrize("snr_db", [20.0, 44.9, 45.1, 80.0])
def test_the_signal_to_noise_ratio_is_what_was_put_in(snr_db: float) -> None:
    result = compare("logits", LOGITS, with_snr(LOGITS, snr_db), precision="fp16")
    assert result.snr_db == pytest.approx(snr_db, abs=1e-6)
    assert result.passed == (snr_db > 45)


@pytest.mark.parametrize(("factor", "passed"), [(0.99, True), (1.01, False)])
def test_single_precision_is_bound_by_its_largest_error(factor: float, passed: bool) -> None:
    actual = LOGITS.astype(np.float64)
    actual[3, 4] += factor * 1e-4 * np.abs(LOGITS).max()
    result = compare("logits", LOGITS, actual, precision="fp32")
    assert result.passed == passed
    assert passed or "the relative error is 1.01e-04, the bound 1e-04" in result.failures[0]


def test_a_clear_case_has_to_keep_its_class() -> None:
    reference = np.zeros((60, 1000))
    reference[:, :2] = 10.0, 9.0
    actual = reference.copy()
    actual[0, :2] = 9.49, 9.51
    result = compare("logits", reference, actual, precision="fp16")
    assert "logits: only 59 of 60 clear cases keep their best class" in result.failures
    assert (result.top1_same, result.top1_clear) == (59, 60)


def test_a_close_case_may_change_its_class() -> None:
    margin = 0.9 * CLEAR_MARGIN * math.sqrt((10.0**2 + 9.8**2) / 4)
    reference = np.array([[10.0, 10.0 - margin, 0.0, 0.0]])
    result = compare("logits", reference, reference[:, [1, 0, 2, 3]], precision="fp16")
    assert (result.top1_same, result.top1_clear) == (None, 0)
    assert not [failure for failure in result.failures if "class" in failure]
    report = compare_outputs({"logits": reference}, {"logits": reference}, runtime="r", precision="fp16")
    assert report.passed
    assert "no clear case" in str(report)


def test_noise_at_the_bound_does_not_reach_clear_cases() -> None:
    logits = np.random.default_rng(5).normal(size=(4000, 1000))
    result = compare("logits", logits, with_snr(logits, 45.01), precision="fp16")
    assert result.passed
    assert result.top1_clear is not None
    assert 3000 < result.top1_clear < 4000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail_in_every_precision(precision: str, value: float) -> None:
    actual = LOGITS.copy()
    actual[2, 3] = value
    result = compare("logits", LOGITS, actual, precision=precision)
    assert not result.passed
    assert not result.finite
    assert "1 of 160 values are NaN or Inf" in result.failures[0]


BROKEN = [
    pytest.param([(2, 3)], id="one value"),
    pytest.param([(2, column) for column in range(10)], id="one sample"),
    pytest.param([(row, column) for row in range(16) for column in range(10)], id="every value"),
]


@pytest.mark.parametrize("places", BROKEN)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("both", [False, True])
def test_a_reference_that_is_not_finite_proves_nothing(
    precision: str, value: float, places: list[tuple[int, int]], both: bool
) -> None:
    reference = LOGITS.copy()
    reference[tuple(zip(*places, strict=True))] = value
    for actual in (reference if both else LOGITS, -LOGITS):
        result = compare("logits", reference, actual, precision=precision)
        assert not result.passed
        assert not result.finite
        assert "NaN or Inf" in result.failures[0]
    if not both:
        assert f"{len(places)} of 160 values of the reference are NaN or Inf" in result.failures[0]


JUDGED = [
    Bounds(max_relative=1e-4),
    Bounds(min_snr_db=45.0),
    Bounds(same_top1=True),
    Bounds(max_relative=1e-4, min_snr_db=45.0, same_top1=True),
]


@pytest.mark.parametrize("bounds", JUDGED, ids=str)
@given(
    pair=st.integers(1, 3).flatmap(
        lambda rows: st.tuples(
            *[
                arrays(np.float64, (rows, 3), elements=st.floats(allow_nan=True, allow_infinity=True, width=64))
                for _ in range(2)
            ]
        )
    )
)
@settings(max_examples=examples(200))
def test_no_output_passes_unless_its_measures_are_within_the_bounds(
    bounds: Bounds, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    """Stated the other way round than `compare` does it: a passed output kept every bound, as a number that is one."""
    reference, actual = pair
    result = compare("logits", reference, actual, precision="fp32", bounds=bounds)
    if result.passed:
        assert np.isfinite(reference).all()
        assert np.isfinite(actual).all()
        assert bounds.max_relative is None or result.max_relative <= bounds.max_relative
        assert bounds.min_snr_db is None or result.snr_db >= bounds.min_snr_db
        if bounds == Bounds(same_top1=True):
            assert result.top1_clear
            assert result.top1_same == result.top1_clear


@pytest.mark.parametrize("bounds", [Bounds(max_relative=math.nan), Bounds(min_snr_db=math.nan)], ids=str)
def test_a_bound_that_is_no_number_is_kept_by_nothing(bounds: Bounds) -> None:
    assert not compare("logits", LOGITS, LOGITS, precision="fp32", bounds=bounds).passed


@pytest.mark.parametrize(
    "reference",
    [np.ones((3, 10)), np.ones((3, 1)), RNG.normal(size=(2, 3, 4, 4)), RNG.normal(size=5)],
    ids=["no clear case", "one class", "maps", "one axis"],
)
def test_a_best_class_that_nothing_shows_is_no_evidence(reference: np.ndarray) -> None:
    result = compare("logits", reference, reference, precision="fp16", bounds=Bounds(same_top1=True))
    assert result.top1_same is None
    assert "no clear case" in result.failures[0]
    assert compare("logits", reference, reference, precision="fp16").passed, "another measure judges it"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (np.zeros((0, 4)), "holds no values"),
        (np.zeros((4, 0)), "holds no values"),
        (np.zeros((2, 4), "V4"), "no real number"),
        (np.zeros((2, 4), "S8"), "no real number"),
        (np.zeros((2, 4), np.complex64), "no real number"),
    ],
)
def test_a_reference_without_numbers_proves_nothing(reference: np.ndarray, words: str) -> None:
    assert words in compare("logits", reference, reference, precision="int8").failures[0]


def test_another_shape_fails_in_words() -> None:
    result = compare("logits", LOGITS, LOGITS[:, :5], precision="int8")
    assert result.failures == ("logits: the shape is [16, 5] instead of [16, 10]",)


def test_an_exact_copy_passes_everywhere() -> None:
    for precision in ("fp32", "fp16", "int8"):
        result = compare("logits", LOGITS, LOGITS.copy(), precision=precision)
        assert result.passed
        assert result.max_abs == 0
        assert result.snr_db == math.inf
        assert result.to_dict()["snr_db"] is None


def test_an_output_of_zeros_has_to_be_zero() -> None:
    zeros = np.zeros((2, 3, 4, 4), np.float32)
    assert compare("map", zeros, zeros, precision="fp32").passed
    result = compare("map", zeros, zeros + np.float32(1e-6), precision="fp32")
    assert not result.passed
    assert result.max_relative == math.inf


def test_maps_have_no_best_class() -> None:
    maps = RNG.normal(size=(2, 3, 4, 4))
    result = compare("map", maps, maps * (1 + 1e-6), precision="fp32")
    assert result.passed
    assert result.top1_clear is None


def test_half_precision_outputs_are_compared_in_double() -> None:
    large = np.full((1, 4), 60_000.0)
    result = compare("logits", large, np.full((1, 4), 60_000, np.float16), precision="fp16")
    assert result.snr_db > 60


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="no parity bounds for precision 'int4'"):
        compare("logits", LOGITS, LOGITS, precision="int4")


def test_a_report_gathers_outputs_and_prints_a_table() -> None:
    reference = {"fine": LOGITS, "coarse": LOGITS[:4]}
    report = compare_outputs(reference, {"fine": LOGITS + 1}, runtime="onnxruntime", precision="fp32")
    assert not report.passed
    assert len(report.failures) == 2
    assert "coarse: the shape is [0]" in report.failures[1]
    told = report.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert [output["name"] for output in told["outputs"]] == ["fine", "coarse"]
    lines = str(report).splitlines()
    assert lines[0] == "fp32 on onnxruntime against PyTorch FP32"
    assert lines[2].endswith("FAILED")


# Verification


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    name: str = request.param
    return name


@pytest.mark.parametrize("batch", ["batch", 1, 2, 3])
def test_a_sound_bundle_verifies(tmp_path: Path, runtime: str, batch: int | str) -> None:
    report = verify(write_tiny_bundle(tmp_path / "b", batch), runtime=runtime)
    assert report.passed
    assert report.files == 2
    assert report.parity.outputs[0].max_relative < 1e-6
    assert str(report).endswith("passed")
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["passed"] is True


def test_numbers_that_do_not_hold_fail_the_report(tmp_path: Path, runtime: str) -> None:
    report = verify(write_tiny_bundle(tmp_path / "b", error=0.01).path, runtime=runtime)
    assert not report.passed
    assert "the relative error is" in report.failures[0]
    assert str(report).endswith("FAILED")


def test_a_pyramid_is_verified_output_by_output(tmp_path: Path, runtime: str) -> None:
    report = verify(write_tiny_bundle(tmp_path / "b", pyramid=True), runtime=runtime)
    assert report.passed
    assert [output.name for output in report.parity.outputs] == ["fine", "coarse"]


def test_an_altered_file_is_an_error_and_not_a_report(tmp_path: Path, runtime: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    (bundle.path / MODEL).write_bytes(tiny_model(1))
    with pytest.raises(BundleError, match=r"model\.onnx is not the file that was exported"):
        verify(bundle.path, runtime=runtime)


def test_a_signature_that_is_not_the_models_is_an_error(tmp_path: Path, runtime: str) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        fill(writer, "batch")
        writer.seal(tiny_manifest(batch=2))
        bundle = writer.commit()
    with pytest.raises(BundleError, match=r"input images float32 \[batch, 3, 8, 8\] should be images float32 \[2, "):
        verify(bundle, runtime=runtime)


def test_fixed_batches_reproduce_any_number_of_samples(tmp_path: Path, runtime: str) -> None:
    images = {"images": tiny_images(6)}
    with (
        load(write_tiny_bundle(tmp_path / "any"), runtime=runtime) as whole,
        load(write_tiny_bundle(tmp_path / "two", 2), runtime=runtime) as parts,
    ):
        np.testing.assert_allclose(
            run_batches(parts.backend, parts.bundle.manifest, images)["logits"],
            run_batches(whole.backend, whole.bundle.manifest, images)["logits"],
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("reported", "failures"),
    [
        (TensorSpec("images", "float32", ("?", 3, 8, 8)), 0),
        (TensorSpec("images", "float16", ("?", 3, 8, 8)), 1),
        (TensorSpec("images", "float32", (1, 3, 8, 8)), 1),
        (TensorSpec("pixels", "float32", ("?", 3, 8, 8)), 2),
    ],
)
def test_a_signature_is_compared_axis_by_axis(
    tmp_path: Path, runtime: str, reported: TensorSpec, failures: int
) -> None:
    with load(write_tiny_bundle(tmp_path / "b"), runtime=runtime) as session:
        session.backend.inputs = (reported,)
        assert len(prove(session.bundle, session.backend).signature_failures) == failures

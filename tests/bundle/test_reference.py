"""The reference of a bundle: values that fit the manifest, and nothing else is read."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.band_cases import RECIPE as BAND_RECIPE
from tests.bundles import fill, forge, forge_file, tiny_images, tiny_logits, tiny_manifest, write_tiny_bundle
from tests.conftest import examples
from vitdeploy.bundle import REFERENCE, Bundle, BundleWriter
from vitdeploy.bundle import reference as module
from vitdeploy.bundle.preprocessing_sample import PIXELS, VALUES, sample_preprocessing
from vitdeploy.errors import BundleError
from vitdeploy.preprocess import Preprocessing

IMAGES, LOGITS = "input.images", "output.logits"
IMAGE = np.zeros((3, 4, 3), np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def members() -> dict[str, np.ndarray]:
    return {IMAGES: tiny_images(), LOGITS: tiny_logits(tiny_images())}


def with_value(name: str, value: float, *, all_of_it: bool = False) -> dict[str, np.ndarray]:
    """The members with one value, or all values, of one of them replaced."""
    arrays = members()
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[slice(None) if all_of_it else 5] = value
    return arrays


def refused(bundle: Bundle, arrays: dict[str, Any] | bytes) -> str:
    """The error for a bundle with this reference, which vouches for it."""
    data = arrays
    if isinstance(arrays, dict):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        data = buffer.getvalue()
    assert isinstance(data, bytes)
    forge_file(bundle, REFERENCE, data)
    with pytest.raises(BundleError) as error:
        Bundle.open(bundle.path).reference()
    assert error.value.fix
    return str(error.value)


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [IMAGES, LOGITS])
def test_values_that_are_not_finite_are_refused(bundle: Bundle, name: str, value: float, all_of_it: bool) -> None:
    assert f"values of {name} are NaN or Inf" in refused(bundle, with_value(name, value, all_of_it=all_of_it))


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4", "int32", "bool", "S8", "U8", "V4", "complex64"])
@pytest.mark.parametrize("name", [IMAGES, LOGITS])
def test_another_type_is_refused(bundle: Bundle, name: str, dtype: str) -> None:
    arrays = members()
    shape = arrays[name].shape
    arrays[name] = np.zeros(shape, dtype) if dtype[0] in "SUVc" else arrays[name].astype(dtype)
    assert f"{name} is of type" in refused(bundle, arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({IMAGES: np.zeros((0, 3, 8, 8), np.float32), LOGITS: np.zeros((0, 4), np.float32)}, "images is [0, 3, 8, 8]"),
        ({LOGITS: np.zeros((0, 4), np.float32)}, "logits is [0, 4]"),
        ({LOGITS: np.zeros((6, 5), np.float32)}, "output logits is [6, 5], the manifest says logits float32 [6, 4]"),
        ({LOGITS: np.zeros((5, 4), np.float32)}, "logits is [5, 4]"),
        ({LOGITS: np.zeros((6, 4, 1), np.float32)}, "logits is [6, 4, 1]"),
        ({LOGITS: np.float32(1)}, "logits is []"),
        ({IMAGES: np.zeros((6, 3, 8, 9), np.float32)}, "images is [6, 3, 8, 9]"),
        ({IMAGES: None}, f"it has no {IMAGES}"),
        ({LOGITS: None}, f"it has no {LOGITS}"),
        ({PIXELS: IMAGE}, f"it has no {VALUES}"),
        ({VALUES: np.zeros(5, np.float32)}, f"it has no {PIXELS}"),
        ({PIXELS: IMAGE, VALUES: np.zeros(0, np.float32)}, "has 192 values"),
        ({PIXELS: IMAGE, VALUES: np.zeros(193, np.float32)}, "has 192 values"),
        ({PIXELS: IMAGE[:0], VALUES: np.zeros(5, np.float32)}, "no image"),
        ({PIXELS: IMAGE[0], VALUES: np.zeros(5, np.float32)}, "no image"),
        ({PIXELS: IMAGE, VALUES: np.full(5, np.nan, np.float32)}, "NaN or Inf"),
    ],
)
def test_what_does_not_fit_the_manifest_is_refused(bundle: Bundle, changes: dict[str, Any], words: str) -> None:
    arrays = {name: array for name, array in {**members(), **changes}.items() if array is not None}
    assert words in refused(bundle, arrays)


def test_samples_that_do_not_fill_the_batches_of_the_model_are_refused(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", 4)
    assert "its 6 samples do not fill batches of 4" in refused(bundle, members())


def test_an_output_without_samples_is_as_long_as_the_model_says(tmp_path: Path) -> None:
    """One call gives [4], so that two calls of a fixed batch give [8], and any call of a free batch gives [4]."""
    for batch, length in (("batch", 4), (3, 8)):
        manifest = tiny_manifest(batch)
        (logits,) = manifest.outputs
        outputs = (logits, replace(logits, name="scale", shape=(4,)))
        arrays = {**members(), "output.scale": np.ones(length, np.float32)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        found = module.read_reference(buffer.getvalue(), replace(manifest, outputs=outputs), where="here")
        assert found.outputs["scale"].shape == (length,)


def test_a_pickle_is_never_loaded(bundle: Bundle) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (bundle.path.parent / "executed",)

    for name in (IMAGES, LOGITS):
        assert f"{name} is of type object" in refused(bundle, {**members(), name: np.array([Payload()], dtype=object)})
    assert not (bundle.path.parent / "executed").exists()


def raw(change: Callable[[str], tuple[bytes, int] | None]) -> bytes:
    """The archive, with the contents and the compression of a member as `change(name)` says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in members().items():
            member = io.BytesIO()
            np.save(member, array)
            data, compression = change(name) or (member.getvalue(), zipfile.ZIP_STORED)
            archive.writestr(f"{name}.npy", data, compression)
    return buffer.getvalue()


def npy(header: str, values: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode() + values


DESCRIBED = "{{'descr': '<f4', 'fortran_order': False, 'shape': {} }}\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\x93NUMPY",
        npy("not a header\n"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (6, 4)}\n"),
        npy(DESCRIBED.format((6, 4))),
        npy(DESCRIBED.format((6, 4)), bytes(95)),
        npy(DESCRIBED.format((6, 4)), bytes(97)),
        npy(DESCRIBED.format((-6, 4)), bytes(96)),
        npy(DESCRIBED.format((10**30, 4)), bytes(96)),
        npy(DESCRIBED.format((6, 4)), bytes(96), b"\x03\x00"),
        npy(DESCRIBED.format("[6, 4]"), bytes(96)),
    ],
)
def test_a_member_that_is_no_array_of_its_length_is_refused(bundle: Bundle, data: bytes) -> None:
    error = refused(bundle, raw(lambda name: (data, zipfile.ZIP_STORED) if name == LOGITS else None))
    assert "cannot be the reference of this bundle" in error


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive_of_arrays_is_refused(bundle: Bundle, data: bytes) -> None:
    assert "cannot be the reference of this bundle" in refused(bundle, data)


def zeros(samples: int) -> bytes:
    return npy(DESCRIBED.format((samples, 4)), bytes(16 * samples))


@pytest.mark.parametrize("name", [LOGITS, "of no interest"])
def test_nothing_is_unpacked_that_is_larger_than_the_file(bundle: Bundle, name: str) -> None:
    """100 MB of zeros in 100 KB: as a member that the manifest calls for, and as one that it does not."""
    buffer = io.BytesIO(raw(lambda _: None))
    if name == LOGITS:
        buffer = io.BytesIO(raw(lambda one: (zeros(6_000_000), zipfile.ZIP_DEFLATED) if one == LOGITS else None))
    else:
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(f"{name}.npy", zeros(6_000_000), zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    assert len(data) < 200_000
    forge_file(bundle, REFERENCE, data)
    opened = Bundle.open(bundle.path)
    tracemalloc.start()
    try:
        if name == LOGITS:
            with pytest.raises(BundleError, match="is compressed"):
                opened.reference()
        else:
            assert opened.reference().inputs
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_reference_that_is_too_large_is_neither_read_nor_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (bundle.path / REFERENCE).stat().st_size
    monkeypatch.setattr(module, "LARGEST_REFERENCE", size - 1)
    with pytest.raises(BundleError, match="is too large"):
        module.read_reference((bundle.path / REFERENCE).read_bytes(), bundle.manifest, where="here")
    monkeypatch.undo()

    def claim(document: dict[str, Any]) -> None:
        document["files"][REFERENCE]["bytes"] = module.LARGEST_REFERENCE + 1

    forge(bundle, claim)
    with pytest.raises(BundleError, match="is too large"):
        Bundle.open(bundle.path).reference()
    huge = np.broadcast_to(np.float32(0), (600_000_000,))
    with BundleWriter(tmp_path / "b") as writer, pytest.raises(BundleError, match="fewer reference images"):
        writer.write_reference({"images": huge}, {"logits": huge})
    assert not (tmp_path / "b").exists()


def test_members_that_overlap_do_not_add_up_beyond_the_file(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the members promise together is bounded too, however often they are the same bytes."""
    monkeypatch.setattr(module, "LARGEST_REFERENCE", tiny_images().nbytes + 10)
    reader = module._Reader(zipfile.ZipFile(io.BytesIO(raw(lambda _: None))), "here")
    with pytest.raises(BundleError, match="is too large"):
        reader.read(bundle.manifest)


def test_a_file_that_grew_is_not_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with (bundle.path / REFERENCE).open("ab") as file:
        file.write(b"more")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(BundleError, match="bytes instead of"):
        bundle.read(REFERENCE)


@given(data=st.data())
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_to_the_bytes_gives_anything_but_a_bundle_error(data: st.DataObject) -> None:
    """Whatever is read in spite of it is finite, and of the shapes and types of the manifest."""
    whole = bytearray(raw(lambda _: None))
    ends = [*range(200), *range(len(whole) - 400, len(whole))]
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.sampled_from(ends))] = data.draw(st.integers(0, 255))
    manifest = tiny_manifest()
    try:
        found = module.read_reference(bytes(whole), manifest, where="here")
    except BundleError:
        return
    for specs, side in ((manifest.inputs, found.inputs), (manifest.outputs, found.outputs)):
        for spec in specs:
            assert spec.admits(side[spec.name].shape)
            assert side[spec.name].dtype == spec.dtype
            assert np.isfinite(side[spec.name]).all()


# Preprocessing

RECIPES = [
    Preprocessing(size=(224, 224)),
    Preprocessing(size=(64, 96), mode="crop_resize", interpolation="bicubic_no_antialias"),
    Preprocessing(size=(16, 24), mode="stretch", channels="BGR", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Preprocessing(size=(8, 8), interpolation="bilinear", crop_ratio=1.0),
]

EDITS = {
    "mean of one channel": {"mean": (0.486, 0.456, 0.406)},
    "mean in another order": {"mean": (0.406, 0.456, 0.485)},
    "deviation": {"std": (0.2295, 0.224, 0.225)},
    "a deviation of nothing": {"std": (1e-300, 0.2, 0.2)},
    "no normalisation": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "mode": {"mode": "crop_resize"},
    "stretch": {"mode": "stretch"},
    "bilinear": {"interpolation": "bilinear"},
    "no antialiasing": {"interpolation": "bicubic_no_antialias"},
    "crop": {"crop_ratio": 0.9},
    "a crop of nothing": {"crop_ratio": 1e-320},
    "channels": {"channels": "BGR"},
    "size": {"size": (224, 223)},
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.mode} {recipe.size}")
def test_a_recipe_gives_its_own_sample_and_no_others(recipe: Preprocessing) -> None:
    sample = sample_preprocessing(recipe)
    assert sample.pixels.nbytes + sample.values.nbytes < 50_000
    assert sample.failure(recipe) is None
    assert [other for other in RECIPES if sample.failure(other) is None] == [recipe]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_recipe_gives_another_sample(edit: str) -> None:
    recipe = Preprocessing(size=(224, 224))
    assert sample_preprocessing(recipe).failure(replace(recipe, **EDITS[edit])) is not None


COLOURS_SHA256 = "04992104fada739ed548002ebe63f71dd171b4e64378b6f53c26b1c9ae60b582"

# Multi-spectral, 16-bit grey, floating-point grey and 8-bit bands.
BANDS = [
    BAND_RECIPE,
    replace(BAND_RECIPE, size=(224, 224), mode="resize_crop", crop_ratio=0.875),
    Preprocessing((32, 48), mean=(0.4,), std=(0.3,), channels="L", scale=65535),
    Preprocessing((32, 48), mean=(0.4,), std=(0.3,), channels="L", scale=1.0),
    Preprocessing((32, 48), mean=(0.4, 0.5), std=(0.3, 0.2), channels="bands"),
]


@pytest.mark.parametrize("recipe", BANDS, ids=lambda recipe: f"{recipe.channels} {recipe.depth} {recipe.scale}")
def test_a_recipe_of_other_channels_gives_its_own_sample_and_no_others(recipe: Preprocessing) -> None:
    sample = sample_preprocessing(recipe)
    assert sample.pixels.nbytes + sample.values.nbytes < 70_000
    assert sample.pixels.shape[2] == recipe.depth
    assert sample.failure(recipe) is None
    last = recipe.mean[-1]
    for edit in (
        {"scale": recipe.scale * 1.01},
        {"mode": "crop_resize"},
        {"mean": (*recipe.mean[:-1], last + 0.01)[: recipe.depth]} if recipe.depth < 3 else {"mean": recipe.mean[::-1]},
        {"mean": (*recipe.mean, 0.5), "std": (*recipe.std, 0.5), "channels": "bands"},
        {"mean": (0.5,) * 3, "std": (0.5,) * 3, "channels": "RGB"},
    ):
        assert sample.failure(replace(recipe, **edit)) is not None, edit  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", BANDS, ids=lambda recipe: f"{recipe.channels} {recipe.depth} {recipe.scale}")
def test_a_bundle_keeps_the_sample_of_other_channels(tmp_path: Path, recipe: Preprocessing) -> None:
    manifest = replace(tiny_manifest(), preprocessing=recipe)
    with BundleWriter(tmp_path / "b") as writer:
        fill(writer)
        writer.write_reference({"images": tiny_images()}, {"logits": tiny_logits(tiny_images())}, preprocessing=recipe)
        writer.seal(manifest)
        bundle = writer.commit()
    assert bundle.manifest.preprocessing == recipe
    sample = bundle.reference().preprocessing
    assert sample is not None
    assert sample.failure(bundle.manifest.preprocessing) is None


def test_the_sample_of_colours_is_what_it_was() -> None:
    pixels = sample_preprocessing(Preprocessing(size=(64, 48))).pixels
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == COLOURS_SHA256


def test_single_pixels_that_round_the_other_way_are_no_other_recipe() -> None:
    recipe = RECIPES[0]
    sample = sample_preprocessing(recipe)
    step = np.float32(1 / 255 / 0.225)
    for part, holds in ((0.05, True), (0.2, False)):
        values = sample.values.copy()
        values[: int(part * len(values))] += step
        assert (sample._replace(values=values).failure(recipe) is None) == holds


def test_a_bundle_keeps_the_sample_and_may_lack_it(tmp_path: Path) -> None:
    recipe = tiny_manifest().preprocessing
    for kept in (None, recipe):
        with BundleWriter(tmp_path / "b", force=True) as writer:
            fill(writer)
            writer.write_reference(
                {"images": tiny_images()}, {"logits": tiny_logits(tiny_images())}, preprocessing=kept
            )
            writer.seal(tiny_manifest())
            sample = writer.commit().reference().preprocessing
        assert (sample is None) == (kept is None)
    assert sample is not None
    assert sample.failure(recipe) is None

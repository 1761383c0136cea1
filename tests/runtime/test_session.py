"""Sessions: arrays in, arrays out on every backend, and a clear word for everything else."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import LABELS, SIZE, tiny_images, tiny_logits, write_tiny_bundle
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, InputError, MissingDependencyError, UsageError
from vitdeploy.preprocess import Preprocessing, preprocess_batch
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.session import Session, load


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "dynamic")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "fixed", batch=2)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "pyramid", pyramid=True)


@pytest.fixture
def session(dynamic: Bundle, any_runtime: str) -> Session:
    return load(dynamic, runtime=any_runtime)


# Running


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_dynamic_model_takes_any_number_of_images(session: Session, count: int) -> None:
    images = tiny_images(count)
    logits = session(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, tiny_logits(images), rtol=0, atol=1e-6)


def test_a_fixed_model_takes_its_number_of_images_only(fixed: Bundle, runtime: str) -> None:
    with load(fixed, runtime=runtime) as session:
        images = tiny_images(2)
        np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)
        with pytest.raises(InputError, match=r"shape \[3, 3, 8, 8\](.|\n)*batches of exactly 2\n.*--batch dynamic"):
            session(tiny_images(3))


def test_all_outputs_come_by_name(pyramid: Bundle, runtime: str) -> None:
    images = tiny_images()
    with load(pyramid, runtime=runtime) as session:
        maps = session.run(images)
        assert list(maps) == ["fine", "coarse"]
        for name, block in (("fine", 2), ("coarse", 4)):
            blocks = images.reshape(6, 3, SIZE // block, block, SIZE // block, block)
            np.testing.assert_allclose(maps[name], blocks.mean(axis=(3, 5)), rtol=0, atol=1e-6)
        with pytest.raises(InputError, match=r"2 outputs and none is called logits\n.*session.run"):
            session(images)
        with pytest.raises(InputError, match="none is called logits"):
            session.predict(np.zeros((8, 8, 3), np.uint8))


def test_inputs_may_be_given_by_name(session: Session) -> None:
    images = tiny_images()
    np.testing.assert_array_equal(session.run({"images": images})["logits"], session(images))
    with pytest.raises(InputError, match=r"given are pixels\n.*model takes images"):
        session.run({"pixels": images})


def misaligned(images: np.ndarray) -> np.ndarray:
    """The same values one byte off the boundary that a float wants."""
    return np.frombuffer(b"\0" + images.tobytes(), np.uint8)[1:].view(np.float32).reshape(images.shape)


@pytest.mark.parametrize(
    "disguise",
    [
        lambda images: images.astype(">f4"),
        np.asfortranarray,
        lambda images: np.repeat(images, 2, axis=0)[::2],
        lambda images: images[:, :, ::-1].copy()[:, :, ::-1],
        misaligned,
    ],
    ids=["big-endian", "fortran", "strided", "reversed", "misaligned"],
)
def test_arrays_of_any_layout_are_taken(session: Session, disguise: Callable[[np.ndarray], np.ndarray]) -> None:
    images = tiny_images()
    np.testing.assert_array_equal(session(disguise(images)), session(images))


def test_read_only_arrays_are_taken_and_inputs_never_changed(session: Session) -> None:
    images = tiny_images()
    before = images.copy()
    images.flags.writeable = False
    np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(images, before)


def test_results_are_not_overwritten_by_later_calls(session: Session) -> None:
    images = tiny_images()
    first = session(images)
    kept = first.copy()
    session(np.zeros_like(images))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((1, 3, 8, 8)), r"images is float64, but the model takes float32\n.*astype\(numpy.float32\)"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"is uint8.*\n.*session.predict"),
        (np.zeros((1, 3, 8, 8), np.float16), "is float16"),
        (
            np.zeros((1, 3, 8, 9), np.float32),
            r"shape \[1, 3, 8, 9\], but the model takes images float32 \[batch, 3, 8, 8\]",
        ),
        (np.zeros((3, 8, 8), np.float32), "shape"),
        (np.zeros((0, 3, 8, 8), np.float32), "shape"),
        (np.zeros((1, 8, 8, 3), np.float32), "shape"),
        (np.zeros((), np.float32), "shape"),
        ([[1.0]], "a list is not an array"),
        (None, "a NoneType is not an array"),
    ],
)
def test_a_wrong_array_is_refused_with_what_would_be_right(session: Session, images: object, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        session(images)  # type: ignore[arg-type]


def test_values_are_not_looked_at_by_a_call(session: Session) -> None:
    images = tiny_images(2)
    images[1, 0, 0, 0] = np.nan
    logits = session(images)
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()


# Predicting


def test_images_become_labels(session: Session, dynamic: Bundle, tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels[1]), *pixels[2:]]
    expected = tiny_logits(preprocess_batch(images, dynamic.manifest.preprocessing)).astype(np.float64)
    results = session.predict(images, top_k=2, batch_size=4)
    assert len(results) == 6
    for logits, best in zip(expected, results, strict=True):
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert [prediction.index for prediction in best] == list(np.argsort(-logits)[:2])
        assert [prediction.label for prediction in best] == [LABELS[i] for i in np.argsort(-logits)[:2]]
        np.testing.assert_allclose(
            [prediction.probability for prediction in best], np.sort(probabilities)[:-3:-1], rtol=1e-5
        )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_fixed_batch_is_filled_up(fixed: Bundle, dynamic: Bundle, runtime: str, count: int) -> None:
    images = list(np.random.default_rng(3).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8))
    with load(fixed, runtime=runtime) as two, load(dynamic, runtime=runtime) as any_number:
        results = two.predict(images)
        assert len(results) == count
        for ours, theirs in zip(results, any_number.predict(images), strict=True):
            assert [p.label for p in ours] == [p.label for p in theirs]
            np.testing.assert_allclose([p.probability for p in ours], [p.probability for p in theirs], rtol=1e-5)


def test_one_image_and_a_generator_and_none_at_all_are_taken(session: Session) -> None:
    image = np.full((4, 4, 3), 7, np.uint8)
    (alone,) = session.predict(image)
    assert len(alone) == len(LABELS)
    assert sum(prediction.probability for prediction in alone) == pytest.approx(1)
    assert session.predict(image for _ in range(3)) == [alone] * 3
    assert session.predict([]) == []


def test_a_bundle_without_labels_counts_its_classes(dynamic: Bundle, runtime: str, tmp_path: Path) -> None:
    bundle = Bundle.open(dynamic.path)
    bundle.manifest = dataclasses.replace(bundle.manifest, labels=())
    (best,) = load(bundle, runtime=runtime).predict(np.zeros((4, 4, 3), np.uint8), top_k=1)
    assert best[0].label == f"class {best[0].index}"


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_prediction_that_is_not_finite_is_an_error(dynamic: Bundle, runtime: str) -> None:
    bundle = Bundle.open(dynamic.path)
    recipe = Preprocessing(size=(SIZE, SIZE), mode="stretch", std=(1e-39, 1, 1))
    bundle.manifest = dataclasses.replace(bundle.manifest, preprocessing=recipe)
    with pytest.raises(BackendError, match=r"not finite\n.*vitdeploy verify"):
        load(bundle, runtime=runtime).predict(np.full((4, 4, 3), 255, np.uint8))


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"batch_size": 0}])
def test_impossible_counts_are_refused(session: Session, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        session.predict([np.zeros((4, 4, 3), np.uint8)], **wrong)


def test_a_image_that_is_none_is_named(session: Session, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(InputError, match=r"notes\.txt is not an image"):
        session.predict([np.zeros((4, 4, 3), np.uint8), tmp_path / "notes.txt"])


# States


def test_a_closed_session_says_so(dynamic: Bundle, runtime: str) -> None:
    with load(dynamic, runtime=runtime) as session:
        assert not session.closed
        assert "open" in repr(session)
    assert session.closed
    assert "closed" in repr(session)
    session.close()
    with pytest.raises(BackendError, match=r"the session is closed\n.*load the bundle again"):
        session(tiny_images(1))


def test_closing_lets_the_calls_under_way_end(dynamic: Bundle, runtime: str) -> None:
    images = tiny_images()
    expected = tiny_logits(images)

    def call_until_refused(session: Session, started: threading.Event) -> str:
        try:
            while True:
                np.testing.assert_allclose(session(images), expected, rtol=0, atol=1e-6)
                started.set()
        except BackendError as error:
            return error.what

    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            session, started = load(dynamic, runtime=runtime), threading.Event()
            calls = [pool.submit(call_until_refused, session, started) for _ in range(3)]
            assert started.wait(10)
            session.close()
            assert [call.result(10) for call in calls] == ["the session is closed"] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_is_told_to_load_its_own(session: Session) -> None:
    session(tiny_images(1))
    child = os.fork()
    if child == 0:
        try:
            session(tiny_images(1))
        except BackendError as error:
            os._exit(7 if "another process" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# Loading


def test_the_options_are_what_describe_tells(dynamic: Bundle, runtime: str) -> None:
    with load(dynamic, runtime=runtime, threads=1) as session:
        told = session.describe()
    assert told["backend"] == runtime
    assert told["threads"] == 1
    assert told["device"] == "CPU"
    assert told["version"]
    assert told["weights"] == "random"
    assert told["model"] == "tiny"
    assert told["reason"] == "it was asked for"


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"compute_precision": "fp8"}])
def test_impossible_options_are_refused(dynamic: Bundle, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        load(dynamic, **wrong)  # type: ignore[arg-type]


def test_an_unknown_runtime_is_refused_with_the_closest_name(dynamic: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no runtime called 'onxruntime'(.|\n)*--runtime onnxruntime"):
        load(dynamic, runtime="onxruntime")


def test_a_missing_runtime_is_answered_with_the_pip_line(
    dynamic: Bundle, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, find_backend(runtime).package, None)
    assert f"pip install 'vitdeploy[{runtime}]'" in str(find_backend(runtime).available())
    with pytest.raises(
        MissingDependencyError, match=rf"{runtime} is not installed\n(.|\n)*pip install 'vitdeploy\[{runtime}\]'"
    ):
        load(dynamic, runtime=runtime)


def test_a_runtime_that_cannot_be_imported_is_told_apart_from_a_missing_one(
    dynamic: Bundle, runtime: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = find_backend(runtime).package
    (tmp_path / f"{package}.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(BackendError, match=r"cannot be imported\n.*libcudart(.|\n)*--force-reinstall"):
        load(dynamic, runtime=runtime)

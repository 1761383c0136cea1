"""`Session.map`: the results of one call after another, in order, computed ahead, whatever an item does."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundles import SIZE, tiny_images, tiny_logits, write_tiny_bundle
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, InputError, UsageError
from vitdeploy.preprocess import preprocess_batch
from vitdeploy.runtime.session import Session, load
from vitdeploy.runtime.stream import AHEAD, stream


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "dynamic")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "fixed", batch=3)


@pytest.fixture
def session(dynamic: Bundle, any_runtime: str) -> Iterator[Session]:
    with load(dynamic, runtime=any_runtime) as opened:
        yield opened


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vitdeploy")]


# What comes out


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_images_give_their_logits_in_order(session: Session, count: int, batch_size: int) -> None:
    images = tiny_images(count)
    results = list(session.map(images, batch_size=batch_size))
    assert len(results) == count
    for row, expected in zip(results, tiny_logits(images), strict=True):
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 4, 8])
def test_a_fixed_batch_is_filled_up(fixed: Bundle, any_runtime: str, count: int) -> None:
    images = tiny_images(count)
    with load(fixed, runtime=any_runtime) as session:
        np.testing.assert_allclose(list(session.map(images)), tiny_logits(images), rtol=0, atol=1e-6)


def test_batches_images_and_images_may_be_mixed(session: Session, dynamic: Bundle, tmp_path: Path) -> None:
    images = tiny_images(6)
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    items: list[Any] = [images[0], images[1:4], image, tmp_path / "a.png", images[4], images[5:]]
    seen = tiny_logits(preprocess_batch([image], dynamic.manifest.preprocessing))[0]
    logits = tiny_logits(images)
    expected = [logits[0], logits[1:4], seen, seen, logits[4], logits[5:]]
    for result, wanted in zip(session.map(items, batch_size=2), expected, strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-6)


def test_streams_change_nothing_but_the_number_of_calls_at_once(dynamic: Bundle, any_runtime: str) -> None:
    images = tiny_images(40)
    with load(dynamic, runtime=any_runtime, num_requests=3) as session:
        assert session.describe()["num_requests"] == 3
        np.testing.assert_allclose(list(session.map(images, batch_size=1)), tiny_logits(images), rtol=0, atol=1e-6)


# What fails


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((3, SIZE, SIZE + 1), np.float32),
        np.zeros((1, SIZE, SIZE), np.float32),
        np.zeros((3, SIZE, SIZE), np.float64),
        np.zeros((2, 3, 1, 1), np.float32),
        np.float32(1),
        None,
        "no such image.png",
    ],
    ids=["size", "channels", "dtype", "batch", "scalar", "none", "path"],
)
def test_a_bad_item_stands_in_its_place_and_the_rest_goes_on(session: Session, bad: Any) -> None:
    images = tiny_images(9)
    results = list(session.map([*images[:4], bad, *images[4:]], batch_size=3, on_error="return"))
    assert isinstance(results.pop(4), InputError)
    np.testing.assert_allclose(np.stack(results), tiny_logits(images), rtol=0, atol=1e-6)  # type: ignore[arg-type]


def test_a_bad_item_ends_the_rest_in_its_turn(session: Session) -> None:
    images = tiny_images(40)
    taken = []

    def source() -> Iterator[np.ndarray | None]:
        for i, image in enumerate(images):
            taken.append(i)
            yield None if i == 5 else image

    results = session.map(source(), batch_size=2)  # type: ignore[arg-type]
    np.testing.assert_allclose([next(results) for _ in range(5)], tiny_logits(images[:5]), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="NoneType is not an image"):
        next(results)
    assert not workers()
    assert len(taken) < 40
    with pytest.raises(StopIteration):
        next(results)


def test_a_message_shows_the_shape_that_an_item_should_have(session: Session) -> None:
    with pytest.raises(InputError, match=r"the model takes images float32 \[batch, 3, 8, 8\]"):
        list(session.map([np.zeros((3, 9, 8), np.float32)]))


def test_only_bad_items_give_only_errors(fixed: Bundle, any_runtime: str) -> None:
    with load(fixed, runtime=any_runtime) as session:
        results = list(session.map([None] * 5, on_error="return"))  # type: ignore[list-item]
    assert [type(result) for result in results] == [InputError] * 5


def test_what_the_source_raises_comes_after_what_it_gave(session: Session) -> None:
    images = tiny_images(5)

    def source() -> Iterator[np.ndarray]:
        yield from images
        raise OSError("the camera is gone")

    results = session.map(source(), batch_size=2, on_error="return")
    for expected in tiny_logits(images):
        np.testing.assert_allclose(next(results), expected, rtol=0, atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="the camera is gone"):
        next(results)
    assert not workers()


def test_a_session_closed_meanwhile_says_so(session: Session) -> None:
    results = session.map((image for image in tiny_images(100)), batch_size=1)
    next(results)
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        list(results)


@pytest.mark.parametrize(
    ("wrong", "complaint"), [({"on_error": "ignore"}, "raise or return"), ({"batch_size": 0}, "1")]
)
def test_impossible_wishes_are_refused_at_once(session: Session, wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        session.map([], **wrong)


# Order, bound and end of the stream itself


def test_batches_are_computed_at_once_and_given_in_order() -> None:
    together = threading.Barrier(3, timeout=30)

    def compute(batch: int) -> list[int]:
        together.wait()
        time.sleep(0.002 * (3 - batch % 3))
        return [batch]

    assert list(stream(range(30), compute, workers=3)) == list(range(30))


def test_the_source_is_read_no_further_than_the_bound() -> None:
    read, given = 0, 0
    furthest = 0

    def source() -> Iterator[int]:
        nonlocal read
        for i in range(200):
            read += 1
            yield i

    for _ in stream(source(), lambda batch: [batch], workers=2):
        given += 1
        furthest = max(furthest, read - given)
    assert given == 200
    assert furthest <= AHEAD * 2


def test_a_stream_that_is_left_begins_nothing_more_and_leaves_no_thread() -> None:
    begun = []

    def compute(batch: int) -> list[int]:
        begun.append(batch)
        time.sleep(0.01)
        return [batch]

    results = stream(range(1000), compute, workers=2)
    assert next(results) == 0
    results.close()
    count = len(begun)
    assert count <= 2 * AHEAD + 1
    assert not workers()
    time.sleep(0.05)
    assert len(begun) == count


def test_a_stream_that_is_never_begun_starts_no_thread(session: Session) -> None:
    results = session.map(tiny_images(3))
    assert not workers()
    del results
    gc.collect()
    assert not workers()

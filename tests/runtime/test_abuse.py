"""Sessions under load, and bundles whose files change under their feet."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import (
    LABELS,
    fill,
    tiny_images,
    tiny_logits,
    tiny_manifest,
    tiny_model,
    write_tiny_bundle,
)
from tests.runtime.conftest import installed
from vitdeploy.bundle import MODEL, REFERENCE, Bundle, BundleWriter
from vitdeploy.errors import BundleError
from vitdeploy.runtime.session import Session, load
from vitdeploy.runtime.verify import verify

THREADS = 8
CALLS = 500


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def session(bundle: Bundle, any_runtime: str) -> Session:
    return load(bundle, runtime=any_runtime)


def calls_that_differ(session: Session, batches: list[np.ndarray], calls: int) -> int:
    """How many of `calls` calls from each of THREADS threads do not give what a single thread gets."""
    expected = [session(batch) for batch in batches]
    together = threading.Barrier(THREADS)

    def work(thread: int) -> int:
        together.wait()
        order = [(thread + call) % len(batches) for call in range(calls)]
        return sum(not np.array_equal(session(batches[i]), expected[i]) for i in order)

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def test_eight_threads_get_what_one_gets(session: Session) -> None:
    images = tiny_images(30)
    batches = [images[i : i + 1 + i % 3] for i in range(20)]
    assert calls_that_differ(session, batches, CALLS) == 0


@pytest.fixture(scope="module")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network of the zoo at 64x64 pixels."""
    for package in ("torch", "onnx_ir", "onnxsim", "onnxruntime"):
        pytest.importorskip(package)
    from vitdeploy import export

    folder = tmp_path_factory.mktemp("real")
    return export("lemevit_tiny", folder / "b", image_size=64, num_classes=10, batch="dynamic")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_eight_threads_get_what_one_gets_from_a_real_network(real_bundle: Bundle, name: str) -> None:
    images = np.random.default_rng(0).normal(size=(12, 3, 64, 64)).astype(np.float32)
    with load(real_bundle, runtime=installed(name)) as session:
        assert calls_that_differ(session, list(images[:, None]), CALLS) == 0
        found = list(session.map(images, batch_size=1))
        np.testing.assert_array_equal(found, np.concatenate([session(image[None]) for image in images]))


@pytest.mark.slow
def test_the_reference_runtime_rebuilds_what_was_exported(real_bundle: Bundle) -> None:
    assert real_bundle.manifest.model.hyperparameters
    report = verify(real_bundle, runtime="torch")
    assert report.passed, report
    assert report.parity.outputs[0].max_relative < 1e-5


# Memory


def growth(work: Callable[[], object]) -> int:
    """Bytes of resident memory that `work` leaves behind each time: an arena grows once, a leak whenever it runs."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    grown = []
    for _ in range(3):
        before = resident()
        work()
        grown.append(resident() - before)
    return min(grown)


def test_memory_stays_flat_over_ten_thousand_calls(session: Session) -> None:
    images = tiny_images(1)

    def call(times: int) -> None:
        for _ in range(times):
            session(images)

    call(5000)
    # Outputs that stayed behind would be more than this: an array takes 128 bytes beside its data.
    assert growth(lambda: call(10_000)) < 1 << 20


def test_memory_stays_flat_over_ten_thousand_images_of_a_stream(session: Session) -> None:
    image = tiny_images(1)[0]

    def stream(times: int) -> None:
        assert sum(1 for _ in session.map(image.copy() for _ in range(times))) == times

    stream(5000)
    assert growth(lambda: stream(10_000)) < 2 << 20


def test_memory_comes_back_when_sessions_are_closed(bundle: Bundle, any_runtime: str) -> None:
    images = tiny_images(1)

    def open_and_close(times: int) -> None:
        for _ in range(times):
            with load(bundle, runtime=any_runtime) as session:
                session(images)

    open_and_close(10)
    assert growth(lambda: open_and_close(20)) < 4 << 20


# Files that change


def replace_bundle(path: Path) -> None:
    """Another complete bundle in the place of the one at `path`: a pyramid instead of logits."""
    with BundleWriter(path, force=True) as writer:
        fill(writer, pyramid=True)
        writer.seal(tiny_manifest(pyramid=True))
        writer.commit()


@pytest.mark.parametrize("change", [shutil.rmtree, replace_bundle], ids=["deleted", "replaced"])
def test_a_loaded_bundle_may_be_deleted_or_replaced(
    any_runtime: str, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    session = load(write_tiny_bundle(tmp_path / "b"), runtime=any_runtime)
    change(tmp_path / "b")
    images = tiny_images()
    np.testing.assert_allclose(session(images), tiny_logits(images), rtol=0, atol=1e-6)
    assert session.predict(np.zeros((9, 9, 3), np.uint8), top_k=1)[0][0].label in LABELS
    assert len(list(session.map(images))) == len(images)


def test_a_bundle_replaced_between_opening_and_loading_is_refused(runtime: str, tmp_path: Path) -> None:
    opened = write_tiny_bundle(tmp_path / "b")
    replace_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match=f"{MODEL} is not the file that was exported"):
        load(opened, runtime=runtime)
    with load(tmp_path / "b", runtime=runtime) as session:
        assert list(session.run(tiny_images())) == ["fine", "coarse"]


def test_an_altered_model_is_never_given_to_a_runtime(runtime: str, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    data = (bundle.path / MODEL).read_bytes()
    for position in range(0, len(data), len(data) // 16):
        flipped = bytearray(data)
        flipped[position] ^= 1
        (bundle.path / MODEL).write_bytes(flipped)
        with pytest.raises(BundleError, match=f"{MODEL} is not the file that was exported"):
            load(bundle.path, runtime=runtime)


def test_a_sound_model_that_is_not_the_manifests_is_never_given_to_a_runtime(runtime: str, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    (bundle.path / MODEL).write_bytes(tiny_model(pyramid=True))
    with pytest.raises(BundleError, match=f"{MODEL} is not the file that was exported"):
        load(bundle.path, runtime=runtime)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_altered_files_of_openvino_are_never_given_to_it(tmp_path: Path, name: str) -> None:
    openvino = pytest.importorskip("openvino")
    with BundleWriter(tmp_path / "b") as writer:
        fill(writer)
        openvino.save_model(openvino.convert_model(writer.path / MODEL), writer.path / "model.xml", False)
        writer.seal(tiny_manifest())
        bundle = writer.commit()
    assert verify(bundle, runtime="openvino").passed
    data = bytearray((bundle.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle.path / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        load(bundle.path, runtime="openvino")


def test_a_sound_reference_that_is_not_the_manifests_proves_nothing(any_runtime: str, tmp_path: Path) -> None:
    wrong = write_tiny_bundle(tmp_path / "wrong", error=0.01)
    right = write_tiny_bundle(tmp_path / "right")
    shutil.copy(right.path / REFERENCE, wrong.path / REFERENCE)
    with pytest.raises(BundleError, match=f"{REFERENCE} is not the file that was exported"):
        verify(wrong.path, runtime=any_runtime)

"""Tars, Parquet and URLs as DATA: the images and classes of a folder, in a fixed order, and nothing unsafe is read."""

from __future__ import annotations

import builtins
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitdeploy
from tests.accuracy.accuracy_cases import labels_of, noisy, photos, write_folder, write_variant
from tests.bundles import LABELS, write_tiny_bundle
from tests.conftest import examples
from tests.data.container_cases import png, samples, write_parquet, write_tar
from vitdeploy.data import open_data, tars
from vitdeploy.data.blobs import expand, url_of
from vitdeploy.errors import InputError, MissingDependencyError, VitDeployError

IMAGES = photos(30)
TARGETS = labels_of(IMAGES)
KINDS = [LABELS[target] for target in TARGETS]


def pixels(dataset: vitdeploy.Dataset) -> np.ndarray:
    return np.stack([np.asarray(dataset.read(index)) for index in range(len(dataset))])


def read_by_threads(dataset: vitdeploy.Dataset) -> list[np.ndarray]:
    """The images, read by four threads from the last one on."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda index: np.asarray(dataset.read(index)), range(len(dataset) - 1, -1, -1)))[::-1]


# Tars


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("named", [True, False])
def test_samples_of_webdataset_have_their_classes(tmp_path: Path, kind: str, named: bool) -> None:
    labels = KINDS if named else TARGETS.tolist()
    path = write_tar(tmp_path / "a.tar", samples(IMAGES, labels, kind=kind))
    dataset = open_data(path, labels=LABELS)
    np.testing.assert_array_equal(pixels(dataset), IMAGES)
    np.testing.assert_array_equal(dataset.targets, TARGETS)
    assert dataset.names[7] == "a.tar/000007.png"
    assert dataset.sha256(7) == hashlib.sha256(png(IMAGES[7])).hexdigest()
    assert open_data(path).classes == (tuple(sorted(set(KINDS))) if named else None)


def test_a_pattern_names_tars_in_their_order(tmp_path: Path) -> None:
    for number in range(3):
        part = slice(10 * number, 10 * number + 10)
        write_tar(tmp_path / f"train-{number:04}.tar", samples(IMAGES[part], TARGETS[part], first=10 * number))
    dataset = open_data(tmp_path / "train-{0000..0002}.tar")
    np.testing.assert_array_equal(pixels(dataset), IMAGES)
    assert dataset.names[10] == "train-0001.tar/000010.png"
    with pytest.raises(InputError, match=r"there is no file .*train-0003.tar"):
        open_data(tmp_path / "train-{0000..0003}.tar")


def test_a_tar_of_class_folders_is_read_like_the_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", IMAGES, TARGETS)
    (folder / "labels.txt").write_text("\n".join((*reversed(LABELS), "eel")))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(folder, "./photos")
    inside, outside = open_data(tmp_path / "photos.tar"), open_data(folder)
    assert inside.classes == outside.classes == (*reversed(LABELS), "eel")
    np.testing.assert_array_equal(inside.targets, outside.targets)
    np.testing.assert_array_equal(pixels(inside), pixels(outside))


def test_long_names_of_every_form_and_any_number_of_readers(tmp_path: Path) -> None:
    long = "é" * 90 + "/" + "x" * 120
    members = [(f"{long}{name}", content) for name, content in samples(IMAGES, TARGETS)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "long.tar", members, format=form)
        dataset = open_data(path)
        assert dataset.names[3] == f"long.tar/{long}000003.png"
        np.testing.assert_array_equal(read_by_threads(dataset), IMAGES)


def test_an_index_holds_no_image(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    path = write_tar(tmp_path / "big.tar", samples(np.stack([big] * 30), [0] * 30))
    tracemalloc.start()
    dataset = open_data(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(dataset) == 30
    assert peak < len(png(big))
    assert [one.name for one in tmp_path.iterdir()] == ["big.tar"]


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(info)
    return stream.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (link("a.png", "/etc/passwd"), "a member 'a.png'\n  why: it is a link"),
        (link("a.png", "b.png", tarfile.LNKTYPE), "it is a link"),
        (link("a.png", "x" * 300), "it is a link"),
        (link("a.png", "", tarfile.FIFOTYPE), "it is of the type"),
        (link("a.png", "", tarfile.CHRTYPE), "it is of the type"),
        (header("a.png", 10, tarfile.GNUTYPE_SPARSE) + END, "it is of the type"),
        (header("../a.png", 0) + END, "leads out of the folder"),
        (header("/a.png", 0) + END, "leads out of the folder"),
        (header("a\\..\\..\\b.png", 0) + END, "leads out of the folder"),
        (header("C:/a.png", 0) + END, "leads out of the folder"),
        (header("x", 512, tarfile.XHDTYPE) + b"14 path=a\0.png\n".ljust(512, b"\0") + END, "cannot be read"),
        (header("a.png", 1 << 40) + END, "should have 1,099,511,627,776 bytes, more than are there"),
        (header("a.png", 2000) + END, "more than are there"),
        (header("x", 1 << 20, tarfile.XHDTYPE) + bytes(1 << 20) + END, "its attributes have 1,048,576 bytes"),
        (header("x", 512, tarfile.XHDTYPE) + b"99 path=a.png\n".ljust(512, b"\0") + END, "cannot be read"),
        (header("x", 512, tarfile.XHDTYPE) + b"12 size=-1 \n".ljust(512, b"\0") + END, "cannot be read"),
        (header("x", 512, tarfile.XHDTYPE) + b"17 size=9999999999999\n".ljust(512, b"\0") + END, "cannot be read"),
        (header("a.png", 0)[:300] + b"garbage" + header("a.png", 0)[307:] + END, "there is no header at byte 0"),
        (b"x" * 2000, "no header at byte 0"),
        (b"", "ends at 0 bytes"),
        (END, "there are no images"),
        (gzip.compress(b"x" * 2000, mtime=0), "is compressed"),
        (b"BZh9" + bytes(600), "is compressed"),
        (header("a.cls", 2 << 20) + bytes(2 << 20) + END, "too many for a label"),
    ],
)
def test_a_tar_that_is_damaged_or_not_safe_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_data(tmp_path / "a.tar")
    assert told in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("left", [1, 512, 1000, 1536])
def test_a_truncated_tar_is_refused(tmp_path: Path, left: int) -> None:
    path = write_tar(tmp_path / "a.tar", samples(IMAGES, TARGETS))
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: len(whole) // 512 * 512 - left])
    with pytest.raises(InputError, match="cannot be read"):
        open_data(path)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([*samples(IMAGES[:2], [0, 1]), ("x.png", png(IMAGES[0]))], "x.png in .* has no label"),
        ([*samples(IMAGES[:2], [0, 1]), ("000001.jpg", b"")], "000001 in .* has two images"),
        (samples(IMAGES[:2], [0, "ant"]), "are of different kinds"),
        (samples(IMAGES[:2], [0, ""]), "000001.cls in .* is empty"),
        (samples(IMAGES[:2], [0, 2.5], kind="json"), "is float"),
        (samples(IMAGES[:2], [0, True], kind="json"), "is bool"),
        ([("a.png", png(IMAGES[0])), ("a.cls", b"\xff\xfe")], "a.cls in .* cannot be read"),
        ([("a.png", png(IMAGES[0])), ("a.json", b"{")], "a.json in .* cannot be read"),
        ([("a.png", png(IMAGES[0])), ("a.json", b"[" * 5000)], "a.json in .* cannot be read"),
        ([("a.cls", b"1")], "there are no images"),
        ([("a/b.png", png(IMAGES[0])), ("a/b.png", png(IMAGES[0]))], "it is there twice"),
    ],
)
def test_samples_that_are_not_whole_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        open_data(write_tar(tmp_path / "a.tar", members))
    assert caught.value.fix


def test_an_image_that_is_too_large_is_named_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_data(write_tar(tmp_path / "a.tar", samples(IMAGES, TARGETS)))
    monkeypatch.setattr(tars, "LARGEST_FILE", 10)
    with pytest.raises(InputError, match=r"000002.png of .* cannot be read\n  why: 000002.png is too large"):
        dataset.read(2)


@pytest.mark.parametrize("padding", [0, 10_240, 500_000])
def test_tars_joined_byte_by_byte_are_refused(tmp_path: Path, padding: int) -> None:
    first, second = (write_tar(tmp_path / name, samples(IMAGES[:3], KINDS[:3])) for name in ("a.tar", "b.tar"))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + bytes(padding) + second.read_bytes())
    with pytest.raises(InputError, match=r"(?s)more behind its end.*tar -A"):
        open_data(joined)
    joined.write_bytes(first.read_bytes() + bytes(padding))
    assert len(open_data(joined)) == 3


def test_a_compressed_name_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is compressed") as caught:
        open_data(tmp_path / "a.tar.gz")
    assert "pack a plain .tar" in str(caught.value.fix)


@given(data=st.data())
@settings(max_examples=examples(60))
def test_changed_bytes_raise_nothing_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write_tar(tmp_path_factory.mktemp("tars") / "a.tar", samples(IMAGES[:3], [0, 1, 2]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(VitDeployError):
        dataset = open_data(path)
        for index in range(len(dataset)):
            with contextlib.suppress(VitDeployError):
                assert np.asarray(dataset.read(index)).dtype == np.uint8


# Patterns and URLs


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("{x}.tar", ["{x}.tar"]),
    ],
)
def test_a_pattern_is_expanded_as_a_shell_does(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize("pattern", ["{1..0}", "{0..999999999}", "{0..999}{0..999}"])
def test_a_pattern_of_none_or_too_many_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=r"names (no file|too many files)"):
        expand(pattern)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/a.tar", "s3://bucket/a.tar"),
        (Path("s3://bucket/a.tar"), "s3://bucket/a.tar"),
        (Path("file:///a/b.tar"), "file:///a/b.tar"),
        ("C:/a/b.tar", None),
        ("a/b.tar", None),
        (5, None),
    ],
)
def test_a_url_is_known_even_as_a_path(given: Any, url: str | None) -> None:
    assert url_of(given) == url


@pytest.mark.parametrize("change", [lambda part: part + b"more", lambda part: part[:-1]])
def test_a_server_that_sends_other_bytes_than_were_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    system = pytest.importorskip("fsspec").filesystem("memory")
    system.pipe_file("/other/part.tar", write_tar(tmp_path / "part.tar", samples(IMAGES, TARGETS)).read_bytes())
    kind, read = type(system), type(system).cat_file
    monkeypatch.setattr(kind, "cat_file", lambda self, *where, **span: change(read(self, *where, **span)))
    with pytest.raises(InputError, match=r"(?s)cannot be read in parts.*answers requests for ranges"):
        open_data("memory://other/part.tar")


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (None, "there is no file memory://other/part.tar"),
        (FileNotFoundError("part.tar"), "there is no file memory://other/part.tar"),
        (ConnectionRefusedError(111, "Connection refused"), "cannot be read\n  why: Connection refused"),
    ],
)
def test_what_cannot_be_reached_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, cause: Exception | None, told: str
) -> None:
    system = pytest.importorskip("fsspec").filesystem("memory")

    def size(self: object, path: str) -> int:
        raise FileNotFoundError(path) from cause  # as the file system of http does, whatever went wrong

    monkeypatch.setattr(type(system), "size", size)
    with pytest.raises(InputError, match=told):
        open_data("memory://other/part.tar")


def test_tars_are_read_by_url(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for number in range(2):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in samples(IMAGES[15 * number :][:15], TARGETS[15 * number :][:15]):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        system.pipe(f"/tars/part-{number}.tar", stream.getvalue())
    for where in ("memory://tars/part-{0..1}.tar", Path("memory://tars/part-{0..1}.tar")):
        dataset = open_data(where)
        np.testing.assert_array_equal(pixels(dataset), IMAGES)
        np.testing.assert_array_equal(dataset.targets, TARGETS)
    with pytest.raises(InputError, match=r"there is no file memory://tars/part-2\.tar"):
        open_data("memory://tars/part-2.tar")
    with pytest.raises(InputError, match="cannot be read by its URL"):
        open_data("memory://tars/photos")
    with pytest.raises(InputError, match=r"nosuchthing://a/b\.tar cannot be read"):
        open_data("nosuchthing://a/b.tar")
    imported = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "fsspec":
            raise ImportError(name)
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"fsspec is not installed(.|\n)*vitdeploy\[remote\]"):
        open_data("memory://tars/part-0.tar")


# Parquet


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    imported = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pyarrow is not installed(.|\n)*vitdeploy\[parquet\]"):
        open_data(tmp_path / "a.parquet")


@pytest.fixture
def arrow() -> Any:
    return pytest.importorskip("pyarrow")


@pytest.mark.usefixtures("arrow")
@pytest.mark.parametrize("labels", [TARGETS.tolist(), KINDS])
def test_rows_of_parquet_have_their_classes(tmp_path: Path, labels: list[Any]) -> None:
    path = write_parquet(tmp_path / "a.parquet", IMAGES, labels, row_group_size=7)
    dataset = open_data(path, labels=LABELS)
    np.testing.assert_array_equal(pixels(dataset), IMAGES)
    np.testing.assert_array_equal(dataset.targets, TARGETS)
    assert dataset.names[9] == "a.parquet[9]"
    np.testing.assert_array_equal(read_by_threads(dataset), IMAGES)


@pytest.mark.usefixtures("arrow")
def test_names_of_classes_come_from_the_file(tmp_path: Path) -> None:
    names = ("zebra", *LABELS)
    for number in range(2):
        part = slice(15 * number, 15 * number + 15)
        write_parquet(tmp_path / f"{number}.parquet", IMAGES[part], (TARGETS[part] + 1).tolist(), names=names)
    dataset = open_data(tmp_path / "{0..1}.parquet")
    assert dataset.classes == names
    np.testing.assert_array_equal(dataset.targets, TARGETS + 1)
    np.testing.assert_array_equal(open_data(tmp_path / "{0..1}.parquet", labels=LABELS).targets, TARGETS)
    np.testing.assert_array_equal(pixels(dataset), IMAGES)


@pytest.mark.usefixtures("arrow")
def test_rows_without_labels_are_images_alone(tmp_path: Path) -> None:
    assert open_data(write_parquet(tmp_path / "a.parquet", IMAGES, None)).targets is None
    assert open_data(write_parquet(tmp_path / "b.parquet", IMAGES, [-1] * 30)).targets is None


@pytest.mark.usefixtures("arrow")
def test_two_groups_of_rows_are_held(tmp_path: Path) -> None:
    from vitdeploy.data import parquet

    path = write_parquet(tmp_path / "a.parquet", IMAGES, None, row_group_size=5)
    file = parquet._File(parquet.open_blobs(path)[0])
    assert [file.image(row) for row in range(30)] == [png(image) for image in IMAGES]
    assert list(file._held) == [4, 5]


def test_a_file_that_is_no_parquet_of_images_is_refused(
    tmp_path: Path, arrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    from vitdeploy.data import parquet

    path = tmp_path / "a.parquet"
    whole = write_parquet(path, IMAGES, TARGETS.tolist()).read_bytes()
    for content in (b"", b"PAR1", whole[:-10], whole[: len(whole) // 2], bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read") as caught:
            open_data(path)
        assert caught.value.fix
    for columns, told in (
        ({"label": arrow.array([1])}, "has no column of images"),
        ({"image": arrow.array([b""]), "img": arrow.array([b""])}, "has several columns of images"),
        ({"image": arrow.array([], arrow.binary())}, "it has no rows"),
        ({"image": arrow.array([b""]), "label": arrow.array([-2])}, "has the label -2"),
        ({"image": arrow.array([b""]), "label": arrow.array([1.5])}, "has the label 1.5"),
        ({"image": arrow.array([b"", b""]), "label": arrow.array([1, None])}, "has the label None"),
    ):
        pq.write_table(arrow.table(columns), path)
        with pytest.raises(InputError, match=told):
            open_data(path)
    pq.write_table(arrow.table({"image": arrow.array([None, b""], arrow.binary())}), path)
    with pytest.raises(InputError, match=r"row 0 of .* has no image in it"):
        open_data(path).read(0)
    path.write_bytes(whole)
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 10)
    with pytest.raises(InputError, match="are in too large groups"):
        open_data(path).read(0)


@pytest.mark.usefixtures("arrow")
def test_parquet_is_read_by_url(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    content = write_parquet(tmp_path / "a.parquet", IMAGES, TARGETS.tolist()).read_bytes()
    fsspec.filesystem("memory").pipe("/rows/a.parquet", content)
    dataset = open_data("memory://rows/a.parquet")
    np.testing.assert_array_equal(pixels(dataset), IMAGES)
    np.testing.assert_array_equal(dataset.targets, TARGETS)


# Commands


def test_validate_takes_tars_as_it_takes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    from vitdeploy.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiny_bundle(tmp_path / "fp32")
    write_variant(tmp_path / "int8", noisy(), precision="int8")
    write_folder(tmp_path / "data", IMAGES, TARGETS)
    for number in range(3):
        part = slice(10 * number, 10 * number + 10)
        write_tar(tmp_path / f"t-{number}.tar", samples(IMAGES[part], [KINDS[i] for i in range(30)][part]))
    told = []
    for data in ("data", "t-{0..2}.tar"):
        assert main(["validate", "int8", "fp32", "--data", data, "--runtime", "onnxruntime", "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["data"]["sha256"] == told[1]["data"]["sha256"]
    assert told[0]["runs"][0]["top1"] == told[1]["runs"][0]["top1"]
    assert main(["validate", "int8", "fp32", "--data", "t-{0..9}.tar", "--runtime", "onnxruntime"]) == 2
    assert "there is no file t-3.tar" in capsys.readouterr().err

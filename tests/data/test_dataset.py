"""DATA as users have it: folders, zips, arrays, and everything that may be wrong with them."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitdeploy.data import Dataset, arrays, image_files, open_data
from vitdeploy.errors import InputError
from vitdeploy.preprocess import Preprocessing, preprocess

KINDS = ("ant", "bee", "cat")
RECIPE = Preprocessing(size=(6, 4), mode="stretch", crop_ratio=1.0)


def png(seed: int, size: tuple[int, int] = (9, 7)) -> bytes:
    """A small image of noise; `size` is (width, height)."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, *names: str, content: bytes | None = None) -> Path:
    """Images, or files of the given content, at `names` below `root`."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number) if content is None else content)
    return root


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def three_classes(root: Path) -> Path:
    return write(root, *(f"{kind}/{number}.png" for kind in KINDS for number in range(3)))


def members_of(root: Path, prefix: str = "") -> dict[str, bytes]:
    return {prefix + path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusal(data: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_data(data, **options)  # type: ignore[arg-type]
    return str(caught.value)


# Folders and zips


def test_a_folder_of_classes_is_read_in_the_order_of_their_sorted_names(tmp_path: Path) -> None:
    data = open_data(three_classes(tmp_path))
    assert data.classes == KINDS
    assert data.names[:4] == ("ant/0.png", "ant/1.png", "ant/2.png", "bee/0.png")
    assert data.targets is not None
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [data.label(i) for i in (0, 8)] == [0, 2]
    image = Image.open(tmp_path / "bee/0.png")
    np.testing.assert_array_equal(np.asarray(data.read(3)), np.asarray(image))
    np.testing.assert_array_equal(data.tensor(3, RECIPE), preprocess(image, RECIPE))
    assert data.sha256(3) == hashlib.sha256((tmp_path / "bee/0.png").read_bytes()).hexdigest()


@pytest.mark.parametrize("prefix", ["", "images/", "home/me/images/"])
def test_a_zip_is_the_folder_it_was_packed_from_with_or_without_the_folder_around_it(
    tmp_path: Path, prefix: str
) -> None:
    folder = three_classes(tmp_path / "data")
    archive = zipped(tmp_path / "data.zip", members_of(folder, prefix))
    data, original = open_data(archive), open_data(folder)
    assert data.names == tuple(prefix + name for name in original.names)
    assert data.classes == KINDS
    assert [data.label(i) for i in range(9)] == [original.label(i) for i in range(9)]
    assert [data.sha256(i) for i in range(9)] == [original.sha256(i) for i in range(9)]


def test_labels_txt_gives_the_order_and_may_name_classes_without_images(tmp_path: Path) -> None:
    folder = three_classes(tmp_path / "data")
    (folder / "labels.txt").write_bytes("\ufeffcat\r\nelk\r\nant\r\nbee\r\n".encode())
    archive = zipped(tmp_path / "data.zip", members_of(folder, "wrapped/"))
    for data in (open_data(folder), open_data(archive)):
        assert data.classes == ("cat", "elk", "ant", "bee")
        assert data.targets is not None
        assert data.targets.tolist() == [2, 2, 2, 3, 3, 3, 0, 0, 0]


def test_classes_are_found_among_the_networks_by_name(tmp_path: Path) -> None:
    folder = three_classes(tmp_path)
    labels = ("dog", "cat", "bee", "ant", "elk")
    data = open_data(folder, labels=labels)
    assert data.classes == labels
    assert [data.label(i) for i in (0, 3, 6)] == [3, 2, 1]
    assert open_data(open_data(folder), labels=labels).targets is not None
    assert [open_data(open_data(folder), labels=labels).label(i) for i in (0, 3, 6)] == [3, 2, 1]


def test_folders_that_are_no_class_of_the_network_are_named(tmp_path: Path) -> None:
    told = refusal(three_classes(tmp_path), labels=("ant", "dog"))
    assert "has images of bee, cat" in told
    assert "ant, dog" in told
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    assert "has images of cat" in refusal(tmp_path)


def test_what_is_no_image_or_hidden_is_passed_over(tmp_path: Path) -> None:
    folder = three_classes(tmp_path / "data")
    names = ("readme.md", "ant/notes.txt", ".git/x.png", "ant/.hidden.png", "__MACOSX/ant/._0.png", "ant/Thumbs.db")
    write(folder, *names)
    assert len(open_data(folder)) == 9
    assert len(open_data(zipped(tmp_path / "data.zip", members_of(folder)))) == 9


def test_suffixes_may_be_written_large_and_links_are_followed(tmp_path: Path) -> None:
    three_classes(tmp_path / "original")
    data = write(tmp_path / "data", "ant/A.PNG", "ant/b.JPeG")
    (data / "bee").symlink_to(tmp_path / "original" / "bee")
    assert open_data(data).names == ("ant/A.PNG", "ant/b.JPeG", "bee/0.png", "bee/1.png", "bee/2.png")
    (data / "ant" / "circle").symlink_to(data)
    assert "is not in the folder of a class" in refusal(data)


def test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "a.png", "b.png")
    for data in (
        open_data(folder),
        open_data(folder, labels=KINDS),
        open_data(zipped(tmp_path / "a.zip", members_of(folder))),
        open_data(zipped(tmp_path / "b.zip", members_of(folder, "wrapped/")), labels=KINDS),
    ):
        assert (len(data), data.targets, data.classes, data.label(0)) == (2, None, None, None)


def test_a_single_folder_is_a_class_where_it_bears_the_name_of_one(tmp_path: Path) -> None:
    folder = write(tmp_path, "bee/a.png", "bee/b.png")
    assert [open_data(folder, labels=KINDS).label(i) for i in range(2)] == [1, 1]
    assert open_data(folder).classes == ("bee",)


def test_a_name_that_is_no_text_is_shown_and_read(tmp_path: Path) -> None:
    three_classes(tmp_path)
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/ant/\xff.png")).write_bytes(png(0))
    except OSError:
        pytest.skip("this file system takes no such names")
    data = open_data(tmp_path)
    index = next(i for i, name in enumerate(data.names) if "\ufffd" in name)
    assert data.names[index].encode()
    assert data.tensor(index, RECIPE).shape == (3, 6, 4)
    assert len(data.sample()) == 10


def test_threads_read_one_zip_at_the_same_time(tmp_path: Path) -> None:
    contents = {f"ant/{number}.png": png(number) for number in range(200)}
    data = open_data(zipped(tmp_path / "data.zip", contents))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(data.sha256, list(range(200)) * 3))
    assert found == [hashlib.sha256(contents[name]).hexdigest() for name in data.names] * 3


# What is wrong with folders and zips


def test_places_without_images_say_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there is no " in refusal(tmp_path / "gone")
    assert "(class/file.jpg)" in refusal(tmp_path / "empty")
    assert "(class/file.jpg)" in refusal(write(tmp_path / "texts", "ant/a.txt"))
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not a folder, a zip of a folder" in refusal(tmp_path / "notes.txt")
    assert "there are no images" in refusal(zipped(tmp_path / "empty.zip", {}))


def test_an_empty_class_folder_is_an_error_only_where_it_would_shift_the_others(tmp_path: Path) -> None:
    folder = three_classes(tmp_path)
    (folder / "apes").mkdir()
    assert "there are no images in apes" in refusal(folder)
    assert len(open_data(folder, labels=(*KINDS, "apes"))) == 9
    (folder / "labels.txt").write_text("apes\nant\nbee\ncat\n")
    assert open_data(folder).label(0) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("train/ant/a.png", "train/bee/a.png", "val/ant/a.png"),
        ("ant/a.png", "bee/b.png", "c.png"),
        ("ant/a.png", "bee/b.png", "bee/more/c.png"),
    ],
)
def test_images_that_are_in_no_class_folder_are_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert "is not in the folder of a class" in refusal(write(tmp_path, *names))


def test_damaged_images_are_named_when_they_are_read(tmp_path: Path) -> None:
    folder = three_classes(tmp_path / "data")
    whole = (folder / "bee" / "1.png").read_bytes()
    (folder / "bee" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "0.png").write_text("no image")
    Image.new("F", (4, 4)).save(folder / "cat" / "1.tif")
    for data in (open_data(folder), open_data(zipped(tmp_path / "data.zip", members_of(folder)))):
        for name in ("bee/1.png", "cat/0.png", "cat/1.tif"):
            with pytest.raises(InputError, match=f"{name} of .* cannot be read"):
                data.tensor(data.names.index(name), RECIPE)
    data = open_data(folder)
    (folder / "ant" / "0.png").unlink()
    with pytest.raises(InputError, match=r"ant/0\.png of .* cannot be read\n  why: .*No such file"):
        data.read(0)


def test_a_damaged_zip_is_an_error_and_a_damaged_member_names_the_image(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "data.zip", {"ant/0.png": png(0), "bee/0.png": png(1)})
    content = archive.read_bytes()
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    assert "half.zip cannot be read" in refusal(tmp_path / "half.zip")
    at = content.index(png(1)) + 40
    archive.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    data = open_data(archive)
    data.read(0)
    with pytest.raises(InputError, match=r"bee/0\.png of .*data\.zip cannot be read\n  why: Bad CRC-32"):
        data.read(1)


def test_an_encrypted_member_names_the_image(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "data.zip", {"ant/0.png": png(0)})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"ant/0\.png of .* cannot be read\n  why: .*password"):
        open_data(archive).read(0)


@pytest.mark.parametrize("name", ["../ant/0.png", "/ant/0.png", "ant/../../0.png", "C:/ant/0.png", "..\\ant\\0.png"])
def test_a_zip_whose_paths_lead_out_of_it_is_refused(tmp_path: Path, name: str) -> None:
    assert "leads out of" in refusal(zipped(tmp_path / "data.zip", {"ant/1.png": png(0), name: png(1)}))


def test_a_zip_with_a_path_twice_is_refused_and_one_from_windows_is_read(tmp_path: Path) -> None:
    data = open_data(zipped(tmp_path / "windows.zip", {"ant\\0.png": png(0), "bee\\0.png": png(1)}))
    assert (data.names, data.classes) == (("ant/0.png", "bee/0.png"), ("ant", "bee"))
    data.read(0)
    twice = zipped(tmp_path / "twice.zip", {"ant/0.png": png(0), "ant/1.png": png(1)})
    twice.write_bytes(twice.read_bytes().replace(b"1.png", b"0.png"))
    assert "it is there twice" in refusal(tmp_path / "twice.zip")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "data.zip", {"ant/0.png": png(0)})
    np.savez_compressed(tmp_path / "data.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    data = open_data(archive)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(InputError, match=r"ant/0\.png of .* cannot be read\n  why: .*40 pixels"):
        data.read(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert data.tensor(0, RECIPE).shape == (3, 6, 4)
    monkeypatch.setattr(image_files, "LARGEST_FILE", 10)
    with pytest.raises(InputError, match="is too large; it has"):
        data.read(0)
    monkeypatch.setattr(arrays, "LARGEST_ARRAYS", 100)
    assert "all of them would be in memory" in refusal(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("text", "told"), [(b"ant\nbee\nant\n", "names ant twice"), (b" \n", "is empty"), (b"\xff\xfe", "cannot be read")]
)
def test_a_labels_txt_that_makes_no_sense_is_refused(tmp_path: Path, text: bytes, told: str) -> None:
    three_classes(tmp_path)
    (tmp_path / "labels.txt").write_bytes(text)
    assert told in refusal(tmp_path)


# Arrays


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8)


def test_an_npz_holds_images_and_perhaps_numbers_or_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=IMAGES)
    np.savez_compressed(tmp_path / "numbers.npz", images=IMAGES, labels=np.array([2, 0, 1, 1, 0], np.uint8))
    np.savez(tmp_path / "names.npz", images=IMAGES, labels=np.array(["cat", "ant", "bee", "bee", "ant"]))
    plain, numbers = open_data(tmp_path / "plain.npz"), open_data(tmp_path / "numbers.npz", labels=KINDS)
    names, renamed = (open_data(tmp_path / "names.npz", labels=kinds) for kinds in (None, ("cat", "bee", "ant")))
    assert plain.targets is None
    assert [numbers.label(i) for i in range(5)] == [2, 0, 1, 1, 0]
    assert numbers.classes is None
    assert names.classes == KINDS
    assert [names.label(i) for i in range(5)] == [2, 0, 1, 1, 0]
    assert [renamed.label(i) for i in range(5)] == [0, 2, 1, 1, 2]
    np.testing.assert_array_equal(numbers.read(3), IMAGES[3])
    np.testing.assert_array_equal(numbers.tensor(3, RECIPE), preprocess(IMAGES[3], RECIPE))
    assert numbers.names[3] == "images[3]"


def test_a_label_file_is_utf8_and_may_name_two_classes_alike() -> None:
    assert image_files.read_labels("\ufeffcr\u00eape\r\n\r\ncrane\ncrane \n".encode(), "labels.txt") == (
        "cr\u00eape",
        "crane",
        "crane",
    )
    with pytest.raises(InputError, match=r"labels\.txt cannot be read\n.*\n.*UTF-8"):
        image_files.read_labels("cr\u00eape".encode("latin-1"), "labels.txt")
    with pytest.raises(InputError, match=r"labels\.txt is empty\n.*one class name"):
        image_files.read_labels(b"\n \n", "labels.txt")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"photos": IMAGES}, "it has no array `images`"),
        ({"images": IMAGES.astype(np.float64)}, "`images` is float64 [5, 7, 9, 3]"),
        ({"images": IMAGES.astype(complex)}, "`images` is complex128"),
        ({"images": IMAGES > 9}, "`images` is bool"),
        ({"images": IMAGES.astype(np.int64)}, "uint8, uint16, int16 or float32 [N, H, W, C]"),
        ({"images": IMAGES[0, 0]}, "`images` is uint8 [9, 3]"),
        ({"images": IMAGES[None]}, "`images` is uint8 [1, 5, 7, 9, 3]"),
        ({"images": IMAGES[:0]}, "there are no images"),
        ({"images": IMAGES, "labels": np.arange(4)}, "there are 5 images"),
        ({"images": IMAGES, "labels": np.zeros(5)}, "are float64 [5]"),
        ({"images": IMAGES, "labels": np.arange(5)}, "go from 0 to 4"),
        ({"images": IMAGES, "labels": np.array([0, 1, -1, 0, 0])}, "go from -1 to 1"),
        ({"images": IMAGES, "labels": np.array([None] * 5)}, "cannot be read"),
        ({"images": np.array([{}])}, "cannot be read"),
    ],
)
def test_an_npz_that_is_not_data_says_why(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    assert told in refusal(tmp_path / "data.npz", labels=KINDS)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (IMAGES.transpose(0, 3, 1, 2), r"uint8 \[3, 7, 9\] is not an image; images are uint8 \[H, W, 3\]"),
        (IMAGES.astype(np.uint16), r"uint16 \[7, 9, 3\] is not an image; images are uint8 \[H, W, 3\]"),
        (IMAGES.astype(np.float32), "float32 is taken as normalised already"),
        (IMAGES[..., 0], r"uint8 \[7, 9\] is not an image"),
    ],
)
def test_arrays_of_an_npz_that_are_no_colours_are_named(tmp_path: Path, images: np.ndarray, told: str) -> None:
    np.savez(tmp_path / "data.npz", images=images)
    with pytest.raises(InputError, match=rf"images\[2\] of .*data\.npz(.|\n)*{told}"):
        open_data(tmp_path / "data.npz").tensor(2, RECIPE)


def test_a_damaged_npz_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=IMAGES)
    content = (tmp_path / "whole.npz").read_bytes()
    for number, text in enumerate((b"", b"PK", content[:300], content.replace(b"|u1", b"|x1"))):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(text)
        assert f"{path} cannot be read" in refusal(path)


def test_any_iterable_of_images_is_data(tmp_path: Path) -> None:
    path = write(tmp_path, "a.png") / "a.png"
    mixed = [IMAGES[0], str(path), path, Image.fromarray(IMAGES[1])]
    data = open_data(mixed, targets=[1, 0, 0, 2], labels=KINDS)
    assert data.names == ("images[0]", str(path), str(path), "images[3]")
    assert [data.tensor(i, RECIPE).shape for i in range(4)] == [(3, 6, 4)] * 4
    np.testing.assert_array_equal(data.tensor(1, RECIPE), preprocess(path, RECIPE))
    assert data.sha256(1) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len({data.sha256(i) for i in range(4)}) == 3

    def stream() -> Iterator[np.ndarray]:
        yield from IMAGES

    assert len(open_data(stream())) == 5
    assert len(open_data(IMAGES, targets=np.zeros(5, int))) == 5


def test_normalised_arrays_pass_as_they_are_and_others_are_refused_by_name() -> None:
    ready = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    data = open_data([ready, ready[:, :5], ready.astype(np.float64), "nowhere.png", 7])  # type: ignore[list-item]
    np.testing.assert_array_equal(data.tensor(0, RECIPE), ready)
    told = [
        r"images\[1\] of the data is float32 \[3, 5, 4\]",
        r"images\[2\] of .*\n.*float64",
        "nowhere",
        "a int is not an image",
    ]
    for index, message in enumerate(told, 1):
        with pytest.raises(InputError, match=message):
            data.tensor(index, RECIPE)
    with pytest.raises(InputError, match="taken as normalised already"):
        data.tensor(0, RECIPE, normalised=False)


def test_a_graph_that_normalises_itself_gets_pixels() -> None:
    pixels = open_data(IMAGES).tensor(0, Preprocessing(size=(7, 9), mode="stretch"), normalised=False)
    np.testing.assert_array_equal(pixels, IMAGES[0])


def test_class_numbers_belong_to_iterables_only(tmp_path: Path) -> None:
    assert "class numbers were given" in refusal(three_classes(tmp_path), targets=[0])
    assert "go from 0 to 3" in refusal(IMAGES, targets=[0, 1, 2, 3, 0], labels=KINDS)
    assert "there are no images" in refusal([])


# Samples


def dataset(targets: list[int] | None, names: list[str] | None = None) -> Dataset:
    count = len(targets if targets is not None else names or [])
    numbers = None if targets is None else np.array(targets, np.int64)
    return Dataset(lambda i: b"", names or [f"{i}.png" for i in range(count)], where="here", targets=numbers)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 9))
def test_every_class_has_its_share_in_a_sample(targets: list[int], count: int, seed: int) -> None:
    data = dataset(targets)
    chosen = data.sample(count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(targets))
    assert chosen == data.sample(seed=seed)[:count]
    share = len(chosen) / len(targets)
    found = Counter(targets[i] for i in chosen)
    for kind, size in Counter(targets).items():
        assert abs(found[kind] - share * size) <= 1 + 1e-9


def test_a_sample_is_that_of_its_seed_and_depends_on_no_order_and_no_other_image() -> None:
    names = [f"{number}.png" for number in range(50)]
    first = [names[i] for i in dataset(None, names).sample(10)]
    assert first == [names[::-1][i] for i in dataset(None, names[::-1]).sample(10)]
    assert first != [names[i] for i in dataset(None, names).sample(10, seed=1)]
    fewer = [name for name in names if name not in first[:5]]
    assert first[5:] == [fewer[i] for i in dataset(None, fewer).sample(5)]
    # Known values: what is sampled once is sampled for ever, on every machine.
    by_hash = sorted(names, key=lambda name: hashlib.sha256(f"0/{name}".encode()).digest())
    assert first == by_hash[:10]
    with pytest.raises(InputError, match="invalid sample size 0"):
        dataset(None, names).sample(0)


def test_eurosat_is_read_as_its_readme_says(shared: Path) -> None:
    data = open_data(shared / "data" / "eurosat" / "eurosat_val.zip")
    assert (len(data), len(data.classes or ())) == (4050, 10)
    assert data.names[0] == "AnnualCrop/AnnualCrop_1004.jpg"
    assert all(np.asarray(data.read(i)).shape == (64, 64, 3) for i in data.sample(20))
    counts = Counter(data.label(i) for i in data.sample(405))
    assert {kind: 10 * count for kind, count in counts.items()} == pytest.approx(Counter(data.targets), abs=10)
    kodak = open_data(shared / "data" / "kodak")
    assert (len(kodak), kodak.targets) == (24, None)

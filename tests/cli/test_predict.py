"""`vitdeploy predict`: files and folders, tables and JSON, and images that cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import LABELS, write_tiny_bundle
from vitdeploy import load
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, InputError, UsageError
from vitdeploy.runtime.session import Session

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "b").path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one of them in a folder below, and files that are none."""
    folder = tmp_path / "photos"
    (folder / "below" / ".hidden").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.JPG", "below/c.bmp", "below/.hidden/d.png"):
        path = folder / name
        image = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
        image.save(path, format=None if path.suffix != ".JPG" else "JPEG")
    (folder / "notes.txt").write_text("none")
    return folder


def told(*words: object, capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, object]]]:
    """The JSON of a run that ends well."""
    assert main(["predict", *map(str, words), "--runtime", "ort", "--json"]) == 0
    found: dict[str, list[dict[str, object]]] = json.loads(capsys.readouterr().out)
    return found


def test_a_folder_is_the_images_in_and_below_it(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(photos / name) for name in ("a.JPG", "b.png", "below/c.bmp")]
    folder = told(bundle, photos, capsys=capsys)
    assert [row["image"] for row in folder["images"]] == names
    assert folder == told(bundle, *names, capsys=capsys)
    assert folder == told(bundle, photos, photos / "b.png", capsys=capsys)  # each once
    assert folder["skipped"] == []


def test_a_folder_without_images_is_an_error(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["predict", bundle, str(tmp_path / "empty")]) == 2
    assert f"error: there are no images in {tmp_path / 'empty'}" in capsys.readouterr().err


def test_a_table_has_a_line_for_each_image_and_class(
    bundle: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "classes.csv"
    rows = told(bundle, photos, "--top-k", 2, "--csv", file, capsys=capsys)["images"]
    lines = list(csv.DictReader(file.open()))
    assert [(line["image"], int(line["rank"])) for line in lines] == [
        (row["image"], rank) for row in rows for rank in (1, 2)
    ]
    best = [one for row in rows for one in row["predictions"]]  # type: ignore[attr-defined]
    for line, one in zip(lines, best, strict=True):
        assert (line["label"], int(line["index"])) == (one["label"], one["index"])
        assert float(line["probability"]) == pytest.approx(one["probability"], abs=1e-6)
        assert line["label"] == LABELS[int(line["index"])]


def test_a_table_that_cannot_be_written_is_said_before_anything_runs(
    bundle: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", bundle, str(photos), "--csv", str(tmp_path / "no" / "f.csv")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "give --csv another path" in err


@pytest.mark.parametrize("damage", ["text", "empty", "half", "gone"])
def test_one_broken_image_ends_the_run_or_is_counted(
    damage: str, bundle: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = photos / "b.png"
    data = broken.read_bytes()
    broken.write_bytes({"text": b"no image", "empty": b"", "half": data[: len(data) // 2], "gone": b""}[damage])
    if damage == "gone":
        broken.unlink()
    words = ["predict", bundle, str(photos / "a.JPG"), str(broken), str(photos / "below"), "--runtime", "ort"]
    assert main([*words, "--csv", str(tmp_path / "f.csv")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(broken) in err
    assert not (tmp_path / "f.csv").exists()

    assert main([*words, "--skip-broken", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["image"] for row in found["images"]] == [str(photos / "a.JPG"), str(photos / "below" / "c.bmp")]
    assert [row["image"] for row in found["skipped"]] == [str(broken)]
    assert "warning: 1 of 3 images was skipped\n" in err


def test_where_every_image_is_broken_there_is_nothing_to_tell(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"none")
    assert main(["predict", bundle, str(tmp_path), "--skip-broken"]) == 2
    assert "error: none of 2 images can be read" in capsys.readouterr().err


def test_a_runtime_that_fails_is_no_broken_image(
    bundle: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: Session, images: object) -> None:
        raise BackendError("the device is gone", fix="vitdeploy doctor")

    monkeypatch.setattr(Session, "run", fails)
    assert main(["predict", bundle, str(photos), "--skip-broken"]) == 2
    assert "error: the device is gone" in capsys.readouterr().err


def test_a_session_returns_what_was_wrong_in_the_place_of_an_image(bundle: str, photos: Path) -> None:
    with load(bundle, runtime="ort") as session:
        images = [photos / "a.JPG", photos / "notes.txt", photos / "b.png"]
        first, wrong, last = session.predict(images, on_error="return")
        assert isinstance(wrong, InputError)
        assert [first, last] == session.predict([images[0], images[2]])
        with pytest.raises(InputError, match=r"notes\.txt"):
            session.predict(images)
        with pytest.raises(UsageError, match="on_error"):
            session.predict(images, on_error="skip")  # type: ignore[call-overload]

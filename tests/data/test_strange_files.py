"""Files that no image set has: formats that start programs, and files that never end."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from PIL import Image

from vitdeploy.data import open_data
from vitdeploy.errors import InputError
from vitdeploy.preprocess import Preprocessing, preprocess

RECIPE = Preprocessing(size=(8, 8), mode="stretch")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
# Signatures of formats that Pillow knows and no image set has.
FOREIGN = {
    "EPS": EPS,
    "EPS of DOS": b"\xc5\xd0\xd3\xc6" + b"\0" * 28 + EPS,
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + b"\0" * 60,
    "PSD": b"8BPS\0\1" + b"\0" * 60,
    "PCX": b"\x0a\x05\x01\x08" + b"\0" * 124,
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_formats_are_never_tried(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(InputError, match="is not an image\n  why: it is of none of the formats JPEG, PNG"):
        preprocess(tmp_path / "x.jpg", RECIPE)
    with pytest.raises(InputError, match="cannot be read"):
        open_data(tmp_path).tensor(0, RECIPE)
    assert not started


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif", "ppm", "pgm", "jp2"])
def test_the_formats_of_image_sets_are_read(tmp_path: Path, suffix: str) -> None:
    Image.new("L" if suffix == "pgm" else "RGB", (9, 9)).save(tmp_path / f"x.{suffix}")
    assert preprocess(tmp_path / f"x.{suffix}", RECIPE).shape == (3, 8, 8)
    assert open_data(tmp_path).tensor(0, RECIPE).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_files_that_never_end_are_named_instead_of_read(tmp_path: Path, kind: str) -> None:
    if kind == "a FIFO":
        os.mkfifo(tmp_path / "x.jpg")
    else:
        (tmp_path / "x.jpg").symlink_to("/dev/zero")
    found: list[BaseException] = []

    def read() -> None:
        with pytest.raises(InputError, match="is no regular file") as error:
            open_data(tmp_path).tensor(0, RECIPE)
        found.append(error.value)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert len(found) == 1

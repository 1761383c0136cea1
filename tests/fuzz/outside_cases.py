"""Images, data sets and command lines that nobody expects."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.values import change_bytes, strange
from vitdeploy.cli import main
from vitdeploy.data import open_data
from vitdeploy.errors import VitDeployError
from vitdeploy.preprocess import Preprocessing, preprocess

COLOURS = Preprocessing(size=(8, 8))
GREY = Preprocessing(size=(8, 8), channels="L", mean=(0.5,), std=(0.5,))
BANDS = Preprocessing(size=(8, 8), channels="bands", mean=(0.5,) * 4, std=(0.5,) * 4, scale=10000)
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
MODES = ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK", "LA", "F", "I")


def image_bytes(rng: random.Random) -> bytes:
    """A file of some format and mode, as Pillow writes it."""
    pixels = np.frombuffer(rng.randbytes(12 * 10 * 3), np.uint8).reshape(12, 10, 3)
    for _ in range(20):
        stream = io.BytesIO()
        with contextlib.suppress(OSError, ValueError):  # a format that does not have the mode
            Image.fromarray(pixels).convert(rng.choice(MODES)).save(stream, rng.choice(FORMATS))
            return stream.getvalue()
    return b""


def change_image(folder: Path, rng: random.Random) -> None:
    """A file that is damaged, or cut from two."""
    data = change_bytes(image_bytes(rng), rng)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)] + image_bytes(rng)[rng.randrange(20) :]
    path = folder / f"x.{rng.choice(('png', 'jpg', 'tif', 'gif', 'eps', 'txt'))}"
    path.write_bytes(data)
    with contextlib.suppress(VitDeployError):
        found = preprocess(path, rng.choice((COLOURS, GREY, BANDS)))
        assert found.dtype == np.float32
    path.unlink()


def change_data(folder: Path, rng: random.Random) -> None:
    """A folder, a zip, an .npz or a tar."""
    kind = rng.randrange(4)
    path = folder / ("data" + ("", ".zip", ".npz", ".tar")[kind])
    names = [f"{rng.choice(('a', 'b', 'a/c', '..', '', '.hidden'))}/{n}.{rng.choice(('png', 'txt'))}" for n in range(4)]
    if kind == 0:
        for name in names:
            (path / name.replace("..", "up").lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (path / name.replace("..", "up").lstrip("/")).write_bytes(image_bytes(rng))
        if rng.random() < 0.5:
            (path / "labels.txt").write_bytes(rng.choice((b"", b"\xff\xfe", b"a\nb", b"a\na", b"\0\n", b"\n" * 9)))
    elif kind == 1:
        with contextlib.suppress(UserWarning), zipfile.ZipFile(path, "w") as archive:
            for name in dict.fromkeys(names):
                archive.writestr(name, image_bytes(rng))
        path.write_bytes(change_bytes(path.read_bytes(), rng) if rng.random() < 0.7 else path.read_bytes())
    elif kind == 3:
        with tarfile.open(path, "w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
            for name in [*names, rng.choice(("a.cls", "b.json", "a/b.png"))]:
                content = rng.choice((image_bytes(rng), b"1", b'{"label": 1}', b"[" * 2000))
                member = tarfile.TarInfo(name)
                member.size, member.type = len(content), rng.choice((tarfile.REGTYPE,) * 9 + (tarfile.SYMTYPE,))
                archive.addfile(member, io.BytesIO(content))
        path.write_bytes(change_bytes(path.read_bytes(), rng) if rng.random() < 0.7 else path.read_bytes())
    else:
        arrays = {
            rng.choice(("images", "labels", "masks", "x", "classes")): np.asarray(
                rng.choice((np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, int), strange(rng), np.array(["a"])))
            )
            for _ in range(3)
        }
        with contextlib.suppress(ValueError, OverflowError, UnicodeEncodeError):
            np.savez(path, **arrays)
        if path.exists() and rng.random() < 0.4:
            path.write_bytes(change_bytes(path.read_bytes(), rng))
    try:
        with contextlib.suppress(VitDeployError):
            found = open_data(path)
            for index in range(min(len(found), 5)):
                with contextlib.suppress(VitDeployError):
                    found.tensor(index, rng.choice((COLOURS, GREY)))
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


COMMANDS = (
    *("verify", "predict", "inspect", "check", "benchmark", "validate", "doctor", "models", "targets", "build"),
    *("sensitivity", "optimize", "bisect", "help", "schema", "completion", "report", "handoff", "fleet"),
)
OPTIONS = (
    *("--runtime", "--json", "--verbose", "--batch", "--target", "--top-k", "--threads", "--device", "--data"),
    *("--num-requests", "--compute-precision", "--samples", "--seed", "--max-drop", "--help", "--", "-x", "--key"),
    *("--untrust", "--rounds", "--report", "--csv", "--baseline", "--checkpoint"),
    *("--quiet", "--log-file", "--config", "--skip-broken", "--by", "--sort", "--top", "--against", "--inputs"),
    *("--seconds", "--validation", "--benchmark", "--sensitivity", "--optimize", "--title", "-o", "--junit"),
    *("--max-slowdown", "--shard", "--merge", "--engine", "--workers"),
    *("--to", "--engine", "--max-batch"),
    *("--hosts", "--only", "--parallel", "--force"),
)


def defaults(rng: random.Random, command: str) -> str:
    """A file of defaults: options that there are and that there are not, with any values; sometimes no TOML at all."""
    names = [option.lstrip("-") for option in OPTIONS] + ["traget", "export", "int8"]
    values = ("true", "false", "1", "-1", "1e400", "nan", '"auto"', '"x=1"', "[]", '["a", 1]', "{}", "1979-05-27", '""')
    tables = [f"[{command}]", "[export.int8]", "[nothing]", "[[verify]]", ""]
    lines = [rng.choice(tables)]
    for _ in range(rng.randrange(4)):
        lines.append(f"{rng.choice(names) or 'a'} = {rng.choice(values)}")
    return "\n".join(lines) + rng.choice(("", "", "", "\n[", "\0", "\ud800"))


def change_command(folder: Path, rng: random.Random) -> None:
    """A command line: the exit code is one of ours, and with --json there is one object on standard output."""
    bundle = str(folder / "fp32")
    values = (bundle, f"{folder}/x.png", "onnxruntime", "tensorrt10", "auto", "1", "0", "-1", "9" * 30, "nan", "", ".")
    words = [rng.choice((*COMMANDS, "", "vrify", bundle))]
    for _ in range(rng.randrange(6)):
        words.append(rng.choice(rng.choice((OPTIONS, values, values, (str(strange(rng)),)))))
    if words[0] == "benchmark":  # 10 s otherwise
        words += ["--seconds", "0.1", "--warmup", "0"]
    if words[0] == "report" and {"--seconds", "--data"} & set(words):
        words += ["--seconds", "0.1"]
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    with (
        tempfile.TemporaryDirectory(dir=folder) as here,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        if rng.random() < 0.3:
            Path(here, "vitdeploy.toml").write_text(defaults(rng, words[0]), errors="surrogatepass")
        os.chdir(here)  # what a command line writes into a file of a random name is written there
        try:
            code = main([word for word in words if "\0" not in word or rng.random() < 0.5])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 2
        finally:
            os.chdir(before)
    told = f"{words} gave {code}: {err.getvalue()[-500:]}"
    assert code in (0, 1, 2), told
    assert "unexpected " not in err.getvalue(), told
    assert "Traceback" not in err.getvalue(), told
    if code and "--json" in itertools.takewhile(lambda word: word != "--", words):
        found = json.loads(out.getvalue())
        assert isinstance(found, dict), told

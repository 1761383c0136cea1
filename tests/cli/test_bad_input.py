"""Every mistake gets a message a beginner can act on, exit code 2, no traceback, and leaves nothing on disk."""

from __future__ import annotations

import builtins
import errno
import importlib.util
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitdeploy.bundle.manifest import dump
from vitdeploy.cli import main


class Refused:
    """Runs one command that must fail, in a folder that must stay as it was."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, *command: object, code: int = 2) -> str:
        before = sorted(self.folder.rglob("*"))
        try:
            actual = main([str(part) for part in command])
        except SystemExit as stop:  # argparse
            actual = int(stop.code or 0)
        err = self.capsys.readouterr().err
        assert actual == code, err
        assert "error:" in err
        assert "Traceback" not in err
        assert sorted(self.folder.rglob("*")) == before
        return err


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    monkeypatch.chdir(tmp_path)
    return Refused(tmp_path, capsys)


def test_an_unknown_model_offers_the_closest_names(refused: Refused) -> None:
    message = refused("export", "lemevit_tny")
    assert "lemevit_tiny" in message


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--target", "tensorrt9"], "tensorrt10"),
        (["--precision", "fp17"], "fp16"),
        (["--batch", "0"], "dynamic"),
        (["--batch", "many"], "dynamic"),
        (["--image-size", "big"], "224"),
        (["--image-size", "0x4"], "224"),
        (["--image-size", "8"], "8x8"),
        (["--num-classes", "0"], "at least one class"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--labels", "nowhere.txt"], "nowhere.txt"),
        (["--reference", "nowhere.png"], "nowhere.png"),
        (["--fp16", "--precision", "fp16"], "not allowed with"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_values_that_do_not_exist_or_do_not_fit(refused: Refused, arguments: list[str], hint: str) -> None:
    assert hint in refused("export", "lemevit_tiny", *arguments)


def test_labels_are_utf8_whatever_the_locale(refused: Refused) -> None:
    (refused.folder / "labels.txt").write_bytes("cr\u00eape\n".encode("latin-1"))
    assert "save it as UTF-8" in refused("export", "lemevit_tiny", "--labels", "labels.txt")


def test_sizes_that_a_family_refuses_name_sizes_that_work(refused: Refused) -> None:
    assert "224" in refused("export", "saevit_xs", "--image-size", "230")


class Evil:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_checkpoints_that_are_not_what_they_should_be(refused: Refused, tmp_path: Path) -> None:
    truncated, foreign, empty, evil, other = (
        tmp_path / n for n in ("t.pth", "f.pth", "e.safetensors", "x.pth", "o.pth")
    )
    torch.save({"model": {"head.weight": torch.zeros(10, 320)}}, truncated)
    truncated.write_bytes(truncated.read_bytes()[:200])
    foreign.write_text("this is a text file")
    empty.write_bytes(b"")
    with evil.open("wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    torch.save({"epoch": 3}, other)
    for path in (truncated, foreign, empty, evil, other):
        assert path.name in refused("export", "lemevit_tiny", "--checkpoint", path)
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_of_another_shape_says_which_option_fixes_it(refused: Refused, tmp_path: Path) -> None:
    from vitdeploy import create_model

    state = create_model("lemevit_tiny", num_classes=51).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "scene.safetensors")
    assert "--num-classes 51" in refused("export", "lemevit_tiny", "--checkpoint", "scene.safetensors")
    message = refused("export", "dualvit_s", "--checkpoint", "scene.safetensors", "--num-classes", 51)
    assert "more" in message  # the first key and how many follow


def test_places_that_cannot_hold_a_bundle(refused: Refused, tmp_path: Path, model_file: Path) -> None:
    export = ("export", f"{model_file}:build", "--image-size", "16", "-o")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("years of work")
    refused(*export, "file")
    refused(*export, "file/below")
    refused(*export, "full")
    refused(*export, "full", "--force")
    assert (tmp_path / "full/thesis.txt").read_text() == "years of work"
    refused(*export, "/proc/vitdeploy")


def test_a_full_disk_leaves_nothing(refused: Refused, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = refused("export", f"{model_file}:build", "--image-size", "16", "-o", "bundle")
    assert "full" in message or "space" in message


@pytest.mark.parametrize(
    "package", ["torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime", "threadpoolctl"]
)
def test_a_missing_package_comes_with_its_pip_line(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    assert "pip install" in refused("export", "lemevit_tiny")


def test_a_missing_torch_comes_with_its_pip_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    assert "pip install 'vitdeploy[export]'" in refused("export", "lemevit_tiny")


def test_functions_that_do_not_make_a_module(refused: Refused, tmp_path: Path, model_file: Path) -> None:
    assert "--image-size" in refused("export", f"{model_file}:build")
    assert "no function" in refused("export", f"{model_file}:missing", "--image-size", 16)
    (tmp_path / "broken.py").write_text("def build(:\n")
    assert "broken.py" in refused("export", "broken.py:build", "--image-size", 16)
    (tmp_path / "number.py").write_text("def build():\n    return 3\n")
    assert "int" in refused("export", "number.py:build", "--image-size", 16)
    assert "missing.py" in refused("export", "missing.py:build", "--image-size", 16)


def test_bundles_that_were_changed(refused: Refused, tmp_path: Path, tiny_bundle: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_bundle, tmp_path / name))

    flipped = copy("flipped")
    data = bytearray((flipped / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (flipped / "model.onnx").write_bytes(data)
    missing = copy("missing")
    (missing / "reference.npz").unlink()
    newer, climbing, garbage = copy("newer"), copy("climbing"), copy("garbage")
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_bytes(dump({**manifest, "schema_version": 99}))
    files = {"../../etc/passwd": manifest["files"]["model.onnx"]}
    (climbing / "manifest.json").write_bytes(dump({**manifest, "files": files}))  # with the hash that belongs to it
    (garbage / "manifest.json").write_text("{")

    assert "model.onnx" in refused("verify", flipped)
    assert "reference.npz" in refused("verify", missing)
    assert "upgrade" in refused("verify", newer)
    assert "passwd" in refused("verify", climbing)
    refused("verify", garbage)
    refused("verify", tmp_path / "nothing")
    image = tmp_path / "image.png"
    shutil.copy(Path(__file__).parents[2] / "examples/water.png", image)
    assert "model.onnx" in refused("predict", flipped, image)


def test_images_and_runtimes_that_are_not_there(refused: Refused, tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    assert "text.png" in refused("predict", tiny_bundle, "text.png")
    assert "nowhere.png" in refused("predict", tiny_bundle, "nowhere.png")
    assert "onnxruntime" in refused("verify", tiny_bundle, "--runtime", "onxruntime")
    refused("predict", tiny_bundle, "text.png", "--top-k", "0")


def test_numbers_that_do_not_hold_exit_with_one(
    refused: Refused, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.exporter import preparation

    honest = preparation._graph

    def sabotage(*args: Any) -> Any:
        graph, record = honest(*args)
        weight = next(v for v in graph.graph.initializers.values() if v.name and v.name.endswith("head.bias"))
        array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
        array[0] += 1e-2
        import onnx_ir as ir

        weight.const_value = ir.tensor(np.ascontiguousarray(array), name=weight.name)
        return graph, record

    monkeypatch.setattr(preparation, "_graph", sabotage)
    message = refused("export", f"{model_file}:build", "--image-size", "16", "-o", "bundle", code=1)
    assert "does not reproduce PyTorch" in message

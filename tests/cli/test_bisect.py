"""`vitdeploy bisect` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.divergence.conftest import Break, broken
from tests.transformer import damaged_weight, transformer, write_bundle
from vitdeploy.cli import main

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

__all__ = ["broken"]

Run = Callable[..., tuple[int, str, str]]
HERE = ("--runtime", "ort")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output and standard error in a folder with `model.onnx` and the bundle `bundle`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(transformer())
    write_bundle(tmp_path / "bundle")

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["bisect", *words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("source", ["model.onnx", "bundle"])
def test_a_runtime_that_is_right(source: str, run: Run, tmp_path: Path) -> None:
    code, out, _ = run(source, *HERE, "-o", "report")
    assert code == 0
    assert out.splitlines()[-1] == "onnxruntime gives the numbers of the file by the ONNX standard"
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("source", ["model.onnx", "bundle"])
def test_a_runtime_that_is_wrong(source: str, run: Run, broken: Break, tmp_path: Path) -> None:
    broken(damaged_weight, "blocks.1.0.mlp.weight")
    code, out, err = run(source, *HERE, "-o", "report")
    assert code == 1
    assert "first block: blocks.1.0\n" in out
    assert "made by: blocks.1.0.mlp/MatMul (MatMul)\n" in out
    assert "wrong on its own: blocks.1.0.mlp/MatMul (MatMul)\n" in out
    assert "reproducer, which was run: python report/reproduce.py" in out
    assert "behind blocks." in err, "progress says what is asked"
    assert (tmp_path / "report" / "block.onnx").is_file()


def test_quiet_and_json(run: Run, broken: Break) -> None:
    broken(damaged_weight, "head.weight")
    code, out, err = run("model.onnx", *HERE, "--json", "--quiet", "--seed", "3")
    told = json.loads(out)
    assert (code, told["passed"], err) == (1, False, "")
    assert told["divergence"]["block"] == "head"
    assert told["inputs"] == "random inputs of the seed 3, 1 of 2 samples"
    assert told["reproducer"] is None


def test_inputs_of_a_file(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.ones((3, 3, 8, 8), np.float32))
    code, out, _ = run("model.onnx", *HERE, "--inputs", "images.npz")
    assert code == 0
    assert "the inputs in images.npz, 3 of 3 samples" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "required"),
        (("model.onnx",), "--runtime"),
        (("nowhere.onnx", *HERE), "cannot be read"),
        (("nowhere", *HERE), "there is no bundle at nowhere"),
        (("model.onnx", "--runtime", "nonsense"), "nonsense"),
        (("model.onnx", *HERE, "--against", "nonsense"), "nonsense"),
        (("model.onnx", *HERE, "--against", "ort"), "compared with itself"),
        (("model.onnx", *HERE, "--against", "torch"), "torch cannot be what is trusted"),
        (("model.onnx", *HERE, "--compute-precision", "fp4"), "compute precision 'fp4'"),
        (("model.onnx", *HERE, "--compute-precision", "bf16"), "does not support"),
        (("model.onnx", *HERE, "--threads", "0"), "threads"),
        (("model.onnx", *HERE, "--seed", "-1"), "seed"),
        (("model.onnx", *HERE, "--seed", "nan"), "seed"),
        (("model.onnx", *HERE, "--inputs", "nowhere.npz"), "cannot read nowhere.npz"),
        (("model.onnx", *HERE, "--inputs", "model.onnx"), "no .npz file"),
        (("model.onnx", *HERE, "-o", "bundle"), "nothing is written over"),
        (("model.onnx", *HERE, "-o", "model.onnx/below"), "is a file"),
        (("model.onnx", *HERE, "--untrusted"), "stranger"),
        (("bundle/manifest.json", *HERE), "is not a valid ONNX model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_cannot_be_done_is_said_with_exit_code_2(words: tuple[str, ...], told: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert told in err
    assert "\nerror: " in f"\n{err}"
    assert "  try: " in err


def test_an_altered_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bundle" / "model.onnx").write_bytes(transformer(half=True))
    code, _, err = run("bundle", *HERE)
    assert code == 2
    assert "is not the file that was exported" in err

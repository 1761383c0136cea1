"""What cannot be bisected is refused with a reason, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.bundles import write_tiny_bundle
from tests.divergence.damages import FLOAT, build, several
from tests.transformer import transformer
from vitdeploy import bisect
from vitdeploy.divergence.source import open_source
from vitdeploy.errors import BackendError, BundleError, InputError, UsageError, VitDeployError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

ORT = "onnxruntime"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(transformer())
    return tmp_path / "model.onnx"


def check_refused(error: type[VitDeployError], match: str | None, *words: object, **options: object) -> VitDeployError:
    with pytest.raises(error, match=match) as caught:
        bisect(*words, **{"runtime": ORT, **options})  # type: ignore[arg-type]
    assert caught.value.fix, "it says what to try"
    return caught.value


def test_files_that_are_no_models(tmp_path: Path) -> None:
    check_refused(InputError, "cannot be read", tmp_path / "nowhere.onnx")
    check_refused(BundleError, "there is no bundle", tmp_path / "nowhere")
    check_refused(BundleError, "is not a bundle", tmp_path)
    for content in (b"", b"nonsense", b"\x08\x08", np.random.default_rng(0).bytes(1000), transformer()[:2000]):
        (tmp_path / "broken.onnx").write_bytes(content)
        check_refused(InputError, "is not a valid ONNX model", tmp_path / "broken.onnx")
    cyclic = onnx.load_from_string(transformer())
    cyclic.graph.node[0].input[0] = "logits"
    (tmp_path / "broken.onnx").write_bytes(cyclic.SerializeToString())
    check_refused(VitDeployError, None, tmp_path / "broken.onnx")
    outside = onnx.load_from_string(transformer())
    onnx.save(outside, tmp_path / "apart.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert bisect(tmp_path / "apart.onnx", runtime=ORT).passed
    (tmp_path / "weights").unlink()
    check_refused(InputError, None, tmp_path / "apart.onnx")


def test_names_and_options_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    check_refused(UsageError, "there is no runtime", model, runtime="nonsense")
    check_refused(UsageError, "there is no runtime", model, runtime="auto")
    check_refused(UsageError, "there is no runtime", model, against="nonsense")
    check_refused(UsageError, "compared with itself", model, against="ort")
    check_refused(UsageError, "seed", model, seed=-1)
    check_refused(UsageError, "threads", model, threads=0)
    check_refused(UsageError, "stranger", model, untrusted=True)
    check_refused(UsageError, "has no signature", model, key=tmp_path / "key.pem")
    check_refused(UsageError, None, model, runtime=5)


def test_a_stranger_is_refused_by_the_environment_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_UNTRUSTED", "1")
    check_refused(UsageError, "stranger", model)


def test_folders_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    check_refused(UsageError, "cannot write the reproducer", model, output=tmp_path / "full")
    check_refused(UsageError, "cannot write the reproducer", model, output=model)
    check_refused(UsageError, "cannot write the reproducer", model, output=model / "below")
    assert (tmp_path / "full" / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({}, "of no input"),
        ({"other": np.zeros(1, np.float32)}, "has the arrays other"),
        ({"images": np.zeros((1, 3, 8, 8), np.float64)}, "is float64"),
        ({"images": np.zeros((1, 3, 8, 9), np.float32)}, r"is float32 \[1, 3, 8, 9\]"),
        ({"images": np.zeros((3, 8, 8), np.float32)}, r"is float32 \[3, 8, 8\]"),
        ({"images": np.zeros((0, 3, 8, 8), np.float32)}, "is empty"),
        ({"images": np.full((1, 3, 8, 8), np.nan, np.float32)}, "NaN or Inf"),
        ({"images": np.array(["text"])}, "images in"),
        ({"images": np.array([{}], object)}, "no .npz file of arrays"),
    ],
)
def test_inputs_that_are_not_those_of_the_model(
    arrays: dict[str, np.ndarray], match: str, model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "inputs.npz", **arrays)
    check_refused(UsageError, match, model, inputs=tmp_path / "inputs.npz")


def test_inputs_that_are_no_file_of_arrays(model: Path, tmp_path: Path) -> None:
    check_refused(UsageError, "cannot read", model, inputs=tmp_path / "nowhere.npz")
    check_refused(UsageError, "cannot read", model, inputs=tmp_path)
    for content in (b"", b"nonsense", b"PK\x03\x04"):
        (tmp_path / "inputs.npz").write_bytes(content)
        check_refused(UsageError, None, model, inputs=tmp_path / "inputs.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    check_refused(UsageError, "no .npz file", model, inputs=tmp_path / "one.npy")


def test_inputs_of_other_samples_each(tmp_path: Path) -> None:
    (tmp_path / "several.onnx").write_bytes(several())
    given = {"x": np.zeros((2, 8), np.float32), "ids": np.zeros(3, np.int64), "mask": np.ones((2, 8), np.bool_)}
    np.savez(tmp_path / "inputs.npz", **given)
    check_refused(UsageError, "samples", tmp_path / "several.onnx", inputs=tmp_path / "inputs.npz")


def test_an_axis_that_is_open_is_asked_for(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="a/Relu")]
    shape: list[int | str] = ["n", 3, "height"]
    (tmp_path / "open.onnx").write_bytes(build(nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], {}))
    found = check_refused(UsageError, "leaves open how large", tmp_path / "open.onnx")
    assert found.fix is not None
    assert "--inputs" in found.fix
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 3, 5), np.float32))
    assert bisect(tmp_path / "open.onnx", runtime=ORT, inputs=tmp_path / "inputs.npz").passed


def test_inputs_that_the_model_fails_on_are_named(tmp_path: Path) -> None:
    (tmp_path / "several.onnx").write_bytes(several())
    given = {"x": np.zeros((2, 8), np.float32), "ids": np.full(2, 99, np.int64), "mask": np.ones((2, 8), np.bool_)}
    np.savez(tmp_path / "inputs.npz", **given)
    check_refused(
        BackendError, "does not run on these inputs", tmp_path / "several.onnx", inputs=tmp_path / "inputs.npz"
    )


def test_random_inputs_are_those_of_the_seed(tmp_path: Path) -> None:
    (tmp_path / "several.onnx").write_bytes(several())
    one, same, other = (open_source(tmp_path / "several.onnx", None, seed, None).inputs for seed in (0, 0, 1))
    assert {name: array.dtype.name for name, array in one.items()} == {"x": "float32", "ids": "int64", "mask": "bool"}
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["x"], other["x"])
    assert set(one["ids"]) <= {0, 1}


def test_a_bundle_can_be_asked_with_other_inputs(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    np.savez(tmp_path / "inputs.npz", images=np.ones((3, 3, 8, 8), np.float32))
    report = bisect(bundle, runtime=ORT, inputs=tmp_path / "inputs.npz")
    assert report.passed
    assert "the inputs in" in report.inputs

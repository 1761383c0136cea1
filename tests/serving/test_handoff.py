"""What all destinations have in common: their files, the README, and what is refused, with nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vitdeploy
from tests.bundles import append_to, write_tiny_bundle
from tests.serving.cases import DESTINATIONS, recipe, write_linear
from vitdeploy.cli import main
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.serving import folder as writing
from vitdeploy.serving.destinations import destination_names

pytest.importorskip("onnxruntime")

CLASSIFIERS = ("deepstream", "dlstreamer", "cpp")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_these_are_all_destinations() -> None:
    assert destination_names()[: len(DESTINATIONS)] == DESTINATIONS


@pytest.mark.parametrize("to", DESTINATIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("form", ["free", "fixed", "baked"])
def test_the_same_bundle_gives_the_same_files_and_a_page_that_names_each(
    to: str, precision: str, form: str, tmp_path: Path
) -> None:
    bundle = write_linear(
        tmp_path / "b", precision=precision, batch=2 if form == "fixed" else "batch", baked=form == "baked"
    )
    report = vitdeploy.handoff(bundle, tmp_path / "one", to=to)
    vitdeploy.handoff(bundle.path, tmp_path / "deep" / "two", to=to)
    found = contents(tmp_path / "one")
    assert found == contents(tmp_path / "deep" / "two")
    assert {file["path"]: file["bytes"] for file in report.files} == {name: len(data) for name, data in found.items()}
    page = found["README.md"].decode()
    assert [name for name in found if f"`{name}`" not in page and name not in ("README.md", "handoff.json")] == []
    assert all(sentence in page for sentence in (*report.baked, *report.differs))
    assert str(tmp_path) not in b"".join(found.values()).decode(errors="replace")
    assert json.loads(found["handoff.json"])["manifest_sha256"] == bundle.manifest_sha256
    programs = [name for name in found if os.access(tmp_path / "one" / name, os.X_OK)]
    assert programs == [name for name in found if name.endswith(".sh")]


def test_what_is_told_about_images_is_the_recipe(tmp_path: Path) -> None:
    given = recipe(channels="BGR", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), scale=128.0)
    vitdeploy.handoff(write_linear(tmp_path / "b", given), tmp_path / "out", to="triton")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "just covers 10x13, its aspect ratio kept, and take the middle 9x12 pixels" in page
    assert "Divide by 128, subtract the mean [0.4, 0.5, 0.6] and divide by the deviation [0.2, 0.3, 0.25]" in page
    assert "[N, channels, height, width] in the order B, G, R" in page
    vitdeploy.handoff(write_linear(tmp_path / "c", baked=True), tmp_path / "baked", to="triton")
    assert "`images` is uint8 [N, height, width, 3], RGB" in (tmp_path / "baked" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"to": "tritn"}, "no destination called 'tritn'"),
        ({"to": "triton", "name": "../x"}, "invalid name"),
        ({"to": "triton", "name": ""}, "invalid name"),
        ({"to": "triton", "max_batch": 0}, "invalid batch 0"),
        ({"to": "triton", "max_batch": -1}, "invalid batch -1"),
        ({"to": "triton", "max_batch": 10**9}, "invalid batch"),
        ({"to": "triton", "engine": "nowhere.plan"}, "cannot read the engine"),
        ({"to": "triton", "engine": "."}, "cannot read the engine"),
        ({"to": "triton", "engine": "empty.plan"}, "is empty"),
        ({"to": "cpp", "engine": "empty.plan"}, "cpp takes no --engine"),
        ({"to": "dlstreamer", "max_batch": 2}, "dlstreamer takes no --max-batch"),
        ({"to": "ovms", "max_batch": 2}, "openvino-model-server takes no --max-batch"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    options: dict[str, Any], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_linear(tmp_path / "b").path
    monkeypatch.chdir(tmp_path)
    Path("empty.plan").touch()
    with pytest.raises(UsageError) as caught:
        vitdeploy.handoff(bundle, "new/out", **options)
    assert what in str(caught.value)
    assert caught.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "empty.plan"]


def test_a_batch_that_is_fixed_has_no_largest_one(tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", batch=2)
    with pytest.raises(UsageError, match="the batch of this bundle is fixed"):
        vitdeploy.handoff(bundle, tmp_path / "out", to="trtexec", max_batch=4)


@pytest.mark.parametrize("to", CLASSIFIERS)
def test_a_network_that_is_no_classifier_of_8_bit_images_is_refused(to: str, tmp_path: Path) -> None:
    pyramid = write_tiny_bundle(tmp_path / "pyramid", pyramid=True)
    bands = write_linear(tmp_path / "bands", recipe(channels="bands", mean=(0.1,) * 4, std=(0.2,) * 4, scale=10000.0))
    for bundle, what in ((pyramid, "takes classifiers"), (bands, "takes 8-bit images")):
        with pytest.raises(UsageError, match=what):
            vitdeploy.handoff(bundle, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()
    assert vitdeploy.handoff(pyramid, tmp_path / "out", to="triton").files


def test_a_folder_that_a_handoff_wrote_is_replaced_with_force_and_no_other(tmp_path: Path) -> None:
    bundle, out = write_linear(tmp_path / "b"), tmp_path / "out"
    vitdeploy.handoff(bundle, out, to="cpp")
    before = contents(out)
    with pytest.raises(UsageError, match="exists") as caught:
        vitdeploy.handoff(bundle, out, to="triton")
    assert "--force" in str(caught.value.fix)
    assert contents(out) == before
    vitdeploy.handoff(bundle, out, to="triton", force=True)
    assert "linear/config.pbtxt" in contents(out)
    assert "main.cpp" not in contents(out)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years")
    for path, what in (
        (mine, "no hand-off wrote it"),
        (bundle.path, "is a bundle"),
        (bundle.path / "out", "inside one"),
        (mine / "thesis.txt", "is a file"),
    ):
        with pytest.raises(UsageError, match=what):
            vitdeploy.handoff(bundle, path, to="triton", force=True)
    assert contents(mine) == {"thesis.txt": b"three years"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "mine", "out"]


@pytest.mark.parametrize("to", DESTINATIONS)
def test_a_device_without_the_packages_of_an_export_hands_off_too(to: str, tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b", baked=to == "dlstreamer")
    absent = ("torch", "onnx_ir", "onnxscript", "onnxsim", "openvino", "tensorrt", "polygraphy", "matplotlib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import vitdeploy\n"
        f"print(len(vitdeploy.handoff({str(bundle.path)!r}, {str(tmp_path / 'out')!r}, to={to!r}).files))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(len(contents(tmp_path / "out"))), done.stderr


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    vitdeploy.handoff(write_linear(tmp_path / "b"), tmp_path / "out", to="trtexec")
    assert "trtexec-10.sh" in contents(tmp_path / "out")


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="symbolic link to nothing"):
        vitdeploy.handoff(write_linear(tmp_path / "b"), tmp_path / "out", to="trtexec")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_write_that_fails_leaves_what_was_there(
    number: int, replaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, out = write_linear(tmp_path / "b"), tmp_path / "new" / "out"
    if replaces:
        vitdeploy.handoff(bundle, out, to="trtexec")
    before = contents(tmp_path)
    write, calls = writing._write, []

    def fails_at_third(path: Path, file: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number), str(path))
        write(path, file)

    monkeypatch.setattr(writing, "_write", fails_at_third)
    with pytest.raises(UsageError, match="cannot write") as caught:
        vitdeploy.handoff(bundle, out, to="cpp", force=replaces)
    assert caught.value.fix
    assert contents(tmp_path) == before
    assert (tmp_path / "new").exists() == replaces


def test_what_a_killed_command_left_is_swept_away_and_what_it_was_replacing_put_back(tmp_path: Path) -> None:
    bundle, out = write_linear(tmp_path / "b"), tmp_path / "out"
    vitdeploy.handoff(bundle, out, to="trtexec")
    (tmp_path / ".out.partial-0123abcd").mkdir()
    out.rename(tmp_path / ".out.replaced-0123abcd")
    with pytest.raises(UsageError, match="exists"):
        vitdeploy.handoff(bundle, out, to="cpp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "out"]
    assert "trtexec-10.sh" in contents(out)


def test_damaged_and_forged_bundles_are_refused(tmp_path: Path) -> None:
    bundle = write_linear(tmp_path / "b")
    append_to(bundle.path / "reference.npz")
    with pytest.raises(BundleError, match=r"reference\.npz is not the file that was exported"):
        vitdeploy.handoff(bundle.path, tmp_path / "out", to="trtexec")
    with pytest.raises(BundleError, match="there is no bundle"):
        vitdeploy.handoff(tmp_path / "nowhere", tmp_path / "out", to="trtexec")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "native", "precision", "words"),
    [
        ("triton", False, "fp32", ["TF32"]),
        ("triton", True, "fp32", ["bfloat16"]),
        ("triton", False, "int8", ["TF32", "without VNNI"]),
        ("triton", True, "int8", ["bfloat16", "without VNNI"]),
        ("openvino-model-server", True, "int8", ["without VNNI"]),
        ("openvino-model-server", False, "fp16", []),
        ("dlstreamer", False, "int8", ["without VNNI"]),
        ("cpp", False, "int8", []),
    ],
)
def test_arithmetic_that_the_destination_cannot_be_told_is_said(
    to: str, native: bool, precision: str, words: list[str], tmp_path: Path
) -> None:
    bundle = write_linear(tmp_path / "b", native=native, precision=precision)
    report = vitdeploy.handoff(bundle, tmp_path / "out", to=to)
    said = [word for word in ("TF32", "bfloat16", "without VNNI") if any(word in one for one in report.differs)]
    assert said == words


def test_the_command_prints_what_differs_and_ends_with_our_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = str(write_linear(tmp_path / "b").path), str(tmp_path / "out")
    assert main(["handoff", bundle, "--to", "deepstream", "-o", out]) == 0
    told = capsys.readouterr().out
    assert "built in: A Softmax" in told
    assert "differs: It resizes" in told
    assert main(["handoff", bundle, "--to", "deepstream", "-o", out]) == 2
    assert main(["handoff", bundle, "--to", "nothing", "-o", out, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
    assert main(["handoff", bundle, "--to", "ovms", "-o", out, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["to"] == "openvino-model-server"


def test_the_name_is_that_of_the_model_as_far_as_a_folder_can_have_it(tmp_path: Path) -> None:
    for index, (given, expected) in enumerate((("a/b c", "a-b-c"), ("../..", "model"), ("lemevit.x", "lemevit.x"))):
        bundle = write_linear(tmp_path / f"b{index}", name=given)
        assert vitdeploy.handoff(bundle, tmp_path / f"out{index}", to="triton").name == expected
    assert vitdeploy.handoff(bundle, tmp_path / "named", to="triton", name="mine").name == "mine"

"""A public function raises errors of vitdeploy for whatever it is given."""

from __future__ import annotations

import errno
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitdeploy
from tests.bundles import LABELS, write_tiny_bundle
from tests.conftest import examples
from vitdeploy.argument_types import check_fields, check_path, checked_arguments
from vitdeploy.cli import main
from vitdeploy.errors import InputError, UsageError, VitDeployError
from vitdeploy.preprocess import Preprocessing, preprocess
from vitdeploy.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {name for name in vitdeploy.__all__ if inspect.isclass(getattr(vitdeploy, name))}
FUNCTIONS = sorted(set(vitdeploy.__all__) - CLASSES)

ODD: tuple[Any, ...] = (
    *(5, -1, 0, 2.5, float("nan"), float("inf"), 10**400, None, True, b"bundle", b"", "", "a\0b", "\ud800", "x" * 5000),
    *("/" + "x" * 300, "a\nb", "nowhere", "/proc/self/mem", "/dev/null", [], [5], [None], ["x"], {}, {5: 1}, ()),
    *((1, 2), (1, 2, 3), object(), np.zeros(3), np.array("x"), np.array(5), lambda *_: 1, set(), range(3), "\u0663"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "b").path)


@pytest.fixture(scope="module")
def session(bundle: str) -> Iterator[Session]:
    pytest.importorskip("onnxruntime")
    with vitdeploy.load(bundle, runtime="onnxruntime") as loaded:
        yield loaded


def refuses_or_works(call: Callable[[], object]) -> None:
    """Any other exception fails the test; an error has a fix."""
    try:
        call()
    except VitDeployError as caught:
        error = caught
    else:
        return
    assert error.fix, error.what


@pytest.mark.parametrize(
    "name", ["load", "verify", "inspect", "check", "build", "handoff", "sign", "list_models", "open_data"]
)
def test_no_argument_of_a_public_function_raises_what_is_not_ours(
    name: str, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)  # where a text is a folder to write
    images = np.zeros((1, 8, 8, 3), np.uint8)
    given: dict[str, dict[str, Any]] = {
        "load": {"bundle": bundle, "runtime": "onnxruntime"},
        "verify": {"bundle": bundle, "runtime": "onnxruntime"},
        "inspect": {"bundle": bundle},
        "check": {"bundle": bundle, "target": "tensorrt10"},
        "build": {"bundle": bundle, "cache": tmp_path},
        "handoff": {"bundle": bundle, "output": tmp_path / "out", "to": "trtexec", "force": True},
        "sign": {"bundle": bundle, "key": tmp_path / "key.pem"},
        "list_models": {},
        "open_data": {"data": images},
    }
    function = getattr(vitdeploy, name)
    for parameter in inspect.signature(function).parameters:
        for value in ODD:
            if name == "inspect" and value is not None and isinstance(value, (str, bytes)):
                continue  # the runtimes take a second each where it works; `check` reads the same
            refuses_or_works(lambda value=value, parameter=parameter: function(**{**given[name], parameter: value}))


@pytest.mark.parametrize(
    "name",
    ["export", "validate", "validate_shard", "benchmark", "report", "create_model", "sensitivity", "optimize", "fleet"],
)
def test_the_slow_functions_look_at_their_arguments_first(name: str, bundle: str, tmp_path: Path) -> None:
    function = getattr(vitdeploy, name)
    first: dict[str, Any] = {
        "export": {"source": "no_such_network", "output": tmp_path / "out"},
        "validate": {"bundle": tmp_path / "no_bundle", "data": tmp_path / "no_data"},
        "validate_shard": {
            "bundle": tmp_path / "no_bundle",
            "data": tmp_path / "no_data",
            "shard": "0/2",
            "logits": tmp_path / "rows",
        },
        "benchmark": {"bundle": tmp_path / "no_bundle"},
        "report": {"bundle": tmp_path / "no_bundle", "output": tmp_path / "report.html"},
        "create_model": {"name": "no_such_network"},
        "sensitivity": {"source": "no_such_network", "data": tmp_path / "no_data"},
        "optimize": {
            "source": "no_such_network",
            "data": tmp_path / "no_data",
            "output": tmp_path / "front",
            "runtime": "onnxruntime",
        },
        "fleet": {"verb": "verify", "bundle": tmp_path / "no_bundle", "hosts": tmp_path / "no_hosts.toml"},
    }[name]
    for parameter in inspect.signature(function).parameters:
        for value in ODD:
            with pytest.raises(VitDeployError) as caught:
                function(**{**first, parameter: value})
            assert caught.value.fix


def test_no_method_of_a_session_raises_what_is_not_ours(session: Session) -> None:
    image = np.zeros((9, 9, 3), np.uint8)
    for value in ODD:
        for call in (
            lambda value=value: session(value),
            lambda value=value: session.run(value),
            lambda value=value: session.run({"images": value}),
            lambda value=value: session.predict(value),
            lambda value=value: session.predict([value]),
            lambda value=value: session.predict(image, top_k=value),
            lambda value=value: session.predict(image, batch_size=value),
            lambda value=value: list(session.map(value)),
            lambda value=value: list(session.map([value])),
            lambda value=value: list(session.map([image], on_error=value)),
            lambda value=value: list(session.map([image], batch_size=value)),
        ):
            refuses_or_works(call)


def test_no_value_of_options_and_data_raises_what_is_not_ours() -> None:
    image, recipe = np.zeros((9, 9, 3), np.uint8), Preprocessing(size=(8, 8))
    for value in ODD:
        for kind in (Preprocessing, vitdeploy.Int8Options, vitdeploy.BuildOptions):
            for name in inspect.signature(kind).parameters:
                refuses_or_works(lambda kind=kind, name=name, value=value: kind(**{name: value}))
        for name in inspect.signature(vitdeploy.BuildOptions).parameters:
            refuses_or_works(lambda name=name, value=value: vitdeploy.BuildOptions.of({name: value}))
        for call in (
            lambda value=value: preprocess(value, recipe),
            lambda value=value: preprocess(image, value),
            lambda value=value: recipe.changed({"mean": value}),
            lambda value=value: vitdeploy.open_data([value]).tensor(0, recipe),
            lambda value=value: vitdeploy.open_data([value]).sha256(0),
            lambda value=value: vitdeploy.open_data([value]).shape(0, recipe),
            lambda value=value: vitdeploy.open_data([image]).sample(value),
            lambda value=value: vitdeploy.open_data([image], targets=[0]).relabelled(value),
            lambda value=value: vitdeploy.Bundle.open(value),
        ):
            refuses_or_works(call)


def test_every_public_function_is_held_against_its_annotations() -> None:
    takes = [name for name in FUNCTIONS if inspect.signature(getattr(vitdeploy, name)).parameters]
    assert {"load", "verify", "export", "open_data"} <= set(takes)
    assert [name for name in takes if not hasattr(getattr(vitdeploy, name), "__wrapped__")] == []


@checked_arguments
def sample(
    path: str | Path = "p",
    *,
    count: int | None = None,
    ratio: float = 0.5,
    names: list[str] | str = "",
    pair: int | tuple[int, int] = 1,
    many: str | tuple[str, ...] = "",
    flag: bool = False,
    way: str = "raise",
) -> str:
    """A function with annotations of many kinds."""
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"path": 5}, "sample: path is of the type int"),
        ({"path": b"p"}, "sample: path is of the type bytes"),
        ({"path": None}, "sample: path is of the type NoneType"),
        ({"path": "a\0b"}, "has a NUL"),
        ({"count": 1.0}, "count is of the type float"),
        ({"count": True}, "count is of the type bool"),
        ({"count": 1 << 63}, "count is of the type int"),
        ({"ratio": "0.5"}, "ratio is of the type str"),
        ({"ratio": 10**400}, "ratio is of the type int"),
        ({"pair": (1, 2, 3)}, "pair is of the type tuple"),
        ({"pair": (1, "2")}, "an item of pair is of the type str"),
        ({"many": ("a", 1)}, "an item of many is of the type int"),
        ({"flag": 1}, "flag is of the type int"),
        ({"way": 1}, "way is of the type int"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_it_may_be(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample(**arguments)
    assert told in str(caught.value)
    assert caught.value.fix


@given(
    count=st.none() | st.integers(-(1 << 62), 1 << 62) | st.integers(0, 9).map(np.int64),
    ratio=st.floats() | st.integers(-9, 9) | st.floats(width=32).map(np.float32),
    pair=st.integers(0, 9) | st.tuples(st.integers(0, 9), st.integers(0, 9)) | st.lists(st.integers(), max_size=0),
)
@settings(max_examples=examples(50))
def test_what_an_annotation_names_is_taken(count: Any, ratio: Any, pair: Any) -> None:
    if pair == []:  # a list of the wrong length
        with pytest.raises(UsageError, match="pair"):
            sample(pair=pair)
        pair = [1, 2]
    assert sample(Path("q"), count=count, ratio=ratio, pair=pair) == "q"


def test_an_iterable_that_breaks_off_is_told_with_its_cause() -> None:
    def images() -> Iterator[np.ndarray]:
        yield np.zeros((8, 8, 3), np.uint8)
        raise KeyError("the camera is gone")

    with pytest.raises(InputError, match="ends with KeyError after 1 images") as caught:
        vitdeploy.open_data(images())
    assert isinstance(caught.value.__cause__, KeyError)


def test_members_of_an_npz_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    import zipfile

    for name in ("images", "labels", "images.npy"):
        path = tmp_path / f"{name}.npz"
        good = {"images": np.zeros((1, 8, 8, 3), np.uint8), "labels": np.zeros(1, int)}
        np.savez(path, **{key: array for key, array in good.items() if not name.startswith(key)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"no array")
        with pytest.raises(InputError) as caught:
            vitdeploy.open_data(path, labels=LABELS)
        assert str(path) in str(caught.value)
        assert caught.value.fix


COMMANDS = ("export m -o out", "verify b", "check b --target tensorrt10", "inspect b", "benchmark b", "predict b i.png")


def test_a_working_folder_that_was_deleted_is_named(tmp_path: Path) -> None:
    code = (
        "import os, sys; gone = sys.argv[1]; os.mkdir(gone); os.chdir(gone); os.rmdir(gone)\n"
        "from vitdeploy.cli import main\n"
        f"for line in {COMMANDS!r}: print(main(line.split()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "gone"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["2"] * len(COMMANDS), done.stderr
    assert done.stderr.count("error: there is no working folder") == len(COMMANDS)
    assert done.stderr.count("try: cd to a folder that exists") == len(COMMANDS)
    assert not (tmp_path / "gone").exists()


def test_fields_and_paths_are_checked_alone_too() -> None:
    check_fields(Preprocessing())
    check_path("/somewhere", "path")
    for path in ("a\0", "\ud800"):
        with pytest.raises(UsageError, match="is not a path"):
            check_path(path, "path")


LONG = "y" * 300
VAIN = ("--runtime", "onnxruntime", "--seconds", "0.1")


@pytest.mark.parametrize(
    "words",
    [
        ("verify", LONG),
        ("verify", f"{LONG}/b"),
        ("verify", "BUNDLE", "--cache", LONG),
        ("verify", "BUNDLE", "--key", LONG),
        ("predict", "BUNDLE", LONG),
        ("inspect", "BUNDLE", LONG),
        ("benchmark", "BUNDLE", *VAIN, "--csv", LONG),
        ("validate", "BUNDLE", "--data", LONG),
        ("validate", "BUNDLE", "--data", "BUNDLE", "--report", LONG),
        ("validate", "BUNDLE", "--data", "BUNDLE", "--logits", f"{LONG}/b"),
        ("validate", "BUNDLE", "--data", "BUNDLE", "--merge", LONG),
        ("validate", "BUNDLE", "--data", "BUNDLE", "--shard", "0/2", "--logits", f"{LONG}/b"),
        ("verify", "BUNDLE", "--junit", LONG),
        ("sensitivity", "BUNDLE", "--data", LONG),
        ("sensitivity", LONG, "--data", "BUNDLE"),
        ("sensitivity", "BUNDLE", "--data", "BUNDLE", "--csv", LONG),
        ("optimize", "BUNDLE", "--data", "BUNDLE", "--runtime", "onnxruntime", "-o", LONG),
        ("fleet", "verify", LONG, "--hosts", "BUNDLE"),
        ("fleet", "verify", "BUNDLE", "--hosts", LONG),
        ("fleet", "verify", "BUNDLE", "--hosts", "BUNDLE", "-o", LONG),
        ("check", "BUNDLE", "--compile", "--keep", LONG),
        ("check", f"{LONG}.onnx", "--compile"),
        ("build", "BUNDLE", "--timing-cache", LONG),
        ("handoff", LONG, "--to", "triton", "-o", "OUT"),
        ("handoff", "BUNDLE", "--to", "triton", "-o", LONG),
        ("handoff", "BUNDLE", "--to", "triton", "-o", "OUT", "--engine", LONG),
        ("sign", "BUNDLE", "--key", LONG),
        ("cache", "--cache", LONG),
        ("export", f"{LONG}.onnx", "-o", "OUT"),
        ("export", f"{LONG}.py:build", "-o", "OUT"),
        ("export", "lemevit_tiny", "-o", LONG),
        ("export", "lemevit_tiny", "-o", "OUT", "--checkpoint", LONG),
        ("export", "lemevit_tiny", "-o", "OUT", "--int8", "--calibration", LONG),
    ],
    ids=" ".join,
)
def test_a_path_that_no_file_system_takes_is_an_error_of_every_command(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "BUNDLE")
    assert main([*words, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["why"] == "File name too long"
    assert found["try"] == "give a shorter path"
    assert [path.name for path in tmp_path.iterdir()] == ["BUNDLE"]


def test_a_path_behind_a_folder_that_may_not_be_entered_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refused)
        with pytest.raises(UsageError) as caught:
            check_path("/a/b/c", "data")
    assert (caught.value.why, caught.value.fix) == (
        "Permission denied",
        "check the permissions of its folder: ls -ld /a/b",
    )

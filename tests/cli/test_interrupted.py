"""Ctrl-C leaves what is done: a table of commands, and where each of them is when it comes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundles import write_tiny_bundle
from vitdeploy.accuracy import compute
from vitdeploy.cli import main, predict
from vitdeploy.latency.worker import Worker
from vitdeploy.runtime.session import Session

pytest.importorskip("onnxruntime")


class Stop:
    """A function that is interrupted in its last call."""

    def __init__(self, function: Callable[..., Any], calls: int) -> None:
        self.function, self.left = function, calls

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return lambda *given, **named: self(instance, *given, **named)

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*given, **named)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "b").path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "PART", 4)


def stopped(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int, *words: object) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, Stop(getattr(owner, name), calls))
        return main([*map(str, words), "--runtime", "onnxruntime"])


PARTS = [
    pytest.param(Session, "predict", 3, 8, id="predict, in the third part"),
    pytest.param(Session, "predict", 2, 4, id="predict, in the second part"),
]


@pytest.mark.parametrize(("owner", "name", "calls", "done"), PARTS)
def test_predict_prints_and_writes_the_images_that_are_classified(
    owner: Any,
    name: str,
    calls: int,
    done: int,
    bundle: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "classes.csv"
    given = ("predict", bundle, images, "--top-k", 1, "--csv", table)
    assert main([*map(str, given), "--runtime", "onnxruntime", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["interrupted"] is False
    every = list(csv.reader(table.open()))
    assert len(every) == 11

    assert stopped(monkeypatch, owner, name, calls, *given, "--json") == 130
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document == {"interrupted": True, "images": whole["images"][:done], "skipped": []}
    assert f"interrupted: {done} of 10 images are classified" in err
    assert list(csv.reader(table.open())) == every[: done + 1]
    assert [path.name for path in tmp_path.iterdir()] == [table.name], "nothing half-written stays"

    assert stopped(monkeypatch, owner, name, calls, *given) == 130
    assert capsys.readouterr().out.count(".png") == done


def test_benchmark_prints_and_writes_its_complete_rounds(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "latency.csv"
    given = ("benchmark", bundle, "--rounds", 9, "--warmup", 0, "--csv", table, "--json")
    assert stopped(monkeypatch, Worker, "turn", 5, *given) == 130
    document = json.loads(capsys.readouterr().out)
    assert (document["interrupted"], document["rounds"]) == (True, 3)
    assert [line["rounds"] for line in csv.DictReader(table.open())] == ["3"]


NOTHING = [
    pytest.param(("predict", "IMAGES", "--csv", "FILE"), Session, "predict", 1, id="predict"),
    pytest.param(("benchmark", "--warmup", 0, "--csv", "FILE"), Worker, "turn", 2, id="benchmark"),
    pytest.param(("validate", "--data", "IMAGES", "--logits", "FILE"), compute, "_run", 1, id="validate"),
    pytest.param(("validate", "--data", "IMAGES", "--metric", "METRIC"), compute, "_run", 1, id="validate, own metric"),
]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("words", "owner", "name", "calls"), NOTHING)
def test_where_nothing_is_done_nothing_is_printed_or_written(
    words: tuple[object, ...],
    owner: Any,
    name: str,
    calls: int,
    as_json: bool,
    bundle: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own.py").write_text("def figure(outputs, targets):\n    return 1.0\n")
    places = {"IMAGES": labelled, "FILE": tmp_path / "result", "METRIC": f"{tmp_path / 'own.py'}:figure"}
    command, *rest = (places.get(str(word), word) for word in words)
    given = [command, bundle, *rest, *(["--json"] if as_json else [])]
    if command == "validate":
        half = write_tiny_bundle(tmp_path / "half", precision="fp16")
        given = [command, half.path, "--baseline", bundle, *given[2:]]
    assert stopped(monkeypatch, owner, name, calls, *given) == 130
    out, err = capsys.readouterr()
    assert "interrupted" in err
    assert ("continues where it stopped" in err) == ("--logits" in words)
    assert ("begins anew" in err) == ("--metric" in words)
    if as_json:
        assert json.loads(out)["exit_code"] == 130
    else:
        assert out == ""
    assert not (tmp_path / "result").is_file()


@pytest.fixture(scope="module")
def labelled(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.bundles import LABELS

    folder = tmp_path_factory.mktemp("labelled")
    for number, image in enumerate(sorted(images.iterdir())):
        place = folder / LABELS[number % len(LABELS)]
        place.mkdir(exist_ok=True)
        (place / image.name).write_bytes(image.read_bytes())
    return folder

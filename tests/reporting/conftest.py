"""A page with everything on it, whose every name is HTML that would run if it were not escaped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.accuracy.accuracy_cases import labels_of, noisy, photos, write_folder, write_variant
from tests.bundles import forge, write_tiny_bundle
from tests.reporting.browser import Browser, program
from vitdeploy.cli import main

EVIL = "<script>window.ran=1<b>"
CLASSES = ("ant", EVIL, '"><img src=x onerror=window.ran=1>', "$x_1^$ dög 犬")

PARTS = [
    {
        "name": f"{block}.{layer}",
        "kind": "linear",
        "nodes": [f"{block}.{layer}"],
        "macs": 1000,
        "snr_db": 40.0 - place,
        "outputs": {"logits": 40.0 - place},
        "own_db": 30.0,
        "share": 0.2,
        "drop": 0.1 * place,
        "drop_low": -0.1,
        "drop_high": 0.9,
        "drop_images": 60,
        "ms": 0.02,
        "ms_low": None,
        "ms_high": None,
        "reason": "one-sided",
        "reasons": [{"kind": "one-sided", "db": 1.5, "text": EVIL}],
    }
    for place, block in enumerate(("stages.0.0", f"stages.1.{EVIL}"))
    for layer in ("attn.qkv/MatMul", "mlp.0/MatMul")
]
SENSITIVITY = {
    "schema_version": 1,
    "source": "tiny",
    "precision": "int8",
    "target": "portable",
    "by": "layer",
    "runtime": None,
    "images": {"calibrate": 6, "noise": 6, "judge": 60},
    "fp32_top1": 90.0,
    "together": {
        "snr_db": 33.0,
        "sum_db": 33.5,
        "outputs": {"logits": 33.0},
        "drop": 0.5,
        "drop_low": -0.2,
        "drop_high": 1.0,
        "drop_images": 60,
    },
    "total": 4,
    "parts": PARTS,
    "left": {},
    "notes": [EVIL],
    "interrupted": False,
}
POINTS = [
    {
        "name": f"{EVIL} {place}",
        "runtime": "onnxruntime",
        "precision": "int8",
        "milliseconds": 1.0 + place,
        "ratio": 0.5 + 0.1 * place,
        "ratio_low": 0.4,
        "ratio_high": 0.7,
        "drop": 1.0 - 0.4 * place,
        "drop_low": 0.1,
        "drop_high": 1.4,
        "snr_db": 30.0,
        "megabytes": 1.0,
        "front": place != 1,
        "by": "greedy",
        "path": "/somebody/secret",
    }
    for place in range(3)
]


def rename(path: Path) -> None:
    """Gives a bundle the evil names."""
    from vitdeploy.bundle import Bundle

    def edit(document: dict[str, Any]) -> None:
        document["labels"] = list(CLASSES)
        document["model"]["name"] = f"tiny{EVIL}"
        document["graph"]["passes"] = [{"pass": EVIL, "changes": [EVIL]}]
        document["precision_report"]["float"] = {EVIL: f"because of {EVIL}"}
        document["precision_report"]["repairs"] = [{"repair": EVIL, "largest": 5.76}]
        document["precision_report"]["layers"] = {EVIL: {"int8": 1, "of": 2}}

    forge(Bundle.open(path), edit)


def fill(folder: Path) -> None:
    """Bundles `fp32` and an evil one, `data` with evil names, and files of earlier runs."""
    images = photos(60)
    targets = labels_of(images)
    write_tiny_bundle(folder / "fp32")
    write_variant(folder / f"int8{EVIL}", noisy(), precision="int8")
    for path in (folder / "fp32", folder / f"int8{EVIL}"):
        rename(path)
    write_folder(folder / "data", images, targets, CLASSES)
    for path in sorted((folder / "data").rglob("*.png")):
        path.rename(path.with_name(f"{EVIL}{path.name}"))
    (folder / "sensitivity.json").write_text(json.dumps(SENSITIVITY))
    (folder / "optimize.json").write_text(json.dumps({"points": POINTS, "searches": {}}))


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `fill` makes, `report.html` of all of it, and `validate.json` and `benchmark.json`."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    folder = tmp_path_factory.mktemp("page")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        bundles, runtime = ("fp32", f"int8{EVIL}"), ("--runtime", "onnxruntime")
        check = ("--data", "data", "--baseline", "fp32")
        extra = ("--sensitivity", "sensitivity.json", "--optimize", "optimize.json", "--seconds", "0.3")
        words = ("report", *bundles, *runtime, *check, *extra, "--title", EVIL, "-o", "report.html", "--quiet")
        assert main(words) == 0
        for command, more in (("validate", (*check, "--no-record")), ("benchmark", ("--rounds", "2", "--warmup", "0"))):
            (folder / f"{command}.json").write_text(_printed((command, *bundles, *runtime, *more, "--json", "--quiet")))
    return folder


def _printed(words: tuple[str, ...]) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0
    return out.getvalue()


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the working folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here" / "cache"))
    return tmp_path / "here"


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if program() is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found

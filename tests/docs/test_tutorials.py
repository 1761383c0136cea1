"""The tutorials, typed from top to bottom: every command does what its page shows."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks
from tests.docs.typed import Step, masked, type_page, typed

for package in ("torch", "onnxruntime", "openvino"):
    pytest.importorskip(package)

TUTORIALS = sorted(path.name for path in (ROOT / "docs" / "tutorials").glob("*.md"))


def bring_photograph(folder: Path, request: pytest.FixtureRequest) -> None:
    shutil.copy(next((ROOT / "vitdeploy" / "exporter" / "photographs").glob("*.jpg")), folder / "photo.jpg")


def bring_eurosat(folder: Path, request: pytest.FixtureRequest) -> None:
    """The zip that the page downloads, of the images that are here."""
    data = request.getfixturevalue("shared") / "data" / "eurosat"
    with zipfile.ZipFile(folder / "EuroSAT_RGB.zip", "w") as whole:
        for part in ("train", "val"):
            with zipfile.ZipFile(data / f"eurosat_{part}.zip") as images:
                for name in images.namelist():
                    if name.endswith(".jpg"):
                        whole.writestr(f"EuroSAT_RGB/{name}", images.read(name))


def bring_images_that_judge(folder: Path, request: pytest.FixtureRequest) -> None:
    """`judge/` as the page on INT8 makes it, of other images."""
    data = request.getfixturevalue("shared") / "data" / "eurosat"
    with zipfile.ZipFile(data / "eurosat_val.zip") as images:
        images.extractall(folder / "judge", [name for name in images.namelist() if name.endswith(".jpg")])


def bring_compiler(folder: Path, request: pytest.FixtureRequest) -> None:
    if importlib.util.find_spec("tensorrt_rtx_libs") is None:
        pytest.skip("needs NVIDIA's compiler, the extra nvidia")


def bring_nothing(folder: Path, request: pytest.FixtureRequest) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "bring"),
    [
        ("own-model.md", bring_photograph),
        ("int8.md", bring_eurosat),
        ("ci.md", bring_images_that_judge),
        ("upstream-bug.md", bring_compiler),
        ("jetson.md", bring_nothing),
    ],
)
def test_every_step_does_what_the_page_shows(
    page: str, bring: Callable[[Path, pytest.FixtureRequest], None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bring(tmp_path, request)
    steps = 0
    for step in type_page(f"tutorials/{page}", tmp_path):
        steps += 1
        assert step.missing() == [], f"{step.command}\n{step.output}"
        assert step.shown or step.code == 0, f"{step.command}\n{step.output}"
    assert steps > 1


def test_no_tutorial_is_left_out() -> None:
    (marked,) = [mark for mark in test_every_step_does_what_the_page_shows.pytestmark if mark.name == "parametrize"]
    assert sorted(page for page, _ in marked.args[1]) == TUTORIALS


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_shows_what_its_commands_print(page: str) -> None:
    consoles = [block for block in blocks(f"tutorials/{page}") if block.language == "console"]
    assert consoles
    assert [str(block) for block in consoles if not all(shown for _, shown in typed(block))] == []


def test_the_comparison_finds_what_it_looks_for(tmp_path: Path) -> None:
    step = Step("verify", ["logits  1.5e-03  66.2  ok", "…", "exit code 0"], 0, "logits  7e-04   5   ok\nexit code 0\n")
    assert step.missing() == []
    assert step._replace(output="logits 7e-04 5 FAILED\nexit code 1\n").missing() == [step.shown[0], step.shown[2]]
    assert masked(f"at {tmp_path / 'wrong.py'}:8") == masked(f"at {tmp_path / 'below' / 'wrong.py'}:19")

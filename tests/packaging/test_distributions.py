"""What a release consists of: the wheel, the source distribution, and what they say of themselves."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vitdeploy
from tests.packaging.conftest import ROOT, Distributions
from tests.packaging.interpreters import PROMISED


def members(path: Path) -> set[str]:
    """The files in a distribution, without the folder around a source distribution."""
    if path.suffix == ".whl":
        return set(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.mark.slow
def test_the_wheel_has_the_package_and_its_data_alone(distributions: Distributions) -> None:
    names = members(distributions.wheel)
    assert {name.partition("/")[0] for name in names} == {"vitdeploy", f"vitdeploy-{vitdeploy.__version__}.dist-info"}
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vitdeploy").rglob("*.py")}
    assert package <= names
    for wanted in (
        "py.typed",
        "schemas/manifest.schema.json",
        "models/weights/lemevit_tiny_eurosat.safetensors",
        "serving/project/CMakeLists.txt",
    ):
        assert f"vitdeploy/{wanted}" in names
    assert any(name.startswith("vitdeploy/exporter/photographs/") for name in names)


@pytest.mark.slow
def test_the_source_distribution_has_what_builds_and_tests_it(distributions: Distributions, tmp_path: Path) -> None:
    names = members(distributions.sdist)
    for wanted in ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"):
        assert wanted in names
    for wanted in ("constraints.txt", "mkdocs.yml", "docs/index.md", "scripts/test.sh", "tests/test_docs.py"):
        assert wanted in names
    with tarfile.open(distributions.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert members(wheel) == members(distributions.wheel)


@pytest.mark.slow
def test_the_wheel_says_for_which_python_it_is(distributions: Distributions) -> None:
    archive = zipfile.ZipFile(distributions.wheel)
    said = email.message_from_bytes(archive.read(f"vitdeploy-{vitdeploy.__version__}.dist-info/METADATA"))
    assert said["Requires-Python"] == f">={PROMISED[0]}"
    classifiers = said.get_all("Classifier") or []
    assert [one.rpartition(" ")[2] for one in classifiers if ":: 3." in one] == list(PROMISED)
    assert "Typing :: Typed" in classifiers
    assert said["License-Expression"] == "Apache-2.0"


def test_the_citation_is_of_this_version() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == vitdeploy.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)


def test_the_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {vitdeploy.__version__}" in text or "\n## Unreleased\n" in text

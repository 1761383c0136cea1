"""The distributions of this repository, and fresh environments to install them into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Distributions:
    """A wheel and a source distribution."""

    wheel: Path
    sdist: Path


def tracked_copy(folder: Path) -> Path:
    """A copy of the files that git tracks or would, as they are now: a build leaves folders beside the sources."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def require_index(python: Path, folder: Path) -> None:
    """Skips the test where no index can be reached that has packages for this Python.

    Any numpy will do: that a version which `constraints.txt` names cannot be had is no reason to skip.
    """
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
    run = subprocess.run([*command, "numpy"], capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"no package index with packages for {python}: {run.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The wheel and the source distribution, built as for a release."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    folder = tmp_path_factory.mktemp("distributions")
    require_index(Path(sys.executable), folder / "probe")
    source = tracked_copy(folder / "source")
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return Distributions(wheel, sdist)


class Environment:
    """A fresh virtual environment of one interpreter."""

    def __init__(self, python: Path, folder: Path) -> None:
        run = subprocess.run([python, "-m", "venv", folder / "env"], capture_output=True, text=True, check=False)
        if run.returncode:
            pytest.skip(f"{python} makes no environments: {run.stderr.strip() or run.stdout.strip()}")
        self.programs, self.folder = folder / "env" / "bin", folder
        require_index(self.programs / "python", folder / "probe")

    def run(self, *words: str, code: int = 0) -> str:
        """What a program of the environment prints, where nothing of the repository can be imported."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["PATH"] = f"{self.programs}{os.pathsep}{environment['PATH']}"
        run = subprocess.run(
            [self.programs / words[0], *words[1:]],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == code, run.stdout + run.stderr
        return run.stdout

    def install(self, *words: str) -> None:
        """Installs with pip."""
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words)

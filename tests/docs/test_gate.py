"""The workflow that gates a pull request: its commands, run as they stand on a small network with made-up times."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.accuracy.accuracy_cases import labels_of, photos, write_folder
from tests.bundles import LABELS, WEIGHT
from tests.docs.pages import ROOT, TEXT
from tests.test_junit import suite_of
from vitdeploy.cli import main
from vitdeploy.latency import benchmark as module
from vitdeploy.latency.measurement import Turn
from vitdeploy.latency.worker import Worker
from vitdeploy.machine.settings import machine_settings

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
yaml = pytest.importorskip("yaml")

FILE = ROOT / "examples" / "gate.yml"
NETWORK = f"""
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor({WEIGHT.tolist()}))

    def forward(self, images):
        return images.mean(dim=(2, 3)) @ self.weight

def build():
    return Network().eval()
"""
KEEP = "vitdeploy benchmark candidate --runtime onnxruntime --threads 1 --seconds 30 --json > baseline/latency.json"


def steps() -> list[str]:
    """The shell commands of the workflow, in order."""
    (job,) = yaml.safe_load(FILE.read_text())["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step]


def typed(command: str) -> int:
    """The exit code of a step; rounds and not seconds end a benchmark here."""
    words = shlex.split(command.replace("--seconds 30", "--rounds 12"))
    if words[:2] == ["mkdir", "-p"]:
        Path(words[2]).mkdir(exist_ok=True)
        return 0
    assert words[0] == "vitdeploy", command
    return main(words[1:])


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page describes the repository, without the kept time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    (tmp_path / "baseline").mkdir()
    images = photos(80)
    write_folder(tmp_path / "judge", images, labels_of(images))
    return tmp_path


def test_the_page_shows_the_file() -> None:
    page = TEXT["ci.md"]
    assert f"```yaml\n{FILE.read_text()}```" in page
    assert KEEP in page


def test_the_workflow_passes_what_is_as_good_and_stops_what_is_slower_or_elsewhere(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, milliseconds = machine_settings(), [4.0]

    def turn(worker: Worker, calls: int) -> Turn:
        return Turn([milliseconds[0] / 1000] * calls, milliseconds[0] / 1000 * calls, 50_000_000)

    monkeypatch.setattr(Worker, "turn", turn)
    monkeypatch.setattr(module, "machine_settings", lambda: settings)
    install, *commands = steps()
    assert install == "pip install 'vitdeploy[all]'"
    assert [typed(command) for command in commands if "vitdeploy export" in command] == [0, 0]
    capsys.readouterr()
    assert typed(KEEP.partition(" > ")[0]) == 0
    (repository / "baseline" / "latency.json").write_text(capsys.readouterr().out)

    assert [typed(command) for command in commands] == [0] * len(commands)
    suites = {path.stem: suite_of(path.read_text()) for path in (repository / "results").iterdir()}
    assert {name: suite.attrib["failures"] for name, suite in suites.items()} == {
        "verify": "0",
        "validate": "0",
        "benchmark": "0",
    }

    milliseconds[0] = 5.0
    assert [typed(command) for command in commands if "vitdeploy benchmark" in command] == [1]
    settings = {**settings, "processor": "Another CPU"}
    assert [typed(command) for command in commands if "vitdeploy benchmark" in command] == [2]
    assert "and is Another CPU" in capsys.readouterr().err


def test_the_workflow_stops_what_lost_accuracy(repository: Path) -> None:
    *exports, validate = (one for one in steps() if re.match("vitdeploy (export|validate)", one))
    assert [typed(export) for export in exports] == [0, 0]
    (repository / "results").mkdir()
    swapped = np.random.default_rng(0).permutation(labels_of(photos(80)))
    (repository / "judge").rename(repository / "others")
    write_folder(repository / "judge", photos(80), swapped)
    assert typed(validate) == 1

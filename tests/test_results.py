"""What benchmarks record is of the product: no file of it names a folder of the machine that measured."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
MACHINE = re.compile(r"(?<![\w./:])/(?:tmp|var|home|root|work|mnt|opt|private|Users)/|(?:site|dist)-packages|\\u001b")

sys.path.insert(0, str(ROOT / "benchmarks"))
from failure import describe, without_paths  # noqa: E402


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_no_result_names_a_folder_of_a_machine(path: Path) -> None:
    found = [line.strip()[:120] for line in path.read_text().splitlines() if MACHINE.search(line)]
    assert found == []


def test_files_are_called_by_their_path_in_the_repository_or_package() -> None:
    home, scratch = "/".join(("", "home", "me")), "/".join(("", "tmp", "clone"))
    url = "/".join(("https:", "", "github.com", "pytorch", "tmp", "x"))
    text = (
        f'File "{ROOT}/benchmarks/export.py", line 3; File "{home}/lib/site-packages/torch/onnx/a.py"; '
        f"{scratch}/model.onnx cannot be read; \x1b[96mstep 2/3\x1b[0m; {url}"
    )
    said = without_paths(text)
    assert not MACHINE.search(said)
    assert "benchmarks/export.py" in said
    assert '"torch/onnx/a.py"' in said
    assert f"model.onnx cannot be read; step 2/3; {url}" in said


def test_a_failure_is_told_with_its_causes_and_its_place() -> None:
    def fail() -> None:
        try:
            raise ValueError(f"no {ROOT}/tests/x.onnx\nmore")
        except ValueError as error:
            raise RuntimeError("cannot export\nNext steps") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    lines = describe(caught.value).splitlines()
    assert lines[:2] == ["RuntimeError: cannot export", "caused by ValueError: no tests/x.onnx"]
    assert lines[2].startswith("at ")
    assert "test_results.py, line " in lines[2]
    assert not MACHINE.search("\n".join(lines))

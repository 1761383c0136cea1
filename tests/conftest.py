"""Fixtures that every test folder uses, and how many examples property tests draw."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from tests.source_files import load_file

# Chosen with `--hypothesis-profile`; no deadlines, for machines are shared. `fast` takes the same examples in every
# run, so that a red test is the fault of the change under test. The others draw new ones: `-m hypothesis` selects the
# property tests alone, .hypothesis keeps a counterexample for the next run, and its blob is printed to paste into
# `@reproduce_failure`.
settings.register_profile("fast", deadline=None, max_examples=10, derandomize=True, print_blob=True)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=False, print_blob=True)
settings.register_profile("slow", deadline=None, max_examples=400, derandomize=False, print_blob=True)
settings.load_profile("fast")

ROOT = Path(__file__).resolve().parent.parent


def examples(count: int) -> int:
    """`max_examples` of a property test: `count` in the profile `ci`, four times that in `slow`, fewer in `fast`."""
    profile = settings()
    return max(8, 2 * count // 5) if profile.derandomize else count * profile.max_examples // 100


@pytest.fixture(scope="session", autouse=True)
def operators_are_translated_once() -> Iterator[None]:
    """torch.onnx translates its 500 operators anew for every graph it exports: more than half of a capture's time."""
    if "torch" not in sys.modules:  # none of the collected tests needs it
        yield
        return
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    make = functools.cache(registry.from_torchlib)

    def copied(**options: int) -> object:
        fresh, made = registry(), make(**options)
        vars(fresh).update(vars(made), functions={name: list(found) for name, found in made.functions.items()})
        return fresh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(copied))
        yield


@pytest.fixture(scope="session", autouse=True)
def every_result_has_the_form_of_its_schema() -> Iterator[None]:
    """Whatever a test asks of a command in this process: what `--json` prints of it validates."""
    if importlib.util.find_spec("jsonschema") is None:  # a device without the extra `dev`
        yield
        return
    from tests.schemas.forms import checked
    from vitdeploy.cli import COMMANDS

    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS:
            patch.setattr(command, "run", checked(command.run))
        yield


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    """Caches of its own for each test: bundles of two tests may be the same, and the runtimes played ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / str(id(request.node))))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens, data and weights beside the repository."""
    path = ROOT.parent / "shared"
    if not path.exists():
        pytest.skip("needs the reference material in ../shared, which is not here")
    return path


@pytest.fixture(scope="session")
def fill(shared: Path) -> ModuleType:
    """Deterministic weights and inputs: fill_tensor(key, shape), fill_input(shape, seed)."""
    return load_file(shared / "reference" / "fill.py")

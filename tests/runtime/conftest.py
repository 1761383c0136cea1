"""The runtimes that are installed, each under its name."""

from __future__ import annotations

import pytest

from vitdeploy.runtime.backends import backend_names, find_backend


def installed(name: str) -> str:
    """`name`, where that runtime can be used here."""
    reason = find_backend(name).available()
    if reason is not None:
        pytest.skip(reason)
    return name


@pytest.fixture(params=[name for name in backend_names() if name != "torch"])
def runtime(request: pytest.FixtureRequest) -> str:
    """A runtime that reads the model file of a bundle."""
    return installed(request.param)


@pytest.fixture(params=backend_names())
def any_runtime(request: pytest.FixtureRequest) -> str:
    """Any runtime; torch finds the tiny network of the tests in the zoo."""
    if request.param == "torch":
        request.getfixturevalue("tiny_in_the_zoo")
    return installed(request.param)


@pytest.fixture
def tiny_in_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the tiny bundle becomes one of the zoo."""
    pytest.importorskip("torch")
    from tests.runtime.tiny_network import CARD
    from vitdeploy.models import registry

    zoo = {**registry.cards(), CARD.name: CARD}
    monkeypatch.setattr(registry, "cards", lambda: zoo)

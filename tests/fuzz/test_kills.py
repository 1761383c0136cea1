"""Commands killed at 52 random moments, 13 of each: nothing half-written is taken for whole, and nothing is lost."""

from __future__ import annotations

import os
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")

from tests.fuzz.kills import SCENARIOS, kill

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs signals")]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_command_loses_nothing(name: str) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    outcome = kill(name, 13, seed)
    assert outcome.kills > 6
    assert not outcome.faults, outcome.faults

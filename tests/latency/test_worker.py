"""The process that runs one candidate."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, BundleError, UsageError
from vitdeploy.latency import worker
from vitdeploy.latency.worker import Worker

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "dynamic")


def test_a_candidate_loads_runs_and_ends(bundle: Bundle) -> None:
    # Nine images a call, though the bundle has six reference samples; three callers at once.
    running = Worker(bundle.path, "onnxruntime", 9, {"threads": 1, "num_requests": 3})
    try:
        assert running.loaded.describe["backend"] == "onnxruntime"
        assert running.loaded.describe["threads"] == 1
        assert running.loaded.load_seconds > 0
        assert running.loaded.first_call_seconds > 0
        first, second = running.turn(5), running.turn(1)
        assert len(first.seconds) == 15
        assert len(second.seconds) == 3
        assert min(first.seconds) > 0
        assert max(first.seconds) <= first.wall_seconds
        if Path("/proc/self/status").exists():
            # A Python with numpy and the runtime, but not the process that this test runs in.
            assert 20e6 < first.peak_bytes <= second.peak_bytes
        os.kill(running._process.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match=r"process that ran .*dynamic on onnxruntime ended\n.*signal 9"):
            running.turn(1)
    finally:
        running.close()
    assert running._process.returncode == -signal.SIGKILL


def test_an_error_of_the_child_is_raised_here_as_what_it_is(bundle: Bundle) -> None:
    with pytest.raises(UsageError) as raised:
        Worker(bundle.path, "onnxruntime", 1, {"compute_precision": "bf16"})
    assert raised.value.why is not None
    assert "types" in raised.value.why
    with pytest.raises(BundleError, match="there is no bundle at"):
        Worker(bundle.path / "nowhere", "onnxruntime", 1, {})


def test_what_a_runtime_prints_does_not_reach_the_answers(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chatter = (
        "import os; from vitdeploy.runtime.session import Session; run = Session.run; "
        "Session.run = lambda *given: (os.write(1, b'chatter\\n'), run(*given))[1]; serve()"
    )
    monkeypatch.setattr(worker, "_PROGRAM", worker._PROGRAM.removesuffix("serve()") + chatter)
    running = Worker(bundle.path, "onnxruntime", 1, {})
    try:
        assert len(running.turn(2).seconds) == 2
    finally:
        running.close()
    assert capfd.readouterr().err.count("chatter") == 4  # the first call, the one that does not count, and two

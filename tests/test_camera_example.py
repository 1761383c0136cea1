"""The example for cameras: every frame of a file is answered, those of a camera are dropped and counted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.bundles import LABELS, write_tiny_bundle
from tests.conftest import ROOT
from tests.example_scripts import imported
from vitdeploy.errors import InputError

SCRIPT = ROOT / "examples" / "camera.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with imported("camera") as module:
        yield module


class Source:
    """Numbered frames, and a way to wait until some of them were read."""

    def __init__(self, count: int) -> None:
        self.count, self.given = count, 0
        self.came = threading.Condition()

    def read(self) -> np.ndarray | None:
        with self.came:
            if self.given == self.count:
                return None
            self.given += 1
            self.came.notify_all()
        return np.full((4, 4, 3), self.given - 1, np.uint8)

    def wait_for(self, count: int) -> None:
        """Until so many frames were read."""
        with self.came:
            assert self.came.wait_for(lambda: self.given >= min(count, self.count), timeout=30)


def test_a_file_waits_and_loses_no_frame(script: ModuleType) -> None:
    source = Source(50)
    frames = script.Frames(source.read, live=False)
    seen = []
    for frame in frames:
        seen.append((frame.number, int(frame.pixels[0, 0, 0])))
        assert source.given <= frame.number + 3, "one in use, one that waits, one in the reader's hands"
    assert seen == [(number, number) for number in range(50)]
    assert (frames.arrived, frames.dropped) == (50, 0)


def test_a_camera_goes_on_and_what_is_too_old_is_dropped_and_counted(script: ModuleType) -> None:
    source = Source(100)
    frames = script.Frames(source.read, live=True)
    numbers = []
    for frame in frames:
        numbers.append(frame.number)
        source.wait_for(frame.number + 10)  # an answer that takes nine frames
    assert numbers == sorted(numbers)
    assert numbers[-1] == 99, "the newest is what is answered"
    assert frames.arrived == 100
    assert frames.dropped == 100 - len(numbers)
    assert frames.dropped >= 70


def test_what_reading_raises_comes_behind_the_frames_before_it(script: ModuleType) -> None:
    source = Source(3)

    def read() -> np.ndarray:
        pixels = source.read()
        if pixels is None:
            raise OSError("the cable is out")
        return pixels

    frames = iter(script.Frames(read, live=False))
    assert [next(frames).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the cable is out"):
        next(frames)


def test_who_stops_early_leaves_no_thread(script: ModuleType) -> None:
    before = threading.active_count()
    for frame in script.Frames(Source(1000).read, live=False):
        if frame.number == 5:
            break
    assert threading.active_count() == before


def test_ctrl_c_still_tells_what_was_measured(script: ModuleType) -> None:
    def predict(pixels: np.ndarray, top_k: int) -> Any:
        if pixels[0, 0, 0] == 2:
            raise KeyboardInterrupt
        return [[SimpleNamespace(label="ant", probability=0.5)]]

    told: list[str] = []
    frames = script.Frames(Source(10).read, live=False)
    found = script.watch(SimpleNamespace(predict=predict), frames, told.append)
    assert told == ["0\tant\t0.5000", "1\tant\t0.5000"]
    assert ", 2 answered, 0 dropped, " in found


def test_frames_of_other_formats_are_the_same_colours(script: ModuleType) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    grey = frame[:, :, 0]
    for given, wanted in (
        (frame, frame[:, :, :3]),
        (frame[:, :, :3], frame[:, :, :3]),
        (grey, np.stack([grey] * 3, axis=2)),
        (grey[..., None], np.stack([grey] * 3, axis=2)),
    ):
        np.testing.assert_array_equal(script.colours(given), wanted)
    for wrong in (frame[:, :, :2], frame.astype(np.uint16), frame[None]):
        with pytest.raises(InputError, match="end the pipeline with"):
            script.colours(wrong)


def test_percentiles_are_those_of_the_list(script: ModuleType) -> None:
    frames = SimpleNamespace(arrived=101, dropped=1)
    found = script.summary(frames, 100, [n / 1000 for n in range(101)], [0.002], 10.0)
    assert found.splitlines() == [
        "101 frames, 100 answered, 1 dropped, 10.0 answers a second",
        "frame to answer: p50 50.0 ms, p95 95.0 ms, p99 99.0 ms",
        "preprocess and run: p50 2.0 ms, p95 2.0 ms, p99 2.0 ms",
    ]


def run(*arguments: object, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([python, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of Motion JPEG, 30 a second."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("video") / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30.0, (64, 48))
    assert writer.isOpened()
    for number in range(12):
        writer.write(np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("live", [False, True])
def test_a_video_is_answered_as_its_frames_are(video: Path, live: bool, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("onnxruntime")
    from vitdeploy import load

    bundle = write_tiny_bundle(tmp_path / "tiny").path
    done = run(bundle, video, *(["--live"] if live else []))
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    capture, expected = cv2.VideoCapture(str(video)), {}
    with load(bundle) as session:
        for number in range(12):
            there, pixels = capture.read()
            assert there
            best = session.predict(pixels[:, :, ::-1], top_k=1)[0][0]
            expected[number] = [best.label, f"{best.probability:.4f}"]
    assert {int(number): rest for number, *rest in lines} == {int(line[0]): expected[int(line[0])] for line in lines}
    answered = len(lines)
    assert f"12 frames, {answered} answered, {12 - answered} dropped, " in done.stderr
    assert answered == 12 or live
    assert {label for _, label, _ in lines} <= set(LABELS)
    assert "frame to answer: p50 " in done.stderr


@pytest.mark.parametrize("layout", ["BGR", "BGRx", "GRAY8"])
def test_a_pipeline_of_gstreamer_is_answered(layout: str, tmp_path: Path) -> None:
    """With the OpenCV of Debian, Ubuntu or JetPack, see CONTRIBUTING.md: that of PyPI has no GStreamer."""
    python = os.environ.get("GSTREAMER_PYTHON")
    if python is None:
        pytest.skip("GSTREAMER_PYTHON does not name a Python whose OpenCV has GStreamer")
    file, size = tmp_path / "street.avi", "video/x-raw,width=64,height=48,framerate=30/1"
    made = f"gst-launch-1.0 -q videotestsrc num-buffers=12 ! {size} ! jpegenc ! avimux ! filesink location={file}"
    subprocess.run(made.split(), check=True, timeout=60)
    bundle = write_tiny_bundle(tmp_path / "tiny").path
    for source, sink in (
        (f"filesrc location={file} ! avidemux ! jpegdec", "appsink sync=false"),
        (f"videotestsrc num-buffers=12 is-live=true ! {size}", "appsink drop=1 max-buffers=1"),
    ):
        pipeline = f"{source} ! videoconvert ! video/x-raw,format={layout} ! {sink}"
        done = run(bundle, pipeline, "--runtime", "onnxruntime", python=python)
        assert done.returncode == 0, done.stderr
        found = re.search(r"(\d+) frames, (\d+) answered, (\d+) dropped, ", done.stderr)
        assert found is not None, done.stderr
        arrived, answered, dropped = map(int, found.groups())
        assert 1 <= answered == len(done.stdout.splitlines())
        assert answered + dropped == arrived <= 12
    done = run(bundle, "nosuchsource ! appsink", python=python)
    assert (done.returncode, "OpenCV cannot open nosuchsource" in done.stderr) == (2, True)


def test_what_cannot_be_used_is_an_error_without_a_traceback(video: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    bundle = write_tiny_bundle(tmp_path / "tiny").path
    text = tmp_path / "text.avi"
    text.write_text("no video")
    for arguments, words in (
        ((bundle, tmp_path / "missing.mp4"), "does not exist"),
        ((bundle, text), "OpenCV cannot open"),
        ((tmp_path / "nothing", video), "nothing"),
        ((bundle, video, "--runtime", "abacus"), "abacus"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr

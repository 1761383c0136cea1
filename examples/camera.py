"""Classify the frames of a camera or a video, and tell what that costs: dropped frames, and latency to the answer.

  python examples/camera.py BUNDLE 0                       (the first USB camera)
  python examples/camera.py BUNDLE street.mp4              (a file: every frame, as fast as they are answered)
  python examples/camera.py BUNDLE street.mp4 --live       (a file as if it were a camera, at its own speed)
  python examples/camera.py BUNDLE 'nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert \\
      ! video/x-raw,format=BGR ! appsink drop=1 max-buffers=1'

A camera does not wait. While a frame is being answered the next ones arrive, and only the newest is kept: what is older
is dropped and counted, so that an answer is about what is seen now. A file waits: no frame of it is dropped, and no
more than one is decoded ahead. Standard output gets a line for each answer, the number of the frame, the label and its
probability, apart by tabs; standard error the summary at the end or at Ctrl-C.

It needs OpenCV: `sudo apt-get install python3-opencv`, which has GStreamer, or `pip install opencv-python-headless`.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import vitdeploy
from vitdeploy.errors import InputError, VitDeployError

PERCENTILES = (50, 95, 99)


class Frame(NamedTuple):
    """A frame as OpenCV gives it, mostly uint8 [height, width, BGR], and when it was there, in seconds."""

    number: int
    pixels: NDArray[np.uint8]
    arrived: float


class Frames:
    """Frames that a thread reads from `read`, which gives pixels or None at the end.

    live     only the newest frame waits, and those it takes the place of are dropped; otherwise reading waits
    interval seconds from frame to frame that `live` reading keeps; 0 where the source has a pace of its own

    arrived, dropped  frames so far
    """

    def __init__(self, read: Callable[[], NDArray[np.uint8] | None], *, live: bool, interval: float = 0.0) -> None:
        self.read, self.live, self.interval = read, live, interval
        self.arrived = self.dropped = 0
        self._waiting: Frame | None = None
        self._over = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, one after another; what reading raised is raised behind the last one."""
        reader = threading.Thread(target=self._fill, name="camera", daemon=True)
        reader.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting is not None or self._over)
                    frame, self._waiting = self._waiting, None
                    self._changed.notify_all()
                if frame is None:
                    break
                yield frame
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            reader.join()
        if self._error is not None:
            raise self._error

    def _fill(self) -> None:
        begin = time.monotonic()
        try:
            while not self._over:
                pixels = self.read()
                if pixels is None:
                    break
                if self.interval:
                    time.sleep(max(0.0, begin + self.arrived * self.interval - time.monotonic()))
                self._put(Frame(self.arrived, pixels, time.monotonic()))
        except BaseException as error:
            self._error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if not self.live:
                self._changed.wait_for(lambda: self._waiting is None or self._over)
            self.arrived += 1
            self.dropped += self._waiting is not None
            self._waiting = frame
            self._changed.notify_all()


def colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame in B, G, R: grey counts for each of them, and the fourth channel of BGRx and BGRA is left out."""
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    if channels.dtype == np.uint8 and channels.ndim == 3:
        if channels.shape[2] == 1:
            return np.repeat(channels, 3, axis=2)
        if channels.shape[2] in (3, 4):
            return channels[:, :, :3]
    raise InputError(
        f"a frame is {pixels.dtype} {list(pixels.shape)}",
        why="a frame has 8 bits in B, G, R",
        fix="end the pipeline with `videoconvert ! video/x-raw,format=BGR ! appsink`",
    )


def summary(frames: Frames, answered: int, latencies: list[float], calls: list[float], seconds: float) -> str:
    """The counts, and percentiles in milliseconds: from the arrival of a frame to its answer, and of the call alone."""
    lines = [
        f"{frames.arrived} frames, {answered} answered, {frames.dropped} dropped, "
        f"{answered / max(seconds, 1e-9):.1f} answers a second"
    ]
    for name, found in (("frame to answer", latencies), ("preprocess and run", calls)):
        if found:
            parts = (f"p{p} {1000 * float(np.percentile(found, p)):.1f} ms" for p in PERCENTILES)
            lines.append(f"{name}: {', '.join(parts)}")
    return "\n".join(lines)


def watch(session: Any, frames: Frames, tell: Callable[[str], None]) -> str:
    """Answer every frame that is handed on, and return the summary; Ctrl-C ends it as the end of a file does."""
    latencies: list[float] = []
    calls: list[float] = []
    answered, begin = 0, time.monotonic()
    try:
        for frame in frames:
            started = time.monotonic()
            best = session.predict(colours(frame.pixels)[:, :, ::-1], top_k=1)[0][0]
            ended = time.monotonic()
            answered += 1
            latencies.append(ended - frame.arrived)
            calls.append(ended - started)
            tell(f"{frame.number}\t{best.label}\t{best.probability:.4f}")
    except KeyboardInterrupt:
        pass
    return summary(frames, answered, latencies, calls, time.monotonic() - begin)


def open_source(source: str) -> tuple[Any, bool]:
    """OpenCV's capture of a camera's number, a file or a GStreamer pipeline, and whether it is a file."""
    try:
        import cv2
    except ImportError:
        fix = "pip install opencv-python-headless"
        raise InputError("OpenCV is not installed", why="frames are read with it", fix=fix) from None
    is_file = Path(source).exists()
    if not is_file and not source.isdigit() and "!" not in source:
        raise InputError(f"{source} does not exist", fix="a video, the number of a camera, or a GStreamer pipeline")
    backend = cv2.CAP_GSTREAMER if "!" in source and not is_file else cv2.CAP_ANY
    capture = cv2.VideoCapture(int(source) if source.isdigit() and not is_file else source, backend)
    if not capture.isOpened():
        raise InputError(f"OpenCV cannot open {source}", fix="try it with: gst-launch-1.0, or ffplay")
    return capture, is_file


def main() -> int:
    """Exit code 0 where frames were answered, 2 for input that cannot be used."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--runtime", default="auto", metavar="R", help="default: the fastest one here")
    parser.add_argument("--live", action="store_true", help="drop frames of a file too, as of a camera")
    args = parser.parse_args()
    try:
        capture, is_file = open_source(args.source)
        rate = float(capture.get(5)) if is_file and args.live else 0.0  # cv2.CAP_PROP_FPS

        def read() -> NDArray[np.uint8] | None:
            there, pixels = capture.read()
            return pixels if there else None

        frames = Frames(read, live=args.live or not is_file, interval=1 / rate if rate > 0 else 0.0)
        with vitdeploy.load(args.bundle, runtime=args.runtime) as session:
            told = watch(session, frames, lambda line: print(line, flush=True))
        capture.release()
        print(told, file=sys.stderr)
        if not frames.arrived:
            raise InputError(f"{args.source} gave no frame", fix="another source")
    except VitDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

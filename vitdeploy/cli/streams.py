"""The standard streams of a command, which may be full, closed or gone without changing what the command finds."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class Printed(io.TextIOWrapper):
    """Takes what a command prints until its exit code is known."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="surrogateescape", write_through=True)

    def text(self) -> str:
        """All of it so far."""
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode("utf-8", "surrogateescape")


class Told:
    """A standard error whose failures are nobody's: where it cannot be written, there is nowhere else to say so."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def write_out(text: str) -> str | None:
    """Writes `text` to standard output; why it could not be written, or None.

    What the stream's encoding lacks is written as an escape.
    """
    stream = sys.stdout
    if not text:
        return None
    if stream is None:
        return "standard output is closed"
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        return error.strerror or str(error)
    except ValueError:
        return "standard output is closed"
    return None


def settle() -> None:
    """Drops what a broken standard stream still holds, which the interpreter would fail to write when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
                stream.flush()
        except ValueError:  # closed by the program that called us
            pass


def fill_descriptors() -> None:
    """Opens closed ones of the descriptors 0, 1 and 2 on the null device.

    Else the next file that is opened gets the number, and a library that prints there writes into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_RDWR)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)

"""The file of kernel timings, which all builds of this TensorRT on this GPU add to, also several at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vitdeploy.files import write_atomically
from vitdeploy.locks import locked

log = logging.getLogger(__name__)


def read_timings(path: Path | None) -> bytes:
    """What the file holds; empty where there is none. It is replaced as a whole, so it is never read half written."""
    try:
        return path.read_bytes() if path is not None else b""
    except OSError:
        return b""


def save_timings(path: Path, config: Any) -> None:
    """Adds the timings of a build to those that others have written since it began.

    `config` is that of the build. A file that this TensorRT cannot read is replaced, and one that cannot be written is
    a warning: the engine that took the time is there.
    """
    timings = config.get_timing_cache()
    if timings is None:
        return
    try:
        with locked(path.with_name(f"{path.name}.lock")):
            known = read_timings(path)
            if known:
                _combine(timings, config, known, path)
            write_atomically(path, bytes(timings.serialize()))
    except OSError as error:
        log.warning("the kernel timings are not kept: cannot write %s: %s", path, error.strerror or error)


def _combine(timings: Any, config: Any, known: bytes, path: Path) -> None:
    """Adds what the file holds; what is in both was measured now and stays."""
    try:
        others = config.create_timing_cache(known)
        added = others is not None and timings.combine(others, True)
    except Exception as error:  # of the bindings, for bytes that they do not understand
        log.debug("kernel timings: %s", error)
        added = False
    if not added:
        log.info("the kernel timings in %s are of another version of TensorRT, and are replaced", path)

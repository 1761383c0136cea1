"""What a command says while it works: on standard error, and with --log-file in a file too."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.cli import colour
from vitdeploy.errors import UsageError

_PROGRESS = "vitdeploy.progress"
_IN_FILE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class _Formatter(logging.Formatter):
    """The message, with the name of its level from WARNING on."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        text = f"{record.levelname.lower()}: {text}"
        return colour.labels(text) if self._colours else text


def start(*, verbose: bool, quiet: bool, file: Path | None, words: Sequence[str]) -> None:
    """Sends the log of vitdeploy where the user wants it.

    verbose, quiet  every step, or warnings and errors alone, on standard error
    file            gets every step besides, behind what it has already
    words           the command line, which begins a run in the file

    Raises UsageError where the file cannot be written.
    """
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    shown = logging.StreamHandler(sys.stderr)
    shown.setLevel(level)
    shown.setFormatter(_Formatter(colours=colour.wanted(sys.stderr)))
    logger = logging.getLogger("vitdeploy")
    stop()
    logger.addHandler(shown)
    logger.setLevel(level)
    logger.propagate = False
    logging.getLogger(_PROGRESS).setLevel(logging.WARNING if quiet else logging.NOTSET)
    if file is None:
        return
    try:
        kept = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"cannot write {file}", why=error.strerror or str(error), fix="--log-file with another path"
        ) from error
    kept.setFormatter(logging.Formatter(_IN_FILE))
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    _to_files(logging.DEBUG, f"vitdeploy {shlex.join(words)}")


def to_file(text: str) -> None:
    """Notes in the log file, if there is one, what standard error has got already."""
    _to_files(logging.ERROR, text)


def _to_files(level: int, text: str) -> None:
    for handler in logging.getLogger("vitdeploy").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("vitdeploy", level, __file__, 0, text, None, None))


def stop() -> None:
    """Closes the log file of the last run in this process."""
    logger = logging.getLogger("vitdeploy")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()

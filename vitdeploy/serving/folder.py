"""Writing a folder whole or not at all, and replacing only one that was written here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitdeploy.bundle import MANIFEST
from vitdeploy.bundle.bundle import DISK_FULL
from vitdeploy.errors import UsageError, shell
from vitdeploy.files import hold_new, make_folder, sweep
from vitdeploy.serving.content import File

# Says of a folder that it may be replaced.
MARK = "handoff.json"

_ELSEWHERE = "choose another folder with -o"


def check_folder(path: Path, *, force: bool) -> None:
    """UsageError where the folder must not be written, before anything is done for it."""
    with _explained(path):
        if path.is_symlink() and not path.exists():
            raise UsageError(f"{path} is a symbolic link to nothing", fix=_ELSEWHERE)
        place = Path(os.path.realpath(path))
        outer = next((one for one in (place, *place.parents) if (one / MANIFEST).is_file()), None)
        if outer is not None:
            raise UsageError(
                f"{path} is a bundle, or inside one",
                why="a bundle holds the files of its manifest and nothing else",
                fix=_ELSEWHERE,
            )
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file", why="a hand-off is a folder", fix=_ELSEWHERE)
        if not path.is_dir() or not any(path.iterdir()):
            return
        if not _is_ours(path):
            raise UsageError(
                f"{path} exists and no hand-off wrote it",
                why="replacing it would delete files that vitdeploy did not write",
                fix=_ELSEWHERE,
            )
        if not force:
            raise UsageError(f"{path} exists", fix="add --force to replace it, or choose another folder with -o")


def write_folder(path: Path, files: Mapping[str, File], *, force: bool) -> None:
    """Write all files under a temporary name beside `path`, and rename the folder when it is complete.

    Raises UsageError where it cannot be written, and leaves then what was there.
    """
    place = Path(os.path.realpath(path))
    with _explained(path):
        new = [folder for folder in place.parents if not folder.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        held, temporary = None, None
        try:
            _sweep(place)
            temporary, held = hold_new(lambda: _sibling(place, "partial"), make_folder)
            for name, file in files.items():
                _write(temporary / name, file)
            check_folder(path, force=force)  # which somebody else may have written meanwhile
            _exchange(temporary, place)
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            if held is not None:
                os.close(held)
            for folder in new:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _write(path: Path, file: File) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(file.data)
        stream.flush()
        os.fsync(stream.fileno())
    if file.runs:
        path.chmod(path.stat().st_mode | 0o111)


def _exchange(temporary: Path, place: Path) -> None:
    """Give the complete folder its name; what had it is put back if that fails."""
    aside = _sibling(place, "replaced")
    try:
        if place.exists():
            place.rename(aside)
        temporary.rename(place)
    except BaseException:
        if aside.exists() and not place.exists():
            aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Removes what killed commands left of this folder, and puts back the one that a command was about to replace."""
    try:
        beside = list(place.parent.iterdir())
    except OSError:  # a folder that may be written and not listed
        return
    for what in ("partial", "replaced"):
        name = re.compile(re.escape(f".{place.name}.{what}-") + "[0-9a-f]{8}")
        for one in [path for path in beside if name.fullmatch(path.name)]:
            if what == "replaced" and not place.exists():
                sweep([one], lambda path: path.rename(place))
            else:
                sweep([one], lambda path: shutil.rmtree(path, ignore_errors=True))


def _sibling(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name}.{what}-{secrets.token_hex(4)}")


def _is_ours(path: Path) -> bool:
    try:
        document = json.loads((path / MARK).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"to", "files"} <= document.keys()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in DISK_FULL
        raise UsageError(
            f"cannot write {path}",
            why="the disk is full" if full else error.strerror or str(error),
            fix=f"free some space, or {_ELSEWHERE}" if full else f"check its permissions: ls -ld {shell(path)}",
        ) from error

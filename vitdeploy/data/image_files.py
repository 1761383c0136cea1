"""The images in a folder or a zip, and the classes that their folders say. Light: numpy and Pillow are not needed."""

from __future__ import annotations

import os
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vitdeploy.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2")
LABELS = "labels.txt"

LARGEST_FILE = 1 << 28

# A wrapping folder or two, the class, and some more to notice that images lie too deep.
_DEPTH = 5


class Files(NamedTuple):
    """Paths with forward slashes, those of folders with one at the end, and how to read a file."""

    where: str
    entries: Iterable[str]
    read: Callable[[str], bytes]


class ImageFiles(NamedTuple):
    """Paths of the images and, where they lie in folders of classes, the class of each and all classes in order."""

    paths: list[str]
    kinds: list[str] | None
    classes: tuple[str, ...] | None


def open_folder(path: Path) -> Files:
    """What is in a folder; links are followed."""
    return Files(str(path), _walk(path), lambda name: (path / name).read_bytes())


def open_zip(path: Path) -> Files:
    """What is in a zip, which stays open as long as `read` is there; any number of threads may read."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read", why=str(error), fix="pack or copy it again") from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = name.split("/")
        if name in members or not parts[0] or ".." in parts or ":" in parts[0]:
            why = "it is there twice" if name in members else "such a path leads out of the folder it is unpacked to"
            raise InputError(f"{path} has a member {info.filename!r}", why=why, fix="pack the folder again")
        members[name] = info
    lock = threading.Lock()  # threads that open members at the same time lose count of the users of the file

    def read(name: str) -> bytes:
        size = members[name].file_size
        if size > LARGEST_FILE:
            raise InputError(f"{name} is too large", why=f"unpacked it has {size:,} bytes")
        with lock:
            return archive.read(members[name])

    return Files(str(path), members, read)


def find_images(files: Files, labels: tuple[str, ...] | None) -> ImageFiles:
    """The images and their classes; `labels` are the classes that are expected, where they are known.

    A folder around everything is looked through. Hidden files, `__MACOSX` and what is no image by its suffix is
    passed over. Raises InputError where there are no images, where some are not in a folder of their class, and for a
    folder without images where only the sorted folders tell the classes.
    """
    shown = sorted(entry for entry in files.entries if not _is_hidden(entry))
    images = [entry for entry in shown if entry.lower().endswith(SUFFIXES)]
    if not images:
        raise InputError(f"there are no images in {files.where}", why="they are expected as class/file.jpg inside it")
    paths = [PurePosixPath(entry) for entry in images]
    root = PurePosixPath(os.path.commonpath([path.parent.parent for path in paths]))
    holders = {path.parent for path in paths}
    name = paths[0].parent.name
    # One folder may be a class alone, or images without labels that were packed with the folder around them.
    if len(holders) == 1 and (not name or (labels is not None and name not in labels)):
        return ImageFiles(images, None, None)
    for path in paths:
        if path.parent == root or path.parent.parent != root:
            raise InputError(
                f"{path} in {files.where} is in no folder of a class",
                why=f"others show that a class is a folder in {files.where if root.name == '' else root}",
                fix="one folder for each class, with its images directly inside; or give the folder that holds them",
            )
    kinds = [path.parent.name for path in paths]
    listed = str(root / LABELS)
    if listed in shown:
        return ImageFiles(images, kinds, _read_labels(files.read(listed), f"{listed} in {files.where}"))
    if labels is None:
        _refuse_empty(shown, root, set(kinds), files.where)
    return ImageFiles(images, kinds, tuple(sorted(set(kinds))))


def _is_hidden(entry: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(entry).parts)


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(folder).relative_to(root)
        if len(here.parts) == _DEPTH:  # a link may lead in circles
            folders.clear()
        yield from ((here / name).as_posix() + "/" for name in folders)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from ((here / name).as_posix() for name in files)


def _raise(error: OSError) -> None:
    raise error


def _read_labels(text: bytes, where: str) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{where} cannot be read", why=str(error), fix="save it as UTF-8") from error
    twice = [name for name, count in Counter(lines).items() if count > 1]
    if twice or not lines:
        raise InputError(f"{where} {'names ' + twice[0] + ' twice' if twice else 'is empty'}", fix="one class a line")
    return lines


def _refuse_empty(entries: Sequence[str], root: PurePosixPath, found: set[str], where: str) -> None:
    folders = [PurePosixPath(entry) for entry in entries if entry.endswith("/")]
    empty = [folder.name for folder in folders if folder.parent == root and folder.name not in found]
    if empty:
        raise InputError(
            f"there are no images in {', '.join(empty)} of {where}",
            why="whether these are classes decides the numbers of the others",
            fix=f"remove them, or list the classes in a {LABELS}",
        )

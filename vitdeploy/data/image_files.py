"""The images in a folder or a zip, and their classes by folder. Light: numpy and Pillow are not needed."""

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
    """Paths of the images and, where they are in folders of classes, the class of each and all classes in order."""

    paths: list[str]
    kinds: list[str] | None
    classes: tuple[str, ...] | None


def open_folder(path: Path) -> Files:
    """The files in a folder; links are followed."""
    return Files(str(path), _walk(path), lambda name: _read_regular(path / name))


def open_zip(path: Path) -> Files:
    """The files in a zip, which stays open as long as `read` is referenced; any number of threads may read."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read", why=str(error), fix="copy or pack it again") from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = name.split("/")
        if name in members or not parts[0] or ".." in parts or ":" in parts[0]:
            why = "it is there twice" if name in members else "its path leads out of the folder that it is unpacked to"
            raise InputError(f"{path} has a member {info.filename!r}", why=why, fix="pack the folder again")
        members[name] = info
    lock = threading.Lock()  # ZipFile's count of its open members is not safe for threads

    def read(name: str) -> bytes:
        size = members[name].file_size
        if size > LARGEST_FILE:
            raise _too_large(name, size)
        with lock:
            return archive.read(members[name])

    return Files(str(path), members, read)


def open_files(path: Path) -> Files | None:
    """The files in a folder or in a zip; None for anything else. InputError where it cannot be read."""
    try:
        if path.is_dir():
            return open_folder(path)
        if path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
            return open_zip(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read", why=error.strerror or str(error), fix=f"check its permissions: ls -ld {path}"
        ) from error
    return None


def find_images(files: Files, labels: tuple[str, ...] | None) -> ImageFiles:
    """The images and their classes; `labels` are the classes that are expected, where they are known.

    A folder around everything is looked through. Hidden files, `__MACOSX` and files without the suffix of an image are
    ignored. Raises InputError where there are no images, where some are not in a folder of their class, and for a
    folder without images where the classes are known from the sorted folders only.
    """
    shown = sorted(entry for entry in files.entries if not is_hidden(entry))
    images = [entry for entry in shown if is_image(entry)]
    if not images:
        raise InputError(
            f"there are no images in {files.where}",
            why="no file in it has the suffix of an image, such as .jpg or .png",
            fix="give a folder with one folder of images for each class (class/file.jpg)",
        )
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
                f"{path} in {files.where} is not in the folder of a class",
                why=f"other images are in folders of {files.where if root.name == '' else root}, one for each class",
                fix="make one folder for each class, with its images directly inside",
            )
    kinds = [path.parent.name for path in paths]
    listed = str(root / LABELS)
    if listed in shown:
        return ImageFiles(images, kinds, _distinct_labels(files.read(listed), f"{listed} in {files.where}"))
    if labels is None:
        _refuse_empty(shown, root, set(kinds), files.where)
    return ImageFiles(images, kinds, tuple(sorted(set(kinds))))


def read_labels(text: bytes, where: str) -> tuple[str, ...]:
    """The class names in the lines of a file, in UTF-8 with or without a byte order mark; empty lines do not count.

    `where` names the file in messages. Raises InputError for another encoding and where there is no name.
    """
    try:
        lines = tuple(line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{where} cannot be read", why=str(error), fix="save it as UTF-8") from error
    if not lines:
        raise InputError(f"{where} is empty", fix="write one class name on each line")
    return lines


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and in those below it, by name; InputError where there are none, or it cannot be read."""
    try:
        names = sorted(name for name in _walk(folder) if is_image(name) and not is_hidden(name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read", why=error.strerror, fix=f"ls -ld {folder}") from error
    if not names:
        raise InputError(
            f"there are no images in {folder}", why=f"images end in {', '.join(SUFFIXES)}", fix="name another folder"
        )
    return [folder / name for name in names]


def is_image(entry: str) -> bool:
    """Whether a path has the suffix of an image."""
    return entry.lower().endswith(SUFFIXES)


def is_hidden(entry: str) -> bool:
    """Whether a path is of a file that is not shown, or in a folder that is not."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(entry).parts)


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(folder).relative_to(root)
        if len(here.parts) == _DEPTH:  # a link may lead in circles
            folders.clear()
        yield from ((here / name).as_posix() + "/" for name in folders)
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from ((here / name).as_posix() for name in files)


def _read_regular(path: Path) -> bytes:
    """The contents of a file; a FIFO would never end, and a device never fill."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file", why="it is a FIFO, a socket or a device", fix=f"rm {path}")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise _too_large(str(path), size)
    return path.read_bytes()


def _too_large(name: str, size: int) -> InputError:
    return InputError(
        f"{name} is too large",
        why=f"it has {size:,} bytes, more than {LARGEST_FILE:,}",
        fix="scale the image down, or remove it",
    )


def _raise(error: OSError) -> None:
    raise error


def _distinct_labels(text: bytes, where: str) -> tuple[str, ...]:
    labels = read_labels(text, where)
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice:
        raise InputError(
            f"{where} names {twice[0]} twice",
            why="folders are found by the names of their classes",
            fix="write each class name on one line only",
        )
    return labels


def _refuse_empty(entries: Sequence[str], root: PurePosixPath, found: set[str], where: str) -> None:
    folders = [PurePosixPath(entry) for entry in entries if entry.endswith("/")]
    empty = [folder.name for folder in folders if folder.parent == root and folder.name not in found]
    if empty:
        raise InputError(
            f"there are no images in {', '.join(empty)} of {where}",
            why="the numbers of the other classes depend on whether these are classes",
            fix=f"remove these folders, or list the classes in a {LABELS}",
        )

"""Images in tars: WebDataset's `key.jpg` with `key.cls` or `key.json`, or folders of classes; nothing is unpacked.

The headers are read once, and then an image is one read at its place, so that any order of images is fine.
"""

from __future__ import annotations

import bisect
import json
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.data.blobs import Blob, open_blobs
from vitdeploy.data.image_files import LABELS, LARGEST_FILE, Files, is_hidden, is_image
from vitdeploy.data.samples import Samples
from vitdeploy.data.tar_members import CLASS, JSON, Member, members_of
from vitdeploy.errors import InputError
from vitdeploy.progress import Progress

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
# Keys of a `key.json` that may have the class, the first one that is there.
_KEYS = ("label", "cls", "class")


class _Index:
    """The images of tars in their order, and the label of each, where it has one; some 300 bytes for each."""

    def __init__(self) -> None:
        self.blobs: list[Blob] = []
        self.names: list[str] = []
        self.labels: list[int | str | None] = []
        self.lists: dict[str, tuple[Blob, int, int]] = {}  # of classes, for folders of them
        self._ends: list[int] = []  # of the images of each tar
        self._starts, self._sizes = array("Q"), array("Q")

    def add(self, blob: Blob, members: Sequence[Member]) -> None:
        """The images of a tar. InputError for a sample of two images, and for a label that is none."""
        labels: dict[str, int | str] = {}
        for extension in (JSON, CLASS):  # the latter counts where there are both
            for member in members:
                if member.extension == extension and (label := _class_of(member, blob)) is not None:
                    labels[member.key] = label
        seen: dict[str, str] = {}
        for member in members:
            if member.name.rpartition("/")[2] == LABELS:
                self.lists[member.name] = blob, member.start, member.size
            if not is_image(member.name) or is_hidden(member.name):
                continue
            key = member.key
            if key in labels and key in seen:
                raise InputError(
                    f"{key} in {blob.where} has two images",
                    why=f"they are {seen[key]} and {member.name}",
                    fix="give each sample one image",
                )
            seen[key] = member.name
            self.names.append(member.name)
            self.labels.append(labels.get(key))
            self._starts.append(member.start)
            self._sizes.append(member.size)
        self.blobs.append(blob)
        self._ends.append(len(self.names))

    def blob(self, index: int) -> Blob:
        """The tar that an image is in."""
        return self.blobs[bisect.bisect_right(self._ends, index)]

    def read(self, index: int) -> bytes:
        """The bytes of an image. Raises InputError."""
        return self._read(self.names[index], self.blob(index), self._starts[index], self._sizes[index])

    def read_list(self, name: str) -> bytes:
        """The bytes of a list of classes. Raises InputError."""
        return self._read(name, *self.lists[name])

    @staticmethod
    def _read(name: str, blob: Blob, start: int, size: int) -> bytes:
        if size > LARGEST_FILE:
            raise InputError(
                f"{name} is too large",
                why=f"it has {size:,} bytes, more than {LARGEST_FILE:,}",
                fix="scale the image down, or remove it",
            )
        return blob.read(start, start + size)


def open_tars(data: str | Path) -> Samples | Files:
    """Images with the labels of WebDataset; or, in tars without such labels, the files.

    Raises InputError for a tar that is damaged, compressed or not safe, for a sample without a label where others have
    one, and for labels of different kinds.
    """
    blobs, index, before = open_blobs(data), _Index(), 0
    with Progress("reading the index of the tars", sum(blob.size for blob in blobs)) as progress:
        for blob in blobs:
            members = []
            for member in members_of(blob):
                progress.advance(before + member.start - progress.done)
                members.append(member)
            index.add(blob, members)
            before += blob.size
            progress.advance(before - progress.done)
    where = str(data)
    if any(label is not None for label in index.labels):
        return _labelled(index, where)
    places = {name: place for place, name in enumerate(index.names)}
    if len(places) != len(index.names):
        twice = next(name for place, name in enumerate(index.names) if places[name] != place)
        raise InputError(f"{where} has a member {twice!r}", why="it is there twice", fix="give each file another name")

    def read(name: str) -> bytes:
        return index.read_list(name) if name in index.lists else index.read(places[name])

    return Files(where, [*places, *index.lists], read)


def _labelled(index: _Index, where: str) -> Samples:
    labels = index.labels
    if None in labels:
        place = labels.index(None)
        raise InputError(
            f"{index.names[place]} in {index.blob(place).where} has no label",
            why="others have one in a file .cls or .json of the same name",
            fix="add it, or leave the image out",
        )
    names = [f"{index.blob(place).name}/{name}" for place, name in enumerate(index.names)]
    samples = Samples(where, names, index.read)
    numbers = [label for label in labels if isinstance(label, int)]
    kinds = [label for label in labels if isinstance(label, str)]
    if not kinds:
        return samples._replace(numbers=numbers)
    if not numbers:
        return samples._replace(kinds=kinds, classes=tuple(sorted(set(kinds))))
    raise InputError(
        f"the labels of {where} are of different kinds",
        why="some are numbers and some are names",
        fix="give all samples numbers, or all of them names",
    )


def _class_of(member: Member, blob: Blob) -> int | str | None:
    """The class that a `.cls` or a `.json` tells: a number, or a name; None where a `.json` tells none."""
    if member.label is None:
        return None
    try:
        text = member.label.decode("utf-8-sig").strip()
        if member.extension == CLASS:
            return _number_or_name(text, member, blob)
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{member.name} in {blob.where} cannot be read", why=str(error), fix="write it again, in UTF-8"
        ) from error
    label = next((document[name] for name in _KEYS if name in document), None) if isinstance(document, dict) else None
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))):
        raise InputError(
            f"the label in {member.name} of {blob.where} is {type(label).__name__}",
            fix="give the number of a class, or its name",
        )
    return _number_or_name(label, member, blob) if isinstance(label, str) else label


def _number_or_name(text: str, member: Member, blob: Blob) -> int | str:
    if not text:
        raise InputError(f"{member.name} in {blob.where} is empty", fix="write the number or the name of a class")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text

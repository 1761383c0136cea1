"""Images in tars: WebDataset's `key.jpg` with `key.cls` or `key.json`, or folders of classes; nothing is unpacked.

The headers are read once, and then an image is one read at its place, so that any order of images is fine. What a tar
may hold besides files and folders, such as links and devices, is refused: what they lead to is no part of it.
"""

from __future__ import annotations

import bisect
import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitdeploy.data.blobs import Blob, Window, open_blobs
from vitdeploy.data.image_files import LABELS, LARGEST_FILE, Files, is_hidden, is_image
from vitdeploy.data.samples import Samples
from vitdeploy.errors import InputError
from vitdeploy.progress import Progress

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
CLASS, JSON = "cls", "json"
# Keys of a `key.json` that may have the class, the first one that is there.
_KEYS = ("label", "cls", "class")
_MAGICS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_FIX = "copy or pack it again"
_BLOCK = tarfile.BLOCKSIZE
_PADDING = 1 << 20  # bytes behind the end of a tar that are looked at: programs fill it up to a multiple of 10 KiB
_PIECE = 1 << 14  # of these at once
LARGEST_NAME, LARGEST_LABEL = 1 << 16, 1 << 20  # bytes of a long name or of attributes, and of a label


class Member(NamedTuple):
    """A file in a tar, and where its bytes are.

    key, extension  the sample that it belongs to and what it is there: `a/7` and `seg.png` for `a/7.seg.png`
    label           the bytes of a `.cls` or a `.json`
    """

    name: str
    start: int
    size: int
    key: str
    extension: str
    label: bytes | None = None


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
            for member in _members(blob):
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


class _Header(NamedTuple):
    """What a header says: the name, the type as a byte, and the bytes that follow."""

    name: str
    kind: bytes
    size: int


def _parsed(header: bytes) -> _Header | None:
    """A block of 512 bytes as a header; None where its checksum or a number is wrong.

    It does what `tarfile.TarInfo.frombuf` does for what is needed here, in a fifth of the time.
    """
    told, field = header[148:156], header[124:136]
    try:
        if int(told.strip(b" \0") or b"0", 8) != sum(header) - sum(told) + 8 * ord(" "):
            return None
        # Sizes beyond eight gigabytes are binary, behind a byte of 128.
        size = int.from_bytes(field[1:], "big") if field[0] == 128 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return _Header(name.decode("utf-8", "surrogateescape"), header[156:157], size) if size >= 0 else None


def _members(blob: Blob) -> Iterator[Member]:
    """The files in a tar, in its order. InputError for one that is compressed, truncated, damaged or not safe."""
    head = blob.read(0, 6)
    for magic, program in _MAGICS.items():
        if head.startswith(magic):
            raise InputError(
                f"{blob.where} is compressed",
                why="an image in it cannot be read without all that stands before it",
                fix=f"{program} it: images are compressed already",
            )
    window, at, name = Window(blob), 0, ""
    size: int | None = None
    while True:
        header = window.at(at, _BLOCK)
        if len(header) < _BLOCK:
            raise _damaged(blob, f"it ends at {at:,} bytes without the mark of an end, so a part is missing")
        if not header.strip(b"\0"):
            padding = range(at, min(at + _PADDING, blob.size), _PIECE)
            if any(window.at(place, _PIECE).strip(b"\0") for place in padding):
                raise InputError(
                    f"{blob.where} has more behind its end",
                    why="it may be several tars joined by cat, and images would be left out",
                    fix="give the tars themselves, or join them with tar -A",
                )
            return
        info = _parsed(header)
        if info is None:
            raise _damaged(blob, f"there is no header at byte {at:,}")
        length = info.size if size is None else size
        start = at + _BLOCK
        at = start + -(-length // _BLOCK) * _BLOCK
        if start + length > blob.size:
            raise _damaged(blob, f"{name or info.name!r} should have {length:,} bytes, more than are there")
        if info.kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if length > LARGEST_NAME:
                raise _damaged(blob, f"a name or its attributes have {length:,} bytes")
            content = window.at(start, length)
            if info.kind == tarfile.GNUTYPE_LONGNAME:
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                attributes = _attributes(content, blob)
                name, size = attributes.get("path", name), _size_in(attributes, blob)
            continue
        if info.kind == tarfile.XGLTYPE:
            continue
        name = _safe(name or info.name, info, blob)
        if info.kind in (tarfile.REGTYPE, tarfile.AREGTYPE) and not name.endswith("/"):
            folder, slash, file = name.rpartition("/")
            key, _, extension = file.partition(".")
            member = Member(name, start, length, f"{folder}{slash}{key}", extension.lower())
            if member.extension in (CLASS, JSON) and not is_hidden(name):
                if length > LARGEST_LABEL:
                    raise _damaged(blob, f"{name} has {length:,} bytes, too many for a label")
                member = member._replace(label=window.at(start, length))
            yield member
        name, size = "", None


def _safe(name: str, info: _Header, blob: Blob) -> str:
    """The name with forward slashes and without `./` before it; InputError for what is no file or folder inside."""
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:].lstrip("/")
    parts = plain.split("/")
    if info.kind not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        kind = (
            "a link"
            if info.kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_LONGLINK)
            else f"of the type {info.kind!r}"
        )
        raise InputError(
            f"{blob.where} has a member {name!r}",
            why=f"it is {kind}, and only files and folders are read",
            fix="pack the files themselves, with tar -h",
        )
    if info.kind != tarfile.DIRTYPE and (not parts[0] or ".." in parts or ":" in parts[0] or "\0" in plain):
        raise InputError(
            f"{blob.where} has a member {name!r}",
            why="its path leads out of the folder that it is unpacked to",
            fix="pack the folder again",
        )
    return plain


def _attributes(content: bytes, blob: Blob) -> dict[str, str]:
    """The `NAME=VALUE` of an extended header, each behind its length."""
    found, at = {}, 0
    while at < len(content) and content[at]:
        match = re.compile(rb"(\d{1,9}) ([^=]+)=").match(content, at)
        end = at + int(match[1]) if match else at
        if match is None or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise _damaged(blob, "the attributes of a member cannot be read")
        found[match[2].decode("utf-8", "replace")] = content[match.end() : end - 1].decode("utf-8", "surrogateescape")
        at = end
    return found


def _size_in(attributes: dict[str, str], blob: Blob) -> int | None:
    if any(name.startswith("GNU.sparse") for name in attributes):
        raise _damaged(blob, "it has sparse files")
    size = attributes.get("size")
    if size is not None and not re.fullmatch(r"[0-9]{1,18}", size):
        raise _damaged(blob, f"a member has the size {size[:40]!r}")
    return None if size is None else int(size)


def _damaged(blob: Blob, why: str) -> InputError:
    return InputError(f"{blob.where} cannot be read", why=why, fix=_FIX)

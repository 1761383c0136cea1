"""Images in tars: WebDataset's `key.jpg` with `key.cls` or `key.json`, or folders of classes; nothing is unpacked.

The headers are read once, and then an image is one read at its place, so that any order of images is fine. What a tar
may hold besides files and folders, such as links and devices, is refused: what they lead to is no part of it.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitdeploy.data.blobs import Blob, Window, open_blobs
from vitdeploy.data.image_files import LARGEST_FILE, Files, is_hidden, is_image
from vitdeploy.data.samples import Samples
from vitdeploy.errors import InputError
from vitdeploy.progress import Progress

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
CLASS, JSON = "cls", "json"
# Keys of a `key.json` that may have the class, the first one that is there.
_LABELS = ("label", "cls", "class")
_MAGICS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_FIX = "copy or pack it again"
_BLOCK = tarfile.BLOCKSIZE
LARGEST_NAME, LARGEST_LABEL = 1 << 16, 1 << 20  # bytes of a long name or of attributes, and of a label


class Member(NamedTuple):
    """A file in a tar, and where its bytes are; `label` are those of a `.cls` or a `.json`."""

    blob: Blob
    name: str
    start: int
    size: int
    label: bytes | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The sample that it belongs to and what it is there: `a/7` and `seg.png` for `a/7.seg.png`."""
        folder, slash, file = self.name.rpartition("/")
        key, _, extension = file.partition(".")
        return f"{folder}{slash}{key}", extension.lower()

    def read(self) -> bytes:
        """Its bytes. Raises InputError."""
        if self.size > LARGEST_FILE:
            raise InputError(
                f"{self.name} is too large",
                why=f"it has {self.size:,} bytes, more than {LARGEST_FILE:,}",
                fix="scale the image down, or remove it",
            )
        return self.blob.read(self.start, self.start + self.size)


def open_tars(data: str | Path) -> Samples | Files:
    """Images with the labels of WebDataset; or, in tars without such labels, the files.

    Raises InputError for a tar that is damaged, compressed or not safe, for a sample without a label where others have
    one, and for labels of different kinds.
    """
    blobs = open_blobs(data)
    members: list[Member] = []
    with Progress("reading the index of the tars", sum(blob.size for blob in blobs)) as progress:
        before = 0
        for blob in blobs:
            for member in _members(blob):
                progress.advance(before + member.start - progress.done)
                members.append(member)
            before += blob.size
            progress.advance(before - progress.done)
    where = str(data)
    if any(member.label is not None and member.key[1] == CLASS for member in members):
        return _labelled(members, where, CLASS)
    if any(_class_of(member) is not None for member in members if member.key[1] == JSON):
        return _labelled(members, where, JSON)
    files = {member.name: member for member in members}
    if len(files) != len(members):
        names = [member.name for member in members]
        twice = next(name for name in files if names.count(name) > 1)
        raise InputError(f"{where} has a member {twice!r}", why="it is there twice", fix="give each file another name")
    return Files(where, list(files), lambda name: files[name].read())


def _labelled(members: Sequence[Member], where: str, kind: str) -> Samples:
    images: dict[tuple[str, str], Member] = {}
    labels: dict[tuple[str, str], int | str] = {}
    for member in members:
        key, extension = member.key
        named = (member.blob.where, key)
        if is_image(member.name) and not is_hidden(member.name):
            if named in images:
                raise InputError(
                    f"{key} in {member.blob.where} has two images",
                    why=f"they are {images[named].name} and {member.name}",
                    fix="give each sample one image",
                )
            images[named] = member
        elif extension == kind and (label := _class_of(member)) is not None:
            labels[named] = label
    if not images:
        raise InputError(
            f"there are no images in {where}",
            why="no file in it has the suffix of an image, such as .jpg or .png",
            fix="give tars with key.jpg and key.cls",
        )
    for named, member in images.items():
        if named not in labels:
            raise InputError(
                f"{member.name} in {named[0]} has no label",
                why=f"others have one in a file .{kind} of the same name",
                fix=f"add {named[1]}.{kind}, or leave the image out",
            )
    chosen = list(images.values())
    found = [labels[named] for named in images]
    names = [f"{member.blob.name}/{member.name}" for member in chosen]
    samples = Samples(where, names, lambda index: chosen[index].read())
    if all(isinstance(label, int) for label in found):
        return samples._replace(numbers=[int(label) for label in found])
    if all(isinstance(label, str) for label in found):
        kinds = [str(label) for label in found]
        return samples._replace(kinds=kinds, classes=tuple(sorted(set(kinds))))
    raise InputError(
        f"the labels of {where} are of different kinds",
        why="some are numbers and some are names",
        fix="give all samples numbers, or all of them names",
    )


def _class_of(member: Member) -> int | str | None:
    """The class that a `.cls` or a `.json` tells: a number, or a name; None where a `.json` tells none."""
    if member.label is None:
        return None
    try:
        text = member.label.decode("utf-8-sig").strip()
        if member.key[1] == CLASS:
            return _number_or_name(text, member)
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{member.name} in {member.blob.where} cannot be read", why=str(error), fix="write it again, in UTF-8"
        ) from error
    label = next((document[name] for name in _LABELS if name in document), None) if isinstance(document, dict) else None
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))):
        raise InputError(
            f"the label in {member.name} of {member.blob.where} is {type(label).__name__}",
            fix="give the number of a class, or its name",
        )
    return _number_or_name(label, member) if isinstance(label, str) else label


def _number_or_name(text: str, member: Member) -> int | str:
    if not text:
        raise InputError(
            f"{member.name} in {member.blob.where} is empty", fix="write the number or the name of a class"
        )
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text


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
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise _damaged(blob, f"at byte {at:,}: {error}") from error
        length = info.size if size is None else size
        start = at + _BLOCK
        at = start + -(-length // _BLOCK) * _BLOCK
        if length < 0 or start + length > blob.size:
            raise _damaged(blob, f"{name or info.name!r} should have {length:,} bytes, more than are there")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if length > LARGEST_NAME:
                raise _damaged(blob, f"a name or its attributes have {length:,} bytes")
            content = window.at(start, length)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                attributes = _attributes(content, blob)
                name, size = attributes.get("path", name), _size_in(attributes, blob)
            continue
        if info.type == tarfile.XGLTYPE:
            continue
        name = _safe(name or info.name, info, blob)
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not name.endswith("/"):
            member = Member(blob, name, start, length)
            if member.key[1] in (CLASS, JSON) and not is_hidden(name):
                if length > LARGEST_LABEL:
                    raise _damaged(blob, f"{name} has {length:,} bytes, too many for a label")
                member = member._replace(label=window.at(start, length))
            yield member
        name, size = "", None


def _safe(name: str, info: tarfile.TarInfo, blob: Blob) -> str:
    """The name with forward slashes and without `./` before it; InputError for what is no file or folder inside."""
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:].lstrip("/")
    parts = plain.split("/")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        kind = (
            "a link"
            if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_LONGLINK)
            else f"of the type {info.type!r}"
        )
        raise InputError(
            f"{blob.where} has a member {name!r}",
            why=f"it is {kind}, and only files and folders are read",
            fix="pack the files themselves, with tar -h",
        )
    if info.type != tarfile.DIRTYPE and (not parts[0] or ".." in parts or ":" in parts[0] or "\0" in plain):
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

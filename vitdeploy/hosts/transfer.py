"""Sending a bundle to a device over SFTP: complete or not there, and not again where it is.

Its folder is called after the bundle and the hash of its manifest. It is written under another name and then renamed,
so that whatever ends a copy, no half of a bundle has the name. That its contents are right is checked by the device's
own command, which holds every file against the manifest; here the lengths are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import asyncssh

from vitdeploy.bundle import MANIFEST, Bundle
from vitdeploy.bundle.manifest import SIGNATURE
from vitdeploy.hosts.outcome import TroubleError, clean

_HASH = 16  # characters of it in the name
_TIDY_SECONDS = 10.0
_LEFT_OVER_SECONDS = 86400  # a copy that nothing was added to for so long is nobody's

Note = Callable[[str], None]


class Parcel(NamedTuple):
    """A bundle as it is sent.

    name   of its folder on the device
    files  each with its length in bytes, by its name
    """

    path: Path
    name: str
    files: dict[str, int]

    @classmethod
    def of(cls, bundle: Bundle) -> Parcel:
        """The files of a bundle, whose hashes were checked; BundleError where one differs."""
        bundle.check_files()
        names = [*bundle.manifest.files, MANIFEST, *([SIGNATURE] if bundle.is_signed else [])]
        files = {name: (bundle.path / name).stat().st_size for name in names}
        return cls(bundle.path, folder_name(bundle), files)


def folder_name(bundle: Bundle) -> str:
    """What a bundle is called on a device: no character of it means anything to a shell."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "_", bundle.path.resolve().name).strip("-._")[:64]
    return f"{word or 'bundle'}-{bundle.manifest_sha256[:_HASH]}"


async def send(sftp: asyncssh.SFTPClient, parcel: Parcel, folder: str, note: Note) -> bool:
    """Sees to it that the parcel lies in `folder`; whether it had to be sent.

    Raises TroubleError where it cannot be written, and then leaves nothing of it.
    """
    try:
        return await _send(sftp, parcel, folder, note)
    except asyncssh.SFTPError as error:
        if isinstance(error, (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)):
            raise
        kinds = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)  # older servers have words alone
        full = isinstance(error, kinds) or re.search(r"no space|quota", error.reason, re.IGNORECASE)
        raise TroubleError(
            "copy failed",
            f"the disk of the device is full: {folder}" if full else f"cannot write {folder} on the device",
            why=clean(f"{error.reason or type(error).__name__}{'' if full else await _room(sftp, folder)}"),
            fix="remove files there, or folder = … in the file of hosts",
        ) from error


async def _send(sftp: asyncssh.SFTPClient, parcel: Parcel, folder: str, note: Note) -> bool:
    target = posixpath.join(folder, parcel.name)
    if await _is_complete(sftp, target, parcel):
        return False
    await sftp.makedirs(folder, exist_ok=True)
    whole, sent = sum(parcel.files.values()), 0
    free = await _free(sftp, folder)
    if free is not None and free < whole:
        raise TroubleError(
            "copy failed",
            f"the disk of the device is full: {folder}",
            why=f"it has {free / 1e6:.1f} MB free, and the bundle {whole / 1e6:.1f} MB",
            fix="remove files there, or folder = … in the file of hosts",
        )
    temporary = f"{target}.{secrets.token_hex(4)}.partial"
    try:
        await sftp.mkdir(temporary)
        await _sweep(sftp, folder, parcel.name, temporary)
        for name, size in parcel.files.items():

            def told(source: bytes, destination: bytes, done: int, all_of_it: int, before: int = sent) -> None:
                note(f"copying {100 * (before + done) // max(1, whole)} %")

            await sftp.put(str(parcel.path / name), posixpath.join(temporary, name), progress_handler=told)
            sent += size
        if not await _is_complete(sftp, temporary, parcel):
            raise TroubleError(
                "copy failed",
                "what was written on the device is not what was sent",
                why="lengths differ: the bundle was changed meanwhile, or the disk is full",
                fix="run the same command again",
            )
        if await sftp.lexists(target):  # one that is damaged
            await sftp.rmtree(target)
        await sftp.rename(temporary, target)
    except BaseException as error:
        await _tidy(sftp, temporary)
        if isinstance(error, asyncssh.SFTPError) and await _is_complete(sftp, target, parcel):
            return False  # somebody else sent it meanwhile
        raise
    return True


async def _is_complete(sftp: asyncssh.SFTPClient, target: str, parcel: Parcel) -> bool:
    for name, size in parcel.files.items():
        try:
            found = await sftp.stat(posixpath.join(target, name))
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory):
            return False
        if found.size != size:
            return False
    return True


async def _tidy(sftp: asyncssh.SFTPClient, temporary: str) -> None:
    """Removes a copy that failed, as far as the device still answers."""
    with contextlib.suppress(asyncssh.Error, OSError, asyncio.TimeoutError):
        await asyncio.wait_for(sftp.rmtree(temporary, ignore_errors=True), _TIDY_SECONDS)


async def _sweep(sftp: asyncssh.SFTPClient, folder: str, name: str, mine: str) -> None:
    """Removes what copies of this bundle left whose connection was lost, by the device's own clock."""
    begun = (await sftp.stat(mine)).mtime
    for entry in await sftp.readdir(folder):
        other = str(entry.filename)
        if not re.fullmatch(rf"{re.escape(name)}\.[0-9a-f]{{8}}\.partial", other):
            continue
        if begun is not None and entry.attrs.mtime is not None and begun - entry.attrs.mtime > _LEFT_OVER_SECONDS:
            await _tidy(sftp, posixpath.join(folder, other))


async def _free(sftp: asyncssh.SFTPClient, folder: str) -> int | None:
    """Bytes that may still be written there; None where the device does not tell."""
    try:
        found = await sftp.statvfs(folder)
    except asyncssh.SFTPError:
        return None
    return int(found.bavail) * int(found.frsize or found.bsize)


async def _room(sftp: asyncssh.SFTPClient, folder: str) -> str:
    free = await _free(sftp, folder)
    return "" if free is None else f"; {free / 1e6:.1f} MB are free there"

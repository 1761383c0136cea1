"""Asking one host: connect, send the bundle, run the device's own command, and tell what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import asyncssh

from vitdeploy import __version__
from vitdeploy.hosts.answer import LONGEST, NOT_FOUND, Ended, judge, no_vitdeploy, said
from vitdeploy.hosts.connection import connected
from vitdeploy.hosts.inventory import Host
from vitdeploy.hosts.outcome import Asked, Outcome, TroubleError, clean, now
from vitdeploy.hosts.transfer import Note, Parcel, send

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_ERRORS_KEPT = 1 << 16  # bytes of standard error
_BOARD = "/proc/device-tree/model"


@dataclass
class _Seen:
    """What is known of a device so far, whatever happens next."""

    board: str | None = None
    vitdeploy: str | None = None
    copied: bool | None = None
    exit_code: int | None = None
    errors: bytearray = field(default_factory=bytearray)


async def ask(host: Host, asked: Asked, parcels: Sequence[Parcel], note: Note) -> Outcome:
    """What becomes of a host; nothing that it does or does not do is an exception here.

    parcels  what has to lie on the device
    note     is told in a few words what is being done
    """
    begun, seen = time.monotonic(), _Seen()
    told = Outcome(host.name, "error", asked)
    try:
        told = await asyncio.wait_for(_answer(host, asked, parcels, note, seen), host.timeout)
    except asyncio.TimeoutError:
        told = replace(
            told,
            status="timed out",
            what=f"it did not answer within {host.timeout:g} s",
            fix=f"timeout = {2 * host.timeout:g} below [hosts.{host.name}]",
        )
    except TroubleError as error:
        told = replace(told, status=error.status, what=error.what, why=error.why, fix=error.fix)
    except (asyncssh.Error, OSError) as error:
        told = replace(
            told,
            status="connection lost",
            what=f"the connection to {host.place} was lost",
            why=clean(str(error)) or type(error).__name__,
            fix="run the same command again",
        )
    except Exception as error:
        log.debug("asking %s", host.name, exc_info=True)
        told = replace(
            told,
            what=f"unexpected {type(error).__name__}: {clean(str(error))}",
            why="this is a defect of vitdeploy, not of the device",
            fix="run the same command with --verbose, and report what it prints",
        )
    why = told.why
    if told.status in ("error", "no result") and seen.vitdeploy not in (None, __version__):
        versions = f"the device has vitdeploy {seen.vitdeploy}, and here is {__version__}"
        why = f"{why}; {versions}" if why else versions
    return replace(
        told,
        why=why,
        seconds=round(time.monotonic() - begun, 3),
        finished=now(),
        exit_code=seen.exit_code,
        board=seen.board,
        vitdeploy=seen.vitdeploy,
        copied=seen.copied,
        said="" if told.result is not None else said(bytes(seen.errors)),
    )


async def _answer(host: Host, asked: Asked, parcels: Sequence[Parcel], note: Note, seen: _Seen) -> Outcome:
    note("connecting")
    async with connected(host) as connection:
        version = await _run(connection, [*host.vitdeploy, "--version"], 1 << 16)
        if version.exit_code in NOT_FOUND:
            raise no_vitdeploy(clean(said(version.errors)))
        seen.vitdeploy = _version(version.output)
        async with await _sftp(connection) as sftp:
            seen.board = await _board(sftp)
            note("copying")
            sent = [await send(sftp, parcel, host.folder, note) for parcel in parcels]
            seen.copied = any(sent)
        note("running")
        ended = await _run(connection, asked.words, LONGEST, seen.errors)
        seen.exit_code = ended.exit_code
        judged = judge(asked.verb, ended)
    return Outcome(
        host.name, judged.status, asked, what=judged.what, why=judged.why, fix=judged.fix, result=judged.result
    )


async def _run(
    connection: asyncssh.SSHClientConnection,
    words: tuple[str, ...] | list[str],
    longest: int,
    errors: bytearray | None = None,
) -> Ended:
    """Runs a command of these words on the device; no shell sees more in them than words.

    TroubleError for an output of more than `longest` bytes. The end of standard error is kept in `errors`.
    """
    output, told = bytearray(), bytearray() if errors is None else errors
    process: Any = await connection.create_process(shlex.join(words), encoding=None, stdin=asyncssh.DEVNULL)
    listening = asyncio.create_task(_keep_end(process.stderr, told))
    try:
        while chunk := await process.stdout.read(_CHUNK):
            output += chunk
            if len(output) > longest:
                raise TroubleError(
                    "no result",
                    f"the answer has more than {longest >> 20} MiB",
                    why="that is none of vitdeploy",
                    fix="run the command on the device",
                )
        await listening
        await process.wait_closed()
    except BaseException:
        with contextlib.suppress(OSError, asyncssh.Error):
            process.terminate()
        raise
    finally:
        listening.cancel()
        process.close()
    signal = None if process.exit_signal is None else str(process.exit_signal[0])
    status = process.exit_status if signal is None else None
    return Ended(status, signal, bytes(output), bytes(told))


async def _keep_end(stream: Any, kept: bytearray) -> None:
    """Reads a stream to its end, and keeps the last of it."""
    while chunk := await stream.read(_CHUNK):
        kept += chunk
        del kept[:-_ERRORS_KEPT]


def _version(output: bytes) -> str | None:
    """`0.1.0` in `vitdeploy 0.1.0`, whatever a login prints before it."""
    for line in output.decode("utf-8", "replace").splitlines():
        name, _, version = line.strip().partition(" ")
        if name == "vitdeploy" and version:
            return clean(version, 60)
    return None


async def _sftp(connection: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient:
    """Files of the device; TroubleError where its SSH server has no SFTP."""
    try:
        return await connection.start_sftp_client()
    except asyncssh.ChannelOpenError as error:
        if connection.is_closed():
            raise
        raise TroubleError(
            "copy failed",
            "the SSH server of the device has no SFTP",
            why=clean(error.reason),
            fix="install one there: apt-get install openssh-sftp-server",
        ) from error


async def _board(sftp: asyncssh.SFTPClient) -> str | None:
    """Name of the board in its device tree; None for what has none."""
    try:
        async with sftp.open(_BOARD, "rb") as file:
            found: Any = await file.read(256)
    except (asyncssh.SFTPError, OSError):
        return None
    return clean(bytes(found).decode("utf-8", "replace").replace("\0", " "), 80) or None

"""Connections to hosts: keys of the agent and of files, ~/.ssh/config, and host keys that have to be known.

Needs asyncssh. No password is ever asked for, and nothing is sent to a host whose key is not in known_hosts.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh

from vitdeploy.errors import shell
from vitdeploy.hosts.inventory import Host
from vitdeploy.hosts.outcome import TroubleError, clean

CONNECT_SECONDS = 20.0
# A device that says nothing for so long, and does not answer when asked, is gone.
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 15, 4

_SSH_PORT = 22
_NOBODY = b"\n"  # known hosts without any; empty bytes would mean the usual file


class _Client(asyncssh.SSHClient):
    """Takes note of a key that is not trusted, which is refused all the same.

    known    the known hosts
    refused  kind and fingerprint of the key that the host offered; None where that was right or not looked at
    changed  whether another key is known of that host
    """

    def __init__(self) -> None:
        self.known: list[str] | bytes = _NOBODY
        self.refused: str | None = None
        self.changed = True

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.refused = f"{key.get_algorithm()} {key.get_fingerprint()}"
        trusted = asyncssh.match_known_hosts(self.known, host, addr, None if port == _SSH_PORT else port)
        self.changed = any(trusted)
        return False


@asynccontextmanager
async def connected(host: Host) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection to a host, closed at the end; TroubleError, with what to type, where there is none."""
    client, end = _Client(), (host.address, host.port)
    stated = {"port": host.port, "username": host.user, "client_keys": None if host.key is None else [str(host.key)]}
    given: dict[str, Any] = {key: value for key, value in stated.items() if value is not None}
    try:
        options = await asyncssh.SSHClientConnectionOptions.construct(config=(), host=host.address, **given)
        end = (options.host, options.port)
        client.known = _known_hosts(options)
        connection = await asyncssh.connect(
            host.address,
            client_factory=lambda: client,
            known_hosts=client.known,
            password_auth=False,
            kbdint_auth=False,
            connect_timeout=CONNECT_SECONDS,
            login_timeout=CONNECT_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVE_COUNT,
            **given,
        )
    except Exception as error:
        raise _trouble(host, error, end, client) from error
    try:
        yield connection
    finally:
        connection.close()


def _known_hosts(options: asyncssh.SSHClientConnectionOptions) -> list[str] | bytes:
    """The files of known hosts. `UserKnownHostsFile none` means that no key is known, not that none is looked at."""
    if options.known_hosts is None:
        return _NOBODY
    usual = Path("~/.ssh/known_hosts").expanduser()
    stated = [str(path) for path in options.known_hosts] if isinstance(options.known_hosts, list) else []
    return stated or ([str(usual)] if usual.is_file() else _NOBODY)


def _trouble(host: Host, error: Exception, end: tuple[str, int | None], client: _Client) -> TroubleError:
    """What an error means; `end` is the address and port behind what ~/.ssh/config calls the host."""
    reason = clean(str(error)) or type(error).__name__
    exchange = isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in str(
        error
    )  # known is one of another kind
    if exchange or isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _wrong_key(host, reason, end, client)
    if isinstance(error, asyncssh.PermissionDenied):
        return TroubleError(
            "login refused",
            f"{host.place} does not accept the keys that are offered",
            why=reason,
            fix=f"`{_typed('ssh-copy-id', host)}`, or key = … below [hosts.{host.name}]",
        )
    if isinstance(error, (asyncssh.KeyImportError, asyncssh.KeyEncryptionError)):
        key = "its key" if host.key is None else shell(host.key)
        return TroubleError(
            "login refused",
            f"the key for {host.place} cannot be read",
            why=reason,
            fix=f"`ssh-add {key}`, or key = … below [hosts.{host.name}]",
        )
    if isinstance(error, asyncssh.ConfigParseError):
        return TroubleError("unreachable", "~/.ssh/config cannot be read", why=reason, fix="mend ~/.ssh/config")
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return TroubleError(
            "login refused",
            f"there is no file {clean(str(error.filename))}",
            why=f"the connection to {host.place} needs it",
            fix=f"key = … below [hosts.{host.name}], or mend ~/.ssh/config",
        )
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        reason = f"it does not answer within {CONNECT_SECONDS:.0f} s"
    if isinstance(error, socket.gaierror):
        reason = f"no address is known for {host.address}"
    return TroubleError(
        "unreachable",
        f"cannot connect to {host.place}",
        why=reason,
        fix=f"check that the device is on: {_typed('ssh', host)}",
    )


def _wrong_key(host: Host, reason: str, end: tuple[str, int | None], client: _Client) -> TroubleError:
    """For a host whose key is not the known one, or of which none is known."""
    address, number = end
    usual = number in (None, _SSH_PORT)
    name, port = (address, []) if usual else (f"[{address}]:{number}", ["-p", str(number)])
    offered = "" if client.refused is None else f"; it offered {client.refused}"
    forget = f"`ssh-keygen -R {shell(name)}` and " if client.changed else ""
    known = "not the one in known_hosts" if client.changed else "not in known_hosts"
    return TroubleError(
        "host key",
        f"the host key of {host.place} is {known}",
        why=f"{reason}{offered}",
        fix="compare the fingerprint with that on the device (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` "
        f"there), since somebody may stand between; only if it is the same: {forget}"
        f"`{shlex.join(['ssh-keyscan', *port, address])} >> ~/.ssh/known_hosts`",
    )


def _typed(program: str, host: Host) -> str:
    """A command of OpenSSH for a host."""
    user = "" if host.user is None else f"{host.user}@"
    port = [] if host.port is None else ["-p", str(host.port)]
    return shlex.join([program, *port, f"{user}{host.address}"])

"""The devices of a fleet, read from its file.

  [defaults]                        # of every host; each may be stated for one host too
  user = "vit"
  folder = ".cache/vitdeploy/fleet" # on the device, where bundles are put
  timeout = 3600                    # seconds for all that is asked of a host

  [hosts.nano-1]
  address = "192.168.7.31"          # a name, an address, or a Host of ~/.ssh/config

Nothing here needs a network.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.toml_reader import read_toml

FOLDER = ".cache/vitdeploy/fleet"
TIMEOUT = 3600.0

_SSH_PORT = 22
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Of each key of a host: its type, and what it is in words.
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "address": ((str,), "a text"),
    "port": ((int,), "a whole number"),
    "user": ((str,), "a text"),
    "key": ((str,), "the path of a private key"),
    "vitdeploy": ((str,), "the command on the device"),
    "folder": ((str,), "a path on the device"),
    "timeout": ((int, float), "seconds"),
    "data": ((str,), "a path on the device"),
    "runtime": ((str,), "the name of a runtime"),
}


@dataclass(frozen=True)
class Host:
    """A device, and how it is asked.

    Attributes:
        name: What it is called in the file and in results.
        address: A name, an address, or a `Host` of ~/.ssh/config.
        port: Port of its SSH server; None for what ~/.ssh/config says, else 22.
        user: Name to log in with; None for what ~/.ssh/config says, else one's own.
        key: File of the private key; None for the agent's and the usual files.
        vitdeploy: Words of the command on the device.
        folder: Where bundles are put on the device, seen from the home folder.
        timeout: Seconds for all that is asked of it.
        data: Path of images on the device, for `validate`.
        runtime: Runtime to ask for; None for what the command takes.
    """

    name: str
    address: str
    port: int | None = None
    user: str | None = None
    key: Path | None = None
    vitdeploy: tuple[str, ...] = ("vitdeploy",)
    folder: str = FOLDER
    timeout: float = TIMEOUT
    data: str | None = None
    runtime: str | None = None

    @property
    def place(self) -> str:
        """`user@address:port` as far as it is stated."""
        user = "" if self.user is None else f"{self.user}@"
        return f"{user}{self.address}" + ("" if self.port is None else f":{self.port}")


def read_hosts(path: Path, only: Sequence[str] | None = None) -> tuple[Host, ...]:
    """The hosts of a file in its order; with `only` those of these names.

    Raises UsageError for a file that cannot be read, for tables, keys and values that no host has, for two hosts at one
    address, and for a name in `only` that is no host's.
    """
    return hosts_of(read_toml(path, option="--hosts"), path, only)


def hosts_of(tables: Mapping[str, Any], path: Path, only: Sequence[str] | None = None) -> tuple[Host, ...]:
    """The hosts of tables that were read from `path`; errors as of `read_hosts`."""
    for name in tables:
        if name not in ("defaults", "hosts"):
            raise _wrong(path, f"[{name}]", "it has [defaults] and one [hosts.NAME] for each device", "leave it out")
    defaults, named = tables.get("defaults", {}), tables.get("hosts", {})
    for table, where in ((defaults, "defaults"), (named, "hosts")):
        if not isinstance(table, dict):
            raise _wrong(path, where, "it is a table", f"[{where}]")
    _check_keys(path, "defaults", defaults)
    if "address" in defaults:
        raise _wrong(path, "address in [defaults]", "every host has its own", "put it below [hosts.NAME]")
    if not named:
        raise UsageError(f"{path} names no hosts", fix='add [hosts.NAME] with address = "…"')
    hosts = tuple(_host(path, name, table, defaults) for name, table in named.items())
    _check_different(path, hosts)
    return hosts if only is None else _chosen(path, hosts, only)


def _host(path: Path, name: str, table: Any, defaults: Mapping[str, Any]) -> Host:
    where = f"hosts.{name}"
    if not _NAME.fullmatch(name):
        why = "names have letters, digits, dots, dashes and underscores, begin with a letter or digit, and are short"
        raise _wrong(path, f"[hosts.{name!r}]", f"results are files of this name; {why}", "[hosts.nano-1]")
    if not isinstance(table, dict):
        raise _wrong(path, f"[{where}]", "a host is a table", f'[{where}] with address = "…"')
    _check_keys(path, where, table)
    values = {**defaults, **table}
    if not values.get("address"):
        raise _wrong(path, f"[{where}]", "it has no address", f'address = "…" below [{where}]')
    if "key" in values:
        values["key"] = path.parent / _expanded(path, where, values["key"])
    if "vitdeploy" in values:
        values["vitdeploy"] = _command(path, where, values["vitdeploy"])
    for key in ("folder", "data"):
        if key in values:
            values[key] = on_device(values[key])
    if "timeout" in values:
        values["timeout"] = float(values["timeout"])
    return Host(name, **values)


def on_device(path: str) -> str:
    """A path as a command and SFTP both take it: seen from the home folder, where both begin, and never an option."""
    if path.startswith("~/"):
        return f"./{path[2:].lstrip('/')}"
    return path if path.startswith(("/", ".")) else f"./{path}"


def _expanded(path: Path, where: str, key: str) -> Path:
    try:
        return Path(key).expanduser()
    except RuntimeError as error:
        raise _wrong(path, f"key below [{where}]", str(error), "the whole path of the key") from error


def _command(path: Path, where: str, text: str) -> tuple[str, ...]:
    """Words of the command; one that begins in the home folder is seen from there."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _wrong(path, f"vitdeploy below [{where}]", str(error), 'vitdeploy = "venv/bin/vitdeploy"') from error
    if not words:
        raise _wrong(path, f"vitdeploy below [{where}]", "it is empty", 'vitdeploy = "venv/bin/vitdeploy"')
    return tuple(on_device(word) if word.startswith("~/") else word for word in words)


def _check_keys(path: Path, where: str, table: Mapping[str, Any]) -> None:
    """UsageError for a key that no host has, and for a value that it cannot have."""
    for key, value in table.items():
        if key not in _KINDS:
            close = get_close_matches(key, _KINDS, n=1)
            fix = close[0] if close else f"one of {', '.join(_KINDS)}"
            raise _wrong(path, f"{key} below [{where}]", "no host has such a key", fix)
        kinds, words = _KINDS[key]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise _wrong(path, f"{key} below [{where}]", f"it is {words}, not {value!r}", f"{key} = …, {words}")
        why = _unfit(key, value)
        if why is not None:
            raise _wrong(path, f"{key} = {value!r} below [{where}]", why, f"another value, {words}")


def _unfit(key: str, value: Any) -> str | None:
    """Why a value of the right type is none of this key."""
    if isinstance(value, str):
        if not value:
            return "it is empty"
        if not value.isprintable():
            return "it has characters that cannot be printed"
        if key in ("address", "user") and (value.startswith("-") or re.search(r"\s", value)):
            return "it has blanks, or looks like an option"
        if key == "runtime" and value.startswith("-"):
            return "it looks like an option"
        return None
    if key == "port" and not 0 < value < 1 << 16:
        return "ports are from 1 to 65535"
    if key == "timeout" and not (math.isfinite(value) and 0 < value <= 30 * 86400):
        return "it is a time above 0 and of 30 days at most"
    return None


def _check_different(path: Path, hosts: Sequence[Host]) -> None:
    """UsageError for two hosts at one address, and for two names that some file systems take for one."""
    places: dict[tuple[str, int], Host] = {}
    names: dict[str, Host] = {}
    for host in hosts:
        place = (host.address.casefold(), host.port or _SSH_PORT)
        if place in places:
            why = f"{places[place].name} has the same, and what runs there twice at once disturbs itself"
            raise _wrong(path, f"address = {host.address!r} below [hosts.{host.name}]", why, "leave one of them out")
        if host.name.casefold() in names:
            why = f"there is [hosts.{names[host.name.casefold()].name}], and results are files of these names"
            raise _wrong(path, f"[hosts.{host.name}]", why, "another name")
        places[place], names[host.name.casefold()] = host, host


def _chosen(path: Path, hosts: Sequence[Host], only: Sequence[str]) -> tuple[Host, ...]:
    known = {host.name: host for host in hosts}
    for name in only:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise UsageError(
                f"{path} has no host {name!r}",
                why=f"it has {', '.join(known)}",
                fix=f"--only {close[0]}" if close else "--only with names of these",
            )
    if not only:
        raise UsageError("no host is chosen", fix="--only with names of hosts, or leave it out")
    return tuple(host for host in hosts if host.name in only)


def _wrong(path: Path, where: str, why: str, fix: str) -> UsageError:
    return UsageError(f"{path} cannot say {where}", why=why, fix=fix)

"""Command lines on devices: the words that the device's own vitdeploy is called with, and what its advice asks for."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from vitdeploy.hosts.inventory import Host

# What the advice of a device to build an engine may hold, and the command for the fleet has to hold too.
_OF_BUILD = ("--runtime tensorrt_rtx", "--rebuild")


def words_for(host: Host, verb: str, bundle: str, baseline: str | None, options: Sequence[str]) -> tuple[str, ...]:
    """The command line on a device; the options of the user come last, so that they count.

    bundle, baseline  names of their folders on the device
    """
    own: list[str] = []
    if host.runtime is not None:
        own += ["--runtime", host.runtime]
    if verb == "validate":
        own += ["--no-record", *(["--data", host.data] if host.data is not None else [])]
        own += [] if baseline is None else ["--baseline", posixpath.join(host.folder, baseline)]
    return (*host.vitdeploy, verb, posixpath.join(host.folder, bundle), "--json", "--quiet", *own, *options)


def names_data(options: Sequence[str]) -> bool:
    """Whether options say where images are."""
    return any(option == "--data" or option.startswith("--data=") for option in options)


def build_options(advice: str) -> str:
    """The options of the command that the advice of a device tells to build an engine with."""
    return " ".join(words for words in _OF_BUILD if words in advice)

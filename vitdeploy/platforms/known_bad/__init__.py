"""Versions that are known to compute wrong numbers, to fail or to be slow, as data. Each row names where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitdeploy.platforms.known_bad.row import FAILS, SLOW, WRONG, KnownBad
from vitdeploy.platforms.known_bad.runtimes import RUNTIMES
from vitdeploy.platforms.known_bad.tensorrt import TENSORRT
from vitdeploy.platforms.versions import version_matches

__all__ = ["FAILS", "KNOWN_BAD", "SLOW", "WRONG", "Circumstances", "KnownBad", "matching_rows"]

KNOWN_BAD = (*TENSORRT, *RUNTIMES)


@dataclass(frozen=True)
class Circumstances:
    """What the conditions of a row are held against: versions of packages, and the machine."""

    versions: Mapping[str, str]
    sm: tuple[int, ...] = ()
    jetson: bool = False
    jetpack: str | None = None
    architecture: str = ""
    properties: Mapping[str, bool] = field(default_factory=dict)


def matching_rows(circumstances: Circumstances, rows: tuple[KnownBad, ...] = KNOWN_BAD) -> list[tuple[KnownBad, str]]:
    """The rows that apply, worst effect first, each with the installed version that it names."""
    order = (WRONG, FAILS, SLOW)
    found = [(row, circumstances.versions[row.package]) for row in rows if _applies(row, circumstances)]
    return sorted(found, key=lambda pair: order.index(pair[0].effect))


def _applies(row: KnownBad, here: Circumstances) -> bool:
    version = here.versions.get(row.package)
    properties = here.properties
    return (
        version is not None
        and version_matches(version, row.versions)
        and (not row.sm or bool(set(row.sm) & set(here.sm)))
        and (not row.jetson or here.jetson)
        and (not row.jetpack or (here.jetpack is not None and version_matches(here.jetpack, row.jetpack)))
        and (not row.architecture or row.architecture == here.architecture)
        and (not row.lacks or properties.get(row.lacks) is False)
        and (not row.has or properties.get(row.has) is True)
    )

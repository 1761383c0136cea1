"""Results in a folder, one file for each host, so that the same command goes on where it was interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically
from vitdeploy.hosts.answer import parse
from vitdeploy.hosts.outcome import Asked, Outcome

_LARGEST = 1 << 28  # bytes of a file


class Records:
    """The results of one verb and one bundle in a folder, which is made.

    Raises UsageError for a folder that cannot be written, or that holds anything else.
    """

    def __init__(self, folder: Path, verb: str, manifest_sha256: str) -> None:
        self.folder = folder
        self._known: dict[str, Outcome] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(folder.glob("*.json"))
        except OSError as error:
            raise UsageError(
                f"cannot write {folder}", why=error.strerror, fix="give -o the path of another folder"
            ) from error
        for path in paths:
            found = self._read(path)
            if (found.asked.verb, found.asked.manifest_sha256) != (verb, manifest_sha256):
                other = "another bundle" if found.asked.verb == verb else found.asked.verb
                raise UsageError(
                    f"{folder} has results of {other}",
                    why=f"{path.name} is of {found.asked.verb}, manifest {found.asked.manifest_sha256[:16]}",
                    fix="-o with another folder",
                )
            self._known[found.host] = found

    def kept(self, host: str, asked: Asked) -> Outcome | None:
        """The result of a host that passed when it was asked the same; None where it has to be asked."""
        found = self._known.get(host)
        if found is None or not found.passed or found.asked != asked:
            return None
        return replace(found, kept=True)

    def write(self, outcome: Outcome) -> None:
        """Keeps a result in place of the one before; UsageError where that cannot be written."""
        text = json.dumps(outcome.to_dict(), indent=1) + "\n"
        try:
            write_atomically(self.folder / f"{outcome.host}.json", text)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.folder / outcome.host}.json",
                why=error.strerror,
                fix="make room there, or -o with another folder; the same command asks only the other hosts",
            ) from error

    def _read(self, path: Path) -> Outcome:
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError("it is too large")
            found = Outcome.from_dict(parse(path.read_bytes()))
            if f"{found.host}.json" != path.name:
                raise ValueError(f"it is of the host {found.host!r}")
        except (OSError, ValueError, TypeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(
                f"{path} is not a result of a host", why=why, fix="-o with another folder, or remove the file"
            ) from error
        return found

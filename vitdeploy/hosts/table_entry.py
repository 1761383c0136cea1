"""What `fleet benchmark` adds to a table of devices: an entry for each host that passed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.bundle import Bundle
from vitdeploy.hosts.outcome import Outcome
from vitdeploy.latency.device_table import entry_of, write_entry

log = logging.getLogger(__name__)


def write_entries(folder: Path, bundle: Bundle, outcomes: Sequence[Outcome]) -> list[Path]:
    """Writes an entry for each host that passed, in place of the one of the same device and bundle.

    A result without what an entry needs is left out with a warning. UsageError where the folder cannot be written.
    """
    written = []
    for one in outcomes:
        if not one.passed or one.result is None:
            continue
        try:
            entry = entry_of(bundle, one.result, one.board)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s is left out of the table: its result has no usable %s", one.host, error)
            continue
        written.append(write_entry(folder, entry))
    return written

"""What held of which bundles on this machine, so that `auto` proves it once and not at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL

from vitdeploy import __version__
from vitdeploy.bundle import Bundle
from vitdeploy.caches import Cache
from vitdeploy.files import write_atomically
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.machine.settings import runtime_variables
from vitdeploy.runtime.backends import Backend

CACHE = "proofs"


class Remembered:
    """Something that held; what did not is never kept. `identity` is everything that it depends on, as JSON values."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self._text = json.dumps(identity, sort_keys=True, indent=1) + "\n"
        self._cache = Cache(CACHE)
        self._file = self._cache.folder / f"{hashlib.sha256(self._text.encode()).hexdigest()[:32]}.json"

    def holds(self) -> bool:
        """Whether it held before."""
        try:
            known = self._file.read_text(encoding="utf-8") == self._text
        except (OSError, UnicodeError):
            return False
        if known:
            self._cache.touch(self._file)
        return known

    def keep(self) -> None:
        """Note that it holds now; where nothing can be written, it is proven again the next time."""
        with contextlib.suppress(OSError):
            self._cache.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, self._text)
            self._cache.evict(keep=(self._file.stem,))


def check_graph(bundle: Bundle) -> None:
    """`bundle.check_graph`, unless this version of vitdeploy has found before that this manifest and its model pass."""
    known = Remembered({"graph": bundle.manifest_sha256, "tools": {"vitdeploy": __version__}})
    bundle.graph_is_known = known.holds()
    if not bundle.graph_is_known:
        bundle.check_graph()
        known.keep()


def proof_of(bundle: Bundle, kind: type[Backend], loaded: Backend) -> Remembered | None:
    """That the runtime, which has loaded the bundle, reproduces its reference.

    It holds again for the same manifest, which has the hash of every file, and where everything else that numbers
    depend on is the same: versions, device, precision, threads, processor, variables of the runtimes. A runtime of
    engines has nothing remembered (None), for its engine is not in the bundle.
    """
    if not kind.proves_exports:
        return None
    return Remembered(
        {
            "manifest": bundle.manifest_sha256,
            "runtime": loaded.describe(),
            "tools": {"vitdeploy": __version__, "numpy": np.__version__, "pillow": PIL.__version__},
            "processor": [read_cpu().name, read_cpu().kind],
            "environment": runtime_variables(),
        }
    )

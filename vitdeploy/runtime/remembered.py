"""Which runtimes reproduced which bundles on this machine, so that `auto` proves each once and not at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json

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
    """A proof that held, of a bundle in the runtime that has loaded it; one that did not is never kept.

    It holds again for the same manifest, which has the hash of every file, and where everything else that numbers
    depend on is the same: versions, device, precision, threads, processor, variables of the runtimes. A runtime of
    engines has nothing remembered, for its engine is not in the bundle.
    """

    def __init__(self, bundle: Bundle, kind: type[Backend], loaded: Backend) -> None:
        self._identity = {
            "manifest": bundle.manifest_sha256,
            "runtime": loaded.describe(),
            "tools": {"vitdeploy": __version__, "numpy": np.__version__, "pillow": PIL.__version__},
            "processor": [read_cpu().name, read_cpu().kind],
            "environment": runtime_variables(),
        }
        self._text = json.dumps(self._identity, sort_keys=True, indent=1) + "\n"
        self._applies = kind.proves_exports
        self._cache = Cache(CACHE)
        self._file = self._cache.folder / f"{hashlib.sha256(self._text.encode()).hexdigest()[:32]}.json"

    def holds(self) -> bool:
        """Whether the runtime reproduced the reference of the bundle before."""
        try:
            known = self._applies and self._file.read_text(encoding="utf-8") == self._text
        except (OSError, UnicodeError):
            return False
        if known:
            self._cache.touch(self._file)
        return known

    def keep(self) -> None:
        """Note that it did now; where nothing can be written, it is proven again the next time."""
        if not self._applies:
            return
        with contextlib.suppress(OSError):
            self._cache.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, self._text)
            self._cache.evict(keep=(self._file.stem,))

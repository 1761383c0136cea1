"""What running an engine takes of NVIDIA's libraries: the bindings, what they say, and how bytes become contexts."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from vitdeploy.tensorrt.build import version_of
from vitdeploy.tensorrt.logger import logger_of, worded

log = logging.getLogger(__name__)


class Library(ABC):
    """One of NVIDIA's runtimes of engines; each engine has an instance of its own.

    product  what messages call it
    command  what builds an engine for it

    `kernels` is the file of what a device compiles of the engine, for a library whose engines are compiled there.
    """

    product: ClassVar[str]
    command: ClassVar[str]

    def __init__(self, kernels: Path | None = None) -> None:
        self._kernels = kernels
        self._lines: list[str] | None = None
        # Held as long as the engine is: the library keeps plain pointers to them.
        self._logger: Any = None
        self._runtime: Any = None

    @property
    @abstractmethod
    def module(self) -> Any:
        """The bindings, imported when they are first asked for."""

    @property
    def version(self) -> str:
        """That of the bindings."""
        return str(self.module.__version__)

    @property
    @abstractmethod
    def rules(self) -> tuple[int, ...]:
        """The version of TensorRT whose documented rules hold for it."""

    @contextmanager
    def log(self) -> Iterator[list[str]]:
        """What it says meanwhile, line by line; an error's line begins with `[E]`. Errors at other times go to the log.

        It is for one thread at a time, as loading an engine is.
        """
        lines: list[str] = []
        self._lines = lines
        try:
            yield lines
        finally:
            self._lines = None

    def deserialize(self, serialized: bytes) -> Any:
        """The engine; ValueError where the library refuses the bytes, which it explains in its log."""
        trt = self.module
        self._logger = logger_of(trt, self._say)
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(serialized)
        if engine is None:
            raise ValueError(f"{self.product} refused the engine and said nothing")
        return engine

    def create_context(self, engine: Any) -> Any:
        """An execution context; None where it could not be made."""
        return engine.create_execution_context()

    def _say(self, severity: str, message: str) -> None:
        lines, words = self._lines, worded(severity, message)
        if lines is not None:
            lines.extend(words)
        elif words and words[0].startswith("[E]"):
            log.warning("%s: %s", self.product, message)


class TensorRtLibrary(Library):
    """TensorRT itself."""

    product = "TensorRT"
    command = "vitdeploy build BUNDLE"

    @property
    def module(self) -> Any:
        """The package tensorrt."""
        import tensorrt

        return tensorrt

    @property
    def rules(self) -> tuple[int, ...]:
        """Its own version."""
        return version_of(self.version)

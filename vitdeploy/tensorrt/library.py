"""What running an engine takes of NVIDIA's libraries: the bindings, what they say, and how bytes become contexts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from vitdeploy.tensorrt.build import builder_log, version_of


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

    @abstractmethod
    def log(self) -> AbstractContextManager[list[str]]:
        """What it says meanwhile, line by line; an error's line begins with `[E]`."""

    @abstractmethod
    def deserialize(self, serialized: bytes) -> Any:
        """The engine; an exception where the bytes are refused."""

    def create_context(self, engine: Any) -> Any:
        """An execution context; None where it could not be made."""
        return engine.create_execution_context()


class TensorRtLibrary(Library):
    """TensorRT through polygraphy."""

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

    def log(self) -> AbstractContextManager[list[str]]:
        """What TensorRT and polygraphy say."""
        return builder_log()

    def deserialize(self, serialized: bytes) -> Any:
        """The engine, as polygraphy makes it."""
        from polygraphy.backend import trt as poly

        return poly.engine_from_bytes(serialized)

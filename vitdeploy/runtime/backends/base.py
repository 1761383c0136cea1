"""The one anatomy of a backend: is it there, load, run, close, describe."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from vitdeploy.bundle import MODEL, Bundle, TensorSpec
from vitdeploy.errors import BackendError, MissingDependencyError, UsageError, VitDeployError

Array = NDArray[Any]
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Options:
    """What a user may ask of any backend; one that cannot do it says so.

    threads    threads of computation; None leaves it to the backend
    precision  `fp32`, `bf16` or `fp16`: precision in which floating-point operations are computed, where a backend
               lets one choose; None means the most exact one
    """

    threads: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{self.threads} threads cannot compute anything", fix="--threads 1 or more")
        if self.precision not in (None, *PRECISIONS):
            raise UsageError(f"there is no precision {self.precision!r}", fix=" or ".join(PRECISIONS))


class Backend(ABC):
    """A model that a runtime has loaded.

    `inputs` and `outputs` are the signature as the runtime reports it. `run` may be called from several threads at
    once; `close` lets the calls under way end and refuses new ones. Subclasses fill the hooks `_load`, `_run` and
    `_facts`; what they raise reaches the caller as a BackendError.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, native: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        # The handle is the state: taken by every call, dropped by `close`, freed when the last call is done with it.
        self._native: Any | None = native
        self._process = os.getpid()
        self.inputs, self.outputs = inputs, outputs

    @classmethod
    def require(cls) -> None:
        """Imports the package; MissingDependencyError with the pip line, or BackendError where the import fails."""
        try:
            importlib.import_module(cls.package)
        except ModuleNotFoundError as error:
            if error.name == cls.package:
                needed_for = f"the runtime {cls.name}"
                raise MissingDependencyError(cls.package, needed_for=needed_for, extra=cls.extra) from None
            raise cls._broken(error) from error
        except Exception as error:
            raise cls._broken(error) from error

    @classmethod
    def available(cls) -> str | None:
        """None when the backend can be used here, else the reason and the command that brings it."""
        try:
            cls.require()
        except BackendError as error:
            return f"{error.what}: {error.fix}"
        return None

    @classmethod
    def open(cls, bundle: Bundle, options: Options | None = None) -> Backend:
        """The bundle's model, loaded from bytes that were checked against the manifest."""
        return cls.load(bundle.read(MODEL), options=options)

    @classmethod
    def load(cls, model: bytes, weights: bytes = b"", options: Options | None = None) -> Backend:
        """A model from the contents of its file or files (`weights` only where a format keeps them apart)."""
        cls.require()
        try:
            return cls._load(model, weights, options or Options())
        except VitDeployError:
            raise
        except Exception as error:
            raise BackendError(f"{cls.name} cannot load the model", why=_one_line(error)) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, as new arrays. Inputs must fit `self.inputs`, C-contiguous and of native byte order."""
        native = self._native
        if native is None:
            raise BackendError("the session is closed", fix="load the bundle again")
        if self._process != os.getpid():
            raise BackendError(
                "the session was loaded in another process",
                why="the threads of a runtime do not survive a fork",
                fix="call vitdeploy.load in the process that uses it",
            )
        try:
            return self._run(native, inputs)
        except VitDeployError:
            raise
        except Exception as error:
            raise BackendError(f"{self.name} failed while it ran the model", why=_one_line(error)) from error

    def close(self) -> None:
        """Frees the model once the calls under way are done; closing twice is harmless."""
        self._native = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._native is None

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision really used and threads, as JSON values."""
        return {"backend": self.name, **self._facts()}

    @classmethod
    def _broken(cls, error: Exception) -> BackendError:
        return BackendError(
            f"{cls.package} is installed but cannot be imported",
            why=_one_line(error),
            fix=f"pip install --force-reinstall {cls.package}",
        )

    @classmethod
    @abstractmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend: ...

    @abstractmethod
    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    @abstractmethod
    def _facts(self) -> dict[str, Any]: ...


def _one_line(error: Exception) -> str:
    """The sentence of a runtime's message that says something: the last line that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

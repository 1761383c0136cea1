"""The one anatomy of a backend: is it there, load, run, close, describe."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray

from vitdeploy.bundle import MODEL, Bundle, TensorSpec
from vitdeploy.errors import BackendError, MissingDependencyError, UsageError, VitDeployError
from vitdeploy.runtime.executed import ExecutedGraph
from vitdeploy.runtime.options import Options

Array = NDArray[Any]

_STAND_ALONE = """\
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.options import Options


def run(model, inputs):
    backend = find_backend("{name}").load(Path(model).read_bytes(), options=Options(**{options}))
    results = backend.run(inputs)
    return [results[spec.name] for spec in backend.outputs]
"""


class Backend(ABC):
    """A model that a runtime has loaded.

    `inputs` and `outputs` are the signature as the runtime reports it. `run` may be called from several threads at
    once; `close` lets the calls under way end and refuses new ones; `num_requests` is how many calls at once keep the
    device busy. A subclass fills the hooks `_load`, `_run` and `_facts`; what they raise reaches the caller as a
    BackendError. All else that the product knows of a runtime stands in the attributes and class methods.

    A package adds a backend by an entry point of the group `vitdeploy.backends`.

    Attributes:
        name: What users call it.
        package: What is imported.
        extra: The extra of this package that installs it.
        refuses: Options that it cannot follow, each with the reason.
        auto_rank: Its place in `auto`, fastest first; None keeps it out.
        auto_reason: What speaks for it there.
        reference: It computes the PyTorch network, not the files of the bundle.
        proves_exports: An export may be proven on it: it loads a bundle without building an engine first.
        tells_graph: `executed` says what it makes of a bundle.
        times_layers: Single layers can be timed on it while exporting (`--tune-latency`).
        tries_devices: `try_device` tells of a device that it names whether it works.
        num_requests: How many calls at once keep the device busy.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    tells_graph: ClassVar[bool] = False
    proves_exports: ClassVar[bool] = True
    times_layers: ClassVar[bool] = False
    tries_devices: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "checkpoint": "it runs the model file of the bundle",
        "build": "it runs no engines",
    }
    auto_rank: ClassVar[int | None] = None
    auto_reason: ClassVar[str] = ""
    reference: ClassVar[bool] = False

    num_requests: int = 2

    def __init__(self, native: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        # The handle is the state: taken by every call, dropped by `close`, freed when the last call is done with it.
        self._native: Any | None = native
        self._process = os.getpid()
        self.inputs, self.outputs = inputs, outputs

    @classmethod
    def require(cls) -> None:
        """Imports the package.

        Raises:
            MissingDependencyError: It is not installed; the error has the pip line.
            BackendError: The import fails.
        """
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
    def version(cls) -> str:
        """That of its package, for `doctor`; the package is there and can be imported."""
        return str(getattr(importlib.import_module(cls.package), "__version__", "unknown"))

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Names of the devices that it can use here, for `doctor`; the package is there and can be imported."""
        return ()

    @classmethod
    def try_device(cls, name: str) -> None:
        """Run a small model on one of `devices`, where `tries_devices`; BackendError says why it fails."""
        raise BackendError(f"{cls.name} tries no devices", fix="vitdeploy verify BUNDLE")

    @classmethod
    def convert(cls, model: bytes) -> dict[str, bytes]:
        """The files that it would rather read than `model.onnx`, by name, for a target whose `native` runtime it is.

        Args:
            model: The contents of `model.onnx`.

        Returns:
            The contents of each file.

        Raises:
            ExportError: It cannot convert the model.
        """
        return {}

    @classmethod
    def executed(cls, bundle: Bundle) -> ExecutedGraph:
        """What it executes for the bundle, read back from the runtime, where `tells_graph`."""
        return ExecutedGraph(cls.name, skipped=f"{cls.name} does not tell what it executes")

    @classmethod
    def throughput_options(cls, cores: int) -> dict[str, Any]:
        """Options of `load` that keep `cores` cores busy with small networks: calls at once, not threads in a call."""
        return {}

    @classmethod
    def stand_alone(cls, options: Options) -> str:
        """A program's `run(model, inputs)`, which computes the outputs of an ONNX file as this backend does, in order.

        Backends whose package is known write it without vitdeploy, for reports to those who make the runtime.
        """
        return _STAND_ALONE.format(name=cls.name, options=options.given())

    @classmethod
    def open(cls, bundle: Bundle, options: Options | None = None) -> Backend:
        """The bundle's model, loaded from bytes that were checked against the manifest."""
        return cls.load(bundle.read(MODEL), options=options)

    @classmethod
    def load(cls, model: bytes, weights: bytes = b"", options: Options | None = None) -> Backend:
        """A model from the contents of its file or files (`weights` only where a format keeps them apart)."""
        options = cls.admit(options)
        try:
            backend = cls._load(model, weights, options)
        except VitDeployError:
            raise
        except Exception as error:
            raise BackendError(
                f"{cls.name} cannot load the model",
                why=one_line(error),
                fix="try another runtime: `vitdeploy doctor` lists them and the versions with known defects",
            ) from error
        backend.num_requests = options.num_requests or backend.num_requests
        return backend

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: Arrays by name that fit `self.inputs`, C-contiguous and of native byte order.

        Returns:
            All outputs by name, as new arrays.

        Raises:
            BackendError: The runtime fails, or `close` was called.
        """
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
            raise BackendError(
                f"{self.name} failed while it ran the model",
                why=one_line(error),
                fix="try another runtime, or fewer samples a call if memory is short",
            ) from error

    def close(self) -> None:
        """Frees the model once the calls under way are done; closing twice is harmless."""
        self._native = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._native is None

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision really used, threads and num_requests, as JSON values."""
        return {"backend": self.name, **self._facts(), "num_requests": self.num_requests}

    @classmethod
    def admit(cls, options: Options | None) -> Options:
        """The options, once it is known that the backend is here and can follow them."""
        options = options or Options()
        for option, why in cls.refuses.items():
            if getattr(options, option) is not None:
                typed = "build" if option == "build" else f"--{option.replace('_', '-')} ({option} in Python)"
                raise UsageError(
                    f"the {cls.name} runtime does not support the option {option}",
                    why=why,
                    fix=f"leave {typed} out, or choose another runtime",
                )
        cls.require()
        return options

    @classmethod
    def _broken(cls, error: Exception) -> BackendError:
        return BackendError(
            f"{cls.package} is installed but cannot be imported",
            why=one_line(error),
            fix=f"pip install --force-reinstall {cls.package}",
        )

    @classmethod
    @abstractmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend: ...

    @abstractmethod
    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    @abstractmethod
    def _facts(self) -> dict[str, Any]: ...


def one_line(error: Exception) -> str:
    """The sentence of a runtime's message that says something: the last line that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

"""A bundle that runs: arrays in, arrays out, or pictures in and labels out, the same on every backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.bundle import Bundle, TensorSpec
from vitdeploy.errors import BackendError, InputError, UsageError
from vitdeploy.runtime.backends import Backend, Options, find_backend
from vitdeploy.runtime.preprocess import Picture, preprocess_batch

Array = NDArray[Any]

LOGITS = "logits"


@dataclass(frozen=True)
class Prediction:
    """One class of a picture; `probability` is the softmax of the logits."""

    label: str
    probability: float
    index: int


class Choice(NamedTuple):
    """A runtime that `auto` considers, and why it stands where it stands."""

    runtime: str
    reason: str


# Measured on an AVX-512 EPYC, CPU time of one thread, LeMeViT-Tiny at 224: OpenVINO in FP32 takes 22.9 ms for the FP32
# graph and 23.0 ms for the FP16 one, ONNX Runtime 25.4 and 29.7 ms.
AUTO_ORDER = (
    Choice("openvino", "it is the fastest measured of those that are installed"),
    Choice("onnxruntime", "nothing faster is installed"),
)


def load(
    bundle: Bundle | str | Path, *, runtime: str = "auto", threads: int | None = None, precision: str | None = None
) -> Session:
    """The bundle, loaded by a runtime and ready to run.

    runtime    a name of `vitdeploy.runtime.backends`, or `auto`: the first of AUTO_ORDER that is installed
    threads    threads of computation; None leaves it to the runtime
    precision  `fp32`, `bf16` or `fp16` where the runtime lets one choose (OpenVINO); None computes as exactly as it can

    Raises BundleError for a bundle that is damaged or altered, UsageError for an unknown runtime or option,
    MissingDependencyError for a runtime that is not installed and BackendError for one that refuses the model.
    """
    options = Options(threads=threads, precision=precision)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    choice = _choose() if runtime == "auto" else Choice(runtime, "it was asked for")
    backend = find_backend(choice.runtime).open(opened, options)
    return Session(opened, backend, reason=choice.reason)


def _choose() -> Choice:
    installed = (choice for choice in AUTO_ORDER if find_backend(choice.runtime).available() is None)
    # Where there is none, opening the last one says what is missing and how to get it.
    return next(installed, AUTO_ORDER[-1])


class Session:
    """A loaded bundle; a context manager, and safe to use from several threads.

    `session(images)` takes float32 `[N, 3, H, W]`, normalised as the bundle's preprocessing says, and returns float32
    logits `[N, classes]`. Read-only, strided and big-endian arrays are taken; any other dtype or shape is an
    InputError. Values are not looked at: NaN or Inf in gives NaN out. `predict` checks that its results are finite.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, reason: str) -> None:
        self.bundle, self.backend, self.reason = bundle, backend, reason
        manifest = bundle.manifest
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._input = manifest.inputs[0]
        names = [spec.name for spec in manifest.outputs]
        self._logits = LOGITS if LOGITS in names else names[0] if len(names) == 1 else None

    def __call__(self, images: Array) -> Array:
        """Logits `[N, classes]` for normalised images `[N, 3, H, W]`; for a bundle of several outputs use `run`."""
        if self._logits is None:
            raise InputError(
                f"this bundle has {len(self.bundle.manifest.outputs)} outputs and none is called {LOGITS}",
                fix="session.run(images), which returns all of them by name",
            )
        return self.run(images)[self._logits]

    def run(self, images: Array | Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, for the images or, where a model has several inputs, for a mapping from their names."""
        if not isinstance(images, Mapping):
            images = {self._input.name: images}
        if images.keys() != self._inputs.keys():
            raise InputError(
                f"the inputs given are {', '.join(images)}", why=f"the model takes {', '.join(self._inputs)}"
            )
        return self.backend.run({name: _checked(array, self._inputs[name]) for name, array in images.items()})

    def predict(
        self, pictures: Picture | Iterable[Picture], top_k: int = 5, *, batch_size: int = 8
    ) -> list[list[Prediction]]:
        """The `top_k` most probable classes of each picture, best first.

        Pictures are paths, Pillow images or uint8 arrays [H, W, 3], preprocessed as the bundle records. `batch_size`
        counts where the model's batch is dynamic; a fixed batch is filled up by repeating the last picture.
        """
        if top_k < 1 or batch_size < 1:
            raise UsageError(f"top_k is {top_k} and batch_size is {batch_size}", why="both are at least 1")
        single = isinstance(pictures, (str, Path, Image.Image, np.ndarray))
        fixed = self._input.shape[0]
        size = fixed if isinstance(fixed, int) else batch_size
        recipe = self.bundle.manifest.preprocessing
        results: list[list[Prediction]] = []
        for chunk in _chunks([pictures] if single else pictures, size):  # type: ignore[arg-type, list-item]
            padding = chunk[-1:] * (size - len(chunk)) if isinstance(fixed, int) else []
            logits = self(preprocess_batch(chunk + padding, recipe))
            results += [self._best(row, top_k) for row in logits[: len(chunk)]]
        return results

    def describe(self) -> dict[str, Any]:
        """What runs where, as JSON values: model, weights, backend, version, device, precision really used, threads."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "model": manifest.model.name,
            "weights": manifest.model.weights.kind,
            "bundle_precision": manifest.precision,
            **self.backend.describe(),
            "reason": self.reason,
        }

    def close(self) -> None:
        """Frees the model once the calls under way are done; later calls raise BackendError."""
        self.backend.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.backend.closed

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Session {self.bundle.manifest.model.name} on {self.backend.name}, {state}>"

    def _best(self, logits: Array, top_k: int) -> list[Prediction]:
        if logits.ndim != 1:
            raise InputError("this bundle has no class scores to predict with", fix="session.run(images)")
        if not np.isfinite(logits).all():
            raise BackendError(
                f"{self.backend.name} computed values that are not finite", fix=f"vitdeploy verify {self.bundle.path}"
            )
        powers = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = powers / powers.sum()
        labels = self.bundle.manifest.labels
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        names = [labels[i] if i < len(labels) else f"class {i}" for i in best]
        return [Prediction(name, float(probabilities[i]), int(i)) for name, i in zip(names, best, strict=True)]


def _checked(array: Any, spec: TensorSpec) -> Array:
    """The array as a backend may take it: shape and dtype right, contiguous, native byte order."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"a {type(array).__name__} is not an array", fix="a numpy array, e.g. numpy.asarray(images)")
    if array.dtype.name != spec.dtype:
        raise InputError(
            f"{spec.name} is {array.dtype.name}, but the model takes {spec.dtype}",
            fix=f"{spec.name}.astype(numpy.{spec.dtype}); session.predict takes uint8 pictures",
        )
    if not spec.admits(array.shape):
        batch = spec.shape[0]
        only_batch = isinstance(batch, int) and spec.admits((batch, *array.shape[1:]))
        raise InputError(
            f"{spec.name} has shape {list(array.shape)}, but the model takes {spec}",
            why=f"it was exported for batches of exactly {batch}" if only_batch else None,
            fix="vitdeploy export --batch dynamic, for a bundle that takes any number" if only_batch else None,
        )
    return np.require(array, spec.dtype, ["C_CONTIGUOUS", "ALIGNED"])


def _chunks(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    chunk: list[Picture] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk

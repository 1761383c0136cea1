"""A bundle that runs: arrays in, arrays out, or images in and labels out, the same on every backend."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from PIL import Image

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, BundleError, InputError, UsageError, shell
from vitdeploy.preprocess import ImageLike, holds_pixels, preprocess, to_pixels
from vitdeploy.proof.prove import describe_run, signature_failures
from vitdeploy.runtime.auto import load_fastest
from vitdeploy.runtime.backends import Backend, find_backend
from vitdeploy.runtime.isolated import open_backend
from vitdeploy.runtime.items import Array, attempt, batches, check_on_error, checked, raising
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.prediction import Prediction, best_classes
from vitdeploy.runtime.remembered import check_graph
from vitdeploy.runtime.stream import stream
from vitdeploy.signing.check import open_bundle

if TYPE_CHECKING:
    from vitdeploy.tensorrt.options import BuildOptions

LOGITS = "logits"


@checked_arguments
def load(
    bundle: Bundle | str | Path,
    *,
    runtime: str = "auto",
    key: str | Path | None = None,
    threads: int | None = None,
    num_requests: int | None = None,
    compute_precision: str | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    build: BuildOptions | Mapping[str, Any] | None = None,
    untrusted: bool | None = None,
) -> Session:
    """The bundle, loaded by a runtime and ready to run.

    Loading never builds anything: where TensorRT has no proven engine for the bundle on this device, that is said,
    with the `vitdeploy build` that makes one. An engine of TensorRT for RTX, which was built ahead, is proven by its
    first load on each device.

    Args:
        bundle: the bundle, or its folder.
        runtime: a name of `vitdeploy doctor`, or `auto`: the fastest that is installed and reproduces the reference
            outputs of the bundle.
        key: PEM file of a public key. The bundle has to be signed by its private half, see `vitdeploy.sign`; this is
            checked before anything of it is parsed.
        threads: threads of computation; None leaves it to the runtime.
        num_requests: calls that are computed at once, see `Session.map`; None leaves it to the runtime.
        compute_precision: `fp32`, `bf16` or `fp16` where the runtime lets one choose (OpenVINO); None for the most
            exact one.
        device: `CPU`, `GPU` or `NPU`, or a name of the runtime's own; None for the one the runtime is made for.
        cache: folder in which compiled models wait for the next load; it must be trusted like a program.
        checkpoint: file with the weights, for the runtime `torch`.
        build: which engine, for the runtimes `tensorrt` and `tensorrt_rtx`: the options that `vitdeploy.build` made it
            with (`workspace`, `profile`, `dla`, `tf32`, `workarounds`, `sm`); None for the one that was built last for
            this bundle here.
        untrusted: the bundle is a stranger's: run it in a process of its own with a limit of time and memory, so that a
            crafted model ends in an error; None for what the environment variable VITDEPLOY_UNTRUSTED says (0 or 1).

    Returns:
        A session, which is a context manager.

    Raises:
        BundleError: the bundle is damaged or altered, or contradicts itself.
        UsageError: there is no such runtime, or it does not support an option that was given. `auto` raises it for the
            runtime that it would take, instead of taking a slower one.
        MissingDependencyError: the runtime is not installed.
        BackendError: the runtime refuses the model, or has no engine for it.
        GateError: `auto` finds no runtime that reproduces the reference, or an engine that was built ahead gives other
            numbers on this device. With `key`: the bundle is not signed, not by this key, or not as it was signed.
    """
    options = Options(
        threads=threads,
        num_requests=num_requests,
        compute_precision=compute_precision,
        device=device,
        cache=cache,
        checkpoint=checkpoint,
        build=build,
        untrusted=untrusted,
    )
    opened = open_bundle(bundle, key)
    if runtime == "auto":
        check_graph(opened)
        attempt = load_fastest(opened, options)
        return Session(opened, attempt.backend, reason=attempt.reason)
    return Session(opened, _open(opened, runtime, options), reason="it was asked for")


def _open(bundle: Bundle, runtime: str, options: Options) -> Backend:
    """The bundle in the runtime that was asked for; it has the inputs and outputs that the session will use."""
    kind = find_backend(runtime)
    if not kind.reference:  # which reads no model file
        bundle.check_graph()
    backend = open_backend(kind, bundle, options)
    failures = signature_failures(bundle.manifest, backend)
    if failures:
        backend.close()
        raise BundleError(
            f"the manifest of {bundle.path} does not describe what {backend.name} loaded",
            why="; ".join(failures),
            fix="export the bundle again",
        )
    return backend


class Session:
    """A loaded bundle; a context manager, and safe to use from several threads.

    `session(images)` takes float32 `[N, 3, H, W]`, normalised as the bundle's preprocessing says, or where that is part
    of the graph RGB pixels, uint8 `[N, H, W, 3]`, and returns float32 logits `[N, classes]`. Read-only, strided and
    big-endian arrays are taken; any other dtype or shape is an InputError. Values are not looked at: NaN or Inf in
    gives NaN out. `predict` checks that its results are finite.

    Attributes:
        bundle: What runs.
        backend: What runs it.
        reason: Why this runtime was taken, in words.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, reason: str) -> None:
        self.bundle, self.backend, self.reason = bundle, backend, reason
        manifest = bundle.manifest
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._input = manifest.inputs[0]
        names = [spec.name for spec in manifest.outputs]
        self._logits = LOGITS if LOGITS in names else names[0] if len(names) == 1 else None

    def __call__(self, images: Array) -> Array:
        """Logits `[N, classes]` for images as the class describes them; for a bundle of several outputs use `run`."""
        if self._logits is None:
            raise InputError(
                f"this bundle has {len(self.bundle.manifest.outputs)} outputs and none is called {LOGITS}",
                fix="session.run(images), which returns all of them by name",
            )
        return self.run(images)[self._logits]

    def run(self, images: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Run the network.

        Args:
            images: The input, as the session itself takes it; where a model has several inputs, a mapping from their
                names to arrays, the samples along the first axis.

        Returns:
            All outputs by name, the samples along the first axis.

        Raises:
            InputError: An array has another dtype or shape than the network takes.
            BackendError: The runtime fails, or the session is closed.
        """
        if not isinstance(images, Mapping):
            images = {self._input.name: images}
        if images.keys() != self._inputs.keys():
            raise InputError(
                f"the inputs given are {', '.join(map(str, images)) or 'none'}",
                why=f"the model takes {', '.join(self._inputs)}",
                fix="give one array for each input of the model, by its name",
            )
        return self.backend.run({name: checked(array, self._inputs[name]) for name, array in images.items()})

    @overload
    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = ...,
        *,
        batch_size: int = ...,
        on_error: Literal["raise"] = ...,
    ) -> list[list[Prediction]]: ...

    @overload
    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = ...,
        *,
        batch_size: int = ...,
        on_error: Literal["return"],
    ) -> list[list[Prediction] | Exception]: ...

    @checked_arguments
    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = 5,
        *,
        batch_size: int = 8,
        on_error: str = "raise",
    ) -> list[list[Prediction]] | list[list[Prediction] | Exception]:
        """The most probable classes of each image, best first.

        Args:
            images: One image or several: paths, Pillow images or uint8 arrays [H, W, 3], or, where the network takes
                other channels, arrays [H, W, C] of them; they are preprocessed as the bundle records.
            top_k: How many classes of each image.
            batch_size: Images a call, where the model's batch is dynamic; a fixed batch is filled up by repeating the
                last image.
            on_error: Whether an image that cannot be read raises (`raise`), or stands as its exception in its place
                and the others are classified (`return`).

        Returns:
            For each image its classes.

        Raises:
            InputError: An image cannot be read, or the network does not classify images.
            BackendError: The runtime fails, gives NaN or Inf, or the session is closed.
        """
        check_on_error(on_error)
        if top_k < 1 or batch_size < 1:
            raise UsageError(f"top_k is {top_k} and batch_size is {batch_size}", fix="give at least 1 for both")
        single = isinstance(images, (str, Path, Image.Image, np.ndarray)) or not isinstance(images, Iterable)
        chosen: Iterable[Any] = [images] if single else images  # type: ignore[assignment]
        results = self._stream(chosen, self._pixels, batch_size, whole_batches=False)
        rows = raising(results) if on_error == "raise" else results
        return [row if isinstance(row, Exception) else self._best(row, top_k) for row in rows]

    @overload
    def map(
        self, images: Iterable[Array | ImageLike], *, batch_size: int = ..., on_error: Literal["raise"] = ...
    ) -> Iterator[Array]: ...

    @overload
    def map(
        self, images: Iterable[Array | ImageLike], *, batch_size: int = ..., on_error: Literal["return"]
    ) -> Iterator[Array | Exception]: ...

    @checked_arguments
    def map(
        self, images: Iterable[Array | ImageLike], *, batch_size: int = 8, on_error: str = "raise"
    ) -> Iterator[Array | Exception]:
        """Logits for every item of `images`, in order, computed ahead so that the device never waits.

        Args:
            images: Items, read by the thread that iterates, no further ahead than two batches for each call under way.
                An item is one image, float32 [C, H, W] (normalised) or an image as `predict` takes it (a uint8 array
                always is one, to be resized and cropped); or it is a batch as `session(images)` takes it, which runs
                as it is.
            batch_size: Images that are gathered to a batch where the model's batch is dynamic; a fixed batch is filled
                up.
            on_error: Whether an item that fails raises in its turn and ends the rest (`raise`), or stands as its
                exception in its place and the rest goes on (`return`).

        Returns:
            An iterator over the logits: [classes] for an image, [N, classes] for a batch.

        Raises:
            InputError: In its turn, for an item that the network cannot take.
            BackendError: The runtime fails, or the session is closed.
        """
        check_on_error(on_error)
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", fix="give at least 1")
        results = self._stream(images, self._tensor, batch_size, whole_batches=True)
        return raising(results) if on_error == "raise" else results

    def describe(self) -> dict[str, Any]:
        """What runs where, as JSON values: model, weights, backend, version, device, precision really used, threads."""
        return {**describe_run(self.bundle, self.backend), "reason": self.reason}

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

    def _stream(
        self, items: Iterable[Any], prepare: Callable[[Any], Array], batch_size: int, *, whole_batches: bool
    ) -> Generator[Array | Exception, None, None]:
        fixed = self._input.shape[0]
        size, least = (fixed, fixed) if isinstance(fixed, int) else (batch_size, 1)
        # One more than compute at once: it prepares its batch meanwhile.
        return stream(
            batches(items, size, whole_batches=whole_batches),
            lambda batch: self._compute(batch, prepare, least),
            workers=self.backend.num_requests + 1,
        )

    def _compute(
        self, batch: list[Any] | Array, prepare: Callable[[Any], Array], least: int
    ) -> list[Array | Exception]:
        """The logits of each item, or why there are none: a bad item does not spoil the others of its batch."""
        if isinstance(batch, np.ndarray):
            return [attempt(self, batch)]
        prepared = [attempt(prepare, item) for item in batch]
        good = [image for image in prepared if isinstance(image, np.ndarray)]
        if not good:
            return prepared
        found = attempt(self, np.stack(good + good[-1:] * (least - len(good))))
        rows = iter([found] * len(good) if isinstance(found, Exception) else found)
        return [next(rows) if isinstance(image, np.ndarray) else image for image in prepared]

    def _tensor(self, image: Any) -> Array:
        """One image as the model takes it [C, H, W]; images are preprocessed."""
        if not isinstance(image, np.ndarray) or holds_pixels(image, self.bundle.manifest.recipe):
            return self._pixels(image)
        one: Array = checked(image[None], replace(self._input, shape=("batch", *self._input.shape[1:])))[0]
        return one

    def _pixels(self, image: ImageLike) -> Array:
        manifest = self.bundle.manifest
        prepare = to_pixels if manifest.preprocessing_in_graph else preprocess
        return prepare(image, manifest.recipe)

    def _best(self, logits: Array, top_k: int) -> list[Prediction]:
        if logits.ndim != 1:
            raise InputError("this bundle has no class scores to predict with", fix="session.run(images)")
        if not np.isfinite(logits).all():
            raise BackendError(
                f"{self.backend.name} computed values that are not finite",
                fix=f"vitdeploy verify {shell(self.bundle.path)}",
            )
        return best_classes(logits, self.bundle.manifest.labels, top_k)

"""What this very file gave when it was exported, image by image, and whether a runtime still gives it.

A bound for all networks, such as 45 dB in FP16, sees only faults that are larger than what FP16 costs the worst of
them. A file's own record sees smaller ones: against PyTorch, and against `Reference.file`, which the ONNX standard says
that the file computes, so that quantization noise hides nothing. On the same runtime and the same kind of processor the
figures come again, to a margin; on another one FP16 rounds in other places, and INT8 rounds some value to the other
side, as far as that is known from the runtimes of the export.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Manifest, Reference
from vitdeploy.bundle.manifest import JsonObject
from vitdeploy.proof.discrete import flips_db, is_discrete
from vitdeploy.statistics import decibels

Array = NDArray[Any]
# By the reference, `torch` or `file`, and by output: decibels of each image, or of the whole where it has no images.
Measured = Mapping[str, Mapping[str, Sequence[float]]]

SAME_MARGIN_DB = 3.0
OTHER_MARGIN_DB = 6.0
# Float32 rounds about here, in another place whenever a runtime splits its sums differently.
ROUNDING_DB = 110.0
# The images that look like those in use; the others are chosen to be difficult.
NATURAL = frozenset({"given", "photograph"})

_IDENTITY = ("backend", "version", "device", "processor", "compute_precision")


def measure(reference: Reference, found: Mapping[str, Array], selections: Collection[str] = ()) -> Measured:
    """Signal-to-noise ratio of every image in `found`, against each side of the reference; see `image_db`.

    Of whole numbers and flags it is the share that differs; `selections` are left out.
    """
    samples = len(next(iter(reference.inputs.values())))
    sides = {"torch": reference.outputs, "file": reference.file}
    return {
        side: {
            name: image_db(array, found[name], samples)
            for name, array in outputs.items()
            if name in found and name not in selections and array.shape == found[name].shape
        }
        for side, outputs in sides.items()
        if outputs
    }


def image_db(reference: Array, found: Array, samples: int) -> list[float]:
    """Decibels of each of `samples` images; a single figure for an output whose first axis does not count them.

    Noise counts against the image's own signal, or against the median one where an image leaves the output near zero;
    never against more than the mean, which a single image may raise above all others.
    """
    count = samples if reference.ndim and len(reference) == samples else 1
    if is_discrete(reference):
        return flips_db(reference, found, count)
    expected, actual = (array.astype(np.float64).reshape(count, -1) for array in (reference, found))
    own = np.square(expected).sum(axis=1)
    signal = np.minimum(own.mean(), np.maximum(own, _median(own)))
    with np.errstate(invalid="ignore", over="ignore"):
        noise = np.square(actual - expected).sum(axis=1)
    return [decibels(float(whole), float(part)) for whole, part in zip(signal, noise, strict=True)]


def _median(values: NDArray[np.float64]) -> np.float64:
    """That of `numpy.median`, which imports masked arrays first: a third of what numpy itself takes."""
    ordered = np.sort(values)
    middle: np.float64 = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1].mean()
    return ordered[-1] if np.isnan(ordered[-1]) else middle


def natural_images(kinds: Sequence[Any]) -> NDArray[np.bool_]:
    """Which images are of a kind that looks like those in use; what is no kind of image is of none."""
    return np.array([isinstance(kind, str) and kind in NATURAL for kind in kinds], dtype=bool)


def pick(outputs: Mapping[str, Array], chosen: NDArray[np.bool_] | None) -> dict[str, Array]:
    """The outputs of the images that are chosen; whole where their first axis does not count the images."""
    if chosen is None:
        return dict(outputs)
    return {
        name: array[chosen] if array.ndim and len(array) == len(chosen) else array for name, array in outputs.items()
    }


def pooled_db(images: Sequence[float]) -> float:
    """The ratio over all images, each of which counts the same, from those of the images."""
    noise = [math.inf if math.isnan(one) else 10 ** (-one / 10) for one in images]
    return decibels(1.0, sum(noise) / len(noise)) if noise else math.nan


def record(ran: Mapping[str, Any], measured: Measured) -> JsonObject:
    """What the manifest keeps of one runtime, as JSON values: who ran, and what it gave."""
    return {
        "ran": {key: ran.get(key) for key in _IDENTITY},
        "images": {
            side: {name: [round(min(one, ROUNDING_DB), 2) for one in images] for name, images in outputs.items()}
            for side, outputs in measured.items()
        },
    }


def record_failures(manifest: Manifest, ran: Mapping[str, Any], measured: Measured) -> list[str]:
    """Where a runtime falls behind what is recorded, in words; nothing in a bundle from before there were records."""
    records = [entry for entry in manifest.parity if _is_record(entry)]
    here = {key: ran.get(key) for key in _IDENTITY}
    same = next((entry for entry in records if entry["ran"] == here), None)
    if same is not None:
        return _same(manifest, same["images"], measured)
    if not records or _adds_in_half(manifest, records, here):
        return []
    return _other(manifest, records, measured)


def _adds_in_half(manifest: Manifest, records: Sequence[JsonObject], here: Mapping[str, Any]) -> bool:
    """Whether products may be added up in FP16, which no emulation tells: on a device, or by request, or in kernels of
    another architecture, which keep 48 dB of LeMeViT-Tiny on aarch64 where the emulation keeps 61 dB.
    """
    if not str(here["device"]).startswith("CPU") or here["compute_precision"] in ("fp16", "bf16"):
        return True
    architectures = {
        str(ran.get("processor")).partition(" ")[0] for ran in (here, *(entry["ran"] for entry in records))
    }
    return manifest.precision == "fp16" and len(architectures) > 1


def _same(manifest: Manifest, recorded: Mapping[str, Any], measured: Measured) -> list[str]:
    failures = []
    kinds = manifest.reference.get("images") or []
    for side, outputs in measured.items():
        for name, images in outputs.items():
            before = _recorded(recorded, side, name)
            if len(before) != len(images):
                failures.append(f"{name}: the manifest does not record what each image gave")
                continue
            lost = [then - now for then, now in zip(before, images, strict=True)]
            worst = max(range(len(lost)), key=lost.__getitem__)
            if not lost[worst] <= SAME_MARGIN_DB:
                image = f"the {kinds[worst]} image" if len(kinds) == len(images) else f"image {worst}"
                failures.append(
                    f"{name}: {image} keeps {images[worst]:.1f} dB {_of(side, manifest)}, "
                    f"and {before[worst]:.1f} dB when the bundle was exported"
                )
    return failures


def _other(manifest: Manifest, records: Sequence[JsonObject], measured: Measured) -> list[str]:
    failures = []
    for name, images in measured.get("file", {}).items():
        known = [_recorded(entry["images"], "file", name) for entry in records]
        pooled = [pooled_db(one) for one in known if one]
        rounding = _item(manifest.reference.get("rounding_db"), name)
        pooled += _figures([rounding])
        if pooled and not pooled_db(images) >= min(pooled) - OTHER_MARGIN_DB:
            failures.append(
                f"{name}: {pooled_db(images):.1f} dB of what the file computes, and no less than {min(pooled):.1f} dB "
                "in the runtimes that it was exported with"
            )
    return failures


def _of(side: str, manifest: Manifest) -> str:
    return "of what the file computes" if side == "file" else f"of the outputs of {manifest.against}"


def _is_record(entry: JsonObject) -> bool:
    return isinstance(entry.get("ran"), dict) and isinstance(entry.get("images"), dict)


def _recorded(images: Any, side: str, name: str) -> list[float]:
    """The figures of a record; none where something else stands in the manifest."""
    return _figures(_item(_item(images, side), name))


def _figures(numbers: Any) -> list[float]:
    known = isinstance(numbers, list) and all(type(one) in (int, float) and abs(one) < 1e6 for one in numbers)
    return [float(one) for one in numbers] if known else []


def _item(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None

"""What this very file gave when it was exported, image by image, and whether a runtime still gives it.

A bound for all networks, such as 45 dB in FP16, sees only faults that are larger than what FP16 costs the worst of
them. A file's own record sees smaller ones: against PyTorch, and against `Reference.file`, which the ONNX standard says
that the file computes, so that quantization noise hides nothing. On the same runtime and the same kind of processor the
figures come again, to a margin; on another one FP16 rounds in other places, and INT8 rounds some value to the other
side, as far as that is known from the runtimes of the export.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Manifest, Reference
from vitdeploy.bundle.manifest import JsonObject
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


def measure(reference: Reference, found: Mapping[str, Array]) -> Measured:
    """Signal-to-noise ratio of every image in `found`, against each side of the reference.

    The noise of an image counts against the mean signal of all, since an image that leaves an output near zero has no
    signal of its own.
    """
    samples = len(next(iter(reference.inputs.values())))
    sides = {"torch": reference.outputs, "file": reference.file}
    return {
        side: {
            name: image_db(array, found[name], samples)
            for name, array in outputs.items()
            if name in found and array.dtype.kind == "f" and array.shape == found[name].shape
        }
        for side, outputs in sides.items()
        if outputs
    }


def image_db(reference: Array, found: Array, samples: int) -> list[float]:
    """Decibels of each of `samples` images; a single figure for an output whose first axis does not count them."""
    count = samples if reference.ndim and len(reference) == samples else 1
    expected, actual = (array.astype(np.float64).reshape(count, -1) for array in (reference, found))
    signal = float(np.square(expected).sum(axis=1).mean())
    with np.errstate(invalid="ignore", over="ignore"):
        noise = np.square(actual - expected).sum(axis=1)
    return [decibels(signal, float(part)) for part in noise]


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
    """The ratio over all images, from those of the images."""
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
        return list(_same(manifest, same["images"], measured))
    half = here["compute_precision"] in ("fp16", "bf16") or (
        # Processors of another architecture may have kernels that add up in FP16: 48 dB on aarch64, 61 dB emulated.
        manifest.precision == "fp16" and all(_architecture(entry["ran"]) != _architecture(here) for entry in records)
    )
    if records and str(here["device"]).startswith("CPU") and not half:
        return list(_other(manifest, records, measured))
    return []


def _architecture(ran: Mapping[str, Any]) -> str:
    return str(ran.get("processor")).partition(" ")[0]


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
                    f"{name}: {image} keeps {images[worst]:.1f} dB {_AGAINST[side]}, "
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
                f"{name}: {pooled_db(images):.1f} dB {_AGAINST['file']}, and no less than {min(pooled):.1f} dB "
                "in the runtimes that it was exported with"
            )
    return failures


_AGAINST = {"torch": "of PyTorch's outputs", "file": "of what the file computes"}


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

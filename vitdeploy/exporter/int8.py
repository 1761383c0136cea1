"""INT8 as a step of the export: from DATA and options to a graph with Q/DQ."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.data import Dataset, DataSource, open_data
from vitdeploy.errors import ExportError, UsageError
from vitdeploy.exporter.half import half_precision, pinned
from vitdeploy.graph.edit import Array
from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing
from vitdeploy.proof.parity import compare_outputs
from vitdeploy.quantize.checker import violations
from vitdeploy.quantize.images import Images
from vitdeploy.quantize.judge import NOISE_IMAGES, Judge, evaluate
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.quantize import quantize
from vitdeploy.targets import Int8Rules

log = logging.getLogger("vitdeploy.export")

# Labelled images on which an accuracy drop is measured, where DATA has more than it calibrates on.
DROP_IMAGES = 2000
REFERENCE_IMAGES = 8
# What FP16 may cost where it takes the rest; INT8 alone is 100 times as coarse.
HALF_REST_DB = 2.0
_BATCH = 16


@dataclass(frozen=True)
class CalibrationSet:
    """The images of DATA that calibrate, and others that judge what came of it.

    calibrate, judge  indices; `judge` are the last ones of `calibrate` where DATA has no more
    """

    data: Dataset
    calibrate: Sequence[int]
    judge: Sequence[int]
    recipe: Preprocessing

    def batches(self, indices: Sequence[int]) -> Iterator[Array]:
        """The images as the network sees them, float32 [at most 16, 3, H, W]."""
        for start in range(0, len(indices), _BATCH):
            yield np.stack([self.data.tensor(index, self.recipe) for index in indices[start : start + _BATCH]])

    def reference(self, batch: int) -> Array:
        """Images to prove the bundle on, in whole batches: pixels uint8 [n, H, W, 3] where DATA holds images."""
        count = min(batch * -(-REFERENCE_IMAGES // batch), len(self.judge) // batch * batch) or batch
        indices = [self.judge[i % len(self.judge)] for i in range(count)]
        first = self.data.read(indices[0])
        normalised = isinstance(first, np.ndarray) and first.dtype == np.float32
        return np.stack([self.data.tensor(index, self.recipe, normalised=normalised) for index in indices])


def open_calibration(data: DataSource | None, options: Int8Options) -> Dataset:
    """DATA, before anything slow begins.

    Raises UsageError without DATA, and without labels where `max_drop` is asked for; InputError as `open_data`.
    """
    if data is None:
        raise UsageError(
            "INT8 needs images to calibrate on",
            why="ranges of activations come from data like the data in use, never from random numbers",
            fix="--calibration DATA: a folder or zip of images, or an .npz (about 300 images are enough)",
        )
    dataset = open_data(data)
    if options.max_drop is not None and dataset.targets is None:
        raise UsageError(f"--max-drop needs labels, and {dataset.where} has none", fix="--min-snr 35")
    return dataset


def choose_samples(dataset: Dataset, card: ModelCard, options: Int8Options) -> CalibrationSet:
    """The roles of the images; InputError where labels are needed and are not those of the network."""
    if options.max_drop is not None and card.labels:
        dataset = dataset.relabelled(card.labels)
    wanted = DROP_IMAGES if options.max_drop is not None else NOISE_IMAGES
    order = dataset.sample(options.samples + wanted, options.seed)
    calibrate, judge = order[: options.samples], order[options.samples :]
    if len(judge) < min(wanted, NOISE_IMAGES):
        log.warning("%s has only %d images: INT8 is judged on those it was calibrated on", dataset.where, len(order))
        judge = order[-wanted:]
    return CalibrationSet(dataset, calibrate, judge, card.preprocessing)


def eight_bits(
    graph: ir.Model,
    samples: CalibrationSet,
    rules: Int8Rules,
    options: Int8Options,
    images: Array,
    expected: Mapping[str, Array],
) -> tuple[ir.Model, dict[str, Any]]:
    """A copy of an optimized FP32 graph with Q/DQ, and what the manifest records of it.

    `expected` is what PyTorch FP32 makes of `images` [n, 3, H, W], by output name: the reference of the bundle.
    """
    labels = None if options.max_drop is None else [samples.data.label(index) for index in samples.judge]
    judge = Judge(graph, samples.batches(samples.judge), labels)  # type: ignore[arg-type]
    names = [samples.data.names[index] for index in samples.calibrate]

    def calibration() -> Images:
        return Images(samples.batches(samples.calibrate), names=names)

    quantized, report = quantize(graph, rules, samples.recipe, calibration, judge, options, pinned(graph))
    if broken := violations(quantized.graph, rules):
        raise ExportError("the INT8 graph breaks a rule of its target", why="; ".join(broken[:3]))
    found = compare_outputs(expected, evaluate(quantized, images), runtime="standard", precision="int8")
    record = {
        "precision": "int8",
        "reference_snr_db": round(min(output.snr_db for output in found.outputs), 2),
        "data": samples.data.where,
        **report.to_dict(),
    }
    if rules.half_rest:
        bound = record["reference_snr_db"] - HALF_REST_DB
        quantized, record["half_rest"] = half_precision(quantized, images, expected, min_snr_db=bound)
        record["reference_snr_db"] = record["half_rest"]["snr_db"]
    return quantized, record

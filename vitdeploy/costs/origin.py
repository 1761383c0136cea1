"""The FP32 graph that is measured, of a SOURCE or of a bundle, and what DATA has for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitdeploy.bundle import MODEL, Bundle, Manifest
from vitdeploy.data import DataSource
from vitdeploy.data.slots import takes_images_alone
from vitdeploy.errors import InputError, UsageError
from vitdeploy.exporter.free_axes import require_free
from vitdeploy.exporter.preparation import Clock, Prepared, prepare, samples_of
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.exporter.scores import show_scores
from vitdeploy.graph.edit import sizes
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.graph.run import Inputs
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.samples import CalibrationSet, choose_samples, fit_inputs, open_calibration
from vitdeploy.targets import Target
from vitdeploy.tasks.choose import slots_of
from vitdeploy.tasks.outputs import CLASSIFICATION, LOGITS, fitting_outputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """An FP32 graph and what it is measured on.

    name      of the network
    graph     optimized for `target`
    inputs    that are known to be right for it, by name
    samples   what calibrates, and what judges
    labels    class numbers of what judges; None where top-1 cannot be measured, and `notes` say why
    scores    the output that has the class scores; None where none is known to
    prepared  what an export can go on from; None for a bundle
    """

    name: str
    graph: ir.Model
    target: Target
    inputs: Inputs
    samples: CalibrationSet
    labels: Sequence[int] | None
    scores: str | None
    notes: tuple[str, ...]
    prepared: Prepared | None = None


def is_bundle(source: object) -> bool:
    """Whether a source is a folder, which is a bundle or nothing."""
    return isinstance(source, (str, Path)) and Path(source).is_dir()


def open_bundle(path: str | Path, data: DataSource, options: Int8Options, images: int, target: str | None) -> Origin:
    """An FP32 bundle and DATA.

    Raises UsageError for a bundle that is not FP32 or has its preprocessing in the graph, and for another target.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    _check(path, manifest, target)
    bundle.check_graph()
    opened = open_calibration(data, options)
    slots = slots_of(manifest)
    dataset = fit_inputs(opened, data, slots, options)
    several = () if takes_images_alone(slots) else slots
    recipe = manifest.preprocessing or Preprocessing(size=(1, 1))
    samples = choose_samples(dataset, manifest.labels, recipe, options, several, judges=images)
    reference = bundle.reference()
    graph = read_graph(bundle.read(MODEL))
    show_scores(graph, reference.inputs, reference.outputs)
    fitting = [spec.name for spec in fitting_outputs(manifest, CLASSIFICATION)]
    scores = LOGITS if LOGITS in fitting else fitting[0] if len(fitting) == 1 else None
    row = ExportRequest("", Path(), target=manifest.platform or manifest.target).row
    samples, labels, notes = _labels(samples, manifest.labels, graph, scores)
    return Origin(manifest.model.name, graph, row, reference.inputs, samples, labels, scores, notes)


def open_source(data: DataSource, options: Int8Options, images: int, asked: Mapping[str, Any]) -> Origin:
    """What `export` takes, captured and optimized, and DATA; `asked` are the fields of `ExportRequest`."""
    calibrating = {"calibration": data, "int8": options} if asked["precision"] == "int8" else {}
    request = ExportRequest(**{"output": Path(), **asked, **calibrating})
    opened = open_calibration(data, options)
    choose = partial(samples_of, data=data, opened=opened, options=options, judges=images)
    found = prepare(request, Clock(), choose)
    network, graph = found.reference.network, found.graph.clone()
    require_free(network, graph, found.reference.inputs, found.subject.inputs)
    assert found.samples is not None, "they were asked for"
    show_scores(graph, found.reference.inputs, found.reference.outputs)
    samples, labels, notes = _labels(found.samples, found.card.labels, graph, network.scores)
    return Origin(
        found.card.name, graph, request.row, found.reference.inputs, samples, labels, network.scores, notes, found
    )


def _check(path: str | Path, manifest: Manifest, target: str | None) -> None:
    if manifest.precision != "fp32":
        kind = manifest.precision.upper()
        raise UsageError(
            f"{path} is a bundle in {kind}",
            why=f"what single layers cost is measured against FP32, and a graph in {kind} has lost it",
            fix=f"an FP32 bundle, or what it was exported from, e.g. {manifest.model.name}",
        )
    if manifest.preprocessing_in_graph:
        raise UsageError(
            f"{path} has its preprocessing in the graph",
            why="its input is pixels, and calibration observes the normalised images that the first layer reads",
            fix=f"one that takes normalised images, or what it was exported from, e.g. {manifest.model.name}",
        )
    if target not in (None, manifest.target, manifest.platform):
        raise UsageError(
            f"{path} is for the target {manifest.target}, not {target}",
            why="its graph has the form of its target",
            fix=f"leave --target out, or give what it was exported from, e.g. {manifest.model.name}",
        )


def _labels(
    samples: CalibrationSet, names: Sequence[str], graph: ir.Model, scores: str | None
) -> tuple[CalibrationSet, Sequence[int] | None, tuple[str, ...]]:
    """The samples with class numbers of the network, these numbers, and why there are none or what they are worth."""
    output = next((value for value in graph.graph.outputs if value.name == scores), None)
    shape = sizes(output) if output is not None else None
    if shape is None or len(shape) != 2:
        return samples, None, ("no points: the network has no output of class scores [N, classes]",)
    if samples.data.targets is None:
        return samples, None, (f"no points: {samples.data.where} has no labels",)
    try:
        samples = replace(samples, data=_numbered(samples, names, shape[1]))
    except InputError as error:
        note = f"no points: {error.what}" + (f", {error.why}" if error.why else "")
        log.warning("%s", note)
        return samples, None, (note,)
    labels = samples.labels()
    if len(set(labels)) == 1:
        return samples, labels, ("all images that judge are of one class: points tell of that class alone",)
    return samples, labels, ()


def _numbered(samples: CalibrationSet, names: Sequence[str], classes: int | str | None) -> Any:
    """DATA with the class numbers of the network; InputError where these cannot be told."""
    data = samples.data
    if names:
        return data.relabelled(names)
    if data.classes is not None and len(data.classes) != classes:
        what = f"{data.where} has {len(data.classes)} classes, the network {classes}"
        raise InputError(what, fix="--labels with the names of all classes in the network's order")
    highest = max((label for index in samples.evaluate if (label := data.label(index)) is not None), default=0)
    if isinstance(classes, int) and highest >= classes:
        what = f"{data.where} has class number {highest}, the network classes 0 to {classes - 1}"
        raise InputError(what, fix="number the classes from 0 in the network's order")
    return data

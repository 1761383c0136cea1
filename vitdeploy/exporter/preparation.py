"""The first half of an export: module, reference, capture, lowering, optimization; what comes out is FP32."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import onnx_ir as ir

from vitdeploy.data import Dataset, DataSource
from vitdeploy.data.slots import Slot, takes_images_alone
from vitdeploy.errors import UsageError
from vitdeploy.exporter.half_parts import pin_modules
from vitdeploy.exporter.inputs import lengths
from vitdeploy.exporter.network import Network
from vitdeploy.exporter.onnx_import.network import OnnxNetwork
from vitdeploy.exporter.onnx_import.read import OnnxFile
from vitdeploy.exporter.optimize import Record, lower, optimize
from vitdeploy.exporter.origin import captured, open_network, reference_outputs
from vitdeploy.exporter.reference_inputs import choose_inputs
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.exporter.sources.resolve import check_labels, find_network
from vitdeploy.exporter.sources.subject import Subject
from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import Inputs
from vitdeploy.models.registry import ModelCard
from vitdeploy.passes.bake_preprocessing import require_bakeable
from vitdeploy.quantize.gates import check_goals
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.samples import CalibrationSet, choose_samples, fit_inputs

log = logging.getLogger("vitdeploy.export")


class Reference(NamedTuple):
    """What the bundle is proven on.

    kinds    of the samples, see `choose_images`
    fed      the inputs as the bundle takes them, by name
    inputs   the same as the network sees them
    outputs  what the network makes of them in FP32, by output name
    network  what computes them
    """

    kinds: tuple[str, ...]
    fed: Inputs
    inputs: Inputs
    outputs: dict[str, Array]
    network: Network


class Prepared(NamedTuple):
    """An optimized FP32 graph, and where it comes from.

    card      of the network, with the number of classes that its logits show
    samples   what DATA has for INT8; None without DATA
    original  the graph as it was captured, of so many `nodes`
    records   of each rewrite from there to `graph`
    """

    subject: Subject
    card: ModelCard
    samples: CalibrationSet | None
    reference: Reference
    original: ir.Model
    nodes: int
    graph: ir.Model
    records: list[Record]


def prepare(
    request: ExportRequest, clock: Clock, samples_for: Callable[[Subject], CalibrationSet] | None = None
) -> Prepared:
    """The network of `request` as an optimized FP32 graph of its target.

    samples_for  chooses the samples of DATA that fit the network; None without DATA

    Raises what `vitdeploy.export` says before a precision is set.
    """
    build = find_network(request)
    with clock.step("building the network"):
        subject = build()
        _tell(subject)
        if request.bake_preprocessing:
            require_bakeable(subject.card.preprocessing)
    with clock.step(f"computing the {_computing(subject)} reference"):
        samples = None if samples_for is None else samples_for(subject)
        reference = _reference(subject, request, samples)
        check_goals(request.quantization, reference.outputs)
        card = _with_classes(subject.card, reference, asked=request.labels is not None)
    with clock.step("capturing the graph"):
        original, nodes = captured(reference.network, reference.inputs, reference.outputs)
    graph, records = _graph(original, reference, request, clock)
    return Prepared(subject, card, samples, reference, original, nodes, graph, records)


def samples_of(
    subject: Subject, data: DataSource, opened: Dataset | None, options: Int8Options, *, judges: int | None = None
) -> CalibrationSet:
    """What calibrates the network, and what INT8 is evaluated on.

    opened  DATA of images, see `open_calibration`
    judges  see `choose_samples`
    """
    card = subject.card
    slots = tuple(Slot(spec.name, lengths(spec), spec.dtype, spec.image) for spec in subject.inputs)
    fitting = fit_inputs(opened, data, slots, options)
    several = () if takes_images_alone(slots) else slots
    return choose_samples(fitting, card.labels, card.preprocessing, options, several, judges=judges)


def _computing(subject: Subject) -> str:
    return "ONNX Runtime" if isinstance(subject.model, OnnxFile) else "PyTorch"


def _tell(subject: Subject) -> None:
    """Says what had to be assumed of the network."""
    card = subject.card
    for note in subject.notes:
        log.warning("%s", note)
    if card.weights.kind == "random":
        log.warning(
            "%s has no trained weights, exporting SEEDED RANDOM ones (%s); see --checkpoint",
            card.name,
            card.weights.detail,
        )
    if card.assumption:
        log.warning("%s; if that is wrong, see --preprocessing", card.assumption)


def _reference(subject: Subject, request: ExportRequest, samples: CalibrationSet | None) -> Reference:
    """The inputs that prove the bundle, and the network's outputs for them."""
    network = open_network(subject, features=request.features, batch=request.fixed_batch)
    batch = request.fixed_batch or 1
    given = request.reference
    if given is None and samples is not None:
        given = samples.reference(batch)
    chosen = choose_inputs(subject, given, batch=batch)
    fed = chosen.inputs
    if request.bake_preprocessing:
        if chosen.pixels is None:
            raise UsageError(
                "a bundle with baked preprocessing cannot be proven on these inputs",
                why="its graph takes RGB pixels alone",
                fix="a network of images alone, and reference images as paths, or uint8 [n, H, W, 3]",
            )
        fed = {subject.inputs[0].name: chosen.pixels}
    if request.precision == "fp16":
        network.prepare_half(chosen.inputs)
    return Reference(chosen.kinds, fed, chosen.inputs, reference_outputs(network, chosen.inputs), network)


def _with_classes(card: ModelCard, reference: Reference, *, asked: bool) -> ModelCard:
    """The card with the number of classes that the logits show, if it knew none; UsageError for other labels.

    `asked` says whether the user gave the labels: those of a checkpoint are no mistake where features are exported.
    """
    logits = reference.outputs.get(reference.network.scores or "")
    scores = logits is not None and logits.ndim >= 2 and logits.dtype.kind == "f"
    if logits is not None and scores and not card.num_classes and (logits.ndim == 2 or card.labels):
        card = replace(card, num_classes=logits.shape[1])
    if asked and not scores:
        raise UsageError(
            f"{card.name} has labels, and its outputs are no class scores [N, classes, …]",
            fix="leave --labels out, or call the scores logits: forward returns {'logits': scores}",
        )
    check_labels(card)
    return card


def _graph(
    original: ir.Model, reference: Reference, request: ExportRequest, clock: Clock
) -> tuple[ir.Model, list[Record]]:
    """The optimized FP32 graph, and the record of each rewrite on the way there."""
    graph = original.clone()
    with clock.step(f"lowering and optimizing for {request.row.name}"):
        records = lower(graph, request.row)
        records += optimize(graph, request.row)
    unused = [str(value.name) for value in graph.graph.inputs if not value.uses() and not value.is_graph_output()]
    if unused:
        raise UsageError(
            f"no output of {reference.network.name} depends on its input {' and '.join(unused)}",
            why="a runtime may leave such an input out of the model",
            fix="export the .onnx without it"
            if isinstance(reference.network, OnnxNetwork)
            else "leave it out of forward, or give it a default there and no --input",
        )
    pin_modules(graph, reference.network.float32_modules)
    return graph, records


@dataclass
class Clock:
    """Seconds a step; each step is announced before it runs."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Says that the step `name` begins, and how long it took."""
        log.info("%s …", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        if self.seconds[name] >= 1:
            log.info("%s: %.1f s", name, self.seconds[name])

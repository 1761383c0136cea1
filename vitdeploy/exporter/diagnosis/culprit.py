"""Why a gate of the export failed: the graph, the network, the precision or the runtime.

A gate sees numbers that do not hold. Before a precision is blamed for them, the FP32 graph is run and held against
PyTorch: one that is wrong in FP32 is wrong in every precision, and no option helps. All but that one run happens only
after a gate has failed.

The search begins with the graph as it was captured, for there every module still has its output as a value of its own,
while rewrites move and merge what modules compute. Where the captured graph is right, the rewrites are repeated on a
copy until one makes it wrong.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import TopologicalSortPass
from torch import nn

from vitdeploy.errors import REPORT, BackendError, GateError
from vitdeploy.exporter.diagnosis.conditioning import first_rounded, image_errors, in_double
from vitdeploy.exporter.diagnosis.localize import wrong_modules
from vitdeploy.exporter.diagnosis.wrong_operator import wrong_operator
from vitdeploy.exporter.module_calls import Labels
from vitdeploy.exporter.network import Network
from vitdeploy.exporter.optimize import rewrites
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.graph.run import Inputs, rows, run, samples_in
from vitdeploy.proof.discrete import is_discrete
from vitdeploy.proof.parity import BOUNDS, Bounds, ParityReport, compare_outputs
from vitdeploy.proof.recorded import pick
from vitdeploy.targets import Target

Array = NDArray[Any]

log = logging.getLogger("vitdeploy.export")

SINGLE = BOUNDS["fp32"]
# What FP16 has to keep; INT8 has no bound of its own, and a graph below this is wrong for it too.
HALF = Bounds(min_snr_db=BOUNDS["fp16"].min_snr_db)
# The rounding errors of a right graph and of PyTorch are of one size; this allows for more.
LIKE_PYTORCH = 10.0
# What FP32 keeps of FP64 in networks that do not magnify rounding: 105 to 130 dB (docs/benchmarks.md).
USUAL_DB = 105
HALF_RELATIVE = 10 ** (-(HALF.min_snr_db or 0.0) / 20)


@dataclass(frozen=True)
class Evidence:
    """What is needed to find a culprit.

    captured   the graph as it was captured, or imported
    optimized  the FP32 graph that follows from it, before any other precision
    inputs     as the network sees them, by name
    expected   the outputs of the network in FP32 for them, by name
    precision  the one that was asked for
    """

    network: Network
    captured: ir.Model
    optimized: ir.Model
    target: Target
    inputs: Inputs
    expected: Mapping[str, Array]
    precision: str

    @property
    def count(self) -> int:
        """How many samples there are."""
        return samples_in(self.inputs)

    def compare(self, reference: Mapping[str, Array], actual: Mapping[str, Array], bounds: Bounds) -> ParityReport:
        """Outputs for the inputs against others, see `compare_outputs`."""
        selections = self.network.selections
        return compare_outputs(
            reference, actual, runtime="the graph", precision="fp32", bounds=bounds, selections=selections
        )

    def errors(self, reference: Mapping[str, Array], found: Mapping[str, Array]) -> NDArray[np.float64]:
        """The error of each sample, see `image_errors`."""
        return image_errors(reference, found, self.count, self.network.selections)

    def outputs(self, graph: ir.Model) -> dict[str, Array]:
        """What a FP32 graph makes of the inputs, every node computed as it is written."""
        ordered = graph.clone()
        TopologicalSortPass()(ordered)
        return run(ordered, self.inputs, "as_written")


def require_right(evidence: Evidence) -> None:
    """Raise GateError for a wrong FP32 graph, from which no other precision can follow.

    It has to keep the bound of FP32. Where the network is too ill-conditioned for that, FP16's bound is enough.
    """
    found = evidence.outputs(evidence.optimized)
    report = evidence.compare(evidence.expected, found, SINGLE)
    if report.passed:
        return
    wrong = _unexplained(evidence, found, report, in_double(evidence.network, evidence.inputs))
    if wrong.any() or not evidence.compare(evidence.expected, found, HALF).passed:
        what = f"the FP32 graph of {evidence.network.name} does not reproduce {evidence.network.original}"
        raise GateError(what, why="; ".join(report.failures), fix=REPORT)


@contextlib.contextmanager
def explained(evidence: Evidence) -> Iterator[None]:
    """Let a GateError that is raised inside name the right culprit."""
    try:
        yield
    except GateError as failure:
        log.info("%s: looking for the cause …", failure.what)
        try:
            found = _explain(failure, evidence)
        except Exception:  # whatever fails while the cause is looked for, the gate has failed and says so
            log.debug("looking for the cause failed", exc_info=True)
            raise failure from None
        raise found from failure


def _explain(failure: GateError, evidence: Evidence) -> GateError:
    """The error that names the culprit."""
    found = evidence.outputs(evidence.optimized)
    report, double = evidence.compare(evidence.expected, found, SINGLE), in_double(evidence.network, evidence.inputs)
    unexplained = _unexplained(evidence, found, report, double)
    if unexplained.any():
        return _wrong_graph(evidence, found, report, unexplained)
    if double is not None:
        bounds = SINGLE if evidence.precision == "fp32" else HALF
        if not report.passed or not evidence.compare(double, evidence.expected, bounds).passed:
            return _ill_conditioned(failure, evidence, found, double)
    right = f"the FP32 graph is right: {_snr_db(report):.0f} dB" if report.outputs else "the FP32 graph is right"
    own = None
    if double is not None and isinstance(evidence.network, TorchNetwork):
        own = _snr_db(evidence.compare(double, evidence.expected, SINGLE))
    keeps = f"PyTorch in FP32 itself keeps {own:.0f} dB of FP64, most networks {USUAL_DB} or more"
    return GateError(
        failure.what,
        why=_joined(failure.why, right, keeps if own is not None and own < USUAL_DB else None),
        fix=failure.fix or REPORT,
    )


def _unexplained(
    evidence: Evidence, found: Mapping[str, Array], report: ParityReport, double: Mapping[str, Array] | None
) -> NDArray[np.bool_]:
    """The images for which the graph is wrong by more than the network's own rounding explains, as flags [n]."""
    count = evidence.count
    if report.passed:
        return np.zeros(count, dtype=np.bool_)
    wrong = evidence.errors(evidence.expected, found) > (SINGLE.max_relative or 0.0)
    if double is not None:
        rounding = evidence.errors(double, evidence.expected)
        wrong &= ~(evidence.errors(double, found) <= LIKE_PYTORCH * rounding)
    return wrong


def _ill_conditioned(
    failure: GateError, evidence: Evidence, found: Mapping[str, Array], double: Mapping[str, Array]
) -> GateError:
    """The network amplifies rounding errors: PyTorch in FP32 is as far from FP64 as the graph."""
    network, count = evidence.network, evidence.count
    limit = (SINGLE.max_relative or 0.0) if evidence.precision == "fp32" else HALF_RELATIVE
    errors = evidence.errors(double, evidence.expected)
    worst = int(errors.argmax())
    concerned = errors > min(limit, errors[worst] / 2)
    exact, single = "FP64", "PyTorch in FP32"
    if not isinstance(network, TorchNetwork):
        exact, single = f"{network.original} with the optimizations of ONNX Runtime", "the same without them"
    module = first_rounded(network, _batch(evidence, worst, network.batch or 1), limit)
    parts = [pick(one, concerned) for one in (double, evidence.expected, found)]
    figures = [_snr_db(evidence.compare(parts[0], part, SINGLE)) for part in parts[1:]]
    return GateError(
        f"{network.name} itself is ill-conditioned: the rounding of FP32 is enough to change its outputs",
        why=_joined(
            f"against {exact}, {single} reaches {figures[0]:.1f} dB and the FP32 graph {figures[1]:.1f} dB "
            f"on {concerned.sum()} of {count} reference images",
            module and f"{module} is the first module where it shows",
            failure.what,
        ),
        fix=f"check the weights, and look{f' in {module}' if module else ''} for small differences of large numbers, "
        "divisions by almost zero, and choices between equal scores",
    )


def _wrong_graph(
    evidence: Evidence, found: Mapping[str, Array], report: ParityReport, wrong: NDArray[np.bool_]
) -> GateError:
    """The graph computes something else than the network: since when, in which module, and with which operator."""
    network = evidence.network
    chosen = {name: one for name, one in evidence.expected.items() if is_discrete(one)}
    errors, flips = evidence.errors(evidence.expected, found), evidence.errors(chosen, found)
    # Another choice may be a border case, and changes everything that follows from it.
    focus = _focus(evidence, int(np.lexsort((errors, flips == 0, wrong))[-1]))
    origin, graph, ignored = _origin(focus)
    name, operator = _place(graph, network, focus.inputs, ignored)
    return GateError(
        f"the graph of {network.name} does not reproduce {network.original}, whatever the precision",
        why=_joined(
            *report.failures[:2],
            origin,
            name and f"{name} is the first module whose inputs agree with PyTorch and whose output does not",
            operator and f"the first wrong result in it is that of {operator}",
        ),
        fix=REPORT + (f", together with the code of {name}" if name else ""),
    )


def _place(graph: ir.Model, network: Network, inputs: Inputs, ignored: set[nn.Module]) -> tuple[str | None, str | None]:
    """The first module that is wrong in the graph and the operator in it, in words, as far as there are modules."""
    if not isinstance(network, TorchNetwork):
        return None, None
    module = next((one for one in wrong_modules(graph, network, inputs) if one not in ignored), None)
    if module is None:
        return None, None
    return Labels(network.module)(module), wrong_operator(graph, network, inputs, module)


def _origin(evidence: Evidence) -> tuple[str | None, ir.Model, set[nn.Module]]:
    """What made the graph wrong, the graph as it is then, and the modules whose outputs a right graph lacks as well."""
    if _is_right(evidence, evidence.captured) is False:
        return "it is wrong as it was captured, before any rewrite", evidence.captured, set()
    graph, right = evidence.captured.clone(), evidence.captured
    for record in rewrites(graph, evidence.target):
        verdict = _is_right(evidence, graph)
        log.debug("behind %s the graph is right: %s", record["pass"], verdict)
        if verdict is False:
            changes = "; ".join(record["changes"][:2])
            origin = f"the rewrite {record['pass']} makes it wrong" + (f" ({changes})" if changes else "")
            return origin, graph.clone(), _missing(evidence, right)
        right = graph.clone()
    return None, evidence.optimized, _missing(evidence, right)


def _missing(evidence: Evidence, graph: ir.Model) -> set[nn.Module]:
    """The modules whose output a right graph lacks as a value: a rewrite merged it with something else."""
    network = evidence.network
    return set(wrong_modules(graph, network, evidence.inputs)) if isinstance(network, TorchNetwork) else set()


def _is_right(evidence: Evidence, graph: ir.Model) -> bool | None:
    """Whether a graph reproduces PyTorch; None for one that ONNX Runtime cannot run, as it may be between rewrites."""
    try:
        return evidence.compare(evidence.expected, evidence.outputs(graph), SINGLE).passed
    except BackendError:
        log.debug("a graph between two rewrites cannot be run", exc_info=True)
        return None


def _focus(evidence: Evidence, image: int) -> Evidence:
    """The evidence of one batch around an image for which the graph is wrong: of that image, of two, or all of it."""
    network = evidence.network
    for size in [network.batch] if network.batch else [1, 2]:
        inputs = _batch(evidence, image, size)
        one = replace(evidence, inputs=inputs, expected=network.run(inputs))
        if _is_right(one, evidence.optimized) is False:
            return one
    return evidence


def _batch(evidence: Evidence, image: int, size: int) -> Inputs:
    """The batch of `size` samples in which one lies."""
    start = max(0, min(image // size * size, evidence.count - size))
    return rows(evidence.inputs, start, start + size)


def _snr_db(report: ParityReport) -> float:
    """Of the worst output; infinite where there are discrete ones only."""
    return min((output.snr_db for output in report.outputs), default=math.inf)


def _joined(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)

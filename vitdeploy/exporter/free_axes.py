"""Free axes besides the batch: a graph is right at the length that proves a bundle, and has to be at others too."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import BackendError, ExportError, GateError
from vitdeploy.exporter.inputs import InputSpec
from vitdeploy.exporter.network import Network
from vitdeploy.graph.run import Array, Inputs, rows, run, samples_in
from vitdeploy.proof.parity import BOUNDS, compare_outputs

log = logging.getLogger("vitdeploy.export")

TIMES = (2, 3)  # the lengths that are tried, in multiples of the one that proves the bundle


def require_free(network: Network, graph: ir.Model, inputs: Inputs, specs: Sequence[InputSpec]) -> None:
    """Hold an FP32 graph against the network at other lengths of its free axes, one batch each.

    Raises GateError where they differ, and for a length that the network takes and the graph does not. Lengths that the
    network itself does not take are left out, and said so where it takes none.
    """
    names = [name for spec in specs for name in spec.free if name is not None]
    tried = 0
    count, batch = samples_in(inputs), network.batch or 1
    last = rows(inputs, count - batch, count)  # the first ones may be all zeros
    for times, longer in _longer(last, specs):
        try:
            expected = network.run(longer)
        except ExportError as error:
            log.debug("%s does not take %d times the length: %s", network.name, times, error)
            continue
        tried += 1
        failures = _failures(network, graph, longer, expected)
        if failures:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in longer.items())
            raise GateError(
                f"the graph of {network.name} does not reproduce {network.original} at {shapes}",
                why="; ".join(failures[:2]),
                fix=f"numbers in --input in the place of {', '.join(names)}",
            )
    if names and not tried:
        log.warning("%s takes no other lengths of %s than the ones it is proven at", network.name, ", ".join(names))


def _failures(network: Network, graph: ir.Model, inputs: Inputs, expected: Mapping[str, Array]) -> Sequence[str]:
    try:
        found = run(graph, inputs, "as_written")
    except BackendError as error:
        return [f"it does not run there: {error.why}"]
    bounds, selections = BOUNDS["fp32"], network.selections
    return compare_outputs(
        expected, found, runtime="the graph", precision="fp32", bounds=bounds, selections=selections
    ).failures


def _longer(inputs: Inputs, specs: Sequence[InputSpec]) -> Iterator[tuple[int, Mapping[str, Array]]]:
    """The inputs repeated along their free axes."""
    if not any(spec.free for spec in specs):
        return
    for times in TIMES:
        yield (
            times,
            {
                spec.name: np.tile(
                    inputs[spec.name], (1, *(times if name else 1 for name in spec.free or (None,) * len(spec.shape)))
                )
                for spec in specs
            },
        )

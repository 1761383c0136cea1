"""The two kinds of networks that an export starts from, a module of PyTorch or the graph of a file, behind one face."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from vitdeploy.exporter.network import Network, require_finite
from vitdeploy.exporter.onnx_import.network import OnnxNetwork
from vitdeploy.exporter.onnx_import.read import OnnxFile
from vitdeploy.exporter.optimize import node_count
from vitdeploy.exporter.sources.subject import Subject
from vitdeploy.graph.run import Array, Inputs


def open_network(subject: Subject, *, features: bool, batch: int | None) -> Network:
    """The network of `subject`, with `features` its feature pyramid; UsageError where it has none."""
    if isinstance(subject.model, OnnxFile):
        return OnnxNetwork(subject.model, subject.card.name, batch)
    from vitdeploy.exporter.torch_network import TorchNetwork
    from vitdeploy.models.outputs import choose_outputs

    outputs = choose_outputs(subject.model, features=features)
    free = {spec.name: spec.free for spec in subject.inputs if spec.free}
    return TorchNetwork(subject.model, subject.card.name, outputs, batch, free)


def reference_outputs(network: Network, inputs: Inputs) -> dict[str, Array]:
    """What the network makes of `inputs`, by output name: what everything later is held against.

    Raises ExportError for a network that is no reference: one that fails, or that answers the same inputs differently.
    """
    if isinstance(network, OnnxNetwork):
        outputs = network.run(inputs)
        require_finite(network, outputs)
        return outputs
    from vitdeploy.exporter.torch_network import TorchNetwork
    from vitdeploy.exporter.torch_reference import reference_outputs as by_torch

    assert isinstance(network, TorchNetwork)
    return by_torch(network, inputs)


def captured(network: Network, inputs: Inputs, outputs: Mapping[str, Array]) -> tuple[ir.Model, int]:
    """The graph for inputs shaped like one batch of these, before any rewrite, and its nodes as they were found.

    It is of the opset of the capture, with composites; its weights are those of the network, not copies. `outputs` are
    what the network makes of the inputs. Raises ExportError for what has no such graph.
    """
    if isinstance(network, OnnxNetwork):
        return network.imported(network.one_call(inputs)), network.file.nodes
    import torch

    from vitdeploy.exporter.capture import capture
    from vitdeploy.exporter.torch_network import TorchNetwork
    from vitdeploy.graph.run import rows

    assert isinstance(network, TorchNetwork)
    example = {name: torch.tensor(array) for name, array in rows(inputs, 0, network.batch or 2).items()}
    graph = capture(
        network.module,
        example,
        dynamic_batch=network.batch is None,
        output_names=list(outputs),
        call=network.outputs.call,
        free=network.free,
    )
    return graph, node_count(graph)

"""PyTorch's network against the file that was made of it: the first module whose result is another one."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.divergence.comparison import STANDARD
from vitdeploy.divergence.report import BisectReport
from vitdeploy.divergence.runners import by_standard
from vitdeploy.divergence.source import Source
from vitdeploy.errors import UsageError
from vitdeploy.exporter.diagnosis.localize import wrong_modules
from vitdeploy.exporter.module_calls import Labels
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.graph.run import rows
from vitdeploy.models.outputs import choose_outputs
from vitdeploy.proof.agreement import agreement
from vitdeploy.proof.bisect import Divergence
from vitdeploy.proof.parity import BOUNDS
from vitdeploy.proof.prove import describe_run
from vitdeploy.runtime.backends.torch import TorchBackend, rebuild
from vitdeploy.runtime.options import Options


def bisect_network(source: Source, options: Options, folder: Path | None) -> BisectReport:
    """Find the first module of the bundle's network that gives what is not in its file.

    Raises UsageError for what is no FP32 bundle of the zoo's inputs, and what `TorchBackend.open` raises.
    """
    bundle = source.bundle
    if bundle is None:
        raise UsageError(
            f"torch cannot compute {source.where}",
            why="it reads no ONNX: it rebuilds what a bundle names",
            fix="--runtime onnxruntime or openvino",
        )
    if bundle.manifest.precision != "fp32" or bundle.manifest.preprocessing_in_graph:
        pixels = bundle.manifest.preprocessing_in_graph
        raise UsageError(
            f"{bundle.path} differs from its network in every module",
            why="its graph normalises the pixels itself" if pixels else f"it is {bundle.manifest.precision}",
            fix="export it without preprocessing in its graph" if pixels else "export it with --precision fp32",
        )
    if folder is not None:
        raise UsageError(
            "there is no reproducer for the runtime torch",
            why="it computes the network and not the file, of which a part would be written",
            fix="leave -o out",
        )
    backend = TorchBackend.open(bundle, options)
    count = min(source.samples, source.call or 2)
    inputs = rows(source.inputs, 0, count)
    expected, found = by_standard(source.model, inputs), backend.run(inputs)
    bounds = BOUNDS["fp32"]
    outputs = tuple(agreement(name, array, found[name], bounds) for name, array in expected.items())
    divergence = None
    if not all(output.passed for output in outputs):
        module = rebuild(bundle.manifest.model, options.checkpoint)
        chosen = choose_outputs(module, features="strides" in bundle.manifest.graph)
        network = TorchNetwork(module, bundle.manifest.model.name, chosen, source.call)
        labels = Labels(module)
        first = next(wrong_modules(read_graph(source.model), network, inputs), None)
        block = "graph" if first is None else str(labels(first))
        wrong = next(output.name for output in outputs if not output.passed)
        divergence = Divergence(block, wrong, False, 1)
    note = "the first block is the first module whose inputs the file has and whose output it has not"
    told = describe_run(bundle, backend)
    backend.close()
    told.pop("bundle")
    return BisectReport(
        source.where,
        told,
        STANDARD,
        f"{source.asked}, {count} of {source.samples} samples",
        f"from an error of {bounds.max_relative:.0e} of its largest value on, the bound of FP32",
        outputs,
        divergence,
        notes=(note,) if divergence else (),
    )

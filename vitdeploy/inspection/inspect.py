"""What is inside a bundle, what the runtimes here make of it, and what differs between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import BackendError
from vitdeploy.graph.attention import attention_blocks
from vitdeploy.runtime.backends import Backend, backends
from vitdeploy.runtime.executed import ExecutedGraph

BLOCK_PARTS = 3  # `stages.3.0`: as the exporter groups nodes when it returns some to FP32

_PRECISION_OF = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}
_CONVERSIONS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class GraphStatistics:
    """The shipped ONNX graph in numbers.

    nodes        operators, constants not counted
    operators    type to number
    weights      element type to bytes
    precision    precision that the types ask for to number of nodes; `conversion` are Casts and Q/DQ, `integer` is
                 what gives shapes, indices and truth values
    blocks       the same for each block of the network
    attention    number of attentions
    """

    nodes: int
    operators: Mapping[str, int]
    weights: Mapping[str, int]
    precision: Mapping[str, int]
    blocks: Mapping[str, Mapping[str, int]]
    attention: int


@dataclass(frozen=True)
class KeptNode:
    """A node that stayed in FP32, and why."""

    node: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason in a word or two, e.g. `overflow`."""
        head, colon, _ = self.reason.partition(":")
        return head if colon and len(head) <= 40 else self.reason


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` found.

    manifest   the manifest as it is
    graph      statistics of the graph, None where the package onnx is not installed (see `notes`)
    rewrites   name of each graph pass and the lines it left
    kept_fp32  the nodes of a half-precision bundle that stayed FP32, and the products of an INT8 bundle that did
    runtimes   what each runtime executes
    notes      what the reader should know first
    """

    bundle: str
    manifest: Mapping[str, Any]
    graph: GraphStatistics | None
    rewrites: Mapping[str, tuple[str, ...]]
    kept_fp32: tuple[KeptNode, ...]
    runtimes: tuple[ExecutedGraph, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "bundle": self.bundle,
            "notes": list(self.notes),
            "manifest": dict(self.manifest),
            "graph": asdict(self.graph) if self.graph else None,
            "rewrites": {name: list(lines) for name, lines in self.rewrites.items()},
            "kept_fp32": [asdict(node) for node in self.kept_fp32],
            "runtimes": [runtime.to_dict() for runtime in self.runtimes],
        }


def inspect(bundle: Bundle | str | Path) -> Inspection:
    """Reads a bundle, whose files must be the manifest's, and asks the installed runtimes what they execute.

    Raises BundleError for a bundle that is damaged or altered. Needs no torch; without onnx the statistics of the graph
    are left out.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.check_files()
    manifest = opened.manifest
    model = _load_onnx(opened.read(MODEL))
    notes = []
    if manifest.model.weights.kind == "random":
        notes.append(f"SEEDED RANDOM WEIGHTS ({manifest.model.weights.detail}): the predictions mean nothing")
    if model is None:
        notes.append("graph statistics and attention blocks need onnx, which is not installed: pip install onnx")
    notes += [
        f"{report.get('runtime', 'a runtime')} did not reproduce PyTorch when this bundle was checked"
        for report in _objects(manifest.parity)
        if report.get("passed") is False
    ]
    return Inspection(
        bundle=str(opened.path),
        manifest=manifest.to_dict(),
        graph=graph_statistics(model) if model is not None else None,
        rewrites=_rewrites(manifest.graph),
        kept_fp32=_kept(manifest.precision_report),
        runtimes=tuple(executed(backend, opened) for backend in backends() if backend.tells_graph),
        notes=tuple(notes),
    )


def graph_statistics(model: Any) -> GraphStatistics:
    """The numbers of an onnx.ModelProto; types that the file does not state are inferred."""
    import onnx

    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)
    } | {tensor.name: tensor.data_type for tensor in graph.initializer}
    name_of = {number: name for name, number in onnx.TensorProto.DataType.items()}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    weights: Counter[str] = Counter()
    for tensor in graph.initializer:
        weights[name_of[tensor.data_type].lower()] += len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes
    blocks: dict[str, Counter[str]] = {}
    for node in nodes:
        blocks.setdefault(block_of(node.name), Counter())[_precision(node, types, name_of, dequantized)] += 1
    return GraphStatistics(
        nodes=len(nodes),
        operators=dict(Counter(node.op_type for node in nodes).most_common()),
        weights=dict(weights.most_common()),
        precision=dict(sum(blocks.values(), Counter()).most_common()),
        blocks={name: dict(counts.most_common()) for name, counts in blocks.items()},
        attention=len(attention_blocks(model)),
    )


def executed(backend: type[Backend], bundle: Bundle) -> ExecutedGraph:
    """What a runtime makes of the bundle; one that is not installed or does not load it says so in `skipped`."""
    missing = backend.available()
    if missing:
        return ExecutedGraph(backend.name, skipped=missing)
    try:
        return backend.executed(bundle)
    except BackendError as error:
        return ExecutedGraph(backend.name, skipped=error.what)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return ExecutedGraph(backend.name, skipped=f"{backend.name} cannot load the model: {lines[-1].strip()}")


def _load_onnx(data: bytes) -> Any | None:
    """The parsed model, or None where the package onnx is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    return onnx.load_model_from_string(data)


def _precision(node: Any, types: Mapping[str, int], name_of: Mapping[int, str], dequantized: set[str]) -> str:
    """What the graph's types say a node computes in; INT8 where its operands come out of Q/DQ pairs."""
    if node.op_type in _CONVERSIONS:
        return "conversion"
    operands = [name for name in node.input[:2] if _PRECISION_OF.get(name_of.get(types.get(name, 0), ""))]
    if operands and all(name in dequantized for name in operands):
        return "int8"
    found = (_PRECISION_OF.get(name_of.get(types.get(name, 0), "")) for name in node.output)
    return next((precision for precision in found if precision), "integer")


def block_of(name: str) -> str:
    """The block of a node by its name: `stages.1.0.attn/MatMul` belongs to `stages.1.0`."""
    path = name.rpartition("/")[0]
    return ".".join(path.split(".")[:BLOCK_PARTS]) or "graph"


def _rewrites(graph: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The lines of each pass; the manifest's free-form part is believed only as far as it has the expected form."""
    found: dict[str, tuple[str, ...]] = {}
    for record in _objects(graph.get("passes")):
        changes = record.get("changes")
        lines = tuple(str(line) for line in changes) if isinstance(changes, list) else ()
        name = str(record.get("pass"))
        found[name] = found.get(name, ()) + lines
    return found


def _kept(report: Mapping[str, Any]) -> tuple[KeptNode, ...]:
    records = _objects(report.get("kept_fp32"))
    products = report.get("float")  # of an INT8 bundle
    reasons = products.items() if isinstance(products, dict) else ()
    return tuple(KeptNode(str(record.get("node")), str(record.get("reason"))) for record in records) + tuple(
        KeptNode(str(node), str(reason)) for node, reason in reasons
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

"""What ONNX Runtime's CPU provider executes, read from the graph that it writes after its optimizations."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.runtime.executed import ExecutedGraph, count

if TYPE_CHECKING:
    from vitdeploy.graph.attention import Attention

_FUSED_ATTENTION = frozenset(
    {"Attention", "MultiHeadAttention", "QAttention", "PackedAttention", "PackedMultiHeadAttention"}
)
# ONNX Runtime's layout changes carry its domains too, and are no fusions.
_NOT_FUSIONS = frozenset({"ReorderInput", "ReorderOutput"})
_CAST_PREFIX = "InsertedPrecisionFreeCast_"


def read_graph(bundle: Bundle) -> ExecutedGraph:
    """The graph that ONNX Runtime writes after its optimizations, counted and held against the shipped one."""
    import onnxruntime

    try:
        import onnx
        import onnx_ir
    except ImportError:
        skipped = "reading its graph needs onnx and onnx-ir: pip install onnx onnx-ir"
        return ExecutedGraph("onnxruntime", onnxruntime.__version__, skipped=skipped)
    from vitdeploy.graph.attention import find_attentions
    from vitdeploy.graph.run import open_session

    data = bundle.read(MODEL)
    shipped = onnx_ir.from_proto(onnx.load_model_from_string(data)).graph
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(data, optimized=path)
        optimized = onnx.load(str(path))
    nodes = [node for node in optimized.graph.node if node.op_type != "Constant"]
    producer = {
        name.replace(_CAST_PREFIX, ""): node for node in nodes if node.op_type != "Cast" for name in node.output
    }
    own = Counter(
        _title(node) for node in nodes if node.domain not in ("", "ai.onnx") and node.op_type not in _NOT_FUSIONS
    )
    return ExecutedGraph(
        "onnxruntime",
        onnxruntime.__version__,
        operators=count(_title(node) for node in nodes),
        fused=dict(own.most_common()),
        attention=tuple(_in_onnxruntime(found, producer) for found in find_attentions(shipped, operators=True)),
    )


def _in_onnxruntime(found: Attention, producer: Mapping[str, Any]) -> dict[str, Any]:
    made_by = [producer[name] for name in found.results if name in producer]
    fused = next((node for node in made_by if node.op_type in _FUSED_ATTENTION), None)
    if fused is not None:
        return {"block": found.name, "fused": True, "runs_as": _title(fused)}
    softmax = producer.get(str(found.softmax.outputs[0].name))
    if softmax is not None and softmax.op_type not in ("Softmax", "BiasSoftmax"):
        runs_as = "products apart, softmax split into primitives"
    else:
        runs_as = "products and softmax apart"
    return {"block": found.name, "fused": False, "runs_as": runs_as}


def _title(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"

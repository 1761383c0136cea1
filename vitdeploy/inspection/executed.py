"""What a runtime makes of a model: read back from ONNX Runtime's optimized graph and OpenVINO's runtime model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import BackendError
from vitdeploy.runtime.backends import find_backend

IR_MODEL, IR_WEIGHTS = "model.xml", "model.bin"

# Between the two products of attention: scale, mask, precision.
_BEFORE_SOFTMAX = frozenset({"Add", "Mul", "Div", "Sub", "Cast", "Where", "QuantizeLinear", "DequantizeLinear"})
_AFTER_SOFTMAX = frozenset({"Cast", "Dropout", "Identity", "QuantizeLinear", "DequantizeLinear"})
_LAYOUT = frozenset({"Transpose", "Reshape", "Cast", "QuantizeLinear", "DequantizeLinear"})
_FUSED_ATTENTION = frozenset(
    {"Attention", "MultiHeadAttention", "QAttention", "PackedAttention", "PackedMultiHeadAttention"}
)
# ONNX Runtime's layout changes carry its domains too, and are no fusions.
_NOT_FUSIONS = frozenset({"ReorderInput", "ReorderOutput"})
_CAST_PREFIX = "InsertedPrecisionFreeCast_"


@dataclass(frozen=True)
class AttentionBlock:
    """Names of the nodes of one attention: first product, softmax, second product (all the same for one operator).

    `outputs` are the names under which its result is known: of the second product and, through changes of layout, on.
    """

    first: str
    softmax: str
    second: str
    softmax_output: str
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The softmax, whose path tells the module."""
        return self.softmax


@dataclass(frozen=True)
class RuntimeGraph:
    """What a runtime executes.

    operators  operator (or layer) type to number
    precision  element type that is computed in to number of operators; empty where the runtime does not say
    fused      the runtime's own operators, which stand for several of the model's
    attention  one entry for each attention of the model: `block`, `fused` and `runs_as`
    skipped    why nothing is known, and the command that helps; None where something is
    """

    runtime: str
    version: str = ""
    operators: Mapping[str, int] = field(default_factory=dict)
    precision: Mapping[str, int] = field(default_factory=dict)
    fused: Mapping[str, int] = field(default_factory=dict)
    attention: tuple[Mapping[str, Any], ...] = ()
    skipped: str | None = None

    @property
    def attention_fused(self) -> int:
        """How many attentions became one kernel."""
        return sum(bool(block["fused"]) for block in self.attention)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "attention_fused": self.attention_fused}


def attention_blocks(model: Any) -> list[AttentionBlock]:
    """The attentions of an onnx.ModelProto: Attention operators, and Softmax between two products of activations."""
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def up(name: str) -> Any | None:
        node = producer.get(name)
        if node is None or node.op_type == "MatMul":
            return node
        if node.op_type not in _BEFORE_SOFTMAX:
            return None
        return next((found for above in node.input if (found := up(above)) is not None), None)

    def down(name: str, through: frozenset[str]) -> tuple[list[str], Any | None]:
        names = [name]
        while len(after := consumers.get(names[-1], [])) == 1 and after[0].op_type in through:
            names.append(after[0].output[0])
        return names, after[0] if len(after) == 1 else None

    blocks = []
    for node in model.graph.node:
        if node.op_type == "Attention":
            names, _ = down(node.output[0], _LAYOUT)
            blocks.append(AttentionBlock(node.name, node.name, node.name, node.output[0], tuple(names)))
        if node.op_type != "Softmax":
            continue
        first = up(node.input[0])
        _, second = down(node.output[0], _AFTER_SOFTMAX)
        if first is None or second is None or second.op_type != "MatMul":
            continue
        names, _ = down(second.output[0], _LAYOUT)
        blocks.append(AttentionBlock(first.name, node.name, second.name, node.output[0], tuple(names)))
    return blocks


def onnxruntime_graph(bundle: Bundle) -> RuntimeGraph:
    """What ONNX Runtime's CPU provider executes, from the graph that it writes after its optimizations."""
    return _if_possible("onnxruntime", _onnxruntime_graph, bundle)


def openvino_graph(bundle: Bundle) -> RuntimeGraph:
    """What OpenVINO's CPU plugin executes (computing in FP32, as sessions do), from its runtime model."""
    return _if_possible("openvino", _openvino_graph, bundle)


def runtime_graphs(bundle: Bundle) -> list[RuntimeGraph]:
    """Of every runtime that can tell; one that is not installed says so in `skipped`."""
    return [onnxruntime_graph(bundle), openvino_graph(bundle)]


def load_onnx(data: bytes) -> Any | None:
    """The parsed model, or None where the package onnx is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    return onnx.load_model_from_string(data)


def _if_possible(runtime: str, read: Callable[[Bundle], RuntimeGraph], bundle: Bundle) -> RuntimeGraph:
    missing = find_backend(runtime).available()
    if missing:
        return RuntimeGraph(runtime, skipped=missing)
    try:
        return read(bundle)
    except BackendError as error:
        return RuntimeGraph(runtime, skipped=error.what)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return RuntimeGraph(runtime, skipped=f"{runtime} cannot load the model: {lines[-1].strip()}")


def _onnxruntime_graph(bundle: Bundle) -> RuntimeGraph:
    import onnxruntime

    data = bundle.read(MODEL)
    shipped = load_onnx(data)
    if shipped is None:
        return RuntimeGraph(
            "onnxruntime", onnxruntime.__version__, skipped="reading its graph needs onnx: pip install onnx"
        )
    import onnx

    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        path = Path(folder) / "optimized.onnx"
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = str(path)
        settings.log_severity_level = 3
        onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        optimized = onnx.load(str(path))
    nodes = [node for node in optimized.graph.node if node.op_type != "Constant"]
    producer = {
        name.replace(_CAST_PREFIX, ""): node for node in nodes if node.op_type != "Cast" for name in node.output
    }
    own = Counter(
        _title(node) for node in nodes if node.domain not in ("", "ai.onnx") and node.op_type not in _NOT_FUSIONS
    )
    return RuntimeGraph(
        "onnxruntime",
        onnxruntime.__version__,
        operators=_counted(_title(node) for node in nodes),
        fused=dict(own.most_common()),
        attention=tuple(_in_onnxruntime(block, producer) for block in attention_blocks(shipped)),
    )


def _in_onnxruntime(block: AttentionBlock, producer: Mapping[str, Any]) -> dict[str, Any]:
    made_by = [producer[name] for name in block.outputs if name in producer]
    fused = next((node for node in made_by if node.op_type in _FUSED_ATTENTION), None)
    if fused is not None:
        return {"block": block.name, "fused": True, "runs_as": _title(fused)}
    softmax = producer.get(block.softmax_output)
    if softmax is not None and softmax.op_type not in ("Softmax", "BiasSoftmax"):
        runs_as = "products apart, softmax split into primitives"
    else:
        runs_as = "products and softmax apart"
    return {"block": block.name, "fused": False, "runs_as": runs_as}


def _openvino_graph(bundle: Bundle) -> RuntimeGraph:
    import openvino

    core = openvino.Core()
    if IR_MODEL in bundle.manifest.files:
        model = core.read_model(bundle.read(IR_MODEL), bundle.read(IR_WEIGHTS))
    else:
        model = core.read_model(bundle.read(MODEL), b"")
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: _text(operation, key) for key in ("layerType", "runtimePrecision", "originalLayersNames")}
        if facts["layerType"] not in ("Const", "Input", "Output"):
            layers.append(facts)
    shipped = load_onnx(bundle.read(MODEL))
    of_node = {name: layer for layer in layers for name in layer["originalLayersNames"].split(",") if name}
    multiple = [layer for layer in layers if layer["originalLayersNames"].strip(",").count(",")]
    return RuntimeGraph(
        "openvino",
        openvino.get_version().partition("-")[0],
        operators=_counted(layer["layerType"] for layer in layers),
        precision=_counted(layer["runtimePrecision"] for layer in layers),
        fused=_counted(layer["layerType"] for layer in multiple),
        attention=tuple(_in_openvino(block, of_node) for block in attention_blocks(shipped)) if shipped else (),
    )


def _in_openvino(block: AttentionBlock, of_node: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    parts = [of_node.get(name) for name in (block.first, block.softmax, block.second)]
    kinds = list(dict.fromkeys(part["layerType"] if part else "nothing of that name" for part in parts))
    fused = parts[0] is not None and all(part is parts[0] for part in parts)
    return {"block": block.name, "fused": fused, "runs_as": kinds[0] if fused else ", ".join(kinds) + " apart"}


def _text(operation: Any, key: str) -> str:
    value = operation.rt_info[key]
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _title(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"

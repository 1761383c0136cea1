"""The report of `inspect` as labelled lines, for reading one bundle and for comparing two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vitdeploy.graph.names import block_of
from vitdeploy.runtime.executed import ExecutedGraph
from vitdeploy.table import render
from vitdeploy.tensorrt.rtx.receipt import receipt_rows

ABSENT = "-"
EXAMPLE = 110  # characters

_SIGNED = "yes, not checked here: vitdeploy verify BUNDLE --key PUBLIC.pem"

Sections = dict[str, dict[str, str]]


@dataclass(frozen=True)
class GraphStatistics:
    """The shipped ONNX graph in numbers.

    nodes        operators, constants not counted
    operators    type to number
    weights      element type to bytes
    precision    precision by the graph's types to number of nodes; `conversion` are Casts and Q/DQ, `integer` are
                 nodes that compute shapes, indices and truth values
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
class InspectionReport:
    """Everything that `vitdeploy.inspect` found; `str()` is the report as text.

    Attributes:
        bundle: Its folder.
        manifest: The manifest as it is.
        graph: Statistics of the graph, None where onnx and onnx-ir are not installed (see `notes`).
        rewrites: Name of each graph pass and the lines it left.
        kept_fp32: The nodes of a half-precision bundle that stayed FP32, and the products of an INT8 bundle that did.
        runtimes: What each runtime executes.
        notes: What the reader should know first.
        signed: Whether a signature is in the bundle; it is not checked.
    """

    bundle: str
    manifest: Mapping[str, Any]
    graph: GraphStatistics | None
    rewrites: Mapping[str, tuple[str, ...]]
    kept_fp32: tuple[KeptNode, ...]
    runtimes: tuple[ExecutedGraph, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)
    signed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "bundle": self.bundle,
            "notes": list(self.notes),
            "signed": self.signed,
            "manifest": dict(self.manifest),
            "graph": asdict(self.graph) if self.graph else None,
            "rewrites": {name: list(lines) for name, lines in self.rewrites.items()},
            "kept_fp32": [asdict(node) for node in self.kept_fp32],
            "runtimes": [runtime.to_dict() for runtime in self.runtimes],
        }

    def __str__(self) -> str:
        parts = [self.bundle, *self.notes]
        for title, rows in sections(self).items():
            cells = [[f"  {label}", value] for label, value in rows.items()]
            parts += [f"\n{title}", render(cells, align="<<")] if rows else []
        return "\n".join(parts)


def compare(first: InspectionReport, second: InspectionReport) -> str:
    """The rows in which two bundles differ, side by side."""
    parts = [f"A  {first.bundle}", *[f"   {note}" for note in first.notes]]
    parts += [f"B  {second.bundle}", *[f"   {note}" for note in second.notes]]
    found = differences(sections(first), sections(second))
    if not found:
        parts.append("\nno difference")
    for title, rows in found.items():
        cells = [[f"  {label}", one, other] for label, (one, other) in rows.items()]
        parts.append("\n" + render(cells, header=(title, "A", "B")))
    return "\n".join(parts)


def differences(first: Sections, second: Sections) -> dict[str, dict[str, tuple[str, str]]]:
    """Sections and labels whose values differ, with both values; one that a bundle lacks is `-` there."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for title in dict.fromkeys([*first, *second]):
        one, other = first.get(title, {}), second.get(title, {})
        pairs = {label: (one.get(label, ABSENT), other.get(label, ABSENT)) for label in dict.fromkeys([*one, *other])}
        rows = {label: pair for label, pair in pairs.items() if pair[0] != pair[1]}
        if rows:
            found[title] = rows
    return found


def sections(inspection: InspectionReport) -> Sections:
    """The inspection as labelled lines of text, by section; the same for reading one bundle and for comparing two."""
    manifest = inspection.manifest
    found: Sections = {
        "model": {**_model(manifest), "signed": _SIGNED if inspection.signed else "no"},
        "preprocessing": _preprocessing(manifest),
        "signature": _signature(manifest),
        "files": {name: f"{record['bytes']} bytes" for name, record in manifest["files"].items()},
        "parity when exported": _parity(manifest["parity"]),
        "accuracy": {str(index + 1): _short(record) for index, record in enumerate(manifest["accuracy"])},
        "graph": _graph(inspection),
        "compiled when exported": _compiled(manifest["graph"]),
        "operators": _counts(inspection.graph.operators) if inspection.graph else {},
        "precision by block (nodes)": _blocks(inspection),
        "rewrites": {name: _with_example(lines) for name, lines in inspection.rewrites.items() if lines},
        "kept FP32 (nodes)": _kept(inspection),
    }
    found |= {f"executed by {runtime.runtime}": _runtime(runtime) for runtime in inspection.runtimes}
    found["tools"] = dict(manifest["tools"])
    return found


def _model(manifest: Mapping[str, Any]) -> dict[str, str]:
    model, weights = manifest["model"], manifest["model"]["weights"]
    kind = "SEEDED RANDOM" if weights["kind"] == "random" else weights["kind"]
    return {
        "name": model["name"],
        "family": model["family"],
        "image size": "x".join(map(str, model["image_size"])) if model["image_size"] else ABSENT,
        "classes": f"{model['num_classes']}, {'named' if manifest['labels'] else 'without names'}",
        "weights": f"{kind}, {weights['detail']}",
        "weights sha256": weights["sha256"] or ABSENT,
        "precision": manifest["precision"],
        "target": manifest["target"],
        "opset": str(manifest["opset"]),
        "created": manifest["created"],
    }


def _preprocessing(manifest: Mapping[str, Any]) -> dict[str, str]:
    """How images become inputs; nothing for a network that takes none."""
    if manifest["preprocessing"] is None:
        return {}
    rows = {key: _short(value) for key, value in manifest["preprocessing"].items()}
    return {**rows, "normalised": "in the graph" if manifest["preprocessing_in_graph"] else "by the runtime"}


def _signature(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{side} {spec['name']}": f"{spec['dtype']} [{', '.join(map(str, spec['shape']))}]"
        for side in ("input", "output")
        for spec in manifest[f"{side}s"]
    }


def _parity(reports: list[dict[str, Any]]) -> dict[str, str]:
    rows = {}
    for report in reports:
        runtime, outputs = report.get("runtime", "?"), report.get("outputs")
        for output in outputs if isinstance(outputs, list) else []:
            shown = {key: _short(output[key]) for key in ("max_abs", "max_relative", "snr_db") if key in output}
            if output.get("snr_db", 0.0) is None:  # JSON has no infinity
                shown["snr_db"] = "inf"
            state = "ok" if output.get("passed") else "FAILED"
            rows[f"{output.get('name', '?')} in {runtime}"] = f"{_pairs(shown)}, {state}"
    return rows


def _graph(inspection: InspectionReport) -> dict[str, str]:
    recorded, report, graph = inspection.manifest["graph"], inspection.manifest["precision_report"], inspection.graph
    rows = {}
    if "nodes_captured" in recorded:
        rows["nodes captured"] = _short(recorded["nodes_captured"])
    if graph:
        rows["nodes"] = str(graph.nodes)
        rows |= {f"weights {kind}": f"{size} bytes" for kind, size in graph.weights.items()}
        rows["nodes by precision"] = _pairs(graph.precision)
        rows["attention blocks"] = str(graph.attention)
    if "snr_db" in report:
        how = "INT8" if inspection.manifest["precision"] == "int8" else "emulated half precision"
        rows[how] = f"{_short(report['snr_db'])} dB against FP32"
    return rows


def _compiled(graph: Mapping[str, Any]) -> dict[str, str]:
    """The receipt of NVIDIA's compiler, which a bundle for TensorRT has where it was installed at the export."""
    receipt = graph.get("compiled")
    return receipt_rows(receipt) if isinstance(receipt, Mapping) else {}


def _blocks(inspection: InspectionReport) -> dict[str, str]:
    """Nodes of each block by precision, and why some of them stayed FP32."""
    if inspection.graph is None:
        return {}
    rows = {name: _pairs(counts) for name, counts in inspection.graph.blocks.items()}
    for name in rows:
        reasons = Counter(node.kind for node in inspection.kept_fp32 if _inside(node.node, name))
        if reasons:
            rows[name] += f"; kept FP32: {_pairs(reasons)}"
    return rows


def _inside(node: str, block: str) -> bool:
    return block_of(node) == block


def _kept(inspection: InspectionReport) -> dict[str, str]:
    by_kind: dict[str, list[str]] = {}
    for node in inspection.kept_fp32:
        by_kind.setdefault(node.kind, []).append(f"{node.node}: {node.reason}")
    return {kind: _with_example(lines) for kind, lines in by_kind.items()}


def _with_example(lines: Sequence[str]) -> str:
    """The number of lines and the first of them; --json prints all."""
    first = lines[0] if len(lines[0]) <= EXAMPLE else f"{lines[0][: EXAMPLE - 1]}…"
    return f"{len(lines)}, e.g. {first}"


def _runtime(runtime: ExecutedGraph) -> dict[str, str]:
    if runtime.skipped:
        return {"not read": runtime.skipped}
    rows = {"version": runtime.version}
    if runtime.precision:
        rows["precision"] = _pairs(runtime.precision)
    rows["stand for several nodes"] = _pairs(runtime.fused) or "none"
    if runtime.attention:
        rows["attention fused"] = f"{runtime.attention_fused} of {len(runtime.attention)}"
        rows |= {
            f"attention, {kind}": str(count)
            for kind, count in Counter(str(block["runs_as"]) for block in runtime.attention).most_common()
        }
    return rows | _counts(runtime.operators)


def _counts(counts: Mapping[str, int]) -> dict[str, str]:
    return {name: str(count) for name, count in counts.items()}


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return ", ".join(f"{k} {_short(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)

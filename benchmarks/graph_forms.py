"""Layers that NVIDIA's graph compiler makes of the zoo: of a plain export, of ours, and of ours without each form.

    python benchmarks/graph_forms.py --save [--network NAME …] [--no-ablation]
    python benchmarks/graph_forms.py --table

Needs vitdeploy[export,nvidia], no GPU. Weights are seeded; biases are not zero and layer scales not tiny, since passes
drop what does nothing. A plain export is torch.onnx.export and onnxsim, in half precision of `model.half()`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import torch
from failure import describe, without_paths
from naive_export import naive
from timm_network import realistic
from torch import nn

from vitdeploy import create_model
from vitdeploy.exporter.artifact import standard_onnx
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.half import half_precision
from vitdeploy.exporter.half_parts import pin_modules
from vitdeploy.exporter.optimize import lower, optimize
from vitdeploy.table import render
from vitdeploy.targets import Target, find_target
from vitdeploy.tensorrt.fusion import read_fusion
from vitdeploy.tensorrt.rtx.compiler import BUILT, run_compiler
from vitdeploy.tensorrt.rtx.model_file import free_shapes, with_names
from vitdeploy.tensorrt.rtx.requirements import DEFAULT_SM, require, version

RESULTS = Path(__file__).parent / "results" / "graph_forms.json"
NETWORKS = ("lemevit_tiny", "dualvit_s", "qnavit_tiny", "saevit_xs", "cagevit_tiny")
PLAIN = "plain"
OURS = (
    ("tensorrt8", "fp16"),
    ("tensorrt10", "fp16"),
    ("tensorrt11", "fp16"),
    ("tensorrt10", "fp32"),
    ("portable", "fp16"),
)
# The fields of a target that are forms; each is put back to its default in turn.
FORMS = ("deconvolution", "channels_last_maps", "projection_bias", "columns_at_once", "shared_streams")
IMAGES = 2
ANY_SNR = -999.0  # what FP16 keeps is another measurement's business

Counts = dict[str, Any]


class Captured(NamedTuple):
    """A network, its graph before any rewrite, and what proves a graph in half precision."""

    network: nn.Module
    graph: ir.Model
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def captured(
    name: str, side: int | None = None, batch: int | None = 1, hyperparameters: Mapping[str, Any] | None = None
) -> Captured:
    """A network of the zoo with weights of which no part does nothing; `batch` is None where it is to be free."""
    torch.manual_seed(0)
    network = create_model(name, image_size=side, hyperparameters=hyperparameters)
    card: Any = network.card
    size: tuple[int, int] = card.image_size
    images = torch.randn(max(IMAGES, batch or 1), 3, *size)
    realistic(network, size[0], images)
    forward = getattr(network, "forward_for_export", lambda x: {"logits": network(x)})
    with torch.inference_mode():
        outputs = {key: value.numpy() for key, value in forward(images).items()}
    graph = capture(
        network,
        images[: batch or 1],
        dynamic_batch=batch is None,
        output_names=list(outputs),
        call=lambda _, inputs: forward(*inputs.values()),
    )
    return Captured(network, graph, {"images": images.numpy()}, outputs)


def rewritten(made: Captured, target: Target) -> ir.Model:
    """The FP32 graph in the forms of `target`."""
    graph = made.graph.clone()
    lower(graph, target)
    optimize(graph, target)
    return graph


def exported(made: Captured, target: Target, precision: str) -> onnx.ModelProto:
    """The file that `vitdeploy export` ships for `target`."""
    graph = rewritten(made, target)
    if precision == "fp16":
        pin_modules(graph, tuple(getattr(made.network, "float32_modules", ())))
        selections = tuple(getattr(made.network, "selection_outputs", ()))
        graph, _ = half_precision(graph, made.inputs, made.outputs, min_snr_db=ANY_SNR, selections=selections)
    return standard_onnx(graph)


def plain(made: Captured, precision: str) -> onnx.ModelProto:
    """torch.onnx.export and onnxsim."""
    network, images = made.network, torch.from_numpy(made.inputs["images"][:1])
    if precision == "fp16":
        network, images = copy.deepcopy(made.network).half(), images.half()
    with contextlib.redirect_stdout(io.StringIO()):
        return naive(network, images, None)


def count(model: onnx.ModelProto) -> Counts:
    """What the compiler makes of `model`; `failed` with its words where it makes nothing."""
    named = with_names(model)
    data = named.SerializeToString()
    outcome = run_compiler(data, DEFAULT_SM, free_shapes(named))
    if outcome.state != BUILT:
        return {"failed": f"{outcome.state}: {without_paths(outcome.last_words)[:200]}"}
    report = read_fusion(outcome.engine, data)
    return {
        "layers": report.layers,
        "moving": len(report.movements),
        "attention": len(report.attention),
        "attention_fused": sum(bool(block.fused) for block in report.attention),
        "activation_mib": round((outcome.activation_bytes or 0) / 2**20, 1),
    }


def without(target: Target, form: str) -> Target:
    """`target` with one form as most targets have it."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Target)}
    return replace(target, **{form: defaults[form]})


def measure(name: str, ablation: bool) -> dict[str, Any]:
    """All rows of one network, by what was compiled."""
    made, rows = captured(name), dict[str, Counts]()
    for precision in ("fp16", "fp32"):
        try:
            rows[f"{PLAIN} {precision}"] = count(plain(made, precision))
        except Exception as error:  # torch.onnx has no common base of what it raises
            rows[f"{PLAIN} {precision}"] = {"failed": f"torch.onnx.export: {describe(error)}"}
    for target, precision in OURS:
        rows[f"{target} {precision}"] = count(exported(made, find_target(target), precision))
    for form in FORMS if ablation else ():
        rows[f"without {form}"] = count(exported(made, without(find_target("tensorrt10"), form), "fp16"))
    return rows


def table(results: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    titles = list(dict.fromkeys(title for rows in results["networks"].values() for title in rows))
    lines = ["| compiled | " + " | ".join(results["networks"]) + " |", "| --- |" + " --- |" * len(results["networks"])]
    for title in titles:
        cells = [_cell(rows.get(title)) for rows in results["networks"].values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Counts | None) -> str:
    if row is None or "failed" in row:
        return "–" if row is None else "fails"
    return f"{row['layers']} ({row['moving']}; {row['attention_fused']}/{row['attention']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--no-ablation", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}; other networks' rows stay")
    parser.add_argument("--table", action="store_true", help="print the saved results in Markdown, and measure nothing")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    if args.table:
        print(table(results))
        return
    require()
    logging.disable(logging.WARNING)
    results.update(compiler=version(), sm=DEFAULT_SM)
    for name in args.network:
        found = measure(name, not args.no_ablation)
        kept = results["networks"].get(name, {}) if args.no_ablation else {}
        results["networks"][name] = {**kept, **found}
        print(name)
        print(render([[title, json.dumps(row)] for title, row in found.items()], rule=False), flush=True)
        if args.save:
            order = {key: results["networks"][key] for key in NETWORKS if key in results["networks"]}
            RESULTS.write_text(json.dumps({**results, "networks": order}, indent=1) + "\n")


if __name__ == "__main__":
    main()

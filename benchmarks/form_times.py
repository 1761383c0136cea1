"""Time and nodes in ONNX Runtime of a target's graph with and without one form, in FP32 and INT8.

    python benchmarks/form_times.py lemevit_tiny --size 64 --batch 1 8 free --without token_rows [--save]
    python benchmarks/form_times.py lemevit_tiny --size 64 --without shared_streams

A form is a pass, left out by its name, or a field of the target, put back to its default or, as FIELD=VALUE, to that.
Weights are seeded (graph_forms.py). The ranges of INT8 are those of one input: only the time of it means something.

Time is the CPU time of one thread. All batches, precisions and sides take turns; ratios are taken round by round.
Nodes are those of the graph that ONNX Runtime executes; of them, the kinds whose number the form changes are printed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
from graph_forms import Captured, captured, rewritten, without
from sessions import open_onnxruntime
from timing import environment, finished, interleave, ratio

from vitdeploy.cli.export import hyperparameter
from vitdeploy.exporter import optimize as optimizing
from vitdeploy.exporter.artifact import standard_onnx
from vitdeploy.graph.run import open_session
from vitdeploy.quantize.activations import collect
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.placement import place, tensors
from vitdeploy.targets import Int8Rules, Target, find_target

RESULTS = Path(__file__).parent / "results" / "form_times.json"
PRECISIONS = ("fp32", "int8")
SIDES = ("with", "without")
FREE = "free"
FIELDS = {field.name for field in fields(Target) if field.default is not MISSING}
PASSES = {kind.name for kind in optimizing.PASSES}


def changed(made: Captured, target: Target, form: str) -> ir.Model:
    """The FP32 graph of `target` without `form`."""
    if form in PASSES:
        kept = tuple(kind for kind in optimizing.PASSES if kind.name != form)
        with mock.patch.object(optimizing, "PASSES", kept):
            return rewritten(made, target)
    if "=" not in form:
        return rewritten(made, without(target, form))
    changes: dict[str, Any] = dict([hyperparameter(form)])
    return rewritten(made, replace(target, **changes))


def in_integers(graph: ir.Model, rules: Int8Rules, images: np.ndarray) -> ir.Model:
    """`graph` in INT8 by the rules of a target, with the ranges of `images` and every weight rounded to nearest."""
    plan = place(graph.graph, rules)
    readers = tensors(graph.graph, plan)
    seen = collect(graph, dict.fromkeys(readers), [images])
    schemes = {name: (layers[0].scheme if layers else None) or rules.activation for name, layers in readers.items()}
    ranges = {name: schemes[name].params(seen[name].low, seen[name].high) for name in readers}
    return insert(graph, plan, ranges, {}, rules)


def executed(path: Path) -> dict[str, int]:
    """How often each operator is in the graph that ONNX Runtime makes of a file."""
    written = path.with_suffix(".executed.onnx")
    open_session(path.read_bytes(), threads=1, optimized=written)
    return dict(Counter(node.op_type for node in onnx.load(str(written)).graph.node).most_common())


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The nodes of both sides, by batch and precision, and their times."""
    calls = dict[str, Callable[[], object]]()
    nodes, count = dict[str, dict[str, int]](), dict[str, int]()
    for batch in args.batch:
        made = captured(args.network, args.size, None if batch == FREE else int(batch), dict(args.set))
        count[batch] = args.images if batch == FREE else int(batch)
        shape = (count[batch], *made.inputs["images"].shape[1:])
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        graphs = {"with": rewritten(made, args.target), "without": changed(made, args.target, args.without)}
        for precision, (side, graph) in itertools.product(args.precision, graphs.items()):
            key, path = f"{batch} {precision} {side}", folder / f"{batch}_{precision}_{side}.onnx"
            shipped = in_integers(graph, args.target.int8, images) if precision == "int8" else graph
            onnx.save(standard_onnx(shipped), str(path))
            nodes[key] = executed(path)
            calls[key] = functools.partial(open_onnxruntime(path, 1), images)
    seconds = interleave(calls, rounds=args.rounds, clock=time.thread_time)
    of_one = {key: [second / count[key.split()[0]] for second in found] for key, found in seconds.items()}
    results = {}
    for batch, precision in itertools.product(args.batch, args.precision):
        keys = {side: f"{batch} {precision} {side}" for side in SIDES}
        first = {side: f"{args.batch[0]} {precision} {side}" for side in SIDES}
        results[f"{batch} {precision}"] = {
            "nodes": {side: nodes[key] for side, key in keys.items()},
            "ms_per_image": {side: round(1e3 * statistics.median(of_one[key]), 3) for side, key in keys.items()},
            "with_to_without": ratio(of_one[keys["with"]], of_one[keys["without"]]),
            "to_first_batch": {side: ratio(of_one[key], of_one[first[side]]) for side, key in keys.items()},
        }
    return results


def table(title: str, args: argparse.Namespace, found: Mapping[str, Any]) -> str:
    """Ratios and changed nodes in Markdown, one row each batch."""
    head = [f"{title}, with to without", *(f"{precision.upper()}" for precision in args.precision)]
    if len(args.batch) > 1:
        head += [f"{precision.upper()} of an image to batch {args.batch[0]}" for precision in args.precision]
    head += [f"{precision.upper()} nodes, without and with" for precision in args.precision]
    lines = [head, ["---"] * len(head)]
    for batch in args.batch:
        cells = [found[f"{batch} {precision}"] for precision in args.precision]
        row = [f"batch {batch}", *(_quartiles(cell["with_to_without"]) for cell in cells)]
        if len(args.batch) > 1:
            row += [
                ", ".join(f"{cell['to_first_batch'][side]['median']:.2f}" for side in SIDES[::-1]) for cell in cells
            ]
        lines.append([*row, *(_differences(cell["nodes"]) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quartiles(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['q1']:.2f} to {found['q3']:.2f})"


def _differences(nodes: Mapping[str, Mapping[str, int]]) -> str:
    before, now = (nodes[side] for side in SIDES[::-1])
    kinds = [kind for kind in sorted({*before, *now}) if before.get(kind, 0) != now.get(kind, 0)]
    return ", ".join(f"{kind} {before.get(kind, 0)}, {now.get(kind, 0)}" for kind in kinds) or "the same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--without", required=True, metavar="FORM", help="a pass, FIELD or FIELD=VALUE")
    parser.add_argument("--target", type=find_target, default="onnxruntime")
    parser.add_argument("--set", type=hyperparameter, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--size", type=int, help="pixels on a side")
    parser.add_argument("--batch", nargs="+", default=["1"], help=f"numbers, or {FREE}")
    parser.add_argument("--images", type=int, default=8, help="at once where the batch is free")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}; other rows stay")
    args = parser.parse_args()
    if args.without not in PASSES and args.without.partition("=")[0] not in FIELDS:
        parser.error(f"--without {args.without}: no pass and no field of a target")
    if args.target.int8 is None and "int8" in args.precision:
        parser.error(f"{args.target.name} takes no INT8: --precision fp32")
    logging.disable(logging.WARNING)
    title = " ".join(map(str, filter(None, (args.network, args.size, *(f"{key}={value}" for key, value in args.set)))))
    report = {"environment": environment(("onnxruntime", "torch"))}
    with tempfile.TemporaryDirectory() as folder:
        report["batches"] = measure(args, Path(folder))
    print(table(f"{title}, {args.without}", args, report["batches"]))
    if args.save:
        saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        saved[f"{title} {args.target.name} without {args.without}"] = finished(report)
        RESULTS.write_text(json.dumps(dict(sorted(saved.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()

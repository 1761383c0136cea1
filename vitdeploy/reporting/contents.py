"""The part of a page about what is in the bundles: what was rewritten and fused, and what stayed in float and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.inspection.inspect import kept_nodes, rewrites
from vitdeploy.reporting.documents import number
from vitdeploy.reporting.findings import Interval
from vitdeploy.reporting.markup import Markup, Section, bullets, details, element, join, pairs, paragraph, table
from vitdeploy.reporting.wording import megabytes, plain, with_interval
from vitdeploy.tensorrt.rtx.receipt import receipt_rows

MOST_LINES = 200  # of a list to open


def contents(bundles: Mapping[str, Bundle]) -> Section:
    """Every bundle by its name: all side by side, and then what was done to each."""
    manifests = {name: one.manifest for name, one in bundles.items()}
    return Section(
        "contents", "What is in the bundles", join([_facts(manifests), *(_made(*one) for one in manifests.items())])
    )


def _made(name: str, manifest: Manifest) -> Markup:
    parts = [
        _in_8_bits(manifest),
        _kept(manifest),
        _changes("Reverted to float for accuracy", manifest.precision_report.get("reverted")),
        _changes("Repairs before quantizing", manifest.precision_report.get("repairs")),
        _rewritten(manifest),
        _compiled(manifest),
        _recorded(manifest),
    ]
    if not any(parts):
        return Markup()
    return element("div", element("h3", f"{name}: {manifest.model.name} in {manifest.precision.upper()}"), *parts)


def _facts(manifests: Mapping[str, Manifest]) -> Markup:
    facts = [_facts_of(manifest) for manifest in manifests.values()]
    names = dict.fromkeys(name for one in facts for name, value in one.items() if value is not None)
    rows = [[name, *(one.get(name) for one in facts)] for name in names]
    return table("What the manifests say", ["", *manifests], rows, words=1 + len(facts))


def _facts_of(manifest: Manifest) -> dict[str, object]:
    weights = manifest.model.weights
    snr = number(manifest.precision_report.get("snr_db"))
    return {
        "precision": manifest.precision.upper(),
        "weights": f"{weights.kind} {Path(weights.detail).name}",
        "target": manifest.platform or manifest.target,
        "opset": manifest.opset,
        "inputs": "; ".join(map(str, manifest.inputs)),
        "outputs": "; ".join(map(str, manifest.outputs)),
        "all files, MB": megabytes(sum(one.bytes for one in manifest.files.values())),
        "made": manifest.created,
        **{f"against PyTorch, {runtime}": told for runtime, told in _parity(manifest.parity)},
        "SNR at the export": None if snr is None else f"{plain(snr, 1)} dB against FP32",
    }


def _parity(records: Sequence[Any]) -> list[tuple[str, str]]:
    found = []
    for record in records:
        if not isinstance(record, dict):
            continue
        outputs = [one for one in record.get("outputs") or () if isinstance(one, dict)]
        noise = [value for one in outputs if (value := number(one.get("snr_db"))) is not None]
        state = "holds" if record.get("passed") is True else "FAILED"
        found.append((str(record.get("runtime")), state + (f", {plain(min(noise), 1)} dB" if noise else "")))
    return found


def _recorded(manifest: Manifest) -> Markup:
    rows = []
    for one in manifest.accuracy:
        data = one.get("data")
        if isinstance(data, dict):
            drop = Interval(*(number(one.get(key)) for key in ("drop", "drop_low", "drop_high")))
            name = Path(str(data.get("name"))).name
            rows.append(
                [f"{name}, {data.get('images')} images", one.get("runtime"), with_interval(drop), one.get("date")]
            )
    if not rows:
        return Markup()
    shown = table(
        "Earlier runs of validate, from the manifest", ["data", "runtime", "drop (95 %)", "date"], rows, words=2
    )
    return details("Accuracy on record", shown)


def _in_8_bits(manifest: Manifest) -> Markup:
    layers = manifest.precision_report.get("layers")
    if not isinstance(layers, dict):
        return Markup()
    rows = [[kind, counts.get("int8"), counts.get("of")] for kind, counts in layers.items() if isinstance(counts, dict)]
    share = number(manifest.precision_report.get("int8_macs"))
    told = "" if share is None else f": {100 * share:.1f} % of the multiply-accumulates"
    return table(f"In 8 bits{told}", ["layers", "in INT8", "of"], rows)


def _kept(manifest: Manifest) -> Markup:
    by_reason: dict[str, list[str]] = {}
    for one in kept_nodes(manifest.precision_report):
        by_reason.setdefault(one.reason, []).append(one.node)
    if not by_reason:
        none = {
            "fp32": "",
            "fp16": "Every node is in FP16.",
            "int8": "The manifest names no layer that stayed in float.",
        }
        told = none.get(manifest.precision, "")
        return paragraph(told, class_="soft") if told else Markup()
    rows = [[reason, len(nodes)] for reason, nodes in sorted(by_reason.items(), key=lambda one: -len(one[1]))]
    lists = [join([paragraph(reason, class_="soft"), _lines(nodes)]) for reason, nodes in by_reason.items()]
    return join([table("What stayed in float, and why", ["reason", "nodes"], rows), details("Which nodes", *lists)])


def _changes(title: str, records: object) -> Markup:
    if not isinstance(records, list) or not records:
        return Markup()
    lines = [
        ", ".join(f"{key} {_short(value)}" for key, value in one.items()) for one in records if isinstance(one, dict)
    ]
    return details(f"{title}: {len(lines)}", _lines(lines))


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _lines(lines: Sequence[str]) -> Markup:
    more = [] if len(lines) <= MOST_LINES else [f"and {len(lines) - MOST_LINES} more"]
    return bullets([*lines[:MOST_LINES], *more])


def _rewritten(manifest: Manifest) -> Markup:
    done = {name: lines for name, lines in rewrites(manifest.graph).items() if lines}
    if not done:
        return Markup()
    rows = [[name, len(lines), lines[0]] for name, lines in done.items()]
    before, after = manifest.graph.get("nodes_captured"), manifest.graph.get("nodes")
    counts = f", {before} nodes became {after}" if before and after else ""
    shown = table("Passes and how often they applied", ["pass", "times", "for example"], rows)
    return details(f"What was fused and rewritten{counts}", shown)


def _compiled(manifest: Manifest) -> Markup:
    receipt = manifest.graph.get("compiled")
    if not isinstance(receipt, dict):
        return Markup()
    return pairs("What NVIDIA's compiler made of it", receipt_rows(receipt))

"""What `vitdeploy export` prints: where the bundle is, what it holds and how well it matches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.bundle.manifest import PYTORCH
from vitdeploy.proof.prove import proven_against
from vitdeploy.table import render


def summarize(bundle: Bundle, *, seconds: float) -> dict[str, Any]:
    """The summary of an export, as JSON values."""
    manifest, report = bundle.manifest, bundle.manifest.precision_report
    return {
        "bundle": str(bundle.path),
        "model": manifest.model.name,
        "weights": manifest.model.weights.kind,
        "against": manifest.against,
        "precision": manifest.precision,
        "target": manifest.target,
        "platform": manifest.platform,
        "input": str(manifest.inputs[0]),
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "nodes": {"captured": manifest.graph["nodes_captured"], "shipped": manifest.graph["nodes"]},
        "kept_fp32": len(report.get("kept_fp32", [])),
        "more_bytes": report.get("more_bytes"),
        "snr_db": report.get("snr_db"),
        "outputs": report.get("outputs", {}),
        "goals": report.get("goals", {}),
        "int8_macs": report.get("int8_macs"),
        "reverted": len(report.get("reverted", [])),
        **{key: report.get(key) for key in ("fp32_top1", "drop", "drop_low", "drop_high", "drop_images")},
        "missed": report.get("missed", []),
        "parity": manifest.parity,
        "hardest": _hardest(manifest),
        "seconds": round(seconds, 2),
    }


def _hardest(manifest: Manifest) -> dict[str, Any] | None:
    """Which reference image keeps least of PyTorch's outputs in any runtime; None where images were not compared."""
    kinds = manifest.reference.get("images", [])
    floats = {spec.name for spec in manifest.outputs if spec.dtype.startswith("float")}
    found = [
        {"image": kind, "snr_db": value}
        for report in manifest.parity
        for name, values in report["images"].get("torch", {}).items()
        if len(values) == len(kinds) and name in floats
        for kind, value in zip(kinds, values, strict=True)
    ]
    return min(found, key=lambda one: float(one["snr_db"]), default=None)


def table(summary: dict[str, Any]) -> str:
    """The summary as a table."""
    random = summary["weights"] == "random"
    rows = [
        ["bundle", _from_here(summary["bundle"])],
        ["model", summary["model"] + (" (SEEDED RANDOM WEIGHTS)" if random else "")],
        ["form", f"{summary['precision']} for {summary['target']}" + _board(summary["platform"])],
        ["size", f"{summary['bytes'] / 1e6:.1f} MB"],
        ["nodes", f"{summary['nodes']['captured']} captured, {summary['nodes']['shipped']} shipped"],
    ]
    if "uint8" in summary["input"]:
        rows.insert(3, ["input", f"{summary['input']}, normalised in the graph"])
    if summary["precision"] == "fp16":
        rows.append(
            ["half precision", f"{_decibel(summary['snr_db'])} against {summary['against']} FP32 (emulated rounding)"]
        )
        if summary["kept_fp32"]:
            cost = f"{summary['kept_fp32']} nodes, which move {summary['more_bytes']:.1%} more bytes than all in FP16"
            rows.append(["kept FP32", cost])
    if summary["precision"] == "int8":
        reverted = f", {summary['reverted']} layers reverted to float" if summary["reverted"] else ""
        rows.append(["in 8 bits", f"{summary['int8_macs']:.1%} of the multiply-accumulates{reverted}"])
        exact = not summary["missed"]
        rows.append(["INT8 against FP32", f"{_decibel(summary['snr_db'], exact)} on images not calibrated on"])
        for name, bound in summary["goals"].items() if len(summary["outputs"]) > 1 else ():
            rows.append([f"goal of {name}", f"{_decibel(summary['outputs'].get(name), exact)} of {bound:g} dB"])
        if summary["drop"] is not None:
            rows.append(["drop of top-1", _drop(summary)])
        rows += [["LOSS ACCEPTED", one["what"]] for one in summary["missed"]]
    for report in summary["parity"]:
        for output in report["outputs"]:
            rows.append(
                [
                    f"{output['name']} in {report['runtime']}",
                    f"max error {output['max_abs']:.2e} ({output['max_relative']:.1e} of the largest), "
                    f"{_decibel(output['snr_db'], output['max_abs'] == 0)}",
                ]
            )
        for entries in report["entries"]:
            equal = f"{entries['equal']:,} of {entries['entries']:,} entries are equal"
            rows.append([f"{entries['name']} in {report['runtime']}", equal])
        for chosen in report["selections"]:
            same = f"{chosen['same_rows']} of {chosen['rows']} samples choose the same {chosen['size']}"
            rows.append([f"{chosen['name']} in {report['runtime']}", same])
    if (hardest := summary["hardest"]) is not None:
        rows.append(["hardest image", f"{_decibel(hardest['snr_db'])} ({hardest['image']})"])
    if summary["against"] != PYTORCH:
        rows.append(["proof", proven_against(summary["against"])])
    rows.append(["time", f"{summary['seconds']:.1f} s"])
    return render(rows)


def _board(platform: str | None) -> str:
    return "" if platform is None else f", which passes the rules of {platform}"


def _drop(summary: dict[str, Any]) -> str:
    interval = f"95 % interval {summary['drop_low']:.2f} to {summary['drop_high']:.2f}"
    return (
        f"{summary['drop']:.2f} points ({interval}) on {summary['drop_images']:,} images; FP32 has "
        f"{summary['fp32_top1']:.2f} %"
    )


def _decibel(ratio: float | None, exact: bool = True) -> str:
    """A ratio in words; one that is infinite is null in JSON, whether there is no error or no signal."""
    return f"{ratio:.1f} dB" if ratio is not None else "no error" if exact else "no signal"


def _from_here(path: str) -> str:
    """The path as the user would type it: relative where it is below the current folder."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted meanwhile
        return path
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path

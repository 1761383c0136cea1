"""What a bisection found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import shell
from vitdeploy.proof.bisect import Divergence
from vitdeploy.proof.parity import OutputParity
from vitdeploy.table import render

_MOST_NODES = 8  # shown of a reproducer


@dataclass(frozen=True)
class Reproduced:
    """The reproducer that was written.

    Attributes:
        folder: Where `block.onnx`, `inputs.npz`, `expected.npz` and `reproduce.py` are.
        nodes: The nodes of the block, each with its operator.
        whole: Nothing smaller than the whole model is computed wrongly on its own.
        exit_code: That of `reproduce.py`, which was run in a process of its own; None where it did not end.
        said: What it printed last.
    """

    folder: Path
    nodes: tuple[str, ...]
    whole: bool
    exit_code: int | None
    said: str

    @property
    def reproduces(self) -> bool:
        """Whether `reproduce.py` shows the difference."""
        return self.exit_code == 1

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "folder": str(self.folder),
            "nodes": list(self.nodes),
            "whole": self.whole,
            "reproduces": self.reproduces,
            "exit_code": self.exit_code,
            "said": self.said,
        }

    def __str__(self) -> str:
        names = ", ".join(self.nodes[:_MOST_NODES])
        names += f" and {len(self.nodes) - _MOST_NODES} more" if len(self.nodes) > _MOST_NODES else ""
        if self.whole:
            lines = ["nothing smaller than the whole model is computed wrongly on its own"]
        else:
            lines = [f"wrong on its own: {names}"]
        if self.reproduces:
            lines.append(f"reproducer, which was run: python {shell(self.folder / 'reproduce.py')}")
        else:
            ended = "did not end" if self.exit_code is None else f"ended with exit code {self.exit_code}"
            lines.append(f"no reproducer: {self.folder / 'reproduce.py'} {ended} instead of 1: {self.said}")
        return "\n".join(lines)


@dataclass(frozen=True)
class BisectReport:
    """Where a runtime leaves what is trusted; `str()` is a text.

    Attributes:
        model: The bundle or file.
        runtime: What the runtime says of itself, and `precision`, that of the model.
        against: What is trusted, in words.
        inputs: What it was asked with, in words.
        judged: When a tensor differs, in words.
        outputs: The outputs on these inputs.
        divergence: The first block and tensor that differ; None where the outputs are right.
        node: What makes that tensor, with its operator; empty where it is no tensor of the file.
        difference: That tensor against the trusted one; None where the outputs are right, or it is no tensor of the
            file.
        notes: What else there is to know, one sentence each.
        reproducer: What was written; None where nothing was.
    """

    model: str
    runtime: Mapping[str, Any]
    against: str
    inputs: str
    judged: str
    outputs: tuple[OutputParity, ...]
    divergence: Divergence | None = None
    node: str = ""
    difference: OutputParity | None = None
    notes: tuple[str, ...] = ()
    reproducer: Reproduced | None = None

    @property
    def passed(self) -> bool:
        """Whether the outputs are the trusted ones."""
        return self.divergence is None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = self.divergence
        return {
            "passed": self.passed,
            "model": self.model,
            "runtime": dict(self.runtime),
            "against": self.against,
            "inputs": self.inputs,
            "judged": self.judged,
            "outputs": [_told(output) for output in self.outputs],
            "divergence": None if found is None else {**found.to_dict(), "node": self.node or None},
            "difference": None if self.difference is None else _told(self.difference),
            "notes": list(self.notes),
            "reproducer": None if self.reproducer is None else self.reproducer.to_dict(),
        }

    def __str__(self) -> str:
        ran, found = self.runtime, self.divergence
        lines = [
            f"{self.model}: {ran['precision']}, {self.inputs}",
            f"{ran['backend']} {ran['version']} on {ran['device']}, {ran['compute_precision']}, against {self.against}",
            f"a tensor differs {self.judged}",
            render([_row(output) for output in self.outputs], header=_HEADER, align="<" * len(_HEADER), rule=False),
        ]
        if found is None:
            lines.append(f"{ran['backend']} gives the numbers of {self.against}")
        else:
            lines += [f"first block: {found.block}", f"first tensor: {found.tensor}{self._how(found)}"]
            lines += [f"made by: {self.node}"] if self.node else []
        lines += self.notes
        if self.reproducer is not None:
            lines.append(str(self.reproducer))
        return "\n".join(lines)

    def _how(self, found: Divergence) -> str:
        if found.healed:
            return ", and the outputs are right as soon as it is an output: a fusion across it is wrong"
        if self.difference is None:
            return ""
        if self.difference.finite and self.difference.max_relative < float("inf"):
            return f", {self.difference.snr_db:.1f} dB, relative error {self.difference.max_relative:.1e}"
        why = self.difference.failures[0].partition(": ")[2] if self.difference.failures else "not finite"
        return f", {why}"


_HEADER = ("output", "max abs error", "relative", "SNR dB", "")


def _row(output: OutputParity) -> tuple[str, ...]:
    measures = (f"{output.max_abs:.3e}", f"{output.max_relative:.3e}", f"{output.snr_db:.1f}")
    return (output.name, *measures, "ok" if output.passed else "DIFFERS")


def _told(parity: OutputParity) -> dict[str, Any]:
    told = parity.to_dict()
    measured = ("name", "max_abs", "max_relative", "snr_db", "finite", "passed")
    return {**{key: told[key] for key in measured}, "failures": list(parity.failures)}

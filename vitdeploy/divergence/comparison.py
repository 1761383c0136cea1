"""One model in one runtime, against what is trusted: where they differ, and a folder that shows it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.divergence.report import BisectReport, Reproduced
from vitdeploy.divergence.reproducer import Search, script_of, write
from vitdeploy.divergence.runners import Computes, InRuntime, by_standard, rounding_db
from vitdeploy.divergence.source import Source
from vitdeploy.graph.names import block_of
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.progress import Progress
from vitdeploy.proof.agreement import agreement, bounds_for
from vitdeploy.proof.bisect import Divergence, closest_divergence, same_within, with_outputs
from vitdeploy.proof.parity import Bounds, OutputParity, compare_outputs
from vitdeploy.proof.prove import bounds_of, selections_of
from vitdeploy.runtime.backends import Backend
from vitdeploy.runtime.options import Options

Array = NDArray[Any]

STANDARD = "the file by the ONNX standard"

log = logging.getLogger(__name__)


class Comparison:
    """One model in one runtime, against what is trusted."""

    def __init__(self, source: Source, kind: type[Backend], other: type[Backend] | None, options: Options) -> None:
        self.source, self.kind, self.options = source, kind, options
        self.suspect = InRuntime(kind, options)
        self.trusted: Computes = by_standard if other is None else InRuntime(other, Options())
        self.against = STANDARD if other is None else other.name

    def report(self, folder: Path | None) -> BisectReport:
        """What is found, with a reproducer in `folder` where there is one to write."""
        log.info("running the model in %s …", self.kind.name)
        expected, found, calls = self._whole()
        self.bounds, judged = self._bounds(expected, calls[0])
        inputs = self._differing(expected, found, calls)
        notes = self._notes(expected)
        if inputs is None:
            return self._report(calls_inputs=calls[0], expected=expected, found=found, judged=judged, notes=notes)
        return self._report_difference(inputs, judged, notes, folder)

    def _whole(self) -> tuple[list[dict[str, Array]], list[dict[str, Array]], list[dict[str, Array]]]:
        """The outputs of both sides for each call that covers the samples, and the inputs of these."""
        source = self.source
        size = source.call if source.call and source.samples % source.call == 0 else source.samples
        calls = [source.rows(start, start + size) for start in range(0, source.samples, size)]
        expected, found = [], []
        with Progress(f"comparing {self.kind.name}", len(calls)) as progress:
            for inputs in calls:
                expected.append(self.trusted(source.model, inputs))
                found.append(self.suspect(source.model, inputs))
                progress.advance()
        return expected, found, calls

    def _bounds(self, expected: list[dict[str, Array]], inputs: Mapping[str, Array]) -> tuple[Bounds, str]:
        """The bounds of a tensor, and what they are in words."""
        precision, left = self.source.precision, math.inf
        if precision == "int8":
            left = rounding_db(self.source.model, inputs, expected[0])
        bounds = bounds_for(precision, self.suspect.precision, left)
        why = f"the bound of {precision.upper()}"
        if precision == "int8" and bounds == bounds_for("int8", None, left) != bounds_for("int8"):
            why += f", of whose outputs rounding in other places leaves {left:.1f} dB"
        elif self.suspect.precision is not None:
            why += f" computed in {self.suspect.precision}"
        if bounds.max_relative is not None:
            return bounds, f"from an error of {bounds.max_relative:.0e} of its largest value on, {why}"
        return bounds, f"below {bounds.min_snr_db:.1f} dB, {why}"

    def _differing(
        self, expected: list[dict[str, Array]], found: list[dict[str, Array]], calls: list[dict[str, Array]]
    ) -> dict[str, Array] | None:
        """The inputs of as few samples as show the difference; None where nothing differs."""
        wrong = next((at for at in range(len(calls)) if self._failing(expected[at], found[at])), None)
        if wrong is None:
            return None
        if len(calls) > 1 or self.source.samples == 1 or self.source.call is not None:
            return calls[wrong]
        first = self._worst(expected[0], found[0])
        for part in (self.source.rows(first, first + 1), self.source.rows(max(0, first - 1), max(0, first - 1) + 2)):
            if self._failing(self.trusted(self.source.model, part), self.suspect(self.source.model, part)):
                return part
        return calls[0]

    def _worst(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> int:
        """The sample whose outputs are furthest from the trusted ones."""
        count = self.source.samples
        errors = np.zeros(count)
        for name, array in expected.items():
            if array.ndim and len(array) == count and found[name].shape == array.shape:
                with np.errstate(invalid="ignore", over="ignore"):
                    error = np.abs(found[name].astype(np.float64) - array.astype(np.float64)).reshape(count, -1).max(1)
                errors = np.maximum(errors, np.nan_to_num(error, nan=np.inf, posinf=np.inf))
        return int(errors.argmax())

    def _failing(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> bool:
        return not all(output.passed for output in self._judged(expected, found))

    def _judged(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> tuple[OutputParity, ...]:
        return tuple(agreement(name, array, found[name], self.bounds) for name, array in expected.items())

    def _notes(self, expected: list[dict[str, Array]]) -> list[str]:
        """What is strange about the reference itself."""
        notes = [
            f"{name} holds NaN or Inf in {self.against} too"
            for name, array in expected[0].items()
            if array.dtype.kind == "f" and not np.isfinite(array).all()
        ]
        bundle = self.source.bundle
        if bundle is None or not self.source.carried:
            return notes
        manifest, outputs = bundle.manifest, bundle.reference().outputs
        given = {name: np.concatenate([np.atleast_1d(one[name]) for one in expected]) for name in outputs}
        parity = compare_outputs(
            outputs,
            given,
            runtime=self.against,
            precision=manifest.precision,
            bounds=bounds_of(manifest),
            selections=selections_of(manifest),
        )
        if not parity.passed:
            notes.append(
                f"{self.against} does not give the outputs of {manifest.against} that the bundle carries either, so it "
                f"is the bundle: {parity.failures[0]}"
            )
        return notes

    def _report_difference(
        self, inputs: dict[str, Array], judged: str, notes: list[str], folder: Path | None
    ) -> BisectReport:
        source = self.source
        expected, found = self.trusted(source.model, inputs), self.suspect(source.model, inputs)
        with Progress(f"looking for the block in {self.kind.name}", _questions(source.model)) as progress:

            def asked(model: bytes) -> dict[str, Array]:
                answer = self.suspect(model, inputs)
                progress.advance()
                return answer

            divergence = closest_divergence(
                source.model, lambda model: self.trusted(model, inputs), asked, same_within(self.bounds)
            )
        if divergence is None:
            notes.append("asked again it is right: it differs from call to call")
            divergence = Divergence(block_of(""), next(iter(expected)), healed=True, builds=self.suspect.calls)
            folder = None
        difference = self._difference(divergence, inputs, expected)
        report = self._report(calls_inputs=inputs, expected=[expected], found=[found], judged=judged, notes=notes)
        report = replace(
            report,
            divergence=replace(divergence, builds=self.suspect.calls),
            node=_producer(source.model, divergence.tensor),
            difference=difference,
        )
        return report if folder is None else replace(report, reproducer=self._reproduce(folder, divergence, inputs))

    def _difference(
        self, divergence: Divergence, inputs: Mapping[str, Array], expected: Mapping[str, Array]
    ) -> OutputParity | None:
        """How far the first tensor is from the trusted one."""
        if divergence.healed:
            return None
        marked = self.source.model
        if divergence.tensor not in expected:
            marked = with_outputs(marked, [divergence.tensor])
        trusted, found = self.trusted(marked, inputs), self.suspect(marked, inputs)
        return agreement(divergence.tensor, trusted[divergence.tensor], found[divergence.tensor], self.bounds)

    def _reproduce(self, folder: Path, divergence: Divergence, inputs: Mapping[str, Array]) -> Reproduced:
        with Progress("looking for the smallest part that is wrong alone", None) as progress:

            def asked(model: bytes, given: Mapping[str, Array]) -> dict[str, Array]:
                progress.advance()
                return self.suspect(model, given)

            found = Search(self.source.model, inputs, self.trusted, asked, self.bounds).smallest(divergence)
        facts = self.suspect.facts
        than = "the ONNX standard says" if self.trusted is by_standard else f"{self.against} does"
        title = f"{self.kind.name} computes block.onnx otherwise than {than}."
        seen = f"{self.kind.name} {facts['version']} on {facts['device']}"
        script = script_of(title, seen, self.kind.stand_alone(self.options), self.bounds)
        log.info("running reproduce.py in a process of its own …")
        code, said = write(folder, found, script)
        return Reproduced(folder, found.nodes, found.whole, code, said)

    def _report(
        self,
        *,
        calls_inputs: Mapping[str, Array],
        expected: list[dict[str, Array]],
        found: list[dict[str, Array]],
        judged: str,
        notes: list[str],
    ) -> BisectReport:
        failing = next((at for at in range(len(expected)) if self._failing(expected[at], found[at])), 0)
        shown = len(next(iter(calls_inputs.values()))) if self.source.samples > 1 else 1
        samples = f", {shown} of {self.source.samples} samples" if self.source.samples > 1 else ""
        runtime = {"precision": self.source.precision, "processor": read_cpu().kind, **self.suspect.facts}
        return BisectReport(
            self.source.where,
            runtime,
            self.against,
            f"{self.source.asked}{samples}",
            judged,
            self._judged(expected[failing], found[failing]),
            notes=tuple(notes),
        )


def _producer(model: bytes, tensor: str) -> str:
    """The node that makes a tensor, with its operator."""
    import onnx

    nodes = onnx.load_model_from_string(model).graph.node
    return next((f"{node.name} ({node.op_type})" for node in nodes if tensor in node.output), "")


def _questions(model: bytes) -> int:
    """About how often a runtime is asked for the place: the blocks are halved, and the nodes of one of them."""
    import onnx

    nodes = onnx.load_model_from_string(model).graph.node
    blocks = Counter(block_of(node.name) for node in nodes)
    return 2 + math.ceil(math.log2(len(blocks) + 1)) + math.ceil(math.log2(max(blocks.values()) + 1))

"""The baseline of a benchmark: one of its own candidates, or an earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vitdeploy.errors import UsageError
from vitdeploy.latency.measurement import Candidate, Measurement
from vitdeploy.machine.settings import differences
from vitdeploy.statistics import Ratio, paired_ratio, unpaired_ratio

SCHEMA_VERSION = 1

Some = TypeVar("Some", bound=Candidate)


@dataclass(frozen=True)
class Own:
    """The candidate of this run with the same batch, and with `bundle` and `runtime` where these are not None."""

    bundle: str | None
    runtime: str | None

    @property
    def name(self) -> str:
        """The candidate in words."""
        return " on ".join(part for part in (self.bundle, self.runtime) if part)

    def check(self, candidates: Sequence[Candidate], machine: Mapping[str, Any]) -> list[str]:
        """Nothing differs within a run; UsageError where the baseline is not among the candidates."""
        if not any(self._find(candidate, candidates) for candidate in candidates):
            raise UsageError(
                f"the baseline {self.name} is not among the candidates", fix="give --baseline one of the candidates"
            )
        return []

    def ratios(self, measurements: Sequence[Measurement]) -> list[Ratio | None]:
        """Paired round by round."""
        return [
            paired_ratio(one.image_seconds, base.image_seconds) if (base := self._find(one, measurements)) else None
            for one in measurements
        ]

    def _find(self, one: Candidate, others: Sequence[Some]) -> Some | None:
        wanted = (self.bundle or one.bundle, self.runtime or one.runtime, one.batch)
        return next((other for other in others if (other.bundle, other.runtime, other.batch) == wanted), None)


@dataclass(frozen=True)
class EarlierCandidate(Candidate):
    """One candidate of an earlier run: seconds per image in each of its rounds."""

    image_seconds: Sequence[float]


@dataclass(frozen=True)
class Earlier:
    """A run that was printed with `--json`; its candidates of the same runtime and batch are the baseline.

    Where it has several bundles, the name of the bundle's folder must be the same too.
    """

    name: str
    machine: Mapping[str, Any]
    candidates: Sequence[EarlierCandidate]

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """The run in `path`; UsageError where the file cannot be read, is not a benchmark or is of a newer schema."""
        try:
            document = json.loads(path.read_bytes())
        except OSError as error:
            raise UsageError(
                f"cannot read {path}", why=error.strerror, fix=f"check its permissions: ls -l {path}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise _not_a_run(path, f"it is not JSON: {error}") from None
        version = document.get("schema_version") if isinstance(document, dict) else None
        if type(version) is int and version > SCHEMA_VERSION:
            raise UsageError(
                f"{path} was written by a newer vitdeploy",
                why=f"its schema is {version}, and this installation reads up to {SCHEMA_VERSION}",
                fix="pip install --upgrade vitdeploy",
            )
        try:
            candidates = [_candidate(entry) for entry in document["candidates"]]
            return cls(str(path), dict(document["machine"]["settings"]), candidates)
        except (KeyError, TypeError, ValueError) as error:
            raise _not_a_run(path, f"{type(error).__name__}: {error}") from None

    def check(self, candidates: Sequence[Candidate], machine: Mapping[str, Any]) -> list[str]:
        """Machine and candidate settings that differ; UsageError where the file has none of the candidates."""
        pairs = [(one, base) for one in candidates if (base := self._find(one))]
        if not pairs:
            held = ", ".join(f"{one.bundle} on {one.runtime} with batch {one.batch}" for one in self.candidates)
            raise UsageError(
                f"{self.name} has no candidate to compare with this run",
                why=f"it has {held or 'no candidates'}",
                fix="give the same --runtime and --batch",
            )
        of_candidates = [
            f"{one.runtime}: {text}" for one, base in pairs for text in differences(base.settings, one.settings)
        ]
        return list(dict.fromkeys([*differences(self.machine, machine), *of_candidates]))

    def ratios(self, measurements: Sequence[Measurement]) -> list[Ratio | None]:
        """Ratios of the medians, since rounds of different runs are not paired."""
        return [
            unpaired_ratio(one.image_seconds, base.image_seconds) if (base := self._find(one)) else None
            for one in measurements
        ]

    def _find(self, one: Candidate) -> EarlierCandidate | None:
        single = len({other.bundle for other in self.candidates}) == 1
        return next(
            (
                other
                for other in self.candidates
                if (other.runtime, other.batch) == (one.runtime, one.batch)
                and (single or Path(other.bundle).name == Path(one.bundle).name)
            ),
            None,
        )


Baseline = Own | Earlier


def find_baseline(given: str | None, bundles: Sequence[str], runtimes: Sequence[str]) -> Baseline | None:
    """The baseline that `--baseline` names: a runtime, one of the bundles, or the file of an earlier run.

    Without it, the first bundle is the baseline of the others on each runtime; of one bundle, it is the first runtime.
    """
    if given is None:
        return Own(bundles[0], None) if len(bundles) > 1 else None
    if given in runtimes:
        return Own(None, given)
    same = [bundle for bundle in bundles if Path(bundle) == Path(given)]
    if same:
        return Own(same[0], None)
    if Path(given).is_file():
        return Earlier.read(Path(given))
    raise UsageError(
        f"there is no baseline {given!r}",
        why="it is not a runtime, not one of the bundles, and not a file",
        fix=f"--baseline {' or '.join([*bundles, *runtimes])}, or a file with the output of --json",
    )


def _candidate(entry: Mapping[str, Any]) -> EarlierCandidate:
    seconds = [float(value) for value in entry["image_seconds"]]
    if not seconds or not all(0 < value < float("inf") for value in seconds):
        raise ValueError("image_seconds should be positive numbers")
    return EarlierCandidate(
        str(entry["bundle"]), str(entry["runtime"]), int(entry["batch"]), dict(entry["settings"]), seconds
    )


def _not_a_run(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is not the JSON of a benchmark", why=why, fix="vitdeploy benchmark BUNDLE --json > FILE")

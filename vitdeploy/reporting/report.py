"""Writing what is known of bundles as one HTML file."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from vitdeploy import __version__
from vitdeploy.accuracy.runs import check_same_network
from vitdeploy.accuracy.validate import validate
from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.data import DataSource
from vitdeploy.errors import UsageError, shell
from vitdeploy.files import write_atomically
from vitdeploy.latency.benchmark import SECONDS
from vitdeploy.latency.benchmark import benchmark as measure
from vitdeploy.machine.settings import machine_settings
from vitdeploy.reporting import documents, sections
from vitdeploy.reporting.documents import Names
from vitdeploy.reporting.findings import Findings, Key
from vitdeploy.reporting.markup import Section
from vitdeploy.reporting.page import page, parts_of
from vitdeploy.reporting.pictures import with_pictures
from vitdeploy.reporting.svg import require_matplotlib

Found = TypeVar("Found")


@dataclass(frozen=True)
class HtmlReport:
    """What `report` wrote; `str()` is a few lines.

    Attributes:
        path: The file.
        bytes: Its length.
        verdicts: Of each bundle on each runtime `bundle`, `runtime`, `run` (its name) and `told` (one sentence).
        sections: Of each part of the page its name, and whether it has what it is about or says how to add it.
    """

    path: Path
    bytes: int
    verdicts: Sequence[Mapping[str, str]]
    sections: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "verdicts": [dict(one) for one in self.verdicts],
            "sections": [dict(one) for one in self.sections],
        }

    def __str__(self) -> str:
        lines = [f"{one['run']}: {one['told']}" for one in self.verdicts]
        absent = [one["title"] for one in self.sections if not one["present"]]
        if absent:
            lines.append(f"the page says how to add: {', '.join(absent)}")
        return "\n".join([*lines, f"wrote {self.path} ({self.bytes / 1e6:.2f} MB)"])


@checked_arguments
def report(
    bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
    output: str | Path,
    *,
    data: DataSource | None = None,
    runtime: str | Sequence[str] = "auto",
    baseline: Bundle | str | Path | None = None,
    samples: int | None = None,
    seconds: float | None = None,
    validation: str | Path | None = None,
    benchmark: str | Path | None = None,
    sensitivity: str | Path | None = None,
    optimize: str | Path | None = None,
    title: str | None = None,
    force: bool = False,
) -> HtmlReport:
    """Write one HTML file about bundles of one network, which needs no network, no script and no other file.

    Accuracy is measured where `data` is given, and latency where `data` or `seconds` is; either can come from an
    earlier run instead. What is neither measured nor given is left out, and the page says what to type for it. The
    manifests stay as they are.

    Args:
        bundle: One or several bundles, or their folders.
        output: The file.
        data: Images with what is true of them, see `vitdeploy.validate`.
        runtime: Names of runtimes, `auto`, or `all` for those that are installed and can run the bundle.
        baseline: An FP32 bundle of the same network to compare with, see `vitdeploy.validate`.
        samples: Number of images to take of `data` instead of all.
        seconds: How long to measure the latency; 10 where `data` is given.
        validation: What an earlier `vitdeploy validate --json` printed, instead of `data`.
        benchmark: What an earlier `vitdeploy benchmark --json` printed, instead of measuring.
        sensitivity: What `vitdeploy sensitivity --json` printed.
        optimize: What `vitdeploy optimize --json` printed.
        title: The heading of the page; the name of the network where it is not given.
        force: Whether to replace a file that is there.

    Returns:
        What was written: the verdicts and the parts of the page.

    Raises:
        UsageError: The file exists or cannot be written, a file of an earlier run is damaged, of another command or of
            other bundles, or options exclude each other.
        BundleError: A bundle is damaged or altered.
        InputError: DATA cannot be read, or has no labels.
        BackendError: A runtime refuses the model.
        MissingDependencyError: matplotlib is not installed.
    """
    path = Path(output)
    _check_output(path, force)
    _check_options(data, samples, seconds, validation, benchmark)
    given = [bundle] if isinstance(bundle, (Bundle, str, Path)) else list(bundle)
    if not given:
        raise UsageError("there is nothing to report on", fix="give at least one bundle")
    require_matplotlib()
    opened = [_opened(one) for one in given]
    base = None if baseline is None else _opened(baseline)
    known = {os.path.realpath(one.path): one for one in (*opened, *([base] if base else []))}
    bundles = list(known.values())
    check_same_network(bundles)
    names = Names([one.path for one in bundles])
    costs = _read(sensitivity, "sensitivity", documents.sensitivity_of)
    tried = _read(optimize, "optimize", documents.tried_of)
    speeds = _read(benchmark, "benchmark", lambda document: documents.latency_of(document, names))
    losses = _read(validation, "validate", lambda document: documents.accuracy_of(document, names))
    _check_about(benchmark, "benchmark", [one.key for one in speeds.candidates] if speeds else [], names)
    _check_about(validation, "validate", [run.key for run in losses.runs] if losses else [], names)
    if data is not None:
        # A page about bundles changes nothing in them.
        checked = validate(opened, data, runtime=runtime, baseline=base, samples=samples, record=False)
        losses = with_pictures(documents.accuracy_of(checked.to_dict(), names), checked)
    if benchmark is None and (data is not None or seconds is not None):
        seconds = SECONDS if seconds is None else seconds
        speeds = documents.latency_of(measure(bundles, runtime=runtime, seconds=seconds).to_dict(), names)
    typed, asked = [str(one.path) for one in opened], [runtime] if isinstance(runtime, str) else list(runtime)
    found = Findings(
        precisions={names.of(one.path): one.manifest.precision for one in bundles},
        sizes={names.of(one.path): one.manifest.files[MODEL].bytes for one in bundles},
        words=shlex.join(typed),
        accuracy=losses,
        latency=speeds,
        sensitivity=costs,
        tried=tried,
    )
    options = {
        "data": data if data is None or isinstance(data, (str, os.PathLike)) else "DATA",
        "runtime": None if asked == ["auto"] else ",".join(asked),
        "baseline": None if base is None else base.path,
        "samples": samples,
        "seconds": None if seconds is None else f"{seconds:g}",
        "validation": validation,
        "benchmark": benchmark,
        "sensitivity": sensitivity,
        "optimize": optimize,
        "title": title,
    }
    machine = speeds.machine if speeds else machine_settings()
    repeat = commands_of(typed, path, options)
    parts = parts_of(found, {names.of(one.path): one for one in bundles}, machine, repeat)
    told = f"vitdeploy {__version__}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    text = page(opened[0].manifest.model.name if title is None else title, told, sections.head(found), parts)
    return _written(path, text, found, parts)


def _opened(bundle: Bundle | str | Path) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def commands_of(bundles: Sequence[str], output: Path, options: Mapping[str, object]) -> list[str]:
    """What to type for the same page; before it the commands that print what it measured, where it did."""

    def line(command: str, *names: str) -> str:
        words = [word for name in names if options[name] is not None for word in (f"--{name}", str(options[name]))]
        return shlex.join(["vitdeploy", command, *bundles, *words])

    found = []
    if options["data"] is not None:
        found.append(line("validate", "data", "runtime", "baseline", "samples"))
    if options["seconds"] is not None:
        found.append(line("benchmark", "runtime", "seconds"))
    return [*found, f"{line('report', *options)} -o {shell(output)}"]


def _check_output(path: Path, force: bool) -> None:
    """UsageError, before anything is measured, where the file must not or cannot be written."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"{folder} is not a writable folder"
        raise UsageError(f"cannot write {path}", why=why, fix="give -o another path")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", fix="add --force to replace it, or give -o another path")


def _check_options(data: object, samples: object, seconds: float | None, validation: object, benchmark: object) -> None:
    """UsageError for options of which one says what another one denies."""
    for one, name, other, its_name in (
        (data, "--data", validation, "--validation"),
        (seconds, "--seconds", benchmark, "--benchmark"),
    ):
        if one is not None and other is not None:
            raise UsageError(
                f"{name} and {its_name} exclude each other",
                why="one measures, and the other takes what an earlier run measured",
                fix=f"leave {name} or {its_name} out",
            )
    if samples is not None and data is None:
        raise UsageError("--samples is a number of images of --data, which was not given", fix="add --data DATA")
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"seconds is {seconds:g}, not a positive number", fix="--seconds 10")


def _read(path: str | Path | None, printer: str, reader: Callable[[Any], Found]) -> Found | None:
    """What the output of an earlier command says, None where there is none."""
    if path is None:
        return None
    document = documents.read_json(Path(path), printer)
    try:
        return reader(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise documents.misread(Path(path), printer, error) from None


def _check_about(path: str | Path | None, printer: str, keys: Sequence[Key], names: Names) -> None:
    """UsageError where an earlier run is of none of the bundles."""
    if path is not None and not any(key.bundle in names for key in keys):
        held = ", ".join(dict.fromkeys(key.bundle for key in keys)) or "no bundle"
        raise UsageError(
            f"{path} is about other bundles",
            why=f"it is about {held}",
            fix=f"give what {printer} prints with --json of the bundles of this report",
        )


def _written(path: Path, text: str, found: Findings, parts: Sequence[Section]) -> HtmlReport:
    # A name may hold half of a character pair, which no file can.
    content = text.encode("utf-8", errors="replace")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"cannot write {path}", why=error.strerror, fix="give -o another path") from error
    return HtmlReport(
        path,
        len(content),
        [
            {**key._asdict(), "run": sections.title_of(found, key), "told": told}
            for key, told in sections.verdicts(found)
        ],
        [{"name": part.ident, "title": part.title, "present": part.present} for part in parts],
    )

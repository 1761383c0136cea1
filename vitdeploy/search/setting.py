"""What all plans of a search have in common, and the folder in which their bundles lie."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.bundle import Bundle
from vitdeploy.data import DataSource
from vitdeploy.errors import UsageError
from vitdeploy.quantize.options import AUTO, Int8Options
from vitdeploy.search.plan import INT8, Plan
from vitdeploy.search.study import JOURNAL

if TYPE_CHECKING:
    from vitdeploy.exporter.preparation import Prepared
    from vitdeploy.quantize.calibrate import Known

log = logging.getLogger(__name__)


class Setting(NamedTuple):
    """What does not change from plan to plan."""

    source: Any
    data: DataSource
    output: Path
    runtime: str
    target: str
    threads: int | None
    options: Int8Options
    images: int
    network: Mapping[str, Any]

    def export(
        self, plan: Plan, prepared: Prepared | None, floats: Sequence[str] = (), known: Known | None = None
    ) -> Bundle:
        """The bundle of a plan; one of an earlier run is taken as it is.

        prepared  the network, captured and optimized for the target, with the samples that calibrate and judge
        floats    layers that stay in float though the plan is INT8
        known     what was calibrated for the plan
        """
        path = self.output / folder_of(plan)
        if not path.exists():
            log.info("exporting %s …", path)
            self._export(plan, prepared, floats, path, known)
        return Bundle.open(path)

    def _export(
        self, plan: Plan, prepared: Prepared | None, floats: Sequence[str], path: Path, known: Known | None
    ) -> None:
        from vitdeploy.exporter.pipeline import run
        from vitdeploy.exporter.request import ExportRequest

        more: dict[str, Any] = {}
        if plan.precision == INT8:
            patterns = tuple(_pattern(node) for node in floats)
            options = Int8Options(
                samples=self.options.samples,
                seed=self.options.seed,
                method=plan.method,
                ignored_scope=patterns,
                accept_loss=True,  # what is lost is measured, and the front shows it
            )
            more = {"calibration": self.data, "int8": options, "known": known}
        asked = {"precision": plan.precision, "target": plan.target, **self.network, **more}
        # A network may move its values into the range of FP16 before it is captured.
        run(ExportRequest(self.source, path, **asked), prepared if plan.precision != "fp16" else None)


def folder_of(plan: Plan) -> str:
    """The name of the bundle of a plan."""
    words = [plan.precision] + ([plan.method] if plan.precision == INT8 and plan.method != AUTO else [])
    if plan.floats:
        words += [f"{len(plan.floats)}-in-float", hashlib.sha256("\n".join(plan.floats).encode()).hexdigest()[:8]]
    return "-".join(words)


def graph_of(plan: Plan) -> Plan:
    """The plan without what a session or an engine alone decides: the bundle is the same."""
    return replace(plan, compute_precision=None, build=None)


@contextlib.contextmanager
def folder_of_search(folder: Path, *, force: bool) -> Iterator[None]:
    """The folder, which is gone again where nothing was written.

    force  begin anew: what an earlier search left is gone once the new one has begun, and stays where it cannot begin

    Raises UsageError for a folder that is a file, cannot be made, or with `force` is not that of a search.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", fix="-o with a folder")
    old = folder.with_name(f".{folder.name}.replaced") if force and folder.exists() else None
    try:
        if old is not None:
            _check_ours(folder)
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}", why=error.strerror or str(error), fix="-o with a folder") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only one that is empty
        if old is not None and folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old is not None:
            old.rename(folder)


def _check_ours(folder: Path) -> None:
    """UsageError for a folder that --force must not empty, since it is not that of a search."""
    if any(folder.iterdir()) and not (folder / JOURNAL).is_file():
        raise UsageError(f"{folder} is not the folder of a search", why=f"it has no {JOURNAL}", fix="another -o")


def _pattern(node: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in node)

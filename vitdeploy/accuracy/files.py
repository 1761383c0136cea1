"""An accuracy check as a folder of files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically


def check_folder(folder: Path) -> None:
    """Raises UsageError, before anything is computed, where `folder` cannot be created."""
    taken = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if taken is not None:
        raise UsageError(
            f"cannot write the report to {folder}", why=f"{taken} is a file", fix="give --report another folder"
        )


def write_report(report: AccuracyReport, folder: Path) -> None:
    """Writes into `folder`, which is created where it is missing; each file is written atomically.

    report.json, report.txt     the report
    ARRAYS.npz                  what the task keeps of all runs, the baseline first; of classification `logits.npz` with
                                `images` (names), `labels` (class numbers), `classes`, `runs` (names), and `logits`,
                                float32 [1 + runs, images, classes]
    N-RUN-confusion.svg         of classification, counts of run N and their change from the baseline
    N-RUN-flipped.png           of classification, the images whose best class changed
    """
    kept = io.BytesIO()
    name_of_arrays, arrays = report.images.arrays([report.baseline, *(run.answers for run in report.runs)])
    np.savez(kept, **arrays)  # type: ignore[arg-type]
    files: dict[str, bytes] = {
        "report.json": (json.dumps(report.to_dict(), indent=1) + "\n").encode(),
        "report.txt": f"{report}\n".encode(),
        name_of_arrays: kept.getvalue(),
    }
    for name, plot in report.images.plots(report.runs).items():
        if isinstance(plot, str):
            files[name] = plot.encode()
        else:
            png = io.BytesIO()
            plot.save(png, "PNG")
            files[name] = png.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise UsageError(
            f"cannot write the report to {folder}", why=error.strerror or str(error), fix="give --report another folder"
        ) from error

"""An accuracy check as a folder of files."""

from __future__ import annotations

import io
import json
import secrets
from pathlib import Path

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.validation.accuracy_plots import plots
from vitdeploy.validation.accuracy_report import AccuracyReport


def check_folder(folder: Path) -> None:
    """UsageError for a place that cannot become the folder of a report, before anything is computed."""
    taken = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if taken is not None:
        raise UsageError(f"cannot write the report to {folder}", why=f"{taken} is a file", fix="--report with a folder")


def write_report(report: AccuracyReport, folder: Path) -> None:
    """Writes into `folder`, which is made where it is missing; each file is there wholly or not at all.

    report.json, report.txt     the report
    logits.npz                  `pictures` (names), `labels` (class numbers), `classes`, `runs` (names), and `logits`,
                                float32 [1 + runs, pictures, classes], the baseline first
    N-RUN-confusion.svg         counts of run N and their change from the baseline
    N-RUN-flipped.png           the pictures whose best class changed
    """
    arrays = io.BytesIO()
    answers = [report.baseline, *(run.answers for run in report.runs)]
    pictures = report.pictures
    np.savez(
        arrays,
        pictures=np.array([pictures.dataset.names[i] for i in pictures.indices]),
        labels=pictures.targets,
        classes=np.array(pictures.classes),
        runs=np.array([one.name for one in answers]),
        logits=np.stack([one.logits for one in answers]),
    )
    files: dict[str, bytes] = {
        "report.json": (json.dumps(report.to_dict(), indent=1) + "\n").encode(),
        "report.txt": f"{report}\n".encode(),
        "logits.npz": arrays.getvalue(),
    }
    for name, plot in plots(report.runs, pictures).items():
        if isinstance(plot, str):
            files[name] = plot.encode()
        else:
            png = io.BytesIO()
            plot.save(png, "PNG")
            files[name] = png.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(folder / name, content)
    except OSError as error:
        raise UsageError(
            f"cannot write the report to {folder}", why=error.strerror or str(error), fix="--report with another folder"
        ) from error


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

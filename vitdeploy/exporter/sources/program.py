"""`model.pt2`: a program that `torch.export.save` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vitdeploy.errors import ModelError

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_program(path: Path) -> Any:
    """The program in the file, an `ExportedProgram`; ModelError for a file that holds none that this torch reads."""
    # Its weights are pickled, and are only read as weights.
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        return torch.export.load(str(path))
    except Exception as error:  # a damaged or foreign archive makes it raise anything
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{path} cannot be read by torch {torch.__version__}",
            why=first,
            fix="write it with this version: torch.export.save(torch.export.export(model, (images,)), 'model.pt2')",
        ) from error
    finally:
        if before is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = before

"""Where there is a deep learning accelerator (DLA): boards without, and versions of TensorRT that build for none."""

from __future__ import annotations

from collections.abc import Mapping

Version = tuple[int, ...]

# Boards without, by what their names contain once dashes are spaces; how many cores another one has, the builder tells.
WITHOUT: Mapping[str, str] = {
    "orin nano": "Jetson Orin Nano has no DLA",
    "thor": "TensorRT 11.4.1 serves the DLA of AGX Orin only (Jetson migration page)",
}

# The first version without, the first with it again.
GAP: tuple[Version, Version] = (10, 8), (11, 4, 1)


def missing_dla(version: Version, board: str | None) -> str | None:
    """Why TensorRT `version` cannot build for an accelerator on `board`; None where it may.

    `board` is the name in the device tree or that of a platform of `vitdeploy check`, None for any other machine.
    """
    if board is None:
        return "only Jetson modules have a DLA"
    name = board.lower().replace("-", " ")
    lacking = next((reason for part, reason in WITHOUT.items() if part in name), None)
    if lacking:
        return lacking
    if GAP[0] <= version < GAP[1]:
        return f"TensorRT {'.'.join(map(str, version))} has none: 10.7 was the last, 11.4.1 is the next"
    return None

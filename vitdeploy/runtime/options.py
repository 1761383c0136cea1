"""What a user may ask of any runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vitdeploy.argument_types import check_fields
from vitdeploy.errors import UsageError

UNTRUSTED = "VITDEPLOY_UNTRUSTED"
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Options:
    """What a user may ask of any backend; one that cannot follow an option refuses it.

    threads       threads of computation; None leaves it to the backend
    num_requests  calls that are computed at once, see `Session.map`; None leaves it to the backend
    compute_precision  `fp32`, `bf16` or `fp16`: in which floating-point operations are computed, where a backend lets
                  one choose; None means the most exact one
    device        `CPU`, `GPU` or `NPU`, or a name of the backend's own such as `GPU.1` or `CUDAExecutionProvider`; None
                  means the one the backend was made for
    cache         folder in which compiled models wait for the next load; it must be trusted like a program
    checkpoint    file with the weights of the bundle, for the backend `torch`
    build         which engine, for `tensorrt` and its kin: the options that `vitdeploy build` made it with; None means
                  the one that was built last
    untrusted     run it in a process with a limit of time and memory, see `isolated`; None means what the environment
                  variable VITDEPLOY_UNTRUSTED says
    """

    threads: int | None = None
    num_requests: int | None = None
    compute_precision: str | None = None
    device: str | None = None
    cache: str | Path | None = None
    checkpoint: str | Path | None = None
    build: Mapping[str, Any] | Any | None = None
    untrusted: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, flag in (("threads", "--threads"), ("num_requests", "--num-requests")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"invalid {name}: {value}", why="at least 1 is needed", fix=f"{flag} 1")
        if self.compute_precision not in (None, *PRECISIONS):
            raise UsageError(
                f"there is no compute precision {self.compute_precision!r}",
                fix=f"--compute-precision {' or '.join(PRECISIONS)}",
            )

    def given(self) -> dict[str, Any]:
        """The options that were asked for, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def is_untrusted(given: bool | None) -> bool:
    """Whether a bundle is a stranger's: as `given`, or where that is None as VITDEPLOY_UNTRUSTED says.

    Raises UsageError where the variable is neither 0 nor 1.
    """
    if given is not None:
        return given
    text = os.environ.get(UNTRUSTED, "")
    if text not in ("", "0", "1"):
        raise UsageError(f"invalid {UNTRUSTED}: {text!r}", fix=f"{UNTRUSTED}=1, or 0")
    return text == "1"

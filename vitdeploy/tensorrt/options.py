"""How an engine is built, beyond the model itself; what of it makes another engine is part of the cache's key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vitdeploy.argument_types import check_fields
from vitdeploy.errors import UsageError
from vitdeploy.tensorrt.rtx.requirements import read_sm

# Images a call takes where the batch is free: min, opt (tuned for), max.
BATCH_PROFILE = (1, 8, 32)

# What may be tried, in this order, where an engine does not reproduce the reference: see workarounds.py.
WORKAROUNDS = ("defuse", "fp32", "bf16")

# Of the builder: with a higher one it tries more kernels, and takes longer.
LEVELS = range(6)

# All of INT8, and none.
LEAST_BUILDS = 2

_UNITS = {"": 2**20, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class BuildOptions:
    """What one may ask of a build.

    Attributes:
        workspace: Bytes of scratch memory that kernels may take; None leaves it to TensorRT.
        profile: Images a call takes where the batch is free: min, opt (what kernels are tuned for), max.
        dla: Core of the deep learning accelerator; what it cannot compute goes to the GPU.
        tf32: Whether FP32 products may be computed with the 10 bits of TF32.
        optimization_level: How long TensorRT looks for faster kernels, 0 to 5; None means its default, 3.
        workarounds: What may be tried where the outputs are not the reference's, of WORKAROUNDS.
        timing_cache: File of kernel timings, read and brought up to date; None means the one of this device.
        sm: Compute capabilities, ten times each, that tensorrt_rtx builds for; empty means its default.
        time_limit: Seconds that the builder of tensorrt_rtx may take; None means its default.
        int8_if_faster: Whether Q/DQ stays only where it was measured to be faster on this device.
        max_builds: Engines that this may build; None means its default.
    """

    workspace: int | None = None
    profile: tuple[int, int, int] = BATCH_PROFILE
    dla: int | None = None
    tf32: bool = False
    optimization_level: int | None = None
    workarounds: tuple[str, ...] = WORKAROUNDS
    timing_cache: Path | None = None
    sm: tuple[int, ...] = ()
    time_limit: float | None = None
    int8_if_faster: bool = False
    max_builds: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.profile[0] <= self.profile[1] <= self.profile[2]:
            raise _invalid_profile(",".join(map(str, self.profile)))
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"invalid workspace {self.workspace}: at least one byte is needed", fix="--workspace 1G")
        if self.dla is not None and self.dla < 0:
            raise UsageError(f"there is no DLA core {self.dla}", fix="--dla 0")
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise UsageError(
                f"there is no optimization level {self.optimization_level}",
                why=f"TensorRT has {LEVELS[0]} to {LEVELS[-1]}, and takes 3",
                fix=f"--optimization-level {LEVELS[-1]}",
            )
        if self.time_limit is not None and not self.time_limit > 0:
            raise UsageError(f"a time limit of {self.time_limit:g} s leaves no time", fix="--time-limit 600")
        if self.max_builds is not None and not self.int8_if_faster:
            raise UsageError(
                "one engine is built, or one for each workaround",
                why="max_builds bounds the search for the layers that are faster in INT8",
                fix="--int8-if-faster, or leave --max-builds out",
            )
        if self.max_builds is not None and self.max_builds < LEAST_BUILDS:
            raise UsageError(
                f"{self.max_builds} builds decide nothing",
                why="all of INT8 and none of it are an engine each",
                fix="--max-builds 8, and at least 2",
            )
        for workaround in self.workarounds:
            if workaround not in WORKAROUNDS:
                raise UsageError(
                    f"there is no workaround {workaround!r}", fix=f"--workaround {','.join(WORKAROUNDS)}, or none"
                )

    @classmethod
    def of(cls, given: BuildOptions | Mapping[str, Any] | None) -> BuildOptions:
        """Options from a mapping of the same names.

        Args:
            given: The mapping, whose values may be texts as on the command line; options are returned as they are.

        Returns:
            The options.

        Raises:
            UsageError: An option does not exist, or its value makes no sense.
        """
        if given is None or isinstance(given, BuildOptions):
            return given or cls()
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise UsageError(f"there is no build option {name!r}", fix=", ".join(sorted(known)))
        values = {name: value for name, value in given.items() if value is not None}
        for name, read in (
            ("workspace", read_size),
            ("profile", read_profile),
            ("workarounds", read_workarounds),
            ("sm", read_capabilities),
            ("timing_cache", Path),
        ):
            if name in values:
                with contextlib.suppress(TypeError, AttributeError, OverflowError):  # the fields refuse what is no text
                    values[name] = read(values[name])
        return cls(**values)

    def identity(self) -> dict[str, Any]:
        """What makes another engine, as JSON values: not what is tried where one is wrong, nor how long that takes."""
        return {
            "workspace": self.workspace,
            "profile": list(self.profile),
            "dla": self.dla,
            "tf32": self.tf32,
            **({"optimization_level": self.optimization_level} if self.optimization_level is not None else {}),
            **({"sm": list(self.sm)} if self.sm else {}),
            **({"int8_if_faster": True} if self.int8_if_faster else {}),
        }


def read_size(text: str | int) -> int:
    """Bytes for `512M`, `2G`, or a number of MiB as trtexec counts; an int is bytes already."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"(\d+)([MG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"invalid size {text!r}", fix="--workspace 512M, 2G, or a number of MiB")
    return int(found[1]) * _UNITS[found[2].upper()]


def read_profile(text: str | Sequence[int]) -> tuple[int, int, int]:
    """(1, 8, 32) for `1,8,32`; one number means exactly so many."""
    parts = text.split(",") if isinstance(text, str) else text
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 3):
        raise _invalid_profile(text)
    return (numbers[0], numbers[len(numbers) // 2], numbers[-1])


def read_capabilities(given: str | int | Sequence[str | int]) -> tuple[int, ...]:
    """(86, 89) for `8.9,86`, sorted and each once; a UsageError lists the compute capabilities there are."""
    parts = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given
    return tuple(sorted({read_sm(part) for part in parts}))


def read_workarounds(text: str | Sequence[str]) -> tuple[str, ...]:
    """The workarounds that `auto`, `none` or a list with commas names, in the order in which they are tried."""
    if isinstance(text, str):
        text = {"auto": WORKAROUNDS, "none": ()}.get(text, [part.strip() for part in text.split(",")])
    unknown = [name for name in text if name not in WORKAROUNDS]
    return tuple(name for name in WORKAROUNDS if name in text) + tuple(unknown)


def _invalid_profile(text: object) -> UsageError:
    return UsageError(f"invalid profile {text!r}: expected MIN,OPT,MAX", fix="--profile 1,8,32")

"""Where an engine is built, as data: TensorRT versions, and the Jetsons with what their JetPack brings.

Every row names where it is from; `owner/repository#number` is an issue or pull request on GitHub. `migration page` is
"Migrating TensorRT from 10.x to 11.x on Jetson/JetPack" in the TensorRT 11.4.1 documentation
(docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from vitdeploy.errors import UsageError
from vitdeploy.platforms.versions import Version, dotted
from vitdeploy.targets import ALIASES as TARGET_ALIASES
from vitdeploy.targets import Target, find_target, list_targets


@dataclass(frozen=True)
class Platform:
    """Where an engine is built: a range of TensorRT versions, and for a board what comes with its JetPack.

    oldest, newest  TensorRT versions, both included; what one of them cannot do counts as missing
    sm              compute capability of the GPU, None where the platform leaves it open
    jetpack, cuda, python  what the board's system image brings; empty where the platform leaves it open
    product  another product than TensorRT, which is judged by the rules of these versions
    """

    name: str
    oldest: Version
    newest: Version
    sm: Version | None = None
    jetpack: str = ""
    cuda: str = ""
    python: str = ""
    source: str = ""
    product: str = ""

    @property
    def minors(self) -> tuple[Version, ...]:
        """Every version of the range to its second place; the ends as they are stated."""
        between = ((self.oldest[0], minor) for minor in range(self.oldest[1] + 1, self.newest[1]))
        return tuple(dict.fromkeys((self.oldest, *between, self.newest)))

    @property
    def versions(self) -> str:
        """The range in words."""
        old, new = dotted(self.oldest), dotted(self.newest)
        range_ = f"TensorRT {old}" if old == new else f"TensorRT {old} to {new}"
        return f"{self.product}, by the rules of {range_}" if self.product else range_


@dataclass(frozen=True)
class JetPack:
    """One generation of system images, oldest first in `JETPACKS`.

    separate  this TensorRT is not the one that JetPack installs, but one that users install themselves
    """

    key: str
    releases: str
    tensorrt: Version
    cuda: str
    python: str
    boards: tuple[str, ...]
    source: str
    separate: bool = False


BOARDS: Mapping[str, Version] = {
    "jetson-orin-nano": (8, 7),
    "jetson-orin-nx": (8, 7),
    "jetson-agx-orin": (8, 7),
    "jetson-thor": (11, 0),
}
_ORIN = tuple(name for name in BOARDS if "orin" in name)

JETPACKS = (
    JetPack("jp5", "5.1.x", (8, 5, 2), "11.4", "3.8", _ORIN, "jetson-containers jetson_containers/l4t_version.py"),
    JetPack(
        "jp6.0",
        "6.0",
        (8, 6, 2),
        "12.2",
        "3.10",
        _ORIN,
        "jetson-containers packages/cuda/tensorrt/config.py: 8.6.2-cuda-12.2",
    ),
    JetPack(
        "jp6",
        "6.1, 6.2, 6.2.1, 6.2.2",
        (10, 3),
        "12.6",
        "3.10",
        _ORIN,
        "jetson-containers packages/cuda/tensorrt/config.py; onnxsim/onnxsim#1742 (L4T 36.4.7)",
    ),
    JetPack(
        "jp7",
        "7.0, 7.1",
        (10, 13),
        "13.0",
        "3.12",
        ("jetson-thor",),
        "TensorRT-Edge-LLM support matrix 0.11.1; roboflow/inference#1935",
    ),
    JetPack(
        "jp7.2",
        "7.2, 7.2.1",
        (10, 16, 2),
        "13.2",
        "3.12",
        tuple(BOARDS),
        "roboflow/inference#2531 (10.16.2.10, read from a device); OE4T/meta-tegra#2224; "
        "Jonah-May-OSS/wyoming-whisper-trt#1038 (Orin Nano)",
    ),
    JetPack(
        "jp7.2.2-trt11",
        "7.2.2 and newer",
        (11, 4, 1),
        "13.2",
        "3.12",
        ("jetson-agx-orin", "jetson-thor"),
        "migration page: the SBSA build of TensorRT, on Jetson AGX Orin and Jetson Thor",
        separate=True,
    ),
)


def _platforms() -> Iterator[Platform]:
    yield Platform("tensorrt8", (8, 5, 2), (8, 6, 2), source="vitdeploy export MODEL --target tensorrt8")
    yield Platform("tensorrt10", (10, 3), (10, 16, 2), source="vitdeploy export MODEL --target tensorrt10")
    yield Platform("tensorrt11", (11, 0), (11, 4, 1), source="vitdeploy export MODEL --target tensorrt11")
    # Of the line of TensorRT 10 and 11, with a numbering of its own: it is judged as the newest whose tables are here.
    yield Platform(
        "tensorrt_rtx",
        (10, 16),
        (10, 16),
        source="vitdeploy export MODEL --target tensorrt_rtx; `vitdeploy check BUNDLE --compile` asks it itself",
        product="TensorRT for RTX 1.7",
    )
    for pack in JETPACKS:
        for board in pack.boards:
            yield Platform(
                f"{board}-{pack.key}",
                pack.tensorrt,
                pack.tensorrt,
                BOARDS[board],
                pack.releases,
                pack.cuda,
                pack.python,
                pack.source,
            )


PLATFORMS: Mapping[str, Platform] = {row.name: row for row in _platforms()}
_EXACT = re.compile(r"tensorrt((?:8|10|11)(?:\.\d+){1,2})")


def find_platform(name: str) -> Platform:
    """The platform of that name: one of `PLATFORMS`, a board of `BOARDS` or one version such as `tensorrt10.7`.

    A board alone stands for the newest JetPack that it takes, with the TensorRT that this JetPack installs. Raises
    UsageError for any other name, with those that are closest to it.
    """
    if name in PLATFORMS:
        return PLATFORMS[name]
    if name in BOARDS:
        newest = next(pack for pack in reversed(JETPACKS) if name in pack.boards and not pack.separate)
        return PLATFORMS[f"{name}-{newest.key}"]
    exact = _EXACT.fullmatch(name)
    if exact:
        version = tuple(map(int, exact[1].split(".")))
        return Platform(name, version, version, source="asked for by version")
    close = closest_platforms(name)
    raise UsageError(
        f"there is no platform called {name!r}",
        why=_closest(close),
        fix=f"--target {close[0]}",
    )


def closest_platforms(name: str) -> list[str]:
    """Up to five names for one that does not exist, best first: those of the board that it begins with, if it does."""
    board = next((board for board in BOARDS if name.startswith(board)), None)
    if board is not None:
        names = [platform for platform in PLATFORMS if platform.startswith(board)]
        return sorted(names, key=lambda known: known not in get_close_matches(name, names, n=1, cutoff=0.0))
    every = [*BOARDS, *PLATFORMS]
    parts = [known for known in every if len(name) > 2 and name.lower() in known]
    return (parts or get_close_matches(name.lower(), every, n=3, cutoff=0.5) or ["tensorrt10", *BOARDS])[:5]


def export_target(name: str) -> tuple[Target, Platform | None]:
    """What `vitdeploy export --target` stands for: the target, and the platform whose rules a bundle has to pass.

    name  a target, which has no platform of its own, or any name that `find_platform` takes: a board, or one version
          of TensorRT. `jetson-orin-nano-jp6` gives `tensorrt10` and that board.

    Raises UsageError for any other name, with what was probably meant.
    """
    if name in (*list_targets(), *TARGET_ALIASES):
        return find_target(name), None
    try:
        platform = find_platform(name)
    except UsageError:
        raise _unknown_target(name) from None
    return find_target(platform.name if platform.product else f"tensorrt{platform.oldest[0]}"), platform


def _unknown_target(name: str) -> UsageError:
    what = f"there is no target called {name!r}"
    if name.lower() in ("tensorrt", "trt"):
        generations = (
            "tensorrt8 for JetPack 5 and 6.0, tensorrt10 for 6.1 to 7.2.1, tensorrt11 where you installed that"
        )
        return UsageError(what, why=generations, fix="--target tensorrt10")
    close = [*get_close_matches(name.lower(), list_targets(), n=1, cutoff=0.7), *closest_platforms(name)]
    return UsageError(what, why=_closest(close), fix=f"--target {close[0]}")


def _closest(names: Sequence[str]) -> str:
    return f"the closest names are {', '.join(dict.fromkeys(names))}; `vitdeploy targets` lists them all"


# Boards without a deep learning accelerator (DLA), by what their names contain once dashes are spaces; how many cores
# another one has, the builder tells.
WITHOUT_DLA: Mapping[str, str] = {
    "orin nano": "Jetson Orin Nano has no DLA",
    "thor": "Jetson Thor has no DLA that TensorRT serves: it serves that of AGX Orin only (migration page)",
}
# The first version of TensorRT that builds for none, the first that does again: "Working with DLA" of 11.4.1.
DLA_GAP: tuple[Version, Version] = (10, 8), (11, 4, 1)
DLA_AGAIN = "TensorRT 11.4.1 on AGX Orin with JetPack 7.2.2"


def missing_dla(version: Version, board: str | None) -> str | None:
    """Why TensorRT `version` cannot build for an accelerator on `board`; None where it may.

    `board` is the name in the device tree or that of a platform of `vitdeploy check`, None for any other machine.
    """
    if board is None:
        return "only Jetson modules have a DLA"
    name = board.lower().replace("-", " ")
    lacking = next((reason for part, reason in WITHOUT_DLA.items() if part in name), None)
    if lacking:
        return lacking
    if DLA_GAP[0] <= version < DLA_GAP[1]:
        return f"TensorRT {dotted(version)} has none: up to 10.7 (JetPack 6), and again {DLA_AGAIN}"
    if version >= DLA_GAP[1] and "agx orin" not in name:
        return f"TensorRT {dotted(version)} serves that of AGX Orin only (migration page)"
    return None

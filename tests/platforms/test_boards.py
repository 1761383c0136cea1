"""Names of boards: their JetPack and TensorRT, the target of their exports, and what a wrong name is told."""

from __future__ import annotations

import pytest

from tests.rows import TARGETS
from vitdeploy.errors import UsageError
from vitdeploy.platforms.boards import BOARDS, JETPACKS, PLATFORMS, export_target, find_platform, missing_dla


@pytest.mark.parametrize(
    ("name", "tensorrt", "jetpack"),
    [
        ("jetson-orin-nano-jp7.2", (10, 16, 2), "7.2, 7.2.1"),
        ("jetson-orin-nx-jp7.2", (10, 16, 2), "7.2, 7.2.1"),
        ("jetson-thor-jp7.2", (10, 16, 2), "7.2, 7.2.1"),
        ("jetson-agx-orin-jp7.2.2-trt11", (11, 4, 1), "7.2.2 and newer"),
        ("jetson-orin-nano-jp6", (10, 3), "6.1, 6.2, 6.2.1, 6.2.2"),
    ],
)
def test_a_board_with_its_jetpack_has_the_tensorrt_of_it(name: str, tensorrt: tuple[int, ...], jetpack: str) -> None:
    platform = find_platform(name)
    assert (platform.oldest, platform.newest, platform.jetpack) == (tensorrt, tensorrt, jetpack)


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_alone_is_its_newest_jetpack_with_what_that_installs(board: str) -> None:
    assert find_platform(board) is PLATFORMS[f"{board}-jp7.2"]


def test_tensorrt_11_is_named_for_the_boards_that_nvidia_names_only() -> None:
    (row,) = [pack for pack in JETPACKS if pack.separate]
    assert row.boards == ("jetson-agx-orin", "jetson-thor")
    with pytest.raises(UsageError):
        find_platform("jetson-orin-nano-jp7.2.2-trt11")


def test_every_row_names_its_source() -> None:
    assert all(platform.source for platform in PLATFORMS.values())


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("jetson-orin-nano-jp5", "tensorrt8"),
        ("jetson-orin-nano-jp6.0", "tensorrt8"),
        ("jetson-orin-nano-jp6", "tensorrt10"),
        ("jetson-orin-nano", "tensorrt10"),
        ("jetson-thor-jp7", "tensorrt10"),
        ("jetson-thor-jp7.2.2-trt11", "tensorrt11"),
        ("tensorrt10.7", "tensorrt10"),
        ("tensorrt_rtx", "tensorrt_rtx"),
        *((name, name) for name in ("tensorrt8", "tensorrt10", "tensorrt11")),
    ],
)
def test_a_platform_has_its_target_of_export(name: str, target: str) -> None:
    row, platform = export_target(name)
    assert row.name == target
    assert platform == (None if name == target else find_platform(name))


def test_every_platform_lies_within_the_range_of_its_target() -> None:
    for platform in PLATFORMS.values():
        target = export_target(platform.name)[0].name
        assert target in TARGETS
        span = PLATFORMS[target]
        assert span.oldest <= platform.oldest <= platform.newest <= span.newest


@pytest.mark.parametrize(
    ("name", "first", "others"),
    [
        ("jetson-orin-nano-jp66", "jetson-orin-nano-jp6", "jetson-orin-nano-jp7.2"),
        ("jetson-orin-nano-super", "jetson-orin-nano-jp", "jetson-orin-nano-jp5"),
        ("jetson-orin-nano-jp7.1", "jetson-orin-nano-jp7.2", "jetson-orin-nano-jp6.0"),
        ("orin", "jetson-orin-nano", "jetson-agx-orin"),
        ("Thor", "jetson-thor", "jetson-thor-jp7"),
        ("tensorrt9", "tensorrt", "tensorrt10"),
        ("zzz", "tensorrt10", "jetson-thor"),
    ],
)
def test_an_unknown_name_is_told_the_closest_ones_in_two_lines(name: str, first: str, others: str) -> None:
    for function in (find_platform, export_target):
        with pytest.raises(UsageError) as raised:
            function(name)
        error = raised.value
        assert str(error.fix).startswith(f"--target {first}")
        find_platform(str(error.fix).removeprefix("--target "))
        assert others in str(error.why)
        assert "`vitdeploy targets` lists them all" in str(error.why)
        assert len(str(error.why)) < 200


@pytest.mark.parametrize(
    ("version", "board", "words"),
    [
        ((10, 16, 2), "jetson-agx-orin-jp7.2", "up to 10.7 (JetPack 6), and again TensorRT 11.4.1 on AGX Orin"),
        ((11, 4, 1), "NVIDIA Jetson Orin NX Engineering Reference", "serves that of AGX Orin only"),
        ((11, 4, 1), "NVIDIA Jetson AGX Orin Developer Kit", None),
        ((10, 7), "NVIDIA Jetson Orin NX Engineering Reference", None),
        ((10, 16, 2), "NVIDIA Jetson AGX Thor Developer Kit", "Thor has no DLA"),
        ((10, 3), None, "only Jetson"),
    ],
)
def test_where_an_accelerator_is_missing_the_reason_says_where_there_is_one(
    version: tuple[int, ...], board: str | None, words: str | None
) -> None:
    reason = missing_dla(version, board)
    assert (reason is None) is (words is None)
    assert words is None or words in str(reason)

"""What computes otherwise in another program than in vitdeploy's sessions, which tell their runtime how to compute."""

from __future__ import annotations

from collections.abc import Iterator

from vitdeploy.bundle import Manifest

# The property by which OpenVINO computes FP32 as the file says it.
OPENVINO_FP32 = ("INFERENCE_PRECISION_HINT", "f32")

_ROUNDS = "computes in bfloat16, or on Arm in FP16, where the processor has it"


def openvino_is_told() -> str:
    """Why that property is there."""
    return f"`{OPENVINO_FP32[0]}` is what vitdeploy's sessions set: without it, OpenVINO {_ROUNDS}."


def openvino_rounds(program: str) -> str:
    """That a program does not compute in FP32, for it cannot be told."""
    return (
        f"{program} {_ROUNDS}, and cannot be told otherwise; a bundle for another target than `openvino` is computed "
        "in FP32."
    )


def integers_overflow(manifest: Manifest, program: str) -> Iterator[str]:
    """That INT8 overflows on some processors, where sessions tell the runtime to compute what the file says."""
    if manifest.precision == "int8":
        yield (
            f"On an x86-64 processor without VNNI, sums of INT8 products overflow in {program}, and those of a bundle "
            "in FP16 or FP32 do not; `vitdeploy doctor` says whether a processor has it."
        )

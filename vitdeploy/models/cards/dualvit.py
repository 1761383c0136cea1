"""Dual-ViT: three variants, published at 224 and, as separate checkpoints, at 384 pixels."""

from __future__ import annotations

from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing

SOURCE = (
    "Yao et al., Dual Vision Transformer, IEEE TPAMI 2023, arXiv 2207.04976; "
    "github.com/YehLi/ImageNetModel@0b4302e0b10ff12013b03b799dda50393efa69a9"
)


def _card(
    variant: str,
    stem_width: int,
    widths: tuple[int, int, int, int],
    depths: tuple[int, int, int, int],
    *,
    parameters: int,
    at_224: tuple[float, float],
    at_384: tuple[float, float],
) -> ModelCard:
    """`parameters` with the auxiliary head; `at_*`: published (MACs, top-1)."""
    return ModelCard(
        name=f"dualvit_{variant}",
        family="dualvit",
        network="vitdeploy.models.dualvit:DualViT",
        hyperparameters={"stem_width": stem_width, "widths": widths, "depths": depths, "token_label": True},
        preprocessing=Preprocessing(crop_ratio=0.96),
        parameters=parameters,
        source=SOURCE,
        macs=at_224[0],
        top1=at_224[1],
        other_sizes=(((384, 384), *at_384),),
    )


CARDS: tuple[ModelCard, ...] = (
    _card("s", 32, (64, 128, 320, 448), (3, 4, 6, 3), parameters=25_054_000, at_224=(5.4, 84.1), at_384=(18.4, 85.2)),
    _card("b", 64, (64, 128, 320, 512), (3, 4, 15, 3), parameters=42_627_024, at_224=(9.3, 85.2), at_384=(31.9, 86.0)),
    _card("l", 64, (96, 192, 384, 512), (3, 6, 21, 3), parameters=72_966_544, at_224=(18.0, 85.7), at_384=(60.5, 86.5)),
)

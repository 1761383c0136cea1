"""QnA-ViT: the four registered variants of the official code."""

from __future__ import annotations

from typing import Any

from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing

SOURCE = (
    "Arar et al., Learned Queries for Efficient Local Attention, CVPR 2022, arXiv 2112.11435; "
    "github.com/moabarar/qna@1f8e8e3d395d2fb061b90a4e4ef061b2f5fef4ec"
)


def _card(name: str, parameters: int, macs: float, top1: float, **hyperparameters: Any) -> ModelCard:
    return ModelCard(
        name=name,
        family="qnavit",
        network="vitdeploy.models.qnavit:QnAViT",
        hyperparameters={"windows": (7, 7, 14, 7), **hyperparameters},
        preprocessing=Preprocessing(mode="crop_resize", interpolation="bicubic_no_antialias"),
        parameters=parameters,
        source=SOURCE,
        macs=macs,
        top1=top1,
    )


DEEP = {"attention": (0, 0, 12, 2), "local": (2, 3, 6, 0)}

# MACs and top-1 are the README's, which belong to the released weights; the paper has 83.7 for base.
CARDS: tuple[ModelCard, ...] = (
    _card("qnavit_tiny", 15_715_560, 2.5, 81.7),
    _card("qnavit_tiny_7x7", 15_753_960, 2.6, 82.0, kernel_size=7),
    _card("qnavit_small", 24_971_560, 4.4, 83.2, **DEEP),
    _card("qnavit_base", 55_670_008, 9.7, 83.9, width=96, head_width=16, **DEEP),
)

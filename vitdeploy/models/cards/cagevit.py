"""CageViT: one published size, and two of the usual widths below it."""

from __future__ import annotations

from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing

SOURCE = (
    "Zheng et al., CageViT: Convolutional Activation Guided Efficient Vision Transformer, arXiv 2305.09924; "
    "guide: Howard et al., MobileNetV3-Small, arXiv 1905.02244; spatial reduction: Wang et al., PVTv2, arXiv 2106.13797"
)

RECONSTRUCTION = (
    "No official code and no weights exist. The paper's: a small convolutional network's weighted class activation "
    "splits the patches into major and minor tokens, a multi-head module fuses the minor ones, Gated Linear SRA joins "
    "both in a plain encoder; 43.35M parameters and 83.4 % ImageNet-1K top-1 at 224x224 for one size, `cagevit_base`. "
    "Not the paper's, but chosen here to match that size: the guide network and its closed-form activation, the share "
    "of major tokens, the number of fusion tokens, the formulas of fusion, pooling and gate, widths and depths, and "
    "the sizes tiny and small. The paper's FLOPs are not known, and its accuracy is a claim for its own network."
)


def _card(name: str, width: int, parameters: int, top1: float | None = None) -> ModelCard:
    return ModelCard(
        name=name,
        family="cagevit",
        network="vitdeploy.models.cagevit:CageViT",
        hyperparameters={"width": width},
        preprocessing=Preprocessing(),
        parameters=parameters,
        source=SOURCE,
        top1=top1,
        reconstruction=RECONSTRUCTION,
    )


CARDS: tuple[ModelCard, ...] = (
    _card("cagevit_tiny", 192, 7_717_780),
    _card("cagevit_small", 384, 25_519_672),
    _card("cagevit_base", 512, 43_826_000, top1=83.4),
)

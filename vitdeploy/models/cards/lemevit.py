"""LeMeViT: six names of the official code, and one trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing

SOURCE = (
    "Jiang et al., LeMeViT, IJCAI 2024, arXiv 2405.09789; "
    "github.com/ViTAE-Transformer/LeMeViT@1b4878323b237fc13f3b92f0c6f80241609ae641"
)


def _card(
    name: str,
    depth: Sequence[int],
    widths: Sequence[int],
    kinds: str,
    parameters: int,
    *,
    mlp_ratio: int = 4,
    macs: float | None = None,
    top1: float | None = None,
) -> ModelCard:
    return ModelCard(
        name=name,
        family="lemevit",
        network="vitdeploy.models.lemevit:LeMeViT",
        hyperparameters={"depth": depth, "widths": widths, "kinds": tuple(kinds.split()), "mlp_ratio": mlp_ratio},
        preprocessing=Preprocessing(),
        parameters=parameters,
        source=SOURCE,
        macs=macs,
        top1=top1,
    )


# The published MACs count convolutions and linear layers, not the products inside attention. The first table of the
# official README prints 1.68 for tiny; 1.78, which its scene recognition table prints, is what the network does.
TINY = _card("lemevit_tiny", (1, 2, 2, 8, 2), (64, 64, 128, 192, 320), "C D D S S", 8_635_816, macs=1.78, top1=79.07)

CARDS: tuple[ModelCard, ...] = (
    TINY,
    _card("lemevit_small", (1, 2, 2, 6, 2), (96, 96, 192, 320, 384), "C D D S S", 16_400_456, macs=3.74, top1=81.88),
    _card("lemevit_base", (2, 4, 4, 18, 4), (96, 96, 192, 384, 512), "C D D S S", 53_098_152, macs=11.06, top1=84.35),
    _card("lemevit_small_v2", (1, 2, 2, 8, 2), (64, 64, 128, 256, 512), "C D D S S", 14_373_480, mlp_ratio=3),
    _card("lemevit_tiny_v2", (2, 2, 2, 4, 2), (96, 96, 192, 320, 384), "C D2 D2 S S", 13_855_464),
    _card("vit_tiny", (2, 2, 4, 2), (96, 192, 320, 384), "S S S S", 13_369_224),
    replace(
        TINY,
        name="lemevit_tiny.eurosat",
        source=f"{SOURCE}; trained from scratch on EuroSAT (Helber et al., 2019): 93.6 % of 4,050 held-out images",
        checkpoint="lemevit_tiny_eurosat.safetensors",
        parameters=8_318_026,
        num_classes=10,
        labels=(
            "AnnualCrop",
            "Forest",
            "HerbaceousVegetation",
            "Highway",
            "Industrial",
            "Pasture",
            "PermanentCrop",
            "Residential",
            "River",
            "SeaLake",
        ),
        image_size=(64, 64),
        preprocessing=Preprocessing(size=(64, 64), mode="stretch", crop_ratio=1.0),
        macs=None,
        top1=None,
    ),
)

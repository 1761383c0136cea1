"""SAEViT: two reconstructions, fitted to the two published compute budgets."""

from __future__ import annotations

from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing

SOURCE = (
    "A Lightweight Convolution and Vision Transformer integrated model with Multi-scale Self-attention Mechanism, "
    "Neurocomputing 658 (2025) 131670, arXiv 2508.16884"
)


def _card(
    variant: str,
    widths: tuple[int, int, int, int],
    depths: tuple[int, int, int, int],
    heads: tuple[int, int, int, int],
    *,
    parameters: int,
    macs: float,
    top1: float,
) -> ModelCard:
    return ModelCard(
        name=f"saevit_{variant}",
        family="saevit",
        network="vitdeploy.models.saevit:SAEViT",
        hyperparameters={"widths": widths, "depths": depths, "heads": heads},
        preprocessing=Preprocessing(),
        parameters=parameters,
        source=SOURCE,
        macs=macs,
        top1=top1,
        reconstruction=(
            f"No official code or weights exist. The paper's: {macs} GFLOPs and {top1} % top-1, claimed for its own "
            "network and not measured on this one; a pyramid of the modules SAA (attention among sparsely, adaptively "
            "sampled tokens, recovered by deconvolution), CIFFN (decomposition and redistribution of channel features) "
            "and DWSConv. Ours, fitted to the GFLOPs: the variant's name, every formula inside the modules, widths, "
            "depths, heads, sampling rates, tensor names, parameter count and preprocessing."
        ),
    )


CARDS: tuple[ModelCard, ...] = (
    _card("xs", (48, 96, 160, 288), (2, 2, 6, 2), (2, 3, 5, 9), parameters=4_996_488, macs=0.8, top1=76.3),
    _card("s", (64, 128, 192, 320), (2, 2, 7, 2), (2, 4, 6, 10), parameters=7_217_074, macs=1.3, top1=79.6),
)

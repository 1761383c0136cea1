"""The network of the tiny bundle in PyTorch, with a card, so that it can stand in the zoo."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.bundles import LABELS, SIZE, WEIGHT
from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing


class TinyNetwork(nn.Module):
    """Mean of each channel, then one linear layer, `factor` times."""

    feature_strides = (4, 2)

    def __init__(self, *, num_classes: int, image_size: tuple[int, int], factor: float) -> None:
        super().__init__()
        assert image_size == (SIZE, SIZE)
        self.weight = nn.Parameter(torch.tensor(WEIGHT[:, :num_classes]))
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * (images.mean((2, 3)) @ self.weight)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(images, stride) for stride in self.feature_strides]


CARD = ModelCard(
    name="tiny",
    family="tests",
    network="tests.runtime.tiny_network:TinyNetwork",
    hyperparameters={"factor": 1.0},
    preprocessing=Preprocessing(size=(SIZE, SIZE), mode="stretch", crop_ratio=1.0),
    parameters=12,
    source="tests/bundles.py",
    image_size=(SIZE, SIZE),
    num_classes=len(LABELS),
    labels=LABELS,
)

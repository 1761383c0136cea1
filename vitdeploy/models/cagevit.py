"""CageViT: a small convolutional network decides which patches a transformer reads one by one (arXiv 2305.09924).

A reconstruction: Zheng et al. published neither code nor weights. Theirs are the pipeline (convolutional activation
selects major tokens, the minor ones are fused into a few, gated linear spatial-reduction attention joins both), 43.35 M
parameters and 83.4 % top-1; formulas and sizes are this project's, fitted to that size. The reduction is PVTv2's.

Selection is discrete: a backend that differs in the last bit may select another patch, and the logits jump. `select`
and `encode` are the two halves of `forward`, so that a comparison can look at the selected sets first and then give
both sides the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.errors import CheckpointError, ModelError
from vitdeploy.models.layers import init_weights, resize_positions, split_heads, to_map, to_tokens
from vitdeploy.models.misfit import find_misfit
from vitdeploy.models.mobilenet import TRUNK_WIDTH, mobilenet_trunk

PATCH = 16
HEAD_WIDTH = 64
POOLED_SIDE = 7
GUIDE_TAPS = (1, 3)  # the last layers of strides 4 and 8
MASKED = -1e4  # finite in float16; no row of scores is ever masked as a whole
MOST_MAJORS = 3839  # TensorRT's TopK takes no more


class Guidance(NamedTuple):
    """What the guide sees: a score for each patch [B, N], its logits [B, num_classes], its maps of strides 4 and 8."""

    score: Tensor
    logits: Tensor
    maps: list[Tensor]


class Guide(nn.Module):
    """Scores patches by the class activation maps of all classes, averaged with the predicted probabilities.

    With activations a [576, N], their mean g over the patches, logits z = W g + b and p = softmax(z):

        alpha = p^T W        score_i = sum_k alpha_k (a_ki - g_k)

    which is N times the Grad-CAM map of sum_c p_c z_c for constant p, on centred activations. The guide computes in
    float32 at least, under autocast and after `half()` too: a rounded score would select other patches.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = mobilenet_trunk()
        self.fc = nn.Linear(TRUNK_WIDTH, num_classes)

    def forward(self, images: Tensor) -> Guidance:
        """Images [B, 3, H, W] -> scores, the guide's own logits, and two of its maps."""
        with _without_autocast(images.device.type):
            x, maps = images.to(self.fc.weight.dtype), []
            for row, layer in enumerate(self.trunk):
                x = layer(x)
                if row in GUIDE_TAPS:
                    maps.append(x)
            activation = x.flatten(2)
            mean = activation.mean(2)
            logits = self.fc(mean)
            alpha = logits.softmax(1) @ self.fc.weight
            score = (alpha.unsqueeze(1) @ (activation - mean.unsqueeze(2))).squeeze(1)
        return Guidance(score, logits, maps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Guide:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.is_floating_point() and moved.itemsize < 4 else moved

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
        return self


def _without_autocast(device_type: str) -> AbstractContextManager[None]:
    # Where there is nothing to disable there is no context: an exporter would make a subgraph of it and lose the names.
    enabled = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if enabled else nullcontext()


class Selection(nn.Module):
    """The `count` patches of the highest score.

    Backends order equal scores as they like, and would select different sets. So TopK does not see the score but the
    number of patches that each patch beats, by score or, where scores are equal, by coming first: the numbers 0..N-1,
    each once, which have one order only.
    """

    earlier: Tensor

    def __init__(self, patches: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("earlier", torch.ones(patches, patches, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, score: Tensor) -> Tensor:
        """Scores [B, N] -> indices of the selected patches [B, count], best first."""
        mine, other = score.unsqueeze(2), score.unsqueeze(1)
        beaten = ((mine > other) | ((mine == other) & self.earlier)).float().sum(2)
        return beaten.topk(self.count, dim=1, largest=True, sorted=True).indices


class Fusion(nn.Module):
    """Pools the minor tokens into a few, each with weights of its own."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.score = nn.Linear(width, tokens, bias=False)
        self.v = nn.Linear(width, width)
        self.emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))

    def forward(self, x: Tensor, minor: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, N, D] and minor [B, N] (1 or 0) -> fusion tokens [B, tokens, D], scores [B, N, tokens]."""
        normed = self.norm(x)
        score = self.score(normed)
        weights = (score.transpose(1, 2) + (MASKED - MASKED * minor).unsqueeze(1)).softmax(2)
        return self.v(weights @ normed) + self.emb, score


class GatedLinearSRA(nn.Module):
    """Attention to the majors, averaged by window, and apart from it to the fusion tokens; a gate mixes the two.

    The number of keys does not grow with the image.
    """

    def __init__(self, width: int, majors: int) -> None:
        super().__init__()
        self.majors, self.heads = majors, width // HEAD_WIDTH
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.sr = nn.Linear(width, width)
        self.srn = nn.LayerNorm(width, eps=1e-6)
        self.act = nn.GELU()
        self.gate = nn.Linear(width, self.heads)
        self.proj = nn.Linear(width, width)

    def forward(self, t: Tensor, pool: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, n, D], majors first; pool [B, P, majors]; mask [B, 1, 1, P] -> [B, n, D]."""
        major, fusion = torch.split(t, [self.majors, t.shape[1] - self.majors], dim=1)
        q = split_heads(self.q(t), self.heads)
        near = self._attend(q, self.act(self.srn(self.sr(pool @ major))), mask)
        far = self._attend(q, fusion)
        gate = self.gate(t).sigmoid().transpose(1, 2).unsqueeze(3)
        out: Tensor = self.proj((near + gate * (far - near)).transpose(1, 2).flatten(2))
        return out

    def _attend(self, q: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        k, v = (split_heads(projected, self.heads) for projected in self.kv(source).chunk(2, dim=2))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Block(nn.Module):
    """Pre-norm block of gated linear SRA and MLP."""

    def __init__(self, width: int, majors: int) -> None:
        super().__init__()
        self.n1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = GatedLinearSRA(width, majors)
        self.n2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, t: Tensor, pool: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, n, D], majors first; pool and mask as in GatedLinearSRA -> [B, n, D]."""
        t = t + self.attn(self.n1(t), pool, mask)
        out: Tensor = t + self.fc2(self.act(self.fc1(self.n2(t))))
        return out


class Arrangement(NamedTuple):
    """What the selection makes of N patches.

    patches       embedded patches with positions [B, N, D]
    chosen        one-hot rows of the majors [B, majors, N]
    minor         1 where a patch was not chosen, else 0 [B, N]
    contribution  score of each patch for each fusion token [B, N, tokens]
    tokens        majors, then fusion tokens [B, n, D]
    pool          averages the majors of each window [B, P, majors]
    mask          added to the scores of the windows: large and negative where a window has no major [B, 1, 1, P]
    """

    patches: Tensor
    chosen: Tensor
    minor: Tensor
    contribution: Tensor
    tokens: Tensor
    pool: Tensor
    mask: Tensor


class CageViT(nn.Module):
    """The network: [N, 3, H, W] -> [N, num_classes]; H and W multiples of 16.

    width           channels of a token; heads have 64
    depth           number of blocks
    keep_ratio      part of the patches that become major tokens
    fusion_tokens   number of tokens that stand for the others

    `float32_modules` names the submodules that must compute in float32 whatever the rest does. An export gives the
    selected patches beside the logits, see `models.outputs`.
    """

    feature_strides = (4, 8, 16)
    float32_modules = ("guide", "selection")
    selection_outputs = ("selection",)
    membership: Tensor
    places: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        width: int,
        depth: int = 12,
        keep_ratio: float = 0.5,
        fusion_tokens: int = 8,
    ) -> None:
        super().__init__()
        self.grid = _grid(image_size)
        patches = self.grid[0] * self.grid[1]
        majors = int(keep_ratio * patches)
        if not 0 < majors < patches or majors > MOST_MAJORS:
            raise ModelError(
                f"CageViT cannot keep {majors} of the {patches} patches of a {image_size[0]}x{image_size[1]} image",
                why=f"it needs major and minor patches, and TensorRT selects at most {MOST_MAJORS}",
                fix="an image size of 224x224, the published one",
            )
        self.guide = Guide(num_classes)
        self.selection = Selection(patches, majors)
        self.patch = nn.Conv2d(3, width, PATCH, PATCH)
        self.pos = nn.Parameter(torch.empty(1, width, *self.grid))
        self.fusion = Fusion(width, fusion_tokens)
        self.blocks = nn.ModuleList(Block(width, majors) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("membership", _membership(self.grid), persistent=False)
        self.register_buffer("places", torch.arange(patches), persistent=False)
        init_weights(self)
        nn.init.trunc_normal_(self.pos, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, num_classes]."""
        return self.encode(images, self.select(images))

    def forward_for_export(self, images: Tensor) -> dict[str, Tensor]:
        """The `logits` and the `selection` [N, majors] that they come from."""
        index = self.select(images)
        return {"logits": self.encode(images, index), "selection": index}

    def select(self, images: Tensor) -> Tensor:
        """Indices, row by row, of the patches that become major tokens: [N, majors], the best first."""
        index: Tensor = self.selection(self.guide(images).score)
        return index

    def encode(self, images: Tensor, index: Tensor) -> Tensor:
        """Logits [N, num_classes] with the patches `index` [N, majors], in any order, as major tokens."""
        logits: Tensor = self.head(self._run(self._arrange(images, index)).mean(1))
        return logits

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Two maps of the guide, [N, 16, H/4, W/4] and [N, 24, H/8, W/8], and the tokens' [N, D, H/16, W/16].

        In the last one majors stand in their places; a minor patch is its embedding plus the fusion tokens, weighted by
        how much it contributed to each.
        """
        guidance = self.guide(images)
        a = self._arrange(images, self.selection(guidance.score))
        major, fusion = torch.split(self._run(a), [a.chosen.shape[1], a.contribution.shape[2]], dim=1)
        fill = a.patches + a.contribution.softmax(2) @ fusion
        tokens = to_map(a.chosen.transpose(1, 2) @ major + a.minor.unsqueeze(2) * fill, *self.grid)
        return [*(guide_map.to(tokens.dtype) for guide_map in guidance.maps), tokens]

    def _run(self, a: Arrangement) -> Tensor:
        tokens = a.tokens
        for block in self.blocks:
            tokens = block(tokens, a.pool, a.mask)
        normed: Tensor = self.norm(tokens)
        return normed

    def _arrange(self, images: Tensor, index: Tensor) -> Arrangement:
        patches = to_tokens(self.patch(images) + self.pos)
        # A product with the one-hot rows is exact, and no runtime has trouble with it, as some have with a gather.
        chosen = (index.unsqueeze(2) == self.places).to(patches.dtype)
        minor = 1 - chosen.sum(1)
        fusion, contribution = self.fusion(patches, minor)
        member = (chosen @ self.membership).transpose(1, 2)
        count = member.sum(2, keepdim=True)
        return Arrangement(
            patches=patches,
            chosen=chosen,
            minor=minor,
            contribution=contribution,
            tokens=torch.cat([chosen @ patches, fusion], 1),
            pool=member / count.clamp(min=1),
            mask=MASKED * (1 - count.clamp(max=1)).transpose(1, 2).unsqueeze(1),
        )

    def load_guide(self, state: Mapping[str, Tensor]) -> None:
        """Start the guide from torchvision's `mobilenet_v3_small` state dict.

        `features.*` goes to `guide.trunk.*`, number for number. `classifier.*`, a head of two layers, has no place: the
        guide's one linear layer keeps its weights, and is to be trained on the task. Raises CheckpointError where the
        features are not those of that network.
        """
        features = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
        misfit = find_misfit(self.guide.trunk, features)
        if misfit is not None:
            raise CheckpointError(
                "these weights do not fit the guide",
                why=str(misfit),
                fix="use the state dict of torchvision.models.mobilenet_v3_small",
            )
        self.guide.trunk.load_state_dict(features, strict=False)

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state` with the position embedding resized to this network's grid."""
        return {key: resize_positions(value, self.grid) if key == "pos" else value for key, value in state.items()}


def _grid(image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    if height % PATCH or width % PATCH:
        nearest = "x".join(str(max(1, round(side / PATCH)) * PATCH) for side in image_size)
        raise ModelError(
            f"CageViT cannot take images of {height}x{width} pixels",
            why=f"height and width must be multiples of its patches of {PATCH}x{PATCH} pixels",
            fix=f"an image size of {nearest}",
        )
    return height // PATCH, width // PATCH


def _membership(grid: tuple[int, int]) -> Tensor:
    """The window of each patch, one-hot: [N, P]; at most 7 x 7 windows, as equal as the grid admits."""
    height, width = (min(POOLED_SIDE, side) for side in grid)
    row = torch.arange(grid[0]) * height // grid[0]
    column = torch.arange(grid[1]) * width // grid[1]
    window = (row.unsqueeze(1) * width + column).flatten()
    return F.one_hot(window, height * width).float()

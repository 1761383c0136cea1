"""QnA-ViT's official Flax parameters, in the names and layouts of the PyTorch network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

ATTENTION_HEAD_WIDTH = 32


def _same(value: Tensor) -> Tensor:
    return value


def _linear(kernel: Tensor) -> Tensor:
    """[in, out] -> [out, in]."""
    return kernel.t()


def _convolution(kernel: Tensor) -> Tensor:
    """[height, width, in, out] -> [out, in, height, width]."""
    return kernel.permute(3, 2, 0, 1)


def _pointwise(kernel: Tensor) -> Tensor:
    """[in, out] -> [out, in, 1, 1]."""
    return kernel.t()[..., None, None]


def _qkv(kernel: Tensor) -> Tensor:
    """[in, (head, qkv, width)] -> [(qkv, head, width), in]."""
    channels = len(kernel)
    by_head = kernel.t().reshape(-1, 3, ATTENTION_HEAD_WIDTH, channels)
    return by_head.transpose(0, 1).reshape(-1, channels)


def _places(table: Tensor) -> Tensor:
    """[1, 1, places, groups] -> [places, groups]."""
    return table.flatten(0, 2)


_NETWORK: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "StemBlock_0/conv_1x1/kernel": ("stem.weight", _convolution),
    "ClassificationHead_0/LayerNorm_0/scale": ("norm.weight", _same),
    "ClassificationHead_0/LayerNorm_0/bias": ("norm.bias", _same),
    "ClassificationHead_0/head_logits/kernel": ("head.weight", _linear),
    "ClassificationHead_0/head_logits/bias": ("head.bias", _same),
}

_BLOCK: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "LayerNorm_0/scale": ("norm1.weight", _same),
    "LayerNorm_0/bias": ("norm1.bias", _same),
    "LayerNorm_1/scale": ("norm2.weight", _same),
    "LayerNorm_1/bias": ("norm2.bias", _same),
    "MlpBlock_0/Dense_0/kernel": ("mlp.0.weight", _linear),
    "MlpBlock_0/Dense_0/bias": ("mlp.0.bias", _same),
    "MlpBlock_0/Dense_1/kernel": ("mlp.2.weight", _linear),
    "MlpBlock_0/Dense_1/bias": ("mlp.2.bias", _same),
    "Conv_0/kernel": ("skip.weight", _convolution),
    "MultiHeadSelfAttention_0/to_qkv/kernel": ("mixer.qkv.weight", _qkv),
    "MultiHeadSelfAttention_0/to_out/kernel": ("mixer.proj.weight", _linear),
    "MultiHeadSelfAttention_0/RelativePositionalEmbedding_0/rpe_bias": ("mixer.position_bias", _same),
    "FusedKQnA_0/query": ("mixer.query", _same),
    "FusedKQnA_0/Wk": ("mixer.key", _linear),
    "FusedKQnA_0/to_v/kernel": ("mixer.value.weight", _pointwise),
    "FusedKQnA_0/to_out/kernel": ("mixer.proj.weight", _pointwise),
    "FusedKQnA_0/rpe_bias": ("mixer.window_bias", _same),
    "FusedKQnA_0/attn_scale_weights": ("mixer.window_scale", _places),
}

_BLOCK_KEY = re.compile(r"(LSA|QnA)Stage_(\d+)/(?:MSA|QnA)_Block_(\d+)(_stride_2)?/(.+)")


def from_flax(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the PyTorch network's names and in its layouts.

    Official keys are paths of the variable tree joined with `/`, from `params/` on; their tensors have Flax shapes. Any
    other key, a name of the PyTorch network included, is passed through.
    """
    converted = {}
    for key, value in state.items():
        name, convert = _own(key)
        converted[name] = convert(value).contiguous()
    return converted


def _own(key: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    path = key.removeprefix("params/")
    block = _BLOCK_KEY.fullmatch(path)
    if path == key:
        return key, _same
    if block is None:
        return _NETWORK.get(path, (key, _same))
    kind, stage, number, down, leaf = block.groups()
    name, convert = _BLOCK.get(leaf, (leaf, _same))
    part = "down" if down else f"{'attention' if kind == 'LSA' else 'local'}.{int(number) - 1}"
    return f"stages.{stage}.{part}.{name}", convert

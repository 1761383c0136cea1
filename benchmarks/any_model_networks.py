"""The networks of any_model.py, which other people wrote: a table with a row each, and who makes what a row says.

A row of another kind needs a maker of its own: a function from the row and an empty folder to `Made`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from any_model_files import file_rows
from any_model_table import Made, Network
from timm_network import library, realistic, varied
from torch import nn

from vitdeploy.models.outputs import named

SPREAD = 0.02  # the standard deviation with which most networks begin


def from_timm(row: Network, folder: Path) -> Made:
    """`timm:NAME` with a checkpoint of random weights that behave like trained ones."""
    torch.manual_seed(0)
    name = row.name.removeprefix("timm:")
    sized = {"img_size": (row.size, row.size), **row.arguments}
    try:
        network = library().create_model(name, pretrained=False, **sized)
    except TypeError:  # it takes every size
        network = library().create_model(name, pretrained=False, **row.arguments)
    network = realistic(_awake(network), row.size, varied(row.size))
    torch.save(network.state_dict(), folder / "weights.pth")
    options = {
        "image_size": row.size,
        "checkpoint": folder / "weights.pth",
        "hyperparameters": dict(row.arguments) or None,
    }
    return Made(row.name, options, _torch_outputs(network), network, _in_half(network))


def from_transformers(row: Network, folder: Path) -> Made:
    """`hf:FOLDER` of a small configuration: the class that the name of the row has in transformers."""
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, row.name.removeprefix("hf:"))
    network = kind(kind.config_class(**row.arguments))
    network = realistic(_awake(network), row.size, varied(row.size))
    network.save_pretrained(folder / "model")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": row.size, "width": row.size},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "model/preprocessor_config.json").write_text(json.dumps(processor))
    options = {"image_size": row.size}
    outputs, half = _torch_outputs(network), _in_half(network)
    return Made(f"hf:{folder / 'model'}", options, outputs, _Tensors(network), half)


class _Tensors(nn.Module):
    """The tensors of what a network of transformers returns, which onnx.export takes no class for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(named(self.network(images)).values())


def _awake(network: nn.Module) -> nn.Module:
    """The network without weights next to zero, such as of a branch or a head that begins as nothing: they would hide
    what is before them.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            size = float(parameter.square().mean().sqrt())
            if parameter.ndim == 1 and name.endswith("weight") and size < 2 * SPREAD:  # of a norm
                parameter.copy_(0.5 + SPREAD * torch.randn_like(parameter))
            elif parameter.ndim and size == 0:
                parameter.copy_(SPREAD * torch.randn_like(parameter))
            elif parameter.ndim > 1 and size < SPREAD / 4:
                parameter.mul_(SPREAD / size)
    return network


def _torch_outputs(network: nn.Module) -> Callable[[np.ndarray, bool], dict[str, np.ndarray]]:
    return lambda images, exact: _run(network, images, torch.float64 if exact else torch.float32)


def _in_half(network: nn.Module) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda images: _run(network, images, torch.float16)


def _run(network: nn.Module, images: np.ndarray, kind: torch.dtype) -> dict[str, np.ndarray]:
    # A copy, for what a network caches is of the type of the call.
    asked = network if kind == torch.float32 else copy.deepcopy(network).to(kind)
    with torch.inference_mode():
        parts = [named(asked(image[None])) for image in torch.from_numpy(images).to(kind)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _timm(size: int, *names: str, **arguments: Any) -> list[Network]:
    return [Network(f"timm:{name}", from_timm, size, arguments) for name in names]


_FOUR = {"depths": (2, 2, 2, 2)}
_FEW = {"depths": (1, 1, 2, 1)}

# Shallow where an argument allows it, and small: 128 pixels leave more than one window, and several tokens at the end.
NETWORKS = [
    # Plain transformers
    *_timm(128, "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", depth=4),
    *_timm(128, "flexivit_small", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_ape_224", depth=4),
    *_timm(112, "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", depth=4),
    *_timm(128, "vit_base_patch16_siglip_224", "beit_base_patch16_224", depth=4, embed_dim=384, num_heads=6),
    *_timm(128, "vit_relpos_small_patch16_224", "xcit_nano_12_p16_224", "cait_xxs24_224", "tnt_s_patch16_224", depth=4),
    *_timm(128, "convit_tiny", depth=5, local_up_to_layer=3),
    *_timm(128, "pit_ti_224", depth=(1, 2, 2)),
    *_timm(240, "crossvit_9_240"),
    # Windows and pyramids
    *_timm(112, "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224", embed_dim=48, **_FOUR),
    *_timm(128, "swinv2_tiny_window8_256", "twins_svt_small", "twins_pcpvt_small", **_FOUR),
    *_timm(128, "davit_tiny", depths=(1, 1, 1, 1), embed_dims=(48, 96, 192, 384)),
    *_timm(128, "maxvit_pico_rw_256", depths=(1, 1, 1, 1)),
    *_timm(128, "hiera_tiny_224", stages=(1, 1, 2, 1), q_pool=3, embed_dim=48),
    *_timm(128, "gcvit_xxtiny", "mvitv2_tiny", "coatnet_pico_rw_224", "nest_tiny", "pvt_v2_b0", "coat_lite_tiny"),
    *_timm(128, "volo_d1_224", "visformer_tiny", "focalnet_tiny_srf", "nextvit_small", "vitamin_small_224"),
    *_timm(128, "caformer_s18"),
    # Made for edge devices
    *_timm(128, "efficientvit_b0", "efficientvit_m0", "efficientformerv2_s0", "edgenext_xx_small", "mobilevit_xxs"),
    *_timm(224, "efficientformer_l1"),
    *_timm(128, "mobilevitv2_050", "mobilenetv4_hybrid_medium_075", "mobilenetv4_conv_small", "fastvit_t8"),
    *_timm(128, "fastvit_sa12", "repvit_m0_9", "levit_128s", "levit_conv_128s", "poolformer_s12", "starnet_s1"),
    *_timm(128, "tiny_vit_5m_224", "mambaout_femto", **_FEW),
    *_timm(128, "shvit_s1", "swiftformer_xs", "efficientvim_m1", "lowformer_b0", "inception_next_atto"),
    *_timm(128, "ghostnetv2_100", "ghostnet_050"),
    # Mixers
    *_timm(128, "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224"),
    *_timm(128, "sequencer2d_s", layers=(1, 1, 2, 1)),
    # Convolutions
    *_timm(128, "convnext_atto", "convnextv2_atto", **_FEW),
    *_timm(128, "rdnet_tiny", "hgnetv2_b0", "regnety_002", "regnetx_002", "resnet18", "efficientnet_b0"),
    *_timm(128, "tf_efficientnetv2_b0", "mobilenetv3_small_050", "resnet50_clip", "nf_resnet26", "botnet26t_256"),
    *_timm(128, "lambda_resnet26t"),
    *_timm(128, "resnet50_gn", layers=(1, 1, 1, 1)),
    *_timm(128, "densenet121", block_config=(2, 2, 2, 2)),
    # Miniatures, which the fast tests take
    *_timm(64, "test_vit3", "test_maxvit", "test_coatnet", "test_convnext2", "test_mambaout", "test_efficientnet"),
]

_SMALL: Mapping[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_labels": 10}
NETWORKS += [
    Network("hf:ViTForImageClassification", from_transformers, 64, {**_SMALL, "image_size": 64, "patch_size": 8}),
    Network("hf:Dinov2ForImageClassification", from_transformers, 56, {**_SMALL, "image_size": 56, "patch_size": 7}),
    Network(
        "hf:SwinForImageClassification",
        from_transformers,
        64,
        {"image_size": 64, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 10},
    ),
    Network(
        "hf:SegformerForSemanticSegmentation",
        from_transformers,
        64,
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 64,
            "num_labels": 10,
        },
    ),
    Network(
        "hf:MobileViTForImageClassification",
        from_transformers,
        64,
        {"image_size": 64, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128]},
    ),
]


def find_network(name: str) -> Network:
    """The row of that name, with `timm:` or without."""
    found = [row for row in NETWORKS if name in (row.name, row.name.partition(":")[2])]
    if not found:
        raise SystemExit(f"there is no row {name!r} in {__file__}")
    return found[0]


NETWORKS += file_rows(find_network)

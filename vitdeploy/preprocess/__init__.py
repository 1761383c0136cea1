"""From an image to the network's input, with numpy and Pillow only; `tifffile` where a TIFF holds other channels."""

from __future__ import annotations

from vitdeploy.preprocess.recipe import GREY, IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, MODES, Preprocessing
from vitdeploy.preprocess.sources import PIXEL_TYPES, ImageLike, decode, holds_pixels, open_image, upright_size
from vitdeploy.preprocess.transform import normalise, preprocess, preprocess_batch, to_mask, to_pixels

__all__ = [
    "GREY",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "MODES",
    "PIXEL_TYPES",
    "ImageLike",
    "Preprocessing",
    "decode",
    "holds_pixels",
    "normalise",
    "open_image",
    "preprocess",
    "preprocess_batch",
    "to_mask",
    "to_pixels",
    "upright_size",
]

"""Write the files of this folder: networks of Keras as tf2onnx exports them.

    pip install tensorflow-cpu tf2onnx && python make_tf2onnx.py

Written with tensorflow-cpu 2.21.0 and tf2onnx 1.17.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

WIDTH, HEADS, CLASSES = 24, 3, 4


def gelu(x: Any) -> Any:
    """The one of Keras calls Erfc, which tf2onnx does not know."""
    return 0.5 * x * (1 + tf.math.erf(x / np.sqrt(2).astype("float32")))


def block(x: Any) -> Any:
    """Attention and a perceptron, each behind a layer norm."""
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    return x + layers.Dense(WIDTH)(layers.Dense(2 * WIDTH, activation=gelu)(y))


def network(*, maps: bool) -> Any:
    """A transformer of two blocks on images [N, 32, 32, 3]: scores of classes, or a map of them at full size."""
    images = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(12, 3, 2, padding="same", use_bias=False)(images)
    norm = layers.BatchNormalization()
    x = layers.Activation("silu")(norm(x))
    norm.moving_mean.assign(0.3 * np.random.randn(12))
    norm.moving_variance.assign(0.5 + np.random.rand(12))
    x = layers.Reshape((16, WIDTH))(layers.Conv2D(WIDTH, 4, 4)(x))
    for _ in range(2):
        x = block(x)
    x = layers.LayerNormalization()(x)
    if not maps:
        return keras.Model(images, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))
    x = layers.Reshape((4, 4, WIDTH))(x)
    x = layers.Conv2DTranspose(8, 4, 4, padding="same", activation=gelu)(x)
    return keras.Model(images, layers.Conv2DTranspose(CLASSES, 3, 2, padding="same")(x))


def write(name: str, *, maps: bool, opset: int) -> None:
    """Write one network."""
    keras.utils.set_random_seed(0)
    model = network(maps=maps)
    for layer in model.layers:
        if isinstance(layer, layers.LayerNormalization):
            layer.gamma.assign(1 + 0.2 * np.random.randn(WIDTH))
            layer.beta.assign(0.2 * np.random.randn(WIDTH))
    signature = (tf.TensorSpec((None, 32, 32, 3), tf.float32, name="image"),)
    function = tf.function(lambda image: model(image, training=False), input_signature=signature)
    path = str(Path(__file__).with_name(name))
    tf2onnx.convert.from_function(function, input_signature=signature, opset=opset, output_path=path)


if __name__ == "__main__":
    write("tf2onnx_classes.onnx", maps=False, opset=13)
    write("tf2onnx_maps.onnx", maps=True, opset=17)

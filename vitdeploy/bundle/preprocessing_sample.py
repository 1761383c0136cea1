"""What the recorded preprocessing makes of one image: kept beside it, since no graph shows how images are prepared.

The image is small and its result a sample of the tensor, so that both together take some 50 KB, and 4 KB for each
channel where there are many. They show that the recorded recipe is the one of the export, and that the libraries of
this machine follow it in the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import VitDeployError
from vitdeploy.preprocess import Preprocessing, preprocess

PIXELS, VALUES = "preprocessing.pixels", "preprocessing.values"

# Both sides are primes, so that resizing and cropping cannot leave the pixels as they are; of many
# channels a smaller image is kept.
_SIZE, _SIZE_OF_MANY = (97, 149), (37, 53)
_MANY = 4
_COUNT = 1000

# Another version of an image library may round single pixels the other way; one that differs in more resizes or crops
# differently. Another mean or deviation changes a third of the values or all.
DIFFERING_PART = 0.1
_TOLERANCE = 1e-5


class PreprocessingSample(NamedTuple):
    """`pixels` [h, w, C] of `sample_type`, and `values` float32 [n], evenly spread over the network's input for them.

    Colours are uint8 in RGB order.
    """

    pixels: NDArray[Any]
    values: NDArray[np.float32]

    def failure(self, recipe: Preprocessing) -> str | None:
        """What `recipe` does not give as it should, in words; None where it does."""
        try:
            found = _spread(self.pixels, recipe, len(self.values))
        except (VitDeployError, ArithmeticError, ValueError, MemoryError) as error:
            return f"it cannot be applied to the image that the bundle keeps: {str(error).splitlines()[0]}"
        same = np.isclose(found, self.values, rtol=_TOLERANCE, atol=_TOLERANCE)
        differing = int(np.count_nonzero(~same))
        if differing <= DIFFERING_PART * same.size:
            return None
        return f"{differing} of {same.size} values differ for the image that the bundle keeps"


def sample_preprocessing(recipe: Preprocessing) -> PreprocessingSample:
    """An image of flat patches and noise, the same everywhere, and what `recipe` makes of it."""
    rng = np.random.RandomState(0)
    height, width = _SIZE if recipe.depth < _MANY else _SIZE_OF_MANY
    patches = rng.randint(0, 256, (-(-height // 8), -(-width // 8), recipe.depth)).repeat(8, axis=0).repeat(8, axis=1)
    noisy = patches[:height, :width] + rng.randint(-24, 25, (height, width, recipe.depth))
    kind = np.dtype(sample_type(recipe))
    levels = np.clip(noisy, 0, 255)
    if not recipe.takes_colours:
        # The range that such data has; 16 bits at most, whatever the white is.
        levels = levels * (min(recipe.scale, 65535) / 255)
    pixels = levels.astype(kind)
    count = min(_COUNT, recipe.depth * recipe.size[0] * recipe.size[1])
    return PreprocessingSample(pixels, _spread(pixels, recipe, count))


def sample_type(recipe: Preprocessing) -> str:
    """The type of the pixels that a sample keeps: that of the recipe's data, as far as its white shows it."""
    if recipe.takes_colours or recipe.scale == 255:
        return "uint8"
    return "uint16" if recipe.scale > 255 else "float32"


def _spread(pixels: NDArray[Any], recipe: Preprocessing, count: int) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        flat: NDArray[Any] = preprocess(pixels, recipe).ravel()
    chosen: NDArray[np.float32] = flat[np.arange(count) * flat.size // count]
    return chosen

"""What the recorded preprocessing makes of one image: kept beside it, since no graph shows how images are prepared.

The image is small and its result a sample of the tensor, so that both together take some 50 KB. They show that the
recorded recipe is the one of the export, and that the libraries of this machine follow it in the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import VitDeployError
from vitdeploy.preprocess import Preprocessing, preprocess

PIXELS, VALUES = "preprocessing.pixels", "preprocessing.values"

# Both sides are primes, so that resizing and cropping cannot leave the pixels as they are.
_SIZE = (97, 149)
_COUNT = 1000

# Another version of an image library may round single pixels the other way; one that differs in more resizes or crops
# differently. Another mean or deviation changes a third of the values or all.
DIFFERING_PART = 0.1
_TOLERANCE = 1e-5


class PreprocessingSample(NamedTuple):
    """RGB `pixels` uint8 [h, w, 3], and `values` float32 [n], evenly spread over the network's input for them."""

    pixels: NDArray[np.uint8]
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
    height, width = _SIZE
    patches = rng.randint(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, axis=0).repeat(8, axis=1)
    noisy = patches[:height, :width] + rng.randint(-24, 25, (height, width, 3))
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    count = min(_COUNT, 3 * recipe.size[0] * recipe.size[1])
    return PreprocessingSample(pixels, _spread(pixels, recipe, count))


def _spread(pixels: NDArray[np.uint8], recipe: Preprocessing, count: int) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        flat: NDArray[Any] = preprocess(pixels, recipe).ravel()
    chosen: NDArray[np.float32] = flat[np.arange(count) * flat.size // count]
    return chosen

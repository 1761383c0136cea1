from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import PORTABLE, assert_same, batch, ops, parsed, run
from vitdeploy.errors import UsageError
from vitdeploy.exporter.half import to_half
from vitdeploy.passes.bake_preprocessing import BakePreprocessing, require_bakeable
from vitdeploy.preprocess import Preprocessing


def convolution(size: tuple[int, int], axis: str = "batch") -> ir.Model:
    """A padded convolution, which a mean folded into its weights would spoil at the border."""
    height, width = size
    return parsed(
        f"agraph (float[{axis}, 3, {height}, {width}] images) => (y) {{ y = Conv <pads = [1, 1, 1, 1]> (images, w) }}",
        w=batch(4, 3, 3, 3, seed=1),
    )


def photos(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def normalised(pixels: np.ndarray, recipe: Preprocessing) -> np.ndarray:
    """The formula in double precision, channel by channel."""
    order = (0, 1, 2) if recipe.channels == "RGB" else (2, 1, 0)
    planes = [
        (pixels[..., source].astype(np.float64) / recipe.scale - recipe.mean[place]) / recipe.std[place]
        for place, source in enumerate(order)
    ]
    return np.stack(planes, axis=1).astype(np.float32)


def baked(model: ir.Model, recipe: Preprocessing) -> ir.Model:
    change = BakePreprocessing(PORTABLE, recipe)
    change(model)
    assert len(change.changes) == 1
    return model


numbers = st.floats(0.01, 1.0)


@settings(max_examples=examples(20))
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    mean=st.tuples(numbers, numbers, numbers),
    std=st.tuples(numbers, numbers, numbers),
    channels=st.sampled_from(["RGB", "BGR"]),
    axis=st.sampled_from(["batch", "2"]),
    scale=st.sampled_from([255.0, 1.0, 127.5]),
)
def test_pixels_give_what_their_normalised_images_gave(
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    channels: str,
    axis: str,
    scale: float,
) -> None:
    recipe = Preprocessing(size=size, mean=mean, std=std, channels=channels, scale=scale)
    pixels = photos(2, size)
    before = run(convolution(size, axis), {"images": normalised(pixels, recipe)})
    model = baked(convolution(size, axis), recipe)
    assert_same(before, run(model, {"images": pixels}))
    assert ("Gather" in ops(model)) == (channels == "BGR")


def test_the_cast_alone_reads_the_pixels_whose_name_and_free_batch_stay() -> None:
    model = baked(convolution((5, 7)), Preprocessing(size=(5, 7)))
    (pixels,) = model.graph.inputs
    assert (pixels.name, pixels.dtype, pixels.shape) == ("images", ir.DataType.UINT8, ir.Shape(["batch", 5, 7, 3]))
    assert [node.op_type for node in model.graph] == ["Cast", "Transpose", "Mul", "Add", "Conv"]
    assert [use.node.op_type for use in pixels.uses()] == ["Cast"]


def test_a_second_run_changes_nothing() -> None:
    recipe = Preprocessing(size=(5, 7))
    model = baked(convolution((5, 7)), recipe)
    again = BakePreprocessing(PORTABLE, recipe)
    assert not again(model).modified
    assert ops(model)["Cast"] == 1


def test_a_half_precision_graph_normalises_in_single_precision() -> None:
    recipe, pixels = Preprocessing(size=(8, 8)), photos(2, (8, 8))
    images = normalised(pixels, recipe)
    typed, _ = to_half(convolution((8, 8)), {"images": images}, lambda _: 99.0, min_snr_db=45)
    before = run(typed, {"images": images})
    baked(typed, recipe)
    kinds = {node.op_type: node.outputs[0].dtype for node in typed.graph if node.name.startswith("preprocessing/")}
    assert set(kinds.values()) == {ir.DataType.FLOAT}
    assert next(node for node in typed.graph if node.op_type == "Conv").inputs[0].dtype == ir.DataType.FLOAT16
    # One rounding of the input to half precision may fall the other way.
    assert_same(before, run(typed, {"images": pixels}), tolerance=2e-3)


@pytest.mark.parametrize("channels", ["L", "bands"])
def test_other_channels_than_colours_are_refused(channels: str) -> None:
    recipe = Preprocessing(size=(5, 7), mean=(0.5,), std=(0.5,), channels=channels)
    for refused in (require_bakeable, lambda one: BakePreprocessing(PORTABLE, one)):
        with pytest.raises(
            UsageError, match=rf"channels={channels} cannot be baked(.|\n)*leave --bake-preprocessing out"
        ):
            refused(recipe)
    require_bakeable(Preprocessing(channels="BGR"))

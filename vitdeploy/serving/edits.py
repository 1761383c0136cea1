"""Exact edits of a model for destinations that cannot be told the preprocessing, each held against the bundle's model.

They work on ONNX's own messages, so that a device without the package onnx_ir can make them too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Manifest
from vitdeploy.errors import REPORT, BackendError
from vitdeploy.graph.run import Runner
from vitdeploy.preprocess import normalise
from vitdeploy.progress import each

Array = NDArray[Any]

PROBABILITIES = "probabilities"

# Images that an edited model is compared on.
_IMAGES = 2
_SOFTMAX_ERROR = 1e-6


def takes_planes(model: bytes, manifest: Manifest, *, normalised: bool = False) -> bytes:
    """The model with an input float32 [N, C, height, width] of pixel values 0..255, in the order of its channels.

    A graph that takes uint8 [N, height, width, 3] loses its Cast, and reads RGB as before. In any other the scale, the
    mean and the deviation stand in front, one operator each in float32, so that every bit is that of `normalise`.

    normalised  the destination normalises, so that a graph of normalised values stays as it is
    """
    import onnx

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    (value,) = [one for one in graph.input if one.name == manifest.images[0]]
    if manifest.preprocessing_in_graph:
        _read_planes(graph, value, onnx)
    elif not normalised:
        _normalise(graph, value, manifest.recipe, onnx)
    return _checked(proto, onnx)


def gives_probabilities(model: bytes) -> bytes:
    """The model with a Softmax behind its only output [N, classes]; the new output is float32."""
    import onnx

    proto = onnx.load_model_from_string(model)
    graph, single = proto.graph, onnx.TensorProto.FLOAT
    (logits,) = graph.output
    axes = [_axis(one) for one in logits.type.tensor_type.shape.dim]
    read = logits.name
    if logits.type.tensor_type.elem_type != single:
        read = _unused(graph, f"{logits.name}_single")
        graph.node.append(onnx.helper.make_node("Cast", [logits.name], [read], name=_unused(graph, "cast"), to=single))
    name = _unused(graph, PROBABILITIES)
    graph.node.append(onnx.helper.make_node("Softmax", [read], [name], name=_unused(graph, "softmax"), axis=1))
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(name, single, axes))
    return _checked(proto, onnx)


def without_scalars(model: bytes) -> bytes:
    """The model with a shape of [1] for each output that is a single number."""
    import onnx

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    for value in graph.output:
        if not value.type.tensor_type.HasField("shape") or value.type.tensor_type.shape.dim:
            continue
        inner, one = _unused(graph, f"{value.name}_number"), _unused(graph, f"{value.name}_shape")
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), one))
        _rename(graph, value.name, inner)
        for node in graph.node:
            node.output[:] = [inner if name == value.name else name for name in node.output]
        node = onnx.helper.make_node("Reshape", [inner, one], [value.name], name=_unused(graph, "number"))
        graph.node.append(node)
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, [1]))
    return _checked(proto, onnx)


def output_of(model: bytes) -> str:
    """The name of its only output."""
    import onnx

    (output,) = onnx.load_model_from_string(model).graph.output
    return str(output.name)


def check_edited(edited: bytes, original: bytes, manifest: Manifest, *, normalised: bool = False) -> None:
    """BackendError unless the edited model gives for pixels what the original gives for them prepared, bit for bit.

    Where it gives probabilities, they are those of the original's logits within 1e-6. MissingDependencyError where ONNX
    Runtime is not installed.

    normalised  as for `takes_planes`
    """
    ours, theirs = Runner(edited, "as_written"), Runner(original, "as_written")
    pixels, recipe, in_graph = _pixels(manifest, theirs.batch or 1), manifest.recipe, manifest.preprocessing_in_graph
    prepared = pixels if in_graph else normalise(pixels, recipe)
    if normalised and not in_graph:
        given = prepared
    else:
        flipped = recipe.channels == "BGR" and not in_graph
        given = np.moveaxis(pixels[..., ::-1] if flipped else pixels, -1, 1).astype(np.float32)
    made: list[Array] = []
    for runner, array in each("comparing the edited model", ((ours, given), (theirs, prepared))):
        made.extend(runner({runner.inputs[0]: np.ascontiguousarray(array)}, 1).values())
    found, expected = made
    if ours.outputs != theirs.outputs:
        error = np.abs(found.astype(np.float64) - _softmax(expected.astype(np.float64))).max()
        same = bool(error <= _SOFTMAX_ERROR)
    else:
        same = np.array_equal(found, expected)
    if not same:
        raise BackendError("the edited model gives other outputs than the bundle's", fix=REPORT)


def _pixels(manifest: Manifest, batch: int) -> Array:
    recipe = manifest.recipe
    count = batch * -(-_IMAGES // batch)
    return np.random.RandomState(0).randint(0, 256, (count, *recipe.size, recipe.depth)).astype(np.uint8)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _read_planes(graph: Any, value: Any, onnx: Any) -> None:
    """Let the readers of the uint8 input, all of them Casts to float32, read a Transpose of planes instead."""
    readers = [node for node in graph.node if value.name in node.input]
    if not readers or not all(_casts_to_float(node, onnx) for node in readers):
        raise BackendError(
            f"{value.name} is not read by a Cast to float32 alone",
            why="its pixels cannot be given as float32",
            fix="export the bundle again",
        )
    turned = readers[0].output[0]
    place = list(graph.node).index(readers[0])
    for node in readers:
        _rename(graph, node.output[0], turned)
        graph.node.remove(node)
    name = _unused(graph, "planes")
    transpose = onnx.helper.make_node("Transpose", [value.name], [turned], name=name, perm=[0, 2, 3, 1])
    graph.node.insert(place, transpose)
    batch, height, width, channels = value.type.tensor_type.shape.dim
    axes = [_axis(one) for one in (batch, channels, height, width)]
    value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, axes))


def _casts_to_float(node: Any, onnx: Any) -> bool:
    to = [one.i for one in node.attribute if one.name == "to"]
    return node.op_type == "Cast" and to == [onnx.TensorProto.FLOAT]


def _normalise(graph: Any, value: Any, recipe: Any, onnx: Any) -> None:
    """Put Div, Sub and Div in front of the float32 input [N, C, H, W]."""
    inner = _unused(graph, f"{value.name}_normalised")
    _rename(graph, value.name, inner)
    channelwise = (1, -1, 1, 1)
    steps = (
        ("Div", np.asarray(recipe.scale, np.float32)),
        ("Sub", np.asarray(recipe.mean, np.float32).reshape(channelwise)),
        ("Div", np.asarray(recipe.std, np.float32).reshape(channelwise)),
    )
    before = value.name
    for index, (operator, constant) in enumerate(steps):
        name = _unused(graph, f"preprocessing_{index}")
        graph.initializer.append(onnx.numpy_helper.from_array(constant, name))
        after = inner if index == len(steps) - 1 else _unused(graph, f"preprocessed_{index}")
        node = onnx.helper.make_node(operator, [before, name], [after], name=_unused(graph, f"preprocessing/{index}"))
        graph.node.insert(index, node)
        before = after


def _axis(dim: Any) -> int | str:
    return int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param)


def _rename(graph: Any, old: str, new: str) -> None:
    """Let every reader of a value read another one, in the graphs inside of nodes too."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, old, new)


def _unused(graph: Any, name: str) -> str:
    taken = {one.name for part in (graph.input, graph.initializer, graph.node, graph.value_info) for one in part}
    taken |= {output for node in graph.node for output in node.output}
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def _checked(proto: Any, onnx: Any) -> bytes:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker and the inference of shapes have no common base
        why = str(error).strip().splitlines()[:1]
        raise BackendError("the edited model is not valid ONNX", why="".join(why), fix=REPORT) from error
    data: bytes = proto.SerializeToString(deterministic=True)
    return data

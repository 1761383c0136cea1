"""Where a manifest says something else than the graph that it describes.

What a graph does not show is not looked at: names of classes, target, origin of the weights, how images are resized and
normalised (see `preprocessing_sample`), and how many classes a user's own network tells apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vitdeploy.bundle.graph_facts import GraphFacts
from vitdeploy.bundle.manifest import Manifest, TensorSpec

LOGITS = "logits"
HALVES = frozenset({"float16", "bfloat16"})
# The family of a user's own networks: before the logits told how many classes they have, 0 was recorded.
CUSTOM_FAMILY = "custom"


def contradictions(manifest: Manifest, facts: GraphFacts) -> list[str]:
    """What the manifest says and the graph does not, in words; empty for a bundle that is as it was exported."""
    return [failure for check in _CHECKS for failure in check(manifest, facts)]


def differences(side: str, expected: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> list[str]:
    """Where a signature is not the manifest's; names of dynamic axes do not count, runtimes drop them."""
    by_name = {spec.name: spec for spec in found}
    named = {spec.name for spec in expected}
    failures = [f"{side} {name} is not in the manifest" for name in by_name if name not in named]
    for spec in expected:
        other = by_name.get(spec.name)
        if other is None:
            failures.append(f"the model has no {side} {spec.name}")
        elif (other.dtype, _lengths(other)) != (spec.dtype, _lengths(spec)):
            failures.append(f"{side} {other} should be {spec}")
    return failures


def _lengths(spec: TensorSpec) -> list[int | None]:
    return [axis if isinstance(axis, int) else None for axis in spec.shape]


def _signature(manifest: Manifest, facts: GraphFacts) -> Iterator[str]:
    yield from facts.unusual
    for side, expected, found in (
        ("input", manifest.inputs, facts.inputs),
        ("output", manifest.outputs, facts.outputs),
    ):
        failures = differences(side, expected, found)
        yield from failures
        if not failures and [spec.name for spec in expected] != [spec.name for spec in found]:
            yield f"the {side}s are in another order than {', '.join(spec.name for spec in found)}"


def _opset(manifest: Manifest, facts: GraphFacts) -> Iterator[str]:
    if manifest.opset != facts.opset:
        yield f"opset is {manifest.opset}, and that of the graph is {facts.opset}"


def _precision(manifest: Manifest, facts: GraphFacts) -> Iterator[str]:
    halves = bool(facts.float_types & HALVES)
    found = "Q/DQ" if facts.quantized else "FP16 values" if halves else "neither Q/DQ nor FP16 values"
    expected = {
        "fp32": not facts.quantized and not halves,
        "fp16": not facts.quantized and halves,
        "int8": facts.quantized,
    }
    if manifest.precision not in expected:
        yield f"precision is {manifest.precision!r}, not one of {', '.join(expected)}"
    elif not expected[manifest.precision]:
        yield f"precision is {manifest.precision}, and the graph has {found}"


def _image_size(manifest: Manifest, facts: GraphFacts) -> Iterator[str]:
    spec = next((spec for spec in facts.inputs if spec.name in manifest.images), None)
    pixels = spec is not None and spec.dtype == "uint8"
    if manifest.preprocessing_in_graph != pixels:
        takes = "takes" if pixels else "does not take"
        said = str(manifest.preprocessing_in_graph).lower()
        yield f"preprocessing_in_graph is {said}, and the graph {takes} uint8 pixels"
    if spec is None or len(spec.shape) != 4 or manifest.preprocessing is None:
        return
    size = spec.shape[1:3] if pixels else spec.shape[2:]
    for name, recorded in (
        ("model.image_size", manifest.model.image_size),
        ("preprocessing.size", manifest.preprocessing.size),
    ):
        if recorded is None:
            yield f"{name} is missing, and the images of the graph are {list(size)}"
        elif any(isinstance(length, int) and length != side for length, side in zip(size, recorded, strict=True)):
            yield f"{name} is {list(recorded)}, and the images of the graph are {list(size)}"


def _classes(manifest: Manifest, facts: GraphFacts) -> Iterator[str]:
    classes, logits = manifest.model.num_classes, [spec for spec in facts.outputs if spec.name == LOGITS]
    if not logits or (classes == 0 and (manifest.model.family == CUSTOM_FAMILY or len(logits[0].shape) != 2)):
        return
    (spec,) = logits
    if len(spec.shape) < 2 or (isinstance(spec.shape[1], int) and spec.shape[1] != classes):
        yield f"model.num_classes is {classes}, and the graph has the output {spec}"


_CHECKS: tuple[Callable[[Manifest, GraphFacts], Iterator[str]], ...] = (
    _signature,
    _opset,
    _precision,
    _image_size,
    _classes,
)

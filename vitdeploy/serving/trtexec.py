"""The command line of trtexec that builds an engine with the types of the file, for each generation of TensorRT.

TensorRT 8 knows no strongly typed networks: flags allow FP16 and INT8, and constraints hold in FP32 what the file keeps
there, as `vitdeploy.tensorrt.build.hold_types` does. TensorRT 10 takes `--stronglyTyped`, and 11 knows nothing
else: the pages on migrating trtexec from 8.x to 10.x, and from 10.x to 11.x.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from vitdeploy.bundle import MODEL
from vitdeploy.serving.content import Content, Destination, File, Request
from vitdeploy.targets import find_target
from vitdeploy.tensorrt.build import is_strongly_typed
from vitdeploy.tensorrt.options import BATCH_PROFILE, BuildOptions

ENGINE = "model.plan"
GENERATIONS = (8, 10, 11)

# The longest word that Linux takes in a command, which the constraints of a large network may reach.
_LONGEST = 1 << 17
# What states its own type, or makes no values to compute with.
_STATING = frozenset({"Cast", "Constant", "Identity", "QuantizeLinear", "Shape"})


class Facts(NamedTuple):
    """What a command line says of a graph.

    half, quantized  whether it has FP16 values, and Q/DQ
    single           names of the nodes that compute in FP32 and read nothing dequantized
    nameless         how many more there are whose name cannot stand in a list
    packed           whether weights are stored in INT8, which the parser of TensorRT 8 does not take
    free             the inputs whose first axis is free: name and the other lengths
    """

    half: bool
    quantized: bool
    single: tuple[str, ...]
    nameless: int
    packed: bool
    free: tuple[tuple[str, tuple[int, ...]], ...]


def write(request: Request) -> Content:
    """A script for each generation that reads the file, and the file."""
    _, best, largest = profile(request)
    files = {MODEL: File(request.model, "the bundle's model"), **build_scripts(request, request.model, largest)}
    scripts = [name for name in files if name.endswith(".sh")]
    return Content(
        files=files,
        start=[f"./{name}" for name in scripts[-1:]],
        differs=list(_differs(request)),
        told=[
            "Run the script of the version of TensorRT that is installed (`trtexec --help` names it); what one adds "
            f"behind it goes to trtexec. It writes `{ENGINE}` for the GPU of the machine.",
            "A Jetson has trtexec in `/usr/src/tensorrt/bin`: `PATH=$PATH:/usr/src/tensorrt/bin`.",
            "`vitdeploy build BUNDLE` builds the same engine and compares it with PyTorch; trtexec compares nothing.",
            *([f"The profile goes up to {largest} images, tuned for {best}."] if request.batch_is_free else []),
        ],
    )


def build_scripts(request: Request, model: bytes, largest: int) -> dict[str, File]:
    """`trtexec-N.sh` of each generation; one that cannot read the file, or be told its types, is left out.

    largest  images of one call, where the batch is free
    """
    facts, found = facts_of(model), {}
    for generation in GENERATIONS:
        if reads(request, facts, generation) and (words := command(facts, generation, largest)) is not None:
            text = "#!/bin/sh\n" + f'cd "$(dirname "$0")" && exec {shlex.join(words)} "$@"\n'
            about = f"builds `{ENGINE}` with TensorRT {generation}"
            found[f"trtexec-{generation}.sh"] = File(text.encode("utf-8", "replace"), about, runs=True)
    return found


def command(facts: Facts, generation: int, largest: int) -> list[str] | None:
    """The words of the command line; None where one of them is too long."""
    words = ["trtexec", f"--onnx={MODEL}", f"--saveEngine={ENGINE}"]
    words += [f"{option}={shapes}" for option, shapes in _shapes(facts, largest)]
    words.append("--noTF32")
    if is_strongly_typed((generation, 0), BuildOptions()):
        words += ["--stronglyTyped"] if generation == GENERATIONS[1] else []
        return [*words, "--skipInference"]
    words += [f"--{flag}" for flag, used in (("fp16", facts.half), ("int8", facts.quantized)) if used]
    if facts.half and facts.single:
        held = ",".join(f"{name}:fp32" for name in facts.single)
        constraints = {"precisionConstraints": "obey", "layerPrecisions": held, "layerOutputTypes": held}
        words += [f"--{option}={value}" for option, value in constraints.items()]
    return None if max(map(len, words)) >= _LONGEST else [*words, "--buildOnly"]


def profile(request: Request) -> tuple[int, int, int]:
    """Images of one call: least, tuned for, most."""
    least, best, most = BATCH_PROFILE
    largest = request.max_batch or most
    return least, min(best, largest), largest


def reads(request: Request, facts: Facts, generation: int) -> bool:
    """Whether TensorRT of this generation reads the file."""
    oldest = find_target("tensorrt8").opset
    return generation > GENERATIONS[0] or (request.manifest.opset <= oldest and not facts.packed)


def facts_of(model: bytes) -> Facts:
    """What `hold_types` asks of a parsed network, from the file."""
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    graph, kinds = proto.graph, onnx.TensorProto
    known = {one.name: one.type.tensor_type.elem_type for one in (*graph.value_info, *graph.output, *graph.input)}
    known |= {one.name: one.data_type for one in graph.initializer}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    single = [
        node.name
        for node in graph.node
        if node.op_type not in (*_STATING, "DequantizeLinear")
        and {known.get(name) for name in node.output} == {kinds.FLOAT}
        and not dequantized.intersection(node.input)
    ]
    constants = {one.name for one in graph.initializer}
    packed = {one.name for one in graph.initializer if one.data_type == kinds.INT8}
    read = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    shapes = {one.name: one.type.tensor_type.shape.dim for one in graph.input if one.name not in constants}
    return Facts(
        half=kinds.FLOAT16 in known.values(),
        quantized=bool(dequantized),
        single=tuple(dict.fromkeys(filter(_can_be_named, single))),
        nameless=sum(not _can_be_named(name) for name in single),
        packed=bool(packed & read),
        free=tuple(
            (name, tuple(axis.dim_value or 1 for axis in dims[1:]))
            for name, dims in shapes.items()
            if dims and not dims[0].HasField("dim_value")
        ),
    )


def _can_be_named(name: str) -> bool:
    """Whether the list of trtexec can hold a name: commas and colons separate."""
    return bool(name) and not {",", ":", "*"}.intersection(name)


def _shapes(facts: Facts, largest: int) -> Iterator[tuple[str, str]]:
    """The options of the profile where the batch is free; the name of an input that has a colon stands in quotes."""
    if not facts.free:
        return
    counts = (BATCH_PROFILE[0], min(BATCH_PROFILE[1], largest), largest)
    for option, count in zip(("--minShapes", "--optShapes", "--maxShapes"), counts, strict=True):
        shapes = []
        for name, rest in facts.free:
            quoted = f"'{name}'" if {":", ","}.intersection(name) else name
            shapes.append(f"{quoted}:{'x'.join(map(str, (count, *rest)))}")
        yield option, ",".join(shapes)


def _differs(request: Request) -> Iterator[str]:
    facts, opset = facts_of(request.model), request.manifest.opset
    if not reads(request, facts, GENERATIONS[0]):
        what = "weights that are stored in INT8" if facts.packed else f"opset {opset}"
        yield f"TensorRT 8 does not read {what}, so that there is no script for it; export for the target tensorrt8."
    elif facts.half and facts.single:
        yield (
            f"TensorRT 8: {len(facts.single)} nodes are held in FP32 by their names. An operator that becomes several "
            "layers is held by its first one only; `vitdeploy build BUNDLE` holds all of them."
        )
    if facts.half and facts.nameless:
        yield f"TensorRT 8: {facts.nameless} nodes of FP32 have no name that trtexec can be told, and may run in FP16."


TRTEXEC = Destination("trtexec", write, frozenset({"max_batch"}))

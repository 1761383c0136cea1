"""An `.onnx` file from somewhere else: read, checked, its functions inlined, all its floats in FP32."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
import onnx.defs
import onnx.inliner
import onnx_ir as ir

from vitdeploy.errors import ModelError, UsageError
from vitdeploy.exporter.onnx_import.single import in_single

STANDARD = ("", "ai.onnx")
OLDEST = 7
_IR = 8  # since version 4 no weight has to be an input
_SHOWN = 4  # names in a message
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"}
    | {"MatMulInteger"}
)
# What a clone of a repository has in the place of a large file that was not fetched.
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class OnnxFile:
    """What an `.onnx` file holds.

    path    where it was read
    graph   its nodes at its own opset, without local functions; all floats in FP32
    nodes   how many compute something
    floats  the types other than FP32 that its floats had
    sha256  of the file, and of those with its weights
    """

    path: Path
    graph: ir.Model
    nodes: int
    floats: tuple[str, ...]
    sha256: str


def read_onnx(path: Path, largest: int) -> OnnxFile:
    """The file at `path`, whose weights take less than `largest` bytes.

    Raises UsageError for a file that is not there, or is no ONNX file; ModelError for one without its external data,
    with operators that are not of ONNX, with random numbers, or quantized.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}", fix=f"check the path: ls {path.parent}")
    proto = _parsed(path)
    outside = _external_files(path, proto)
    size = path.stat().st_size + sum(file.stat().st_size for file in outside)
    if size >= largest:
        raise ModelError(
            f"{path} and its weights take {size / 1e9:.1f} GB",
            why="a bundle keeps them in model.onnx, and a file of ONNX holds less than 2 GB",
            fix="a smaller variant of the network",
        )
    _check_opset(path, proto)
    _check_operators(path, proto)
    try:
        if outside:
            onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        _check_model(proto)
        graph = ir.from_proto(proto)
    except Exception as error:  # every library on the way raises its own kinds for a broken file
        raise _broken(path, error) from error
    for name in [str(value.name) for value in graph.graph.inputs]:
        if name in graph.graph.initializers:  # before IR version 4 every initializer was listed as an input as well
            graph.graph.inputs.remove(graph.graph.initializers[name])
    graph.ir_version = max(graph.ir_version, _IR)
    nodes = sum(node.op_type != "Constant" for node in graph.graph)
    return OnnxFile(path, graph, nodes, in_single(graph), _hash(path, *outside))


def _check_model(proto: onnx.ModelProto) -> None:
    """Let ONNX check the graph; that not every output states its shape, as it demands, is no fault."""
    ports = [value.type.tensor_type for value in (*proto.graph.input, *proto.graph.output)]
    silent = [port for port in ports if port.elem_type and not port.HasField("shape")]
    for port in silent:
        port.shape.SetInParent()
    onnx.checker.check_model(proto)
    for port in silent:
        port.ClearField("shape")


def _parsed(path: Path) -> onnx.ModelProto:
    with path.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise UsageError(
                f"{path} is a pointer of Git LFS, not the file itself", fix=f"git lfs pull --include {path.name}"
            )
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors have no common class
        raise _broken(path, error) from error
    if not proto.graph.node or not proto.opset_import:
        raise UsageError(
            f"{path} is not an ONNX file, or an empty one",
            why="it has no nodes" if proto.opset_import else "it states no opset",
            fix="write it again; `python -c \"import onnx; onnx.checker.check_model('FILE')\"` says what is wrong",
        )
    return proto


def _broken(path: Path, error: Exception) -> UsageError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UsageError(
        f"{path} cannot be read as ONNX",
        why=first,
        fix="write the file again, or copy it again; a whole file passes onnx.checker.check_model",
    )


def _external_files(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """The files beside `path` that hold its weights; ModelError where one is missing, short, or somewhere else."""
    needed: dict[str, int] = {}
    for tensor in _tensors(proto):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name, parts = entries.get("location", ""), PurePosixPath(entries.get("location", "")).parts
        if not name or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise ModelError(
                f"{path} keeps the weights {tensor.name} in {name or 'no file'!r}",
                why="external data lies in the folder of the .onnx file, or below it",
                fix=f"onnx.save_model(model, '{path.name}', save_as_external_data=True)",
            )
        try:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        except ValueError:
            raise _broken(path, ValueError(f"the place of {tensor.name} in {name} is no number")) from None
        needed[name] = max(needed.get(name, 0), end)
    for name, end in needed.items():
        file = path.parent / name
        if not file.is_file():
            raise ModelError(
                f"{path} has its weights in {name}, which is not there",
                why=f"there is no file {file}",
                fix=f"copy {name} into {path.parent}, from where {path.name} was written",
            )
        if file.stat().st_size < end:
            raise ModelError(
                f"{file} is too short",
                why=f"{path.name} needs {end:,} bytes of it, and it has {file.stat().st_size:,}",
                fix=f"copy {name} again, from where {path.name} was written",
            )
    return [path.parent / name for name in needed]


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The tensors of the model that lie in other files."""
    graphs = [proto.graph, *_subgraphs(proto.graph.node)]
    nodes = itertools.chain(*(graph.node for graph in graphs), *(function.node for function in proto.functions))
    constants = (attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t"))
    for tensor in itertools.chain(*(graph.initializer for graph in graphs), constants):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def _subgraphs(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield graph
                yield from _subgraphs(graph.node)


def _check_opset(path: Path, proto: onnx.ModelProto) -> None:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in STANDARD), None)
    if opset is None or opset < OLDEST:
        raise ModelError(
            f"{path} is of {'no opset' if opset is None else f'opset {opset}'} of ONNX",
            why=f"before opset {OLDEST} operators had forms that no runtime here reads",
            fix="export it again with opset_version=17 or newer",
        )


def _check_operators(path: Path, proto: onnx.ModelProto) -> None:
    """ModelError for what no export can start from: operators that are not of ONNX, random numbers, integers."""
    own = {(function.domain, function.name) for function in proto.functions}
    graphs = [proto.graph, *_subgraphs(proto.graph.node), *proto.functions]
    nodes = [node for graph in graphs for node in graph.node]
    foreign: dict[str, str] = {}
    for node in nodes:
        if (node.domain, node.op_type) not in own and not _is_standard(node):
            foreign.setdefault(f"{node.domain or 'ai.onnx'}.{node.op_type}", node.name or node.output[0])
    if foreign:
        names = list(foreign)
        raise ModelError(
            f"{path} has custom operators: {_some(names)}",
            why=f"{names[0]}, first at the node {foreign[names[0]]}, is not defined by ONNX, "
            "and other runtimes do not know it",
            fix="the file as it was before a runtime's optimizer or quantizer wrote it, or one exported without them"
            if any(name.startswith("com.microsoft") for name in names)
            else "write that part of the network with standard operators, or as a function in the file",
        )
    for kinds, what, why, fix in (
        (_QUANTIZED, "is quantized already", "the reference has to be the network in floats", "the .onnx in floats"),
        (_RANDOM, "draws random numbers", "no two runtimes draw the same", "a file exported in eval mode"),
    ):
        found = sorted({node.op_type for node in nodes if node.op_type in kinds and node.domain in STANDARD})
        if found:
            raise ModelError(
                f"{path} {what}",
                why=f"it has {_some(found)}, and {why}",
                fix=f"{fix}; --int8 quantizes it" if kinds is _QUANTIZED else fix,
            )


def _is_standard(node: onnx.NodeProto) -> bool:
    """Whether ONNX defines the operator, at any opset; converters leave what they do not know under its old name."""
    return node.domain in STANDARD and onnx.defs.has(node.op_type)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

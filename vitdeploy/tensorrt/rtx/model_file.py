"""The ONNX file that the compiler gets: of a bundle or on its own, with a name for every node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import BundleError, InputError, UsageError
from vitdeploy.tensorrt.options import BATCH_PROFILE

if TYPE_CHECKING:
    import onnx

# What one protobuf message holds, and so the compiler's limit for a model without files beside it.
LARGEST_MODEL = 2**31 - 1

Shapes = dict[str, tuple[tuple[int, ...], ...]]


def open_model(source: Bundle | str | Path) -> tuple[str, onnx.ModelProto, Bundle | None]:
    """The path in words, the model with a name for every node, and the bundle where `source` is one.

    Raises BundleError for a bundle that is damaged, InputError for a file that is no ONNX model, and UsageError for
    one that is too large.
    """
    path = source if isinstance(source, Bundle) else Path(source)
    if isinstance(path, Path) and (path.is_file() or (path.suffix == ".onnx" and not path.is_dir())):
        return str(path), with_names(_read(path)), None
    bundle = path if isinstance(path, Bundle) else Bundle.open(path)
    bundle.check_files()
    return str(bundle.path), with_names(parse(bundle.read(MODEL), str(bundle.path))), bundle


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """The model in `data`; BundleError where `where` holds none."""
    import onnx

    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # onnx and protobuf have no common base
        raise BundleError(
            f"{MODEL} of {where} is not a valid ONNX model", why=str(error) or None, fix="export the bundle again"
        ) from error


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, whose unnamed nodes and those of a name that is taken are called after operator and place."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}#{index}"
        seen.add(node.name)
    return model


def free_shapes(
    model: onnx.ModelProto,
    lengths: Mapping[str, Sequence[int]] | None = None,
    batch: tuple[int, int, int] = BATCH_PROFILE,
) -> Shapes:
    """Smallest, usual and largest shape of every input with a free axis: the batch as `vitdeploy build` takes it.

    `lengths` are shapes of the inputs, of which other free axes get theirs. Raises UsageError for one without.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found: Shapes = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        known = (lengths or {}).get(value.name)
        fixed = [n if n is not None or axis == 0 or known is None else known[axis] for axis, n in enumerate(dims)]
        if None in fixed[1:] or not value.type.tensor_type.HasField("shape"):
            raise UsageError(
                f"the input {value.name} has a free axis besides the batch",
                why="the compiler has to be told its lengths, which no .onnx file says",
                fix="vitdeploy export MODEL.onnx --target tensorrt10, and check the bundle",
            )
        if None in dims:
            found[value.name] = tuple(tuple(images if n is None else n for n in fixed) for images in batch)
    return found


def serialized(model: onnx.ModelProto, where: str) -> bytes:
    """The bytes of `model`; UsageError where they are more than one ONNX file may have."""
    size = model.ByteSize()
    if size > LARGEST_MODEL:
        raise UsageError(
            f"{where} is too large for the compiler",
            why=f"{size / 2**30:.1f} GiB with its weights, and an ONNX file holds less than 2 GiB",
            fix="export it in FP16 (--fp16), or check a part of the network",
        )
    data: bytes = model.SerializeToString()
    return data


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read", why=error.strerror or str(error), fix="check the name; a bundle is a folder"
        ) from error
    except Exception as error:  # onnx and protobuf have no common base
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path} is not a valid ONNX model",
            why=why[0],
            fix="export it again; the files of its weights have to lie beside it",
        ) from error

"""Bundles whose manifest, reference or graph was changed by somebody who can hash."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.bundles import forge_file, tiny_images, tiny_logits, write_tiny_bundle
from tests.fuzz.values import change_bytes, change_tree, strange
from vitdeploy.bundle import MANIFEST, MODEL, REFERENCE, Bundle
from vitdeploy.bundle.manifest import dump
from vitdeploy.errors import VitDeployError
from vitdeploy.graph.soundness import messages
from vitdeploy.inspection.inspect import inspect
from vitdeploy.platforms.check import check
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify

RUNTIMES = ("onnxruntime", "openvino")
OPERATORS = ("Relu", "Neg", "Softmax", "Exp", "Reshape", "Flatten", "Loop", "If", "Gather", "Transpose", "Conv", "Own")
# Bytes of an array that no bundle needs.
LARGE = 1 << 24
# What protobuf raises where a field does not take a value.
UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class WrongPassError(AssertionError):
    """A bundle was proven that computes something else than it says."""


def honest(folder: Path) -> None:
    """The bundles that are changed."""
    for precision in ("fp32", "fp16", "int8"):
        write_tiny_bundle(folder / precision, precision=precision)


def copied(folder: Path, rng: random.Random) -> Bundle:
    """One of them, as a copy that may be changed."""
    target = folder / "changed"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / rng.choice(("fp32", "fp16", "int8")), target)
    return Bundle.open(target)


def damage_file(folder: Path, rng: random.Random) -> None:
    """Bytes of any file, by somebody who does not hash: only what says the same may pass."""
    bundle = copied(folder, rng)
    path = bundle.path / rng.choice(sorted(file.name for file in bundle.path.iterdir()))
    before = path.read_bytes()
    after = change_bytes(before, rng)
    path.write_bytes(after)
    if use(bundle.path, rng) is None or after == before:
        return
    if path.name != MANIFEST or json.loads(after) != json.loads(before):  # white space is not in its hash
        raise WrongPassError(f"proven, though {path.name} was damaged")


def change_manifest(folder: Path, rng: random.Random) -> None:
    """Some values of the manifest."""
    bundle = copied(folder, rng)
    path = bundle.path / MANIFEST
    document = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        change_tree(document, rng)
    with contextlib.suppress(ValueError, TypeError):  # what JSON cannot say
        path.write_bytes(dump(document))
    if rng.random() < 0.1:
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    use(bundle.path, rng)


def change_reference(folder: Path, rng: random.Random) -> None:
    """Arrays of the reference, or the bytes of their archive; what no longer is what PyTorch gave must not pass."""
    bundle = copied(folder, rng)
    with np.load(bundle.path / REFERENCE) as archive:
        arrays: dict[str, Any] = dict(archive)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(arrays))
        arrays[rng.choice((name, name, "file.logits", "output.x", ""))] = changed_array(arrays[name], rng)
    stream = io.BytesIO()
    save = rng.choice((np.savez, np.savez, np.savez, np.savez_compressed))
    save(stream, **{name or "x": array for name, array in arrays.items()})
    data = stream.getvalue()
    if rng.random() < 0.3:
        data = change_bytes(data, rng)
    forge_file(bundle, REFERENCE, data)
    if use(bundle.path, rng) is None:
        return
    found = Bundle.open(bundle.path).reference()
    apart(found.outputs["logits"], tiny_logits(found.inputs["images"]))


def changed_array(array: np.ndarray, rng: random.Random) -> Any:
    """Another type, shape or value somewhere."""
    changes: tuple[Callable[[np.ndarray], Any], ...] = (
        lambda a: (
            a.astype(rng.choice(("float16", "float64", "int32", "bool", "complex64", "S8", "V4", "U3")))
            if a.nbytes < LARGE
            else a
        ),
        lambda a: np.full_like(a, rng.choice((np.nan, np.inf, 0, 1))),
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == rng.randrange(a.size), np.nan, a),
        lambda a: a * rng.choice((-1, 0.5, 1.01, 1e30)),
        lambda a: a[: rng.randrange(len(a))] if a.ndim else a,
        lambda a: a[None],
        lambda a: a.ravel(),
        lambda a: np.asarray(strange(rng), object),
        lambda a: np.zeros(LARGE, np.uint8),
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(a.dtype.newbyteorder()),
    )
    if array.nbytes >= LARGE:  # the memory that is measured should not be that of the fuzzer
        return array
    with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError, OverflowError):
        return rng.choice(changes)(array)
    return array


def change_graph(folder: Path, rng: random.Random) -> None:
    """Nodes, names, attributes, constants or raw bytes of the model."""
    bundle = copied(folder, rng)
    data = (bundle.path / MODEL).read_bytes()
    if rng.random() < 0.25:
        data = change_bytes(data, rng)
    else:
        model = onnx.load_from_string(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            with contextlib.suppress(*UNFIT):
                change_message(model, rng)
        data = model.SerializeToString()
    forge_file(bundle, MODEL, data)
    runtime = use(bundle.path, rng)
    if runtime is None:
        return
    images = tiny_images(40)[20:]
    with load(bundle.path, runtime=runtime) as session:
        apart(session(images), tiny_logits(images))


def change_message(model: onnx.ModelProto, rng: random.Random) -> None:
    """One field somewhere in the model."""
    graph = model.graph
    kind = rng.randrange(7)
    if kind == 6 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[rng.randrange(values.size)] += rng.choice((-1, 1, 5))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    elif kind == 0 and graph.node:
        rng.choice(graph.node).op_type = rng.choice(OPERATORS)
    elif kind == 1 and graph.node:
        graph.node.insert(rng.randrange(len(graph.node) + 1), rng.choice(graph.node))
    elif kind == 2 and graph.node:
        del graph.node[rng.randrange(len(graph.node))]
    elif kind == 3 and graph.node:
        names = [name for node in graph.node for name in (*node.input, *node.output)]
        node = rng.choice(graph.node)
        side = rng.choice((node.input, node.output))
        side[rng.randrange(len(side))] = rng.choice(names)
    else:
        message = rng.choice(list(messages(model)))
        field = rng.choice(message.DESCRIPTOR.fields)
        value = strange(rng)
        held = getattr(message, field.name)
        if hasattr(held, "append"):
            if held and rng.random() < 0.5:
                held[rng.randrange(len(held))] = value
            elif len(held) and rng.random() < 0.5:
                del held[rng.randrange(len(held))]
            else:
                held.append(value)
        elif isinstance(held, bytes):
            setattr(message, field.name, change_bytes(held, rng))
        else:
            setattr(message, field.name, value)


def use(path: Path, rng: random.Random) -> str | None:
    """Give a bundle to one of those who open bundles; the runtime that it was proven in. What is not ours is raised."""
    kind = rng.randrange(6)
    try:
        if kind <= 2:
            runtime = RUNTIMES[0] if kind else RUNTIMES[1]
            return runtime if verify(path, runtime=runtime).passed else None
        if kind == 3:
            with load(path, runtime=rng.choice(RUNTIMES)) as session:
                session.predict(np.zeros((9, 9, 3), np.uint8))
        elif kind == 4:
            str(inspect(path))
        else:
            str(check(path, rng.choice(("tensorrt8", "tensorrt10", "jetson-orin-nano-jp6"))))
    except VitDeployError:
        pass
    return None


def apart(found: np.ndarray, wanted: np.ndarray) -> None:
    """WrongPassError where a bundle that was proven gives other numbers; 0.5 % is what FP16 and INT8 are allowed."""
    error = float(np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max())
    if not error < 0.02:
        raise WrongPassError(f"proven, and {error:.3g} of the largest value away")

"""How many faults in a bundle's graph does `vitdeploy verify` see? One seeded fault a trial, the bundle sealed again.

    python benchmarks/seeded_faults.py eurosat_val.zip BUNDLE[=CHECKPOINT] … [--faults 200] [--seed 0] [--save]

Each fault changes one tensor or attribute of model.onnx: a weight, bias, scale, zero point, axis, epsilon, permutation,
constant or operator. It counts where it moves the outputs for real images (not those in the bundle) by more than the
file's own noise floor: the unfaulted file against PyTorch, on the same images. Such a fault is to be refused by
`verify`, in every runtime of the bundle that is installed. Unfaulted bundles are verified too, and must pass.
`--save` writes benchmarks/results/seeded_faults.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from timing import environment, finished

from vitdeploy import load, open_data, verify
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import VitDeployError
from vitdeploy.files import hash_file
from vitdeploy.statistics import snr_db
from vitdeploy.table import render

HERE = Path(__file__).parent
PACKAGES = ("vitdeploy", "onnx", "onnxruntime", "openvino")
IMAGES = 24

Generator = np.random.Generator
# Changes the model in place and says what it did; None where the model has no place for it.
Fault = Callable[[ModelProto, Generator], str | None]


def tensors(model: ModelProto, wanted: Callable[[TensorProto, np.ndarray], bool]) -> list[TensorProto]:
    return [t for t in model.graph.initializer if wanted(t, numpy_helper.to_array(t))]


def put(tensor: TensorProto, array: np.ndarray) -> None:
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array.astype(old.dtype)), tensor.name))


def consumers(model: ModelProto, name: str) -> list[NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def is_qdq(model: ModelProto, tensor: TensorProto, position: int) -> bool:
    found = consumers(model, tensor.name)
    return bool(found) and all(
        n.op_type in ("QuantizeLinear", "DequantizeLinear") and list(n.input)[position : position + 1] == [tensor.name]
        for n in found
    )


def of_tensor(
    name: str, wanted: Callable[[ModelProto, TensorProto, np.ndarray], bool], change: Callable[..., np.ndarray | None]
) -> Fault:
    def fault(model: ModelProto, rng: Generator) -> str | None:
        places = tensors(model, lambda t, a: wanted(model, t, a))
        if not places:
            return None
        tensor = places[rng.integers(len(places))]
        old = numpy_helper.to_array(tensor)
        new = change(old.copy(), rng)
        if new is None or np.array_equal(new.astype(old.dtype), old):
            return None
        put(tensor, new)
        return f"{name} {tensor.name}"

    return fault


def _weight(model: ModelProto, tensor: TensorProto, array: np.ndarray) -> bool:
    return array.dtype.kind in "fi" and array.dtype not in (np.int64, np.int32) and array.ndim >= 2 and array.size > 64


def _vector(model: ModelProto, tensor: TensorProto, array: np.ndarray) -> bool:
    plain = array.dtype.kind == "f" and array.size >= 8 and array.size == max(array.shape, default=0)
    return plain and not any(n.op_type.endswith("Linear") for n in consumers(model, tensor.name))


def _scalar(model: ModelProto, tensor: TensorProto, array: np.ndarray) -> bool:
    plain = array.dtype.kind == "f" and array.size == 1
    return plain and not any(n.op_type.endswith("Linear") for n in consumers(model, tensor.name))


def _scale(model: ModelProto, tensor: TensorProto, array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and is_qdq(model, tensor, 1)


def _zero(model: ModelProto, tensor: TensorProto, array: np.ndarray) -> bool:
    return array.dtype in (np.int8, np.uint8) and is_qdq(model, tensor, 2)


def _times(factor: float) -> Callable[..., np.ndarray]:
    return lambda array, rng: np.clip(np.rint(array * factor), -127, 127) if array.dtype == np.int8 else array * factor


def _plus(step: int) -> Callable[..., np.ndarray]:
    return lambda array, rng: np.clip(array.astype(np.int32) + step, -128 if array.dtype == np.int8 else 0, 127)


def _swap(array: np.ndarray, rng: Generator) -> np.ndarray:
    a, b = rng.choice(array.shape[-1], 2, replace=False) if array.shape[-1] > 1 else (0, 0)
    array[..., [a, b]] = array[..., [b, a]]
    return array


def _zero_channel(array: np.ndarray, rng: Generator) -> np.ndarray:
    axis = int(rng.integers(array.ndim))
    index: list[Any] = [slice(None)] * array.ndim
    index[axis] = int(rng.integers(array.shape[axis]))
    array[tuple(index)] = 0
    return array


def _negate_element(array: np.ndarray, rng: Generator) -> np.ndarray:
    index = np.unravel_index(int(np.abs(array.astype(np.float64)).argmax()), array.shape)
    array[index] = -array[index]
    return array


def _reverse(array: np.ndarray, rng: Generator) -> np.ndarray:
    return array.reshape(-1)[::-1].reshape(array.shape)


def _transpose(array: np.ndarray, rng: Generator) -> np.ndarray | None:
    return array.T if array.ndim == 2 and array.shape[0] == array.shape[1] else None


def of_attribute(
    name: str, op_types: tuple[str, ...], attribute: str, change: Callable[[Any, NodeProto], Any]
) -> Fault:
    def fault(model: ModelProto, rng: Generator) -> str | None:
        places = [
            n for n in model.graph.node if n.op_type in op_types and any(a.name == attribute for a in n.attribute)
        ]
        if not places:
            return None
        node = places[rng.integers(len(places))]
        found = next(a for a in node.attribute if a.name == attribute)
        new = change(onnx.helper.get_attribute_value(found), node)
        if new is None:
            return None
        node.attribute.remove(found)
        node.attribute.append(onnx.helper.make_attribute(attribute, new))
        return f"{name} {node.name}"

    return fault


def of_operator(name: str, old: str, new: str) -> Fault:
    def fault(model: ModelProto, rng: Generator) -> str | None:
        places = [n for n in model.graph.node if n.op_type == old]
        if not places:
            return None
        node = places[rng.integers(len(places))]
        node.op_type = new
        return f"{name} {node.name}"

    return fault


def swap_inputs(model: ModelProto, rng: Generator) -> str | None:
    places = [n for n in model.graph.node if n.op_type in ("Sub", "Div", "MatMul") and len(n.input) == 2]
    if not places:
        return None
    node = places[rng.integers(len(places))]
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return f"inputs swapped {node.name}"


def _other_perm(perm: list[int], node: NodeProto) -> list[int] | None:
    return [*perm[:-2], perm[-1], perm[-2]] if len(perm) > 2 else None


FAULTS: Mapping[str, Fault] = {
    "weight x1.01": of_tensor("weight x1.01", _weight, _times(1.01)),
    "weight x1.05": of_tensor("weight x1.05", _weight, _times(1.05)),
    "weight x0.8": of_tensor("weight x0.8", _weight, _times(0.8)),
    "weight negated": of_tensor("weight negated", _weight, _times(-1)),
    "two columns swapped": of_tensor("two columns swapped", _weight, _swap),
    "one channel zero": of_tensor("one channel zero", _weight, _zero_channel),
    "largest element negated": of_tensor("largest element negated", _weight, _negate_element),
    "weight transposed": of_tensor("weight transposed", _weight, _transpose),
    "bias or norm zero": of_tensor("bias or norm zero", _vector, _times(0)),
    "bias or norm reversed": of_tensor("bias or norm reversed", _vector, _reverse),
    "bias or norm x1.1": of_tensor("bias or norm x1.1", _vector, _times(1.1)),
    "constant x1.01": of_tensor("constant x1.01", _scalar, _times(1.01)),
    "constant x2": of_tensor("constant x2", _scalar, _times(2)),
    "scale x1.05": of_tensor("scale x1.05", _scale, _times(1.05)),
    "scale x0.95": of_tensor("scale x0.95", _scale, _times(0.95)),
    "scale x0.5": of_tensor("scale x0.5", _scale, _times(0.5)),
    "zero point +1": of_tensor("zero point +1", _zero, _plus(1)),
    "zero point +8": of_tensor("zero point +8", _zero, _plus(8)),
    "norm axis": of_attribute("norm axis", ("LayerNormalization",), "axis", lambda a, n: 1 if a == -1 else -1),
    "softmax axis": of_attribute("softmax axis", ("Softmax",), "axis", lambda a, n: -2 if a == -1 else -1),
    "epsilon x1e4": of_attribute("epsilon x1e4", ("LayerNormalization",), "epsilon", lambda e, n: e * 1e4),
    "permutation": of_attribute("permutation", ("Transpose",), "perm", _other_perm),
    "erf to tanh": of_operator("erf to tanh", "Erf", "Tanh"),
    "max to min": of_operator("max to min", "ReduceMax", "ReduceMin"),
    "add to subtract": of_operator("add to subtract", "Add", "Sub"),
    "inputs swapped": swap_inputs,
}


def loads(model: ModelProto, images: np.ndarray) -> bool:
    """Whether the faulty graph still runs and gives outputs of the same shape: otherwise the fault is none of these."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: images[:1]})
        return [list(array.shape)[1:] for array in found] == [
            [dim.dim_value for dim in output.type.tensor_type.shape.dim][1:] for output in model.graph.output
        ]
    except Exception:  # ONNX Runtime's errors have no class of their own
        return False


def sealed(source: Path, model: ModelProto, folder: Path) -> Path:
    """A copy of a bundle with another graph, whose hashes are right again."""
    from vitdeploy.bundle.manifest import dump

    path = folder / "faulty"
    shutil.copytree(source, path)
    (path / MODEL).write_bytes(model.SerializeToString())
    document = json.loads((path / "manifest.json").read_text())
    digest, size = hash_file(path / MODEL)
    document["files"][MODEL] = {"sha256": digest, "bytes": size}
    for name in [name for name in document["files"] if name.endswith((".xml", ".bin"))]:
        del document["files"][name]
        (path / name).unlink()
    (path / "manifest.json").write_bytes(dump(document))
    return path


def outputs(bundle: Path, images: np.ndarray, runtime: str, checkpoint: str | None = None) -> np.ndarray:
    with load(bundle, runtime=runtime, checkpoint=checkpoint) as session:
        return np.concatenate([session(images[i : i + 1]) for i in range(len(images))])


def refused(bundle: Path, runtime: str) -> str | None:
    """Why `verify` refuses it; None where it passes."""
    try:
        report = verify(bundle, runtime=runtime)
    except VitDeployError as error:
        return error.what
    return None if report.passed else report.failures[0]


def trial_set(path: Path, images: np.ndarray, torch_outputs: np.ndarray, count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    honest = onnx.load(path / MODEL)
    runtimes = [run["runtime"] for run in Bundle.open(path).manifest.parity]
    clean = {runtime: outputs(path, images, runtime) for runtime in runtimes}
    floor = {runtime: snr_db(torch_outputs, found) for runtime, found in clean.items()}
    for runtime in runtimes:
        why = refused(path, runtime)
        print(f"{path.name} {runtime}: noise floor {floor[runtime]:.1f} dB, unfaulted {why or 'passes'}", flush=True)
        if why:
            raise SystemExit(f"{path} is refused without a fault: {why}")
    kinds, rows = list(FAULTS), []
    while len(rows) < count:
        kind = kinds[rng.integers(len(kinds))]
        model = ModelProto()
        model.CopyFrom(honest)
        what = FAULTS[kind](model, rng)
        if what is None or not loads(model, images):
            continue
        with tempfile.TemporaryDirectory() as folder:
            faulty = sealed(path, model, Path(folder))
            row: dict[str, Any] = {"bundle": path.name, "kind": kind, "fault": what, "runtimes": {}}
            for runtime in runtimes:
                try:
                    moved = snr_db(clean[runtime], outputs(faulty, images, runtime))
                except VitDeployError:
                    continue  # this runtime cannot load what ONNX Runtime loads
                matters = bool(not moved >= floor[runtime])
                row["runtimes"][runtime] = {
                    "moved_db": round(moved, 1) if np.isfinite(moved) else None,
                    "matters": matters,
                    "refused": refused(faulty, runtime),
                }
        rows.append(row)
        print(f"{len(rows)}/{count} {what}: {row['runtimes']}", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        for runtime, found in row["runtimes"].items():
            for key in ((row["bundle"], runtime), (row["kind"], "all")):
                counts[key]["faults"] += 1
                counts[key]["matter"] += found["matters"]
                counts[key]["caught"] += bool(found["matters"] and found["refused"])
                counts[key]["caught below the floor"] += bool(not found["matters"] and found["refused"])
    header = ("", "runtime", "faults", "above the noise floor", "of these caught", "caught below it")
    body = [
        (*key, str(n["faults"]), str(n["matter"]), str(n["caught"]), str(n["caught below the floor"]))
        for key, n in counts.items()
    ]
    return render(body, header=header, align="<<>>>>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE[=CHECKPOINT]")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    data = open_data(arguments.data)
    rows = []
    each = -(-arguments.faults // len(arguments.bundles))
    for number, given in enumerate(arguments.bundles):
        path, checkpoint = Path(given.partition("=")[0]), given.partition("=")[2] or None
        manifest = Bundle.open(path).manifest
        chosen = data.sample(IMAGES, arguments.seed)
        images = np.stack([data.tensor(index, manifest.preprocessing) for index in chosen])
        reference = outputs(path, images, "torch", checkpoint)
        rows += trial_set(path, images, reference, each, arguments.seed + number)
    print(table(rows))
    found = [found for row in rows for found in row["runtimes"].values() if found["matters"]]
    caught = sum(bool(one["refused"]) for one in found)
    print(
        f"{caught} of {len(found)} faults above the noise floor are refused ({100 * caught / max(len(found), 1):.1f} %)"
    )
    if arguments.save:
        result = {"environment": environment(PACKAGES), "seed": arguments.seed, "trials": rows}
        (HERE / "results/seeded_faults.json").write_text(json.dumps(finished(result), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

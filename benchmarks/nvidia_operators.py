"""Which ONNX operators, in which element types, NVIDIA's own parser and compiler take; held against the rules of check.

    pip install 'vitdeploy[nvidia]'
    python benchmarks/nvidia_operators.py            # prints where the two disagree
    python benchmarks/nvidia_operators.py --write    # also writes benchmarks/results/nvidia_operators.json

The forms of an operator are the test cases that the onnx package brings, one node each. Whatever is no activation
becomes a constant, as it is in exported networks. Every element type that the operator's schema allows is then asked
with the forms that compile, and without one with the first. Operators of sequences, optional values and strings are
left out. Zero points are zero, since TensorRT takes no others, and results that a form need not give are also left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vitdeploy.platforms.capabilities import PLATFORMS, Platform, dotted
from vitdeploy.platforms.graph_rules import check_graph
from vitdeploy.platforms.report import BLOCKS
from vitdeploy.tensorrt.rtx import requirements
from vitdeploy.tensorrt.rtx.compiler import without_driver
from vitdeploy.tensorrt.rtx.worker import compile_file

RESULTS = Path(__file__).parent / "results" / "nvidia_operators.json"
NEWEST = PLATFORMS["tensorrt10"].newest
RULES = Platform("rules", NEWEST, NEWEST)
OPSET = 20  # of the exports for TensorRT 11, where the operator has this form there
TYPES: dict[str, Any] = {
    "float": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "double": np.float64,
    "int8": np.int8,
    "uint8": np.uint8,
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
}
OK = "ok"
WHY = 160  # characters of a reason
TRIED = 4  # forms of an operator in each type


@dataclass(frozen=True)
class Form:
    """One node with values for all of its inputs."""

    name: str
    node: onnx.NodeProto
    values: dict[str, np.ndarray]
    outputs: list[onnx.ValueInfoProto]
    opset: int

    @property
    def schema(self) -> Any:
        return onnx.defs.get_schema(self.node.op_type, self.opset, "")

    def formal(self, index: int) -> str:
        """The type variable of input `index`."""
        inputs = self.schema.inputs
        return str(inputs[min(index, len(inputs) - 1)].type_str)

    @property
    def types(self) -> set[str]:
        """The element types that the schema allows for the first input."""
        formal = self.formal(0)
        rows = [row.allowed_type_strs for row in self.schema.type_constraints if row.type_param_str == formal]
        return {str(kind).removeprefix("tensor(").removesuffix(")") for kind in (rows[0] if rows else [formal])}

    def model(self, *, constants: str, kind: str = "") -> bytes:
        """The model, where `constants` are inputs of `others` than the first's type, the `rest` behind it, or `all`.

        With `kind` all tensors of the first input's type variable have this type.
        """
        first, given, weights, typed = self.formal(0), [], [], {}
        for index, name in enumerate(self.node.input):
            if not name:
                continue
            array = self.values[name]
            if kind and self.formal(index) == first:
                array = array.astype(TYPES[kind])
                typed[name] = True
            activation = constants != "all" and (index == 0 or (constants == "others" and self.formal(index) == first))
            tensor = numpy_helper.from_array(array, name)
            if activation:
                if not any(value.name == name for value in given):
                    given.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape))
            else:
                weights.append(tensor)
        named = {value.name for value in given}
        outputs = []
        for index, value in enumerate(self.outputs):
            formal = self.schema.outputs[min(index, len(self.schema.outputs) - 1)].type_str
            fresh = onnx.ValueInfoProto()
            fresh.CopyFrom(value)
            if kind and formal == first:
                fresh.type.tensor_type.elem_type = getattr(TensorProto, kind.upper())
            outputs.append(fresh)
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        node.name = f"probe/{node.op_type}"
        weights = [tensor for tensor in weights if tensor.name not in named]
        graph = onnx.helper.make_graph([node], "probe", given, outputs, weights)
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=10)
        onnx.checker.check_model(made)
        data: bytes = made.SerializeToString()
        return data


def forms() -> Iterator[Form]:
    """The test cases of one node of the standard domain, whose inputs and outputs are tensors of numbers."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        graph = case.model.graph
        if "_expanded" in case.name or len(graph.node) != 1 or graph.node[0].domain or not graph.node[0].input:
            continue
        kinds = [value.type for value in (*graph.input, *graph.output)]
        arrays = case.data_sets[0][0]
        plain = all(kind.HasField("tensor_type") for kind in kinds) and all(isinstance(a, np.ndarray) for a in arrays)
        if not plain or any(array.dtype.kind in "OSU" for array in arrays):
            continue
        values = dict(zip([value.name for value in graph.input], arrays, strict=True))
        if graph.node[0].op_type in ("QuantizeLinear", "DequantizeLinear") and len(arrays) > 2:
            values[graph.node[0].input[2]] = np.zeros_like(arrays[2])
        newest = max(entry.version for entry in case.model.opset_import if not entry.domain)
        for opset in (OPSET, newest):
            form = Form(case.name.removeprefix("test_"), graph.node[0], values, list(graph.output), opset)
            try:
                form.model(constants="others")
            except Exception:  # the operator, or this form of it, is newer
                continue
            yield form
            extra = form.schema.outputs[1:]
            if len(form.outputs) == len(form.node.output) > 1 and all(
                str(one.option).endswith("Optional") for one in extra
            ):
                node = onnx.NodeProto()
                node.CopyFrom(form.node)
                del node.output[1:]
                yield replace(form, name=f"{form.name}_one_output", node=node, outputs=form.outputs[:1])
            break


def ask(models: Sequence[bytes]) -> list[str]:
    """What the compiler makes of each model: `ok`, or refused, failed or crashed with the reason."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, data in enumerate(models):
            (folder / f"{index}.onnx").write_bytes(data)
        answers = folder / "answers"
        answers.touch()
        while (done := len(answers.read_text().splitlines())) < len(models):
            command = [sys.executable, __file__, "--child", str(folder), str(done), str(len(models))]
            ended = subprocess.run(command, capture_output=True, check=False)
            if len(answers.read_text().splitlines()) < len(models):
                with answers.open("a") as file:
                    file.write(json.dumps(f"crashed: exit code {ended.returncode}") + "\n")
        return [json.loads(line) for line in answers.read_text().splitlines()]


def child(folder: Path, first: int, end: int) -> None:
    """Asks for the models from `first` on; one that crashes this process has no line."""
    with (folder / "answers").open("a", buffering=1) as answers:
        for index in range(first, end):
            log = io.StringIO()
            request = {"sm": requirements.DEFAULT_SM, "shapes": {}}
            answer = compile_file(folder / f"{index}.onnx", request, log)
            if "unusable" in answer:
                raise SystemExit(answer["unusable"])
            said = [json.loads(line) for line in log.getvalue().splitlines()]
            errors = [text for severity, text in said if severity in ("ERROR", "INTERNAL_ERROR")]
            if not answer["parsed"]:
                first_error = (answer["errors"] or [{"code": "", "why": ""}])[0]
                verdict = f"refused: {_line(first_error['why'] if first_error['why'] != 'false' else 'no importer')}"
            else:
                verdict = OK if answer["plan_bytes"] is not None else f"failed: {_line(errors[-1] if errors else '')}"
            answers.write(json.dumps(verdict) + "\n")


def _line(text: str) -> str:
    line = " ".join(without_driver(text).split())
    return line if len(line) <= WHY else f"{line[: WHY - 1]}…"


def rules(data: bytes) -> str:
    """`ok`, or what the rules of `check` say against a model."""
    try:
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data)))
        findings = [finding for finding in check_graph(graph, RULES) if finding.level == BLOCKS]
    except Exception as error:
        return f"unreadable: {_line(str(error))}"
    # The file is about one operator; how new its opset is says nothing of it.
    findings = [finding for finding in findings if finding.where != "model"]
    return f"{findings[0].what} ({findings[0].source})" if findings else OK


def accepted(found: Sequence[Form]) -> list[tuple[str, str]]:
    """For each form the verdict, and which inputs have to be constants for it."""
    others = ask([form.model(constants="others") for form in found])
    verdicts = [(verdict, "others") for verdict in others]
    for constants in ("rest", "all"):
        # With constants alone the parser folds the node away, which tells only what shapes are computed by.
        again = [
            index
            for index, (verdict, _) in enumerate(verdicts)
            if verdict != OK and (constants == "rest" or found[index].node.op_type in ("ConstantOfShape", "Range"))
        ]
        for index, verdict in zip(again, ask([found[i].model(constants=constants) for i in again]), strict=True):
            if verdict == OK:
                verdicts[index] = (verdict, constants)
    return verdicts


def table() -> dict[str, Any]:
    """The results as they are written."""
    found = sorted(forms(), key=lambda form: form.node.op_type)
    print(f"{len(found)} forms of {len({form.node.op_type for form in found})} operators", file=sys.stderr)
    verdicts = accepted(found)
    operators: dict[str, Any] = {}
    asked: dict[tuple[str, str], list[bytes]] = {}
    for name in dict.fromkeys(form.node.op_type for form in found):
        mine = [(form, *verdict) for form, verdict in zip(found, verdicts, strict=True) if form.node.op_type == name]
        taken = [(form, constants) for form, verdict, constants in mine if verdict == OK] or [
            (mine[0][0], "others"),
            (mine[0][0], "rest"),
        ]
        refused = {form.name: verdict for form, verdict, _ in mine if verdict != OK}
        operators[name] = {
            "opset": taken[0][0].opset,
            "form": taken[0][0].name,
            "types": {},
            "forms": len(mine),
            "refused_forms": refused,
        }
        for form, constants in taken[:TRIED]:
            for kind in TYPES:
                if kind in form.types:
                    with contextlib.suppress(Exception):  # a form that ties this type to another
                        asked.setdefault((name, kind), []).append(form.model(constants=constants, kind=kind))
    print(f"{len(asked)} operators by type", file=sys.stderr)
    answers: dict[tuple[str, str], tuple[str, bytes]] = {}
    for turn in range(TRIED):
        left = [key for key, models in asked.items() if len(models) > turn and answers.get(key, ("",))[0] != OK]
        models = [asked[key][turn] for key in left]
        for key, data, verdict in zip(left, models, ask(models), strict=True):
            if verdict == OK or key not in answers:
                answers[key] = verdict, data
    disagreements = []
    for (name, kind), (verdict, data) in answers.items():
        operators[name]["types"][kind] = verdict
        said = rules(data)
        if (said == OK) != (verdict == OK):
            disagreements.append({"operator": name, "type": kind, "compiler": verdict, "rules": said})
    return {
        "compiler": requirements.NAME,
        "version": requirements.version(),
        "sm": requirements.DEFAULT_SM,
        "onnx": onnx.__version__,
        "rules": f"TensorRT {dotted(NEWEST)}",
        "operators": operators,
        "disagreements": disagreements,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, first, end = options.child
        child(Path(folder), int(first), int(end))
        return 0
    requirements.require()
    results = table()
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for row in results["disagreements"]:
        print(f"{row['operator']:24}{row['type']:10}{row['compiler'][:70]:72}{row['rules'][:90]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which ONNX operators, types and attributes NVIDIA's own parser and compiler take; held against the rules of check.

    pip install 'vitdeploy[nvidia]'
    python benchmarks/nvidia_operators.py            # prints where the two disagree
    python benchmarks/nvidia_operators.py --write    # also rewrites the results and the package's table

`--write` writes benchmarks/results/nvidia_operators.json and vitdeploy/platforms/parser_table.py, which is the part of
it that `check` reads. Three kinds of small models are asked for:

- forms: one node each, from the test cases that the onnx package brings (`operator_forms`). Whatever is no activation
  becomes a constant, as it is in exported networks;
- types: every element type that the schema allows for each type variable of an operator's inputs, with the forms that
  compile, and without one with the first;
- variants: the attributes, constants and pairs of types that rules are about (`operator_variants`).

Every operator that torch's exporters or this package can emit has a form (`exporter_operators`), but those of
sequences, optional values and strings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from exporter_operators import emitted, left_out, standard_operators
from operator_compiler import NEWEST, OK, ask, rules
from operator_forms import ALL, HEAD, OTHERS, REST, Form, forms
from operator_variants import variants

from vitdeploy.platforms.versions import dotted
from vitdeploy.tensorrt.rtx import requirements

RESULTS = Path(__file__).parent / "results" / "nvidia_operators.json"
TABLE = Path(__file__).resolve().parent.parent / "vitdeploy" / "platforms" / "parser_table.py"
TRIED = 4  # forms of an operator in each type
COMPUTED = ("ConstantOfShape", "Range")  # whose results are folded, which tells what shapes are computed by
WIDTH = 120

Key = tuple[str, str, str]  # operator, type variable, element type


def accepted(found: Sequence[Form]) -> list[tuple[str, str]]:
    """For each form the verdict, and which inputs have to be constants for it."""
    verdicts = [(verdict, OTHERS) for verdict in ask([form.model(constants=OTHERS) for form in found])]
    kinds: Mapping[str, Sequence[str] | None] = {REST: None, HEAD: ("Loop",), ALL: COMPUTED}
    for constants, operators in kinds.items():
        again = [
            index
            for index, (verdict, _) in enumerate(verdicts)
            if verdict != OK and (operators is None or found[index].node.op_type in operators)
        ]
        for index, verdict in zip(again, ask([found[i].model(constants=constants) for i in again]), strict=True):
            if verdict == OK:
                verdicts[index] = (verdict, constants)
    return verdicts


def typed(candidates: Mapping[str, Sequence[tuple[Form, str]]]) -> dict[Key, list[bytes]]:
    """The models that ask for each element type: of at most TRIED forms of an operator."""
    asked: dict[Key, list[bytes]] = {}
    for name, tried in candidates.items():
        for form, constants in tried[:TRIED]:
            for variable, kinds in form.variables.items():
                for kind in kinds:
                    with contextlib.suppress(Exception):  # a form that ties this type to another
                        model = form.model(constants=constants, variable=variable, kind=kind)
                        asked.setdefault((name, variable, kind), []).append(model)
    return asked


def judged(asked: Mapping[Key, Sequence[bytes]]) -> dict[Key, tuple[str, bytes]]:
    """For each the verdict on the first model that is taken, else on the first, and that model."""
    answers: dict[Key, tuple[str, bytes]] = {}
    for turn in range(TRIED):
        left = [key for key, models in asked.items() if len(models) > turn and answers.get(key, ("",))[0] != OK]
        models = [asked[key][turn] for key in left]
        for key, data, verdict in zip(left, models, ask(models), strict=True):
            if verdict == OK or key not in answers:
                answers[key] = verdict, data
    return answers


def candidates(found: Sequence[Form], verdicts: Sequence[tuple[str, str]]) -> dict[str, list[tuple[Form, str]]]:
    """The forms of each operator that are taken, or the first where none is."""
    chosen: dict[str, list[tuple[Form, str]]] = {}
    for form, (verdict, constants) in zip(found, verdicts, strict=True):
        if verdict == OK:
            chosen.setdefault(form.node.op_type, []).append((form, constants))
    for form in found:
        chosen.setdefault(form.node.op_type, [(form, OTHERS), (form, REST)])
    return chosen


def results() -> dict[str, Any]:
    """Everything that is asked for, as it is written."""
    standard = standard_operators()
    unasked = {name: why for name, row in sorted(standard.items()) if (why := left_out(row)) is not None}
    found = sorted((form for form in forms() if form.node.op_type not in unasked), key=lambda form: form.node.op_type)
    verdicts = accepted(found)
    chosen = candidates(found, verdicts)
    print(f"{len(found)} forms of {len(chosen)} operators", file=sys.stderr)
    answers = judged(typed(chosen))
    print(f"{len(answers)} element types", file=sys.stderr)
    operators: dict[str, Any] = {}
    for name in sorted(chosen):
        mine = [
            (form, verdict) for form, (verdict, _) in zip(found, verdicts, strict=True) if form.node.op_type == name
        ]
        first = chosen[name][0][0]
        types: dict[str, dict[str, str]] = {variable: {} for variable in first.variables}
        for (operator, variable, kind), (verdict, _) in answers.items():
            if operator == name:
                types.setdefault(variable, {})[kind] = verdict
        main, *others = types or ("",)
        operators[name] = {
            "opset": first.opset,
            "form": first.name,
            "variable": main,
            "types": types.get(main, {}),
            "other_types": {variable: types[variable] for variable in others if types[variable]},
            "forms": len(mine),
            "refused_forms": {form.name: verdict for form, verdict in mine if verdict != OK},
        }
    disagreements = []
    for (name, variable, kind), (verdict, data) in answers.items():
        said = rules(data)
        if (said == OK) != (verdict == OK):
            row = {"operator": name, "variable": variable, "type": kind, "compiler": verdict, "rules": said}
            disagreements.append(row)
    made = list(variants())
    tried = {
        variant.name: {"compiler": verdict, "rules": rules(variant.model)}
        for variant, verdict in zip(made, ask([variant.model for variant in made]), strict=True)
    }
    print(f"{len(tried)} variants", file=sys.stderr)
    exporters = emitted()
    return {
        "compiler": requirements.NAME,
        "version": requirements.version(),
        "sm": requirements.DEFAULT_SM,
        "onnx": onnx.__version__,
        "rules": f"TensorRT {dotted(NEWEST)}",
        "emitted": {exporter: len(names) for exporter, names in exporters.items()},
        "left_out": unasked,
        "operators": operators,
        "variants": tried,
        "disagreements": disagreements,
    }


def types_of(row: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The verdicts of an operator in the results by type variable and element type."""
    return {row["variable"]: row["types"], **row["other_types"]}


def package_table(document: Mapping[str, Any]) -> str:
    """The text of vitdeploy/platforms/parser_table.py for `document`."""
    types, forms_ = [], []
    for name, row in document["operators"].items():
        taken = sorted(kind for kind, verdict in row["types"].items() if verdict == OK)
        refused = sorted(kind for kind, verdict in row["types"].items() if verdict != OK)
        types.append((name, (" ".join(taken), " ".join(refused))))
    for name, row in document["variants"].items():
        pair = name.startswith("Cast ") and " to " in name  # what both types say already
        if {row["compiler"], row["rules"]} != {OK} and not pair:
            forms_.append((name, row["compiler"] == OK))
    lines = [
        '"""What NVIDIA\'s parser and compiler take. Written by benchmarks/nvidia_operators.py --write; not edited."""',
        "",
        "from __future__ import annotations",
        "",
        "from collections.abc import Mapping",
        "",
        f'PRODUCT, VERSION = "{document["compiler"]}", "{document["version"]}"',
        "",
        "# Element types of the first input, in ONNX's words: those that are taken, those that are not.",
        "TYPES: Mapping[str, tuple[str, str]] = {",
    ]
    for name, sides in types:
        line = f'    "{name}": ("{sides[0]}", "{sides[1]}"),'
        broken = [row for side in sides for row in _quoted(side)]
        lines += [line] if len(line) <= WIDTH else [f'    "{name}": (', *broken, "    ),"]
    lines += [
        "}",
        "",
        "# Attributes and constants that the operator tables or the parser refuse: whether the parser takes them.",
        "FORMS: Mapping[str, bool] = {",
        *(f'    "{name}": {taken},' for name, taken in forms_),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(words: str) -> list[str]:
    """The text as literals that Python joins, indented, each on a line that is not too long."""
    rows = textwrap.wrap(words, WIDTH - 12) or [""]
    return [f'        "{row}{" " if row is not rows[-1] else ""}"{"," if row is rows[-1] else ""}' for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    requirements.require()
    document = results()
    if options.write:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
        TABLE.write_text(package_table(document))
    for row in document["disagreements"]:
        what = f"{row['operator']} {row['variable']} {row['type']}"
        print(f"{what:40}{row['compiler'][:70]:72}{row['rules'][:90]}")
    for name, row in document["variants"].items():
        if (row["compiler"] == OK) != (row["rules"] == OK):
            print(f"{name:80}{row['compiler'][:70]:72}{row['rules'][:90]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

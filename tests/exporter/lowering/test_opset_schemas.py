"""The rows of the opset rules against the schemas of ONNX and the operators that PyTorch's exporter can write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import onnx.defs
import pytest
import torch.onnx._internal.exporter._torchlib as torch_library
from onnxscript.function_libs.torch_lib import ops as script_library

from tests.graph_cases import parsed
from tests.rows import TARGETS
from vitdeploy.errors import ExportError
from vitdeploy.exporter.capture import CAPTURE_OPSET
from vitdeploy.exporter.lowering.opset import lower_opset
from vitdeploy.exporter.lowering.opset_rules import RULES

OLDEST = min(target.opset for target in TARGETS.values())

# New operators without a row. Those that PyTorch's exporter can write are written in others before (`operators`), or
# come from nothing in a network for images.
WRITTEN_BEFORE = {"Col2Im"}
REFUSED = {
    "AffineGrid",
    "CenterCropPad",
    "DeformConv",
    "GroupNormalization",
    "ImageDecoder",
    "RegexFullMatch",
    "StringConcat",
    "StringSplit",
}
# Optional values, which no network for images has.
SAME_SIGNATURE = {"OptionalGetElement", "OptionalHasElement"}


def schema(name: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return None


def changed() -> Iterator[tuple[str, onnx.defs.OpSchema | None, onnx.defs.OpSchema]]:
    """Operators that are another version at the opset of the capture than at the oldest of a target."""
    for name in sorted({row.name for row in onnx.defs.get_all_schemas() if row.domain == ""}):
        old, new = schema(name, OLDEST), schema(name, CAPTURE_OPSET)
        if new is not None and new.since_version > OLDEST:
            yield name, old, new


def signature(row: onnx.defs.OpSchema) -> tuple[object, ...]:
    defaults = {name: str(attribute.default_value) for name, attribute in row.attributes.items()}
    return [port.name for port in row.inputs], defaults


@pytest.mark.parametrize(("name", "old", "new"), [pytest.param(*row, id=row[0]) for row in changed()])
def test_every_form_that_changed_has_a_row_or_is_refused(
    name: str, old: onnx.defs.OpSchema | None, new: onnx.defs.OpSchema
) -> None:
    has_row = any(name in rules for rules in RULES.values())
    if old is None:
        assert has_row != (name in REFUSED | WRITTEN_BEFORE)
    elif signature(old) != signature(new):
        assert has_row
    elif name not in SAME_SIGNATURE:  # the types that were added are refused by the schema of the older opset
        before = {kind for row in old.type_constraints for kind in row.allowed_type_strs}
        after = {kind for row in new.type_constraints for kind in row.allowed_type_strs}
        assert has_row or after - before


def test_rows_name_the_opset_that_changed_the_form() -> None:
    for since, rules in RULES.items():
        for name in rules:
            versions = {row.since_version for row in onnx.defs.get_all_schemas_with_history() if row.name == name}
            assert since in versions, name


def written_by_torch() -> set[str]:
    """The names of ONNX operators in the sources of PyTorch's exporter."""
    folders = [Path(str(library.__file__)).parent for library in (torch_library, script_library)]
    sources = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    return {name for source in sources for name in re.findall(r"\bop\d*\.([A-Z]\w+)\(", source)}


def test_the_exporter_writes_no_new_operator_that_is_only_refused() -> None:
    written = written_by_torch()
    assert {"Conv", "Resize", "DFT"} <= written
    new = {name for name in written if schema(name, OLDEST) is None and schema(name, CAPTURE_OPSET) is not None}
    with_rows = {name for rules in RULES.values() for name in rules}
    assert new - with_rows - WRITTEN_BEFORE <= {"GroupNormalization"}  # written from opset 21 on


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("g (float[2, 4] x, int64[2] s) => (float[2, 2] y) { y = CenterCropPad (x, s) }", "does not exist in opset 17"),
        ("g (float[2, 4] x, int64[1] a) => (float[2, 1] y) { y = ReduceMax (x, a) }", "computed axes"),
        (
            "g (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y) <float[4] scales = {1.0, 1.0, 0.5, 0.5}>"
            '{ y = Resize <mode = "linear", antialias = 1> (x, , scales) }',
            "antialias",
        ),
        (
            "g (float[1, 2, 3, 8, 8] x, float[1, 3, 4, 4, 3] p) => (float[1, 2, 3, 4, 4] y)"
            '{ y = GridSample <mode = "linear"> (x, p) }',
            "volume",
        ),
        ("g (int32[2, 4] x, int32[2, 4] z) => (int32[2, 4] y) { y = BitwiseXor (x, z) }", "two computed integers"),
        (
            "g (float[1, 1, 8, 8] x) => (float[1, 1, 4, 4] y)"
            "{ y = AveragePool <kernel_shape = [3, 3], dilations = [2, 2]> (x) }",
            "the attribute dilations",
        ),
        (
            "g (float[4] x, int64[2] i, float[2] u) => (float[4] y)"
            '{ y = ScatterElements <reduction = "max"> (x, i, u) }',
            "reduction max",
        ),
        ("g (float[2, 4] x) => (float[2, 4] y) { y = Nonsense (x) }", "does not exist"),
    ],
)
def test_what_the_opset_cannot_say_is_refused_by_module_with_a_fix(body: str, said: str) -> None:
    model = parsed(body)
    for node in model.graph:
        node.name = f"stages.1.block/{node.op_type}"
    with pytest.raises(ExportError, match=said) as caught:
        lower_opset(model, TARGETS["portable"])
    assert "module stages.1.block" in caught.value.what
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_tensorrt_never_gets_the_names_of_grid_sample_that_it_takes_for_nearest(mode: str) -> None:
    text = f"""g (float[1, 2, 8, 8] x, float[1, 4, 4, 2] p) => (float[1, 2, 4, 4] y)
        {{ s = GridSample <mode = "{mode}"> (x, p) y = Gelu (s) }}"""
    model = parsed(text)
    lower_opset(model, TARGETS["tensorrt11"])
    sample = next(node for node in model.graph if node.op_type == "GridSample")
    assert sample.attributes["mode"].as_string() == ("bilinear" if mode == "linear" else "nearest")
    assert model.graph.opset_imports[""] == (19 if mode == "linear" else 20)

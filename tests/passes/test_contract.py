"""What holds of every pass, whatever it does: its name, its words, and that the graph computes the same after it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.exporter.test_optimize import captured_everything
from tests.graph_cases import PORTABLE, annotated, assert_same, parsed, run
from tests.rows import TARGETS
from vitdeploy.errors import ExportError
from vitdeploy.exporter import optimize as order
from vitdeploy.exporter.optimize import PASSES, lower, run_pass
from vitdeploy.graph.names import names_in
from vitdeploy.passes.bake_preprocessing import BakePreprocessing
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.gelu_form import GeluForm
from vitdeploy.preprocess import Preprocessing
from vitdeploy.targets import Target

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 24)).astype(np.float32)


def test_every_pass_has_a_name_of_its_own_and_says_what_it_does() -> None:
    passes = (*PASSES, BakePreprocessing)
    assert len({kind.name for kind in passes}) == len(passes)
    for kind in passes:
        assert kind.__module__.rpartition(".")[2] in (kind.name, "simplify"), kind
        assert kind.__doc__
        assert len(kind.__doc__) > 60, kind
        assert kind.__doc__ != GraphPass.__doc__


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_every_pass_keeps_what_the_graph_computes_and_its_own_promise(target: Target, dynamic: bool) -> None:
    model = captured_everything(dynamic).clone()
    lower(model, target)
    expected = run(model, {"images": IMAGES})
    for kind in PASSES:
        one = kind(target)
        complete = annotated(model)
        one(model)
        outputs = run(model, {"images": IMAGES})
        assert_same(expected, outputs, 2e-5)
        kind(target).ensures(model)
        assert all(isinstance(line, str) and line for line in one.changes)
        assert annotated(model) or not complete, f"{kind.name} leaves values without shape or type"
        graph = model.graph
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        assert len({value.name for value in values}) == len(values), kind.name
        assert len({node.name for node in graph}) == len(graph), kind.name
        assert [value.name for value in model.graph.outputs] == ["logits"]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        expected = outputs
    assert annotated(model)
    assert names_in(model.graph)


@pytest.mark.parametrize("name", ["portable", "onnxruntime", "tensorrt8"])
@pytest.mark.parametrize("lost", ["shapes", "types", "all"])
def test_a_graph_that_states_too_little_is_left_alone_or_refused_in_words(name: str, lost: str) -> None:
    """No pass meets it with an AttributeError, which an assertion becomes under python -O."""
    target, model = TARGETS[name], captured_everything(False).clone()
    lower(model, target)
    for kind in PASSES:
        poor = model.clone()
        for node in poor.graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None if lost != "types" else value.shape
                    value.type = None if lost != "shapes" else value.type
        expected = run(model, {"images": IMAGES})
        try:
            run_pass(kind(target), poor)
        except ExportError as error:
            refused = error.what
        else:
            refused = ""
            assert_same(expected, run(poor, {"images": IMAGES}), 2e-5)
        assert not refused or "the graph does not state" in refused, kind.name
        run_pass(kind(target), model)


class _Pass(GraphPass):
    """Does what `edit` says."""

    name: ClassVar[str] = "made_up"
    edit: ClassVar[Callable[[ir.Graph], None]]

    def rewrite(self, model: ir.Model) -> list[str]:
        type(self).edit(model.graph)
        return ["changed"]


def _rename_output(graph: ir.Graph) -> None:
    graph.outputs[0].name = "other"


def _retype_output(graph: ir.Graph) -> None:
    graph.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def _lose_output(graph: ir.Graph) -> None:
    graph.outputs.clear()


def _name_twice(graph: ir.Graph) -> None:
    graph[0].outputs[0].name = "x"


def _name_like_a_weight(graph: ir.Graph) -> None:
    weight = ir.Value(name="h", const_value=ir.tensor([1.0, 2.0], name="h"))
    graph.register_initializer(weight)
    graph.insert_before(graph[1], ir.node("Add", [graph[0].outputs[0], weight]))
    graph[1].outputs[0].name = "sum"
    graph[2].replace_input_with(0, graph[1].outputs[0])


def _name_nodes_alike(graph: ir.Graph) -> None:
    graph[0].name = graph[1].name = "n"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_rename_output, r"outputs became \['other'\]"),
        (_retype_output, "y was FLOAT and became DOUBLE"),
        (_lose_output, r"outputs became \[\]"),
        (_name_twice, "2 values are called x"),
        (_name_like_a_weight, "2 values are called h"),
        (_name_nodes_alike, "2 nodes are called n"),
    ],
)
def test_a_pass_that_breaks_the_graph_is_named(edit: Callable[[ir.Graph], None], told: str) -> None:
    kind = type("_Mine", (_Pass,), {"edit": staticmethod(edit)})
    model = parsed("g (float[2] x) => (float[2] y) { h = Abs (x) y = Neg (h) }")
    with pytest.raises(ExportError, match=f"graph pass made_up(.|\n)*{told}"):
        run_pass(kind(PORTABLE), model)


def test_a_graph_that_a_pass_cannot_take_is_refused_before_it_is_touched() -> None:
    two = parsed("g (float[1, 3, 4, 4] x, float[1, 3, 4, 4] z) => (float[1, 3, 4, 4] y) { y = Add (x, z) }")
    with pytest.raises(ExportError, match=r"bake_preprocessing(.|\n)*one input \[N, 3, H, W\]"):
        run_pass(BakePreprocessing(PORTABLE, Preprocessing(size=(4, 4))), two)
    assert len(list(two.graph)) == 1
    old = parsed('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Erf (x) }')
    with pytest.raises(ExportError, match=r"gelu_form(.|\n)*from opset 20 on, this is 17"):
        run_pass(GeluForm(TARGETS["onnxruntime"]), old)
    run_pass(GeluForm(PORTABLE), old)


def test_passes_of_installed_packages_run_after_ours_where_they_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Mine(_Pass):
        name = "mine"

        def applies(self) -> bool:
            return self.target.name == "portable"

        def rewrite(self, model: ir.Model) -> list[str]:
            seen.append(model.graph.opset_imports[""])
            return ["seen"]

    monkeypatch.setattr(order, "_ANNOUNCED", SimpleNamespace(announced=lambda: (Mine,)))
    for name, changes in (("portable", ["seen"]), ("onnxruntime", [])):
        model = captured_everything(False).clone()
        lower(model, TARGETS[name])
        records = order.optimize(model, TARGETS[name])
        names = [record["pass"] for record in records]
        assert names[: len(PASSES)] == [kind.name for kind in PASSES]
        assert records[len(PASSES)] == {"pass": "mine", "changes": changes}
        assert names[len(PASSES) + 1 :] == ["lower_layer_norm", "lower_opset"]
    assert seen == [20]

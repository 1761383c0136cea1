"""From a PyTorch module to ONNX in which attention and transposed convolution stay composite operators.

The composites are caught where every module meets, at the ATen operators, so that a user's network gets what the zoo
gets and the networks know nothing of ONNX.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from vitdeploy.errors import ExportError, VitDeployError
from vitdeploy.exporter import composites
from vitdeploy.exporter.lowering import operators
from vitdeploy.exporter.lowering.constants import attach_constants
from vitdeploy.exporter.torch_attention import attention, transformers_as_in_inference
from vitdeploy.graph.names import make_unique, unused_name
from vitdeploy.models.outputs import IMAGES, call_forward
from vitdeploy.progress import Progress

CAPTURE_OPSET = 20
BATCH = "batch"
LARGEST_BATCH = 4096
STEPS = (1, 2, 1)  # what tracing, writing operators in others and translating them take, about


def capture(
    model: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    dynamic_batch: bool,
    output_names: Sequence[str],
    call: Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]] = call_forward,
    free: Mapping[str, Sequence[str | None]] | None = None,
) -> ir.Model:
    """Translate `model` for inputs shaped like `example` into ONNX of opset 20 plus composites.

    `example` has the inputs by name, each with the batch first; a tensor alone is `images`. `call(model, inputs)` makes
    the outputs by name, of which `output_names` are kept, in this order.

    All axes are fixed but, with `dynamic_batch`, the first one, which is a free dimension called `batch`, and those
    that `free` names, by input for each axis behind the batch. Raises ExportError for a module that torch.export cannot
    capture, or that ties a free axis to a constant.
    """
    inputs = {IMAGES: example} if isinstance(example, Tensor) else dict(example)
    wrapped = _Wrapped(model, call, tuple(inputs), tuple(output_names)).eval()
    axes = {name: [BATCH if dynamic_batch else None, *(free or {}).get(name, ())] for name in inputs}
    dynamic = _dynamic_shapes(axes)
    if dynamic_batch:  # torch.export takes a batch of one for a constant
        inputs = {name: torch.cat([one, one]) if len(one) < 2 else one for name, one in inputs.items()}

    def traced() -> torch.export.ExportedProgram:
        with _quiet(), transformers_as_in_inference(), torch.no_grad():
            return torch.export.export(wrapped, tuple(inputs.values()), dynamic_shapes=dynamic, strict=False)

    try:
        with Progress("capturing", sum(STEPS)) as progress:
            program = traced()
            progress.advance(STEPS[0])
            with _quiet(), transformers_as_in_inference(), torch.no_grad():
                rewritten = partial(progress.advance, STEPS[1])
                captured = operators.translate(program, _composite_table(), CAPTURE_OPSET, rewritten).model
            progress.advance(STEPS[2])
    except VitDeployError:
        raise
    except Exception as error:
        from vitdeploy.exporter.diagnosis.capture_failure import capture_failure

        name = type(model).__name__
        raise capture_failure(name, error, free=_names(axes), again=traced) from error
    attach_constants(captured.graph)
    _drop_copies(captured.graph)
    _name_interface(captured, axes, output_names)
    _name_nodes(captured)
    composites.attach_functions(captured)
    return captured


class _Wrapped(nn.Module):
    """Gives every parameter a dotted name: torch.fx refuses some plain ones, `meta` for instance.

    The module works on copies of its inputs, for torch.export refuses some ways of changing an input in place. Every
    output is a tensor of its own, also where forward returns one twice, or an input.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.model, self.call, self.inputs, self.outputs = model, call, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        copies = {name: tensor.clone() for name, tensor in zip(self.inputs, tensors, strict=True)}
        found = self.call(self.model, copies)
        if len(found) != len(self.outputs):
            raise ExportError(
                f"the model returns {len(found)} tensors and {len(self.outputs)} output names were given",
                why=f"names: {', '.join(self.outputs)}",
                fix="give one name for each tensor that forward returns",
            )
        results: list[Tensor] = []
        for tensor in found.values():
            twice = any(tensor is other for other in (*results, *copies.values()))
            results.append(tensor.clone() if twice else tensor)
        return tuple(results)


def _names(axes: Mapping[str, Sequence[str | None]]) -> list[str]:
    return list(dict.fromkeys(name for names in axes.values() for name in names if name is not None))


def _dynamic_shapes(axes: Mapping[str, Sequence[str | None]]) -> dict[str, Any] | None:
    """What torch.export is told of free axes.

    The batch is any number; of the others a network may want more, multiples of its stride for instance, which torch
    finds out.
    """
    dims: dict[str, Any] = dict.fromkeys(_names(axes), torch.export.Dim.DYNAMIC)
    if not dims:
        return None
    if BATCH in dims:
        dims[BATCH] = torch.export.Dim(BATCH, min=1, max=LARGEST_BATCH)
    return {
        "tensors": tuple(
            {index: dims[name] for index, name in enumerate(names) if name is not None} for names in axes.values()
        )
    }


def _composite_table() -> dict[Any, Callable[..., Any]]:
    aten = torch.ops.aten
    return {
        aten.scaled_dot_product_attention.default: attention,
        aten.conv_transpose1d.default: _deconvolution,
        aten.conv_transpose2d.input: _deconvolution,
        aten.conv_transpose3d.input: _deconvolution,
        aten.convolution.default: _convolution,
    }


def _deconvolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Tensor:
    """A transposed ATen convolution as vitdeploy::Deconvolution."""
    rank = weight.dim() - 2
    if x.dim() == rank + 1:  # no batch axis
        args = (weight, bias, stride, padding, output_padding, groups, dilation)
        return _deconvolution(x.unsqueeze(0), *args).squeeze(0)
    strides, pads, extra, dilations = (
        list(v) * rank if len(v) == 1 else list(v) for v in (stride, padding, output_padding, dilation)
    )
    spatial = [
        (size - 1) * s - 2 * p + d * (k - 1) + e + 1
        for size, s, p, d, k, e in zip(x.shape[2:], strides, pads, dilations, weight.shape[2:], extra, strict=True)
    ]
    out: Tensor = torch.onnx.ops.symbolic(
        "vitdeploy::Deconvolution",
        (x, weight) if bias is None else (x, weight, bias),
        {"strides": strides, "pads": pads * 2, "output_padding": extra, "dilations": dilations, "group": groups},
        dtype=x.dtype,
        shape=(x.shape[0], weight.shape[1] * groups, *spatial),
        version=composites.VERSION,
    )
    return out


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if transposed:
        return _deconvolution(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return NotImplemented


def _drop_copies(graph: ir.Graph) -> None:
    """Remove the nodes that copy inputs; one stays where the copy is an output, which an input cannot be."""
    for value in graph.inputs:
        for node, _ in value.uses():
            if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], value)
                graph.remove(node, safe=True)


def _name_interface(model: ir.Model, axes: Mapping[str, Sequence[str | None]], output_names: Sequence[str]) -> None:
    """Call the inputs after the keys of `axes`, their free axes as it says, and the outputs by their names."""
    graph = model.graph
    symbols: dict[str, str] = {}
    for value, (name, names) in zip(graph.inputs, axes.items(), strict=True):
        value.name = name
        for dim, wanted in zip(value.shape or (), names, strict=False):
            if isinstance(dim, ir.SymbolicDim) and wanted is not None:
                symbols[str(dim.value)] = wanted
    if symbols:
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, symbols))})\b")
        for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, pattern, symbols) for dim in value.shape])
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name
    graph.name = "vitdeploy"


def _renamed(dim: int | ir.SymbolicDim, pattern: re.Pattern[str], names: Mapping[str, str]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    return ir.SymbolicDim(pattern.sub(lambda found: names[found[0]], str(dim.value)))


def _name_nodes(model: ir.Model) -> None:
    """Name nodes and their values after the module they came from: reports and engines then speak of blocks."""
    taken: dict[str, int] = {}
    outputs = set(model.graph.outputs)
    for node in model.graph:
        name = f"{module_path(node) or 'graph'}/{node.op_type}"
        taken[name] = taken.get(name, -1) + 1
        node.name = f"{name}_{taken[name]}" if taken[name] else name
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"{node.name}.out{index or ''}"
        node.metadata_props.clear()
        node.doc_string = None
    named = {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    for name, value in list(model.graph.initializers.items()):
        del model.graph.initializers[name]
        value.name = unused_name(name.removeprefix("model."), named, model.graph.initializers)
        model.graph.register_initializer(value)
    make_unique(model.graph)


def module_path(node: ir.Node) -> str:
    """Dotted path of the innermost module that a freshly captured node belongs to, e.g. `stages.3.0.attn.qkv`."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    modules = [scope for scope in scopes[:-1] if scope.startswith("model")]
    return modules[-1].removeprefix("model").removeprefix(".") if modules else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about packages that play no part here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""From a PyTorch module to ONNX in which attention and transposed convolution stay composite operators.

The composites are caught where every module meets, at the ATen operators, so that a user's network gets what the zoo
gets and the networks know nothing of ONNX.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from vitdeploy.errors import ExportError
from vitdeploy.exporter import composites
from vitdeploy.exporter.lowering import operators
from vitdeploy.exporter.lowering.constants import attach_constants
from vitdeploy.exporter.torch_attention import attention, transformers_as_in_inference
from vitdeploy.graph.names import make_unique, unused_name

CAPTURE_OPSET = 20
BATCH = "batch"


def capture(
    model: nn.Module,
    example: Tensor,
    *,
    dynamic_batch: bool,
    output_names: Sequence[str],
    call: Callable[[Any, Tensor], Any] | None = None,
) -> ir.Model:
    """Translate `model` for images shaped like `example` [N, 3, H, W] into ONNX of opset 20 plus composites.

    `call(model, images)` makes the tensors to export; None for `model(images)`.

    Height and width are fixed; the batch is fixed to N or, with `dynamic_batch`, a free dimension called `batch`.
    The one input is called `images`; `output_names` has one name for each tensor the model returns.
    Raises ExportError for a module that torch.export cannot capture, or that ties a dynamic batch to a constant.
    """
    wrapped = _Wrapped(model, call or _forward).eval()
    dynamic = ({0: torch.export.Dim(BATCH, min=1, max=4096)},) if dynamic_batch else None
    if dynamic_batch and example.shape[0] < 2:
        example = torch.cat([example, example])  # torch.export takes a batch of one for a constant
    try:
        with _quiet(), transformers_as_in_inference(), torch.no_grad():
            program = torch.export.export(wrapped, (example,), dynamic_shapes=dynamic, strict=False)
            program = operators.decomposed(program, _composite_table())
            onnx_program = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, opset_version=CAPTURE_OPSET
            )
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be captured for a {'dynamic' if dynamic_batch else 'fixed'} batch",
            why=_first_cause(error),
            fix="--batch 1" if dynamic_batch else "replace the data-dependent Python in forward by tensor operations",
        ) from error
    assert onnx_program is not None, "torch gives None for other exporters than dynamo only"
    captured = onnx_program.model
    attach_constants(captured.graph)
    _drop_copy(captured.graph)
    _name_interface(captured, output_names)
    _name_nodes(captured)
    composites.attach_functions(captured)
    return captured


class _Wrapped(nn.Module):
    """Gives every parameter a dotted name: torch.fx refuses some plain ones, `meta` for instance.

    The module works on a copy of the images, for torch.export refuses some ways of changing an input in place.
    """

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, images: Tensor) -> Any:
        return self.call(self.model, images.clone())


def _forward(model: nn.Module, images: Tensor) -> Any:
    return model(images)


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


def _drop_copy(graph: ir.Graph) -> None:
    """Remove the node that copies the images; it stays where the copy is an output, which an input cannot be."""
    for node, _ in graph.inputs[0].uses():
        if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], graph.inputs[0])
            graph.remove(node, safe=True)


def _name_interface(model: ir.Model, output_names: Sequence[str]) -> None:
    graph = model.graph
    if len(graph.outputs) != len(output_names):
        raise ExportError(
            f"the model returns {len(graph.outputs)} tensors and {len(output_names)} output names were given",
            why=f"names: {', '.join(output_names)}",
            fix="give one name for each tensor that forward returns",
        )
    graph.inputs[0].name = "images"
    free = graph.inputs[0].shape[0] if graph.inputs[0].shape is not None else None
    if isinstance(free, ir.SymbolicDim):
        for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, str(free.value)) for dim in value.shape])
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name
    graph.name = "vitdeploy"


def _renamed(dim: int | ir.SymbolicDim, free: str) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    return ir.SymbolicDim(re.sub(rf"\b{re.escape(free)}\b", BATCH, str(dim.value)))


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


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


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

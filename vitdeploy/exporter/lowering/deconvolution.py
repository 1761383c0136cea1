"""vitdeploy::Deconvolution in the form that the target runs best.

All forms compute ONNX's ConvTranspose. With stride s, padding p, dilation d, kernel k and output padding e, an axis of
length n becomes (n - 1) s - p_begin - p_end + d (k - 1) + 1 + e.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import ExportError
from vitdeploy.exporter.composites import DECONVOLUTION, DOMAIN
from vitdeploy.graph.edit import Array, Builder, attribute, constant, input_of, need, replace, shape_of
from vitdeploy.targets import Target


def lower_deconvolution(model: ir.Model, target: Target) -> list[str]:
    """Replace every Deconvolution by the first of the target's forms that fits it; returns one line for each."""
    changes = []
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == DECONVOLUTION:
            case = _Deconvolution.of(node)
            form = _choose(case, target)
            replace(node, _FORMS[form](Builder(model.graph, node), case))
            changes.append(f"{node.name}: lowered to {form}")
    return changes


@dataclass(frozen=True)
class _Deconvolution:
    node: ir.Node
    x: ir.Value
    weight: Array | None
    bias: ir.Value | None
    strides: list[int]
    begins: list[int]
    ends: list[int]
    extra: list[int]
    dilations: list[int]
    group: int

    @classmethod
    def of(cls, node: ir.Node) -> _Deconvolution:
        x, (weight, *bias) = input_of(node, 0), node.inputs[1:]
        rank = len(attribute(node, "strides"))
        pads = list(attribute(node, "pads"))
        return cls(
            node=node,
            x=x,
            weight=constant(weight),
            bias=bias[0] if bias else None,
            strides=list(attribute(node, "strides")),
            begins=pads[:rank],
            ends=pads[rank:],
            extra=list(attribute(node, "output_padding")),
            dilations=list(attribute(node, "dilations")),
            group=int(attribute(node, "group")),
        )

    @property
    def batch(self) -> int | ir.SymbolicDim:
        return shape_of(self.x)[0]

    @property
    def has_size(self) -> bool:
        """Whether the spatial size of the input is known, as the forms that write it into constants need."""
        return all(isinstance(length, int) for length in shape_of(self.x)[2:])

    @property
    def size(self) -> list[int]:
        """Spatial size of the input."""
        size = [length for length in shape_of(self.x)[2:] if isinstance(length, int)]
        return need(size if len(size) == len(self.strides) else None, f"the size of the map {self.x.name}")

    @property
    def weights(self) -> Array:
        """The kernel, which every form but the operator itself needs as a constant."""
        return need(self.weight, f"constant weights of {self.node.name}")

    @property
    def kernel(self) -> list[int]:
        return list(self.weights.shape[2:])

    @property
    def out_channels(self) -> int:
        return int(self.weights.shape[1]) * self.group

    def shape(self, spatial: list[int], channels: int | None = None) -> list[int | ir.SymbolicDim]:
        return [self.batch, self.out_channels if channels is None else channels, *spatial]


def _choose(case: _Deconvolution, target: Target) -> str:
    if case.weight is None:  # a computed kernel: only the operator itself takes it
        return "conv_transpose"
    sized = case.has_size
    apart = sized and len(case.kernel) == 2 and case.kernel == case.strides and all(d == 1 for d in case.dilations)
    fits = {
        "broadcast": apart and case.weight.shape[0] == case.group,
        "depth_to_space": apart and case.strides[0] == case.strides[1],
        # PyTorch allows an output padding below max(stride, dilation); runtimes want it below the stride.
        "conv_transpose": all(e < s for e, s in zip(case.extra, case.strides, strict=True))
        and min(case.weight.shape[0] // case.group, case.weight.shape[1])
        >= (target.min_deconvolution_group if case.group > 1 else 1),
        "resize_conv": sized and len(case.kernel) in (1, 2),
    }
    for form in target.deconvolution:
        if fits[form]:
            return form
    raise ExportError(
        f"{case.node.name}: no form of this transposed convolution suits target {target.name}",
        why=f"kernel {case.kernel}, stride {case.strides}, groups {case.group}; "
        f"forms: {', '.join(target.deconvolution)}",
        fix=f"--target onnxruntime, or a layer with at least {target.min_deconvolution_group} channels in each group",
    )


def _conv_transpose(add: Builder, case: _Deconvolution) -> ir.Value:
    return add.op(
        "ConvTranspose",
        case.node.inputs,
        case.node.outputs[0].shape,
        strides=case.strides,
        pads=case.begins + case.ends,
        output_padding=case.extra,
        dilations=case.dilations,
        group=case.group,
    )


def _depth_to_space(add: Builder, case: _Deconvolution) -> ir.Value:
    """Kernel equals stride: windows do not overlap, so a 1x1 convolution makes all s^2 values of a window at once.

    Output padding adds rows that no window reaches: they hold the bias alone, so the bias comes after the crop.
    """
    block = case.strides[0]
    kernels = np.moveaxis(_as_conv_weight(case.weights, case.group), 1, -1)  # [O, k, k, C / group]
    pointwise = kernels.reshape(-1, kernels.shape[-1], 1, 1)
    crops = any(case.begins) or any(case.ends) or any(case.extra)
    late_bias = case.bias is not None and crops
    inputs = [case.x, add.constant(pointwise, "pointwise.weight")]
    bias = constant(case.bias)
    if case.bias is not None and not late_bias:
        if bias is None:
            late_bias = True
        else:
            inputs.append(add.constant(np.repeat(bias, block * block), "pointwise.bias"))
    full = [n * block for n in case.size]
    y = add.op("Conv", inputs, case.shape(case.size, pointwise.shape[0]), kernel_shape=[1, 1], group=case.group)
    y = add.op("DepthToSpace", [y], case.shape(full), blocksize=block, mode="CRD")
    y = _crop(add, case, y, full)
    return _add_bias(add, case, y, case.bias) if case.bias is not None and late_bias else y


def _resize_conv(add: Builder, case: _Deconvolution) -> ir.Value:
    """Zero-insertion by nearest Resize and a 0/1 mask, then an ordinary convolution with the flipped kernel.

    Everything stays on the input's rank, and Resize, Mul and Conv have kernels everywhere, integer ones included.
    """
    y, weights = case.x, case.weights
    spread = [n * s for n, s in zip(case.size, case.strides, strict=True)]
    channels = int(weights.shape[0])
    if any(s > 1 for s in case.strides):
        scales = np.asarray([1, 1, *case.strides], dtype=np.float32)
        y = add.op(
            "Resize",
            [y, None, add.constant(scales, "upsample.scales")],
            case.shape(spread, channels),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        mask = np.zeros((1, 1, *spread), dtype=weights.dtype)
        sampled = (slice(None), slice(None), *(slice(None, None, stride) for stride in case.strides))
        mask[sampled] = 1
        y = add.op("Mul", [y, add.constant(mask, "upsample.mask")], case.shape(spread, channels))

    # The stretched axis carries s - 1 zeros behind its last sample, which count as padding already.
    reach = [d * (k - 1) for d, k in zip(case.dilations, case.kernel, strict=True)]
    begins = [r - p for r, p in zip(reach, case.begins, strict=True)]
    ends = [r - p + e - (s - 1) for r, p, e, s in zip(reach, case.ends, case.extra, case.strides, strict=True)]
    cut_begin, cut_end = ([max(-pad, 0) for pad in pads] for pads in (begins, ends))
    if any(cut_begin) or any(cut_end):
        stops = [n - cut for n, cut in zip(spread, cut_end, strict=True)]
        y = _slice(
            add, y, cut_begin, stops, case.shape([b - a for a, b in zip(cut_begin, stops, strict=True)], channels)
        )
    flipped = np.flip(_as_conv_weight(weights, case.group), axis=tuple(range(2, weights.ndim)))
    inputs = [y, add.constant(flipped, "flipped.weight"), *([case.bias] if case.bias is not None else [])]
    return add.op(
        "Conv",
        inputs,
        case.node.outputs[0].shape,
        kernel_shape=case.kernel,
        pads=[max(p, 0) for p in begins + ends],
        dilations=case.dilations,
        group=case.group,
    )


def _broadcast(add: Builder, case: _Deconvolution) -> ir.Value:
    """Kernel equals stride, and one input channel a group: every value is multiplied by the kernel of its channel.

    Channels come last, which is how tokens that became a map lie already.
    """
    (rows, columns), (high, wide), batch = case.size, case.strides, case.batch
    channels, *each = case.weights.shape[:2] if case.weights.shape[1] > 1 else case.weights.shape[:1]
    last = add.op("Transpose", [case.x], [batch, rows, columns, channels], perm=[0, 2, 3, 1])
    apart, full = [rows, 1, columns, 1, channels] + [1 for _ in each], [rows * high, columns * wide]
    x = add.op("Reshape", [last, add.constant(np.asarray([0, *apart], dtype=np.int64), "apart")], [batch, *apart])
    kernel = np.moveaxis(case.weights, (2, 3), (0, 1)).reshape(1, high, 1, wide, channels, *each)
    spread = [batch, rows, high, columns, wide, channels, *each]
    y = add.op("Mul", [x, add.constant(kernel, "kernel")], spread)
    last_shape = [*full, case.out_channels]
    target = add.constant(np.asarray([0, *last_shape], dtype=np.int64), "together")
    y = add.op("Reshape", [y, target], [batch, *last_shape])
    y = _crop(add, case, add.op("Transpose", [y], case.shape(full), perm=[0, 3, 1, 2]), full)
    return y if case.bias is None else _add_bias(add, case, y, case.bias)


_FORMS = {
    "broadcast": _broadcast,
    "conv_transpose": _conv_transpose,
    "depth_to_space": _depth_to_space,
    "resize_conv": _resize_conv,
}


def _as_conv_weight(weight: Array, group: int) -> Array:
    """ConvTranspose weight [C, O / group, *k] as Conv's [O, C / group, *k], the kernel not flipped."""
    c, o, *kernel = weight.shape
    split = weight.reshape(group, c // group, o, *kernel)
    return np.swapaxes(split, 1, 2).reshape(group * o, c // group, *kernel)


def _crop(add: Builder, case: _Deconvolution, y: ir.Value, full: list[int]) -> ir.Value:
    stops = [n - p + e for n, p, e in zip(full, case.ends, case.extra, strict=True)]
    inside = [min(stop, n) for stop, n in zip(stops, full, strict=True)]
    if any(case.begins) or inside != full:
        spatial = [b - a for a, b in zip(case.begins, inside, strict=True)]
        y = _slice(add, y, case.begins, inside, case.shape(spatial))
    beyond = [stop - n for stop, n in zip(stops, inside, strict=True)]
    if any(beyond):
        pads = np.asarray([0, 0] + [0] * len(beyond) + [0, 0] + beyond, dtype=np.int64)
        y = add.op("Pad", [y, add.constant(pads, "output.pads")], case.node.outputs[0].shape)
    return y


def _slice(
    add: Builder, y: ir.Value, starts: list[int], stops: list[int], shape: list[int | ir.SymbolicDim]
) -> ir.Value:
    axes = np.arange(2, 2 + len(starts), dtype=np.int64)
    bounds = [add.constant(np.asarray(v, dtype=np.int64), f"crop.{n}") for v, n in ((starts, "start"), (stops, "stop"))]
    return add.op("Slice", [y, *bounds, add.constant(axes, "crop.axes")], shape)


def _add_bias(add: Builder, case: _Deconvolution, y: ir.Value, bias: ir.Value) -> ir.Value:
    array, column = constant(bias), [1, -1] + [1] * len(case.size)
    if array is not None:
        shaped = add.constant(array.reshape(column), "bias")
    else:
        shape = add.constant(np.asarray(column, dtype=np.int64), "bias.shape")
        shaped = add.op("Reshape", [bias, shape], [1, case.out_channels] + [1] * len(case.size))
    return add.op("Add", [y, shaped], case.node.outputs[0].shape)

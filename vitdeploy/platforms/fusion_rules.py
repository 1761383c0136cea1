"""Attention blocks and layer norms of a graph, each held against the rules by which TensorRT fuses them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vitdeploy.graph.attention import Attention
from vitdeploy.graph.edit import attribute, constant, consumers, input_of, producer, sizes
from vitdeploy.graph.layer_norm import layer_norms
from vitdeploy.platforms.boards import Platform
from vitdeploy.platforms.capabilities import (
    ATTENTION,
    ATTENTION_KERNELS,
    INT8_ATTENTION_CAUTION,
    NEWCOMERS,
    AttentionKernels,
)
from vitdeploy.platforms.parser_reports import COMPILER
from vitdeploy.platforms.report import Block, Rule, Verdict
from vitdeploy.platforms.versions import dotted

Sizes = tuple[int | str, ...]

TYPE_NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
}
_HALF = {"fp16", "bf16"}
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_MASKS = ("Add", "Where")


def judge_attention(found: Attention, platform: Platform) -> Block:
    """The attention held against every rule of fused attention."""
    query, key, value = (sizes(operand) for operand in found.operands)
    precision, shape = _precision(found), "unknown shape"
    half = precision in _HALF
    if query is None or key is None or value is None or {len(query), len(key), len(value)} != {4}:
        rule = Rule("rank", False, "query, key and value are not of rank 4", "[batch, heads, tokens, head size]")
        stacks = (
            query is not None and len(query) == 3 and not _is_single(query) and _head_size(query[2], precision).holds
        )
        rules = [measured(rule, (half and stacks) or None, platform)]
        verdict = Verdict("no", "no fused kernel takes this form")
    else:
        shape = f"{query[1]} heads, {query[2]} x {key[3]} tokens, head size {query[3]}"
        rules = [
            Rule("rank", True, "[batch, heads, tokens, head size]"),
            _batch(query, key, value),
            *_single_matrix(query, key, platform),
            measured(_head_size(query[3], precision), _is_measured_head(query, precision) or None, platform),
            measured(_lengths(query[2], key[3], precision), half or None, platform),
        ]
        verdict = _int8_verdict(query, key, platform)
    between = measured(_between(found), (half and _is_cast_alone(found)) or None, platform)
    vector = query is not None and len(query) == 4 and query[2] == 1 and precision == "fp32" and _multiple(query[3])
    rules += [
        measured(_scale(found), half or None, platform),
        between,
        measured(_types(found), vector or None, platform),
        *_quantization(found),
        _gpu(platform, precision),
    ]
    return Block(found.name, shape, precision, tuple(rules), verdict)


def measured(rule: Rule, fused: bool | None, platform: Platform) -> Rule:
    """A rule of the guide, beside what NVIDIA's compiler makes of such a form (`fused`, None where it was not asked).

    The compiler is that of TensorRT for RTX: there it decides; for TensorRT 10 and 11, whose line it is of, a rule that
    it contradicts may hold or not; for TensorRT 8 it says nothing.
    """
    if fused is None or fused is rule.holds or platform.oldest < (10, 0):
        return rule
    does = "fuses it" if fused else "does not fuse it"
    if platform.product:
        return Rule(rule.name, fused, f"{rule.detail}; {COMPILER} {does}", rule.fix)
    said = "allows it" if rule.holds else "does not"
    return Rule(rule.name, None, f"{rule.detail}; the guide {said}, {COMPILER} {does}", rule.fix)


def judge_layer_norms(graph: ir.Graph, platform: Platform) -> Iterator[Block]:
    """Every layer norm, one operator or written out, held against the rules of the normalization kernel."""
    for *_, last in layer_norms(graph):
        yield _layer_norm(last, platform) if last.op_type == "LayerNormalization" else _written_out(last, platform)


def type_name(value: ir.Value) -> str:
    """fp32, fp16, bf16, int8, or ONNX's own name."""
    return "unknown" if value.dtype is None else TYPE_NAMES.get(value.dtype, value.dtype.name.lower())


def _precision(found: Attention) -> str:
    """Type of the products: `int8` where both inputs of the first are dequantized."""
    query, key, _ = found.operands
    return "int8" if all(producer(v, _DEQUANTIZE) for v in (query, key)) else type_name(query)


def _batch(query: Sizes, key: Sizes, value: Sizes) -> Rule:
    detail = f"batch of query, key and value: {query[0]}, {key[0]}, {value[0]}"
    if not query[0] == key[0] == value[0]:
        return Rule("batch", False, detail, "expand the constant one to the batch, or export with --batch 1")
    heads, groups = query[1], key[1]
    shared = isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0
    fits = groups == value[1] and (heads == groups or shared)
    return Rule("batch", fits, f"{detail}; heads: {heads}, {groups}", None if fits else "as many key as value heads")


def _single_matrix(query: Sizes, key: Sizes, platform: Platform) -> Iterator[Rule]:
    """One matrix of queries or keys is multiplied as a plain product, which the compiler does not fuse."""
    if _is_single(query) or _is_single(key):
        rule = Rule("one matrix", True, "batch 1 and one head", "a larger batch, or more heads")
        yield measured(rule, False, platform)


def _is_single(operand: Sizes) -> bool:
    return all(size == 1 for size in operand[:-2])


def _is_measured_head(query: Sizes, precision: str) -> bool:
    """Whether the head is of a size beyond the guide's that was seen to fuse; one query has a kernel of its own."""
    (queries, head), (low, high) = query[-2:], ATTENTION.measured_head
    if not isinstance(head, int) or head > high:
        return False
    if precision in _HALF:
        return head >= (low if queries != 1 else ATTENTION.vector_multiple)
    return precision == "fp32" and queries == 1 and _multiple(head)


def _multiple(head: int | str) -> bool:
    return isinstance(head, int) and head % ATTENTION.vector_multiple == 0


def _is_cast_alone(found: Attention) -> bool:
    """Whether nothing but a softmax in FP32 between two Casts breaks the rule of what may stand between."""
    passable = {"Cast", *_MASKS}
    nodes = [node for node in (*found.before, *found.after) if not _scales(node)]
    return all(node.op_type in passable for node in nodes) and len(_masks(found)) <= 1


def _masks(found: Attention) -> list[ir.Node]:
    return [node for node in found.before if node.op_type in _MASKS]


def _head_size(head: int | str, precision: str) -> Rule:
    low, high, step = ATTENTION.half_head
    if precision == "int8":
        holds = head in ATTENTION.int8_heads
        fix = f"leave this attention in FP16; INT8 takes {', '.join(map(str, ATTENTION.int8_heads))}"
    else:
        holds = isinstance(head, int) and low <= head <= high and head % step == 0
        fix = f"pad the head to a multiple of {step} between {low} and {high}"
    return Rule("head size", holds, str(head), None if holds else fix)


def _lengths(queries: int | str, keys: int | str, precision: str) -> Rule:
    int8 = precision == "int8"
    limit = ATTENTION.int8_max_sequence if int8 else ATTENTION.half_max_keys
    holds = all(isinstance(n, int) and n <= limit for n in ((queries, keys) if int8 else (keys,)))
    fix = "leave this attention in FP16" if int8 else "FP32 for this attention"
    return Rule("tokens", holds, f"{queries} x {keys}, limit {limit}", None if holds else fix)


def _scale(found: Attention) -> Rule:
    scaled = [node for node in found.before if _scales(node)]
    if not scaled:
        return Rule("scale", True, "nothing scales the scores")
    return Rule("scale", False, f"{scaled[0].name} scales the scores", "multiply the query before the first product")


def _between(found: Attention) -> Rule:
    masks = _masks(found)
    quantized = {_QUANTIZE, _DEQUANTIZE} if _precision(found) == "int8" else set()
    path = [node for node in (*found.before, *found.after) if node.op_type not in quantized and not _scales(node)]
    others = [node for node in path if node not in masks]
    scores = [node.outputs[0] for node in (found.first, *found.before, found.softmax)]
    shared = [value.name for value in scores if len(consumers(value)) > 1 or value.is_graph_output()]
    if others:
        names = ", ".join(f"{node.op_type} {node.name}" for node in others)
        return Rule("between", False, names, "nothing but one mask between the two products")
    if len(masks) > 1:
        return Rule("between", False, f"{len(masks)} masks are added", "add the masks to each other first")
    if shared:
        return Rule("between", False, f"{shared[0]} is read elsewhere too", "no other consumer of the scores")
    return Rule("between", True, "one mask" if masks else "nothing")


def _types(found: Attention) -> Rule:
    kinds = {"int8"} if _precision(found) == "int8" else {type_name(value) for value in found.operands}
    holds = len(kinds) == 1 and kinds <= {*_HALF, "int8"}
    fix = (
        "vitdeploy export … --fp16, or --int8 for tensorrt10 or 11, whose rest is FP16; what stays FP32 has its reason "
        "in the manifest (kept_fp32)"
    )
    return Rule("types", holds, " and ".join(sorted(kinds)), None if holds else fix)


def _quantization(found: Attention) -> Iterator[Rule]:
    """Where a product is quantized at all: all five places, the key's transpose before its Q/DQ."""
    places = {
        **{
            name: producer(value, _DEQUANTIZE) is not None
            for name, value in zip(("query", "key", "value"), found.operands, strict=True)
        },
        "softmax": any(node.op_type == _DEQUANTIZE for node in found.after),
    }
    if any(places.values()):
        places["output"] = any(node.op_type == _QUANTIZE for node in consumers(found.second.outputs[0]))
        missing = [name for name, there in places.items() if not there]
        detail = f"no Q/DQ right at {', '.join(missing)}" if missing else "Q/DQ on both products, softmax and output"
        yield Rule("Q/DQ", not missing, detail, "Q/DQ in all of these places or in none" if missing else None)


def _gpu(platform: Platform, precision: str) -> Rule:
    if platform.sm is not None and platform.sm < ATTENTION.min_sm:
        return Rule("GPU", False, f"compute capability {dotted(platform.sm)}", f"{dotted(ATTENTION.min_sm)} or newer")
    row = _kernels(platform)
    if row is None:
        return Rule("GPU", True, platform.versions)
    holds = row.int8 if precision == "int8" else row.half
    fix = None if holds else "leave this attention in FP16" if precision == "int8" else "TensorRT 10.3 or newer"
    return Rule("GPU", holds, row.reason, fix)


def _kernels(platform: Platform) -> AttentionKernels | None:
    fits = (row for row in ATTENTION_KERNELS if row.oldest <= platform.oldest <= row.newest)
    return next((row for row in fits if row.sm in (None, platform.sm)), None)


def _int8_verdict(query: Sizes, key: Sizes, platform: Platform) -> Verdict:
    rules = (_head_size(query[3], "int8"), _lengths(query[2], key[3], "int8"), _gpu(platform, "int8"))
    broken = [f"{rule.name}: {rule.detail}" for rule in rules if not rule.holds]
    return Verdict("no", "; ".join(broken)) if broken else Verdict("measure", INT8_ATTENTION_CAUTION)


def _layer_norm(node: ir.Node, platform: Platform) -> Block:
    x, axis, operator = input_of(node, 0), int(attribute(node, "axis", -1)), NEWCOMERS["LayerNormalization"]
    last = axis == -1 or (x.shape is not None and axis == len(x.shape) - 1)
    single = int(attribute(node, "stash_type", 1)) == ir.DataType.FLOAT
    there, alone = platform.oldest >= operator.present, not any(out.uses() for out in node.outputs[1:])
    rules = (
        Rule(
            "operator",
            there,
            f"LayerNormalization, known from {dotted(operator.present)}",
            None if there else "vitdeploy export … --target tensorrt8, which writes it out in FP32",
        ),
        Rule("last axis", last, f"axis {axis}", None if last else "put the channels last (roboflow/rf-detr#176)"),
        Rule("statistics", single, "mean and variance", None if single else "stash_type 1: mean and variance in FP32"),
        Rule(
            "one output", alone, "only Y is read" if alone else "mean or deviation is read", None if alone else "use Y"
        ),
    )
    return Block(str(node.name), _axes(x), type_name(x), rules)


def _written_out(node: ir.Node, platform: Platform) -> Block:
    x = input_of(node, 0)
    kind, needed = type_name(x), platform.oldest < NEWCOMERS["LayerNormalization"].present
    advice = "vitdeploy export … --target tensorrt10: one LayerNormalization is one kernel"
    rules = (
        Rule("operator", needed, "written out in primitive operators", None if needed else advice),
        Rule("statistics", kind == "fp32", kind, None if kind == "fp32" else "all of it in FP32 (#2564)"),
    )
    return Block(str(node.name), _axes(x), kind, rules)


def _scales(node: ir.Node) -> bool:
    arrays = [constant(value) for value in node.inputs] if node.op_type in ("Mul", "Div") else []
    return any(array is not None and array.size == 1 for array in arrays)


def _axes(value: ir.Value) -> str:
    found = sizes(value)
    return "unknown shape" if found is None else f"[{', '.join(map(str, found))}]"

"""Token streams that share weights, as one stream while they do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.edit import constant, consumers, need, of_type
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.streams import Merger, joined, mergeable, rows_of, sibling, tokens_of, varying, worthwhile


class MergeSharedLinear(GraphPass):
    """Streams [B, N, C] and [B, M, C] that pass the same weights run through one GEMM of N + M rows.

    A merge starts at MatMuls with equal constant weights: Concat on the token axis, one MatMul, Split. It then grows,
    as long as the operators work on each token alone and have equal constants: upwards through what makes the
    inputs (a normalization), downwards (bias, activation, residual sum) where every operand is merged
    already, so that no growth costs a copy. All streams but the longest must be short (MAX_SHORT_TOKENS): two long
    GEMMs are as fast as one, and the copies would be lost.

    Where the target's compiler reads what is not cut in place (`shared_streams` is `attention`), a copy costs as much
    as a GEMM: there a merge has to begin at streams that are one already, or to run through several linear layers and
    to spare more weights than it copies tokens.
    """

    name: ClassVar[str] = "merge_shared_linear"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Merge one weight after the other."""
        changes, strict = [], self.target.shared_streams == "attention"
        for group in _shared(model.graph):
            if strict and not _pays_copies(group):
                continue
            tokens = " + ".join(map(str, rows_of(group)))
            changes.append(f"{group[0].name}: one MatMul for {tokens} tokens")
            merger = Merger(model.graph)
            merger.merge(group)
            merger.grow()
        if changes:
            model.graph.sort()
        return changes


def _shared(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """Groups of MatMuls that may become one, in topological order of their first."""
    waiting: dict[bytes, list[ir.Node]] = {}
    for node in of_type(graph, "MatMul"):
        weight = constant(node.inputs[1])
        if weight is not None and weight.ndim == 2:
            key = hashlib.sha256(weight.tobytes()).digest()
            waiting.setdefault(key, []).append(node)
    for nodes in waiting.values():
        while nodes := [node for node in nodes if node.graph is graph]:
            group, rest = nodes[:1], nodes[:0]
            for node in nodes[1:]:
                (group if worthwhile([*group, node]) and mergeable([*group, node]) else rest).append(node)
            if len(group) > 1:
                yield sorted(group, key=lambda node: -tokens_of(node.outputs[0]))  # one order for a block's weights
            nodes = rest


def _pays_copies(group: Sequence[ir.Node]) -> bool:
    """Whether the streams are one already, or the weights that are read once count more than the tokens copied.

    The longest stream is copied (read and written) where the streams part again. The weights are those of the linear
    layers that follow each other, with what works on each token alone between them.
    """
    if all(joined(operands) is not None for operands in varying(group)):
        return True
    layers, row = [], list(group)
    while row:
        layers += [row[0]] if row[0].op_type == "MatMul" else []
        row = _following(row)
    weights = [need(constant(layer.inputs[1]), f"constant weights of {layer.name}") for layer in layers]
    copied = 2 * max(rows_of(group)) * weights[-1].shape[-1]
    return len(layers) > 1 and sum(weight.size for weight in weights) > copied


def _following(row: Sequence[ir.Node]) -> list[ir.Node]:
    """The one consumer of each node of `row`, where these do the same to each token; none otherwise."""
    following = consumers(row[0].outputs[0])
    found = [sibling(following[0], row[0].outputs[0], node.outputs[0]) for node in row] if len(following) == 1 else []
    nodes = [node for node in found if node is not None]
    return nodes if nodes and mergeable(found) and len(varying(found)) == 1 else []

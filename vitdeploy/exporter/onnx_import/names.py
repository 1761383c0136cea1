"""Names of nodes in a graph of another exporter, as a capture gives them: the path of the module, then the operator."""

from __future__ import annotations

import ast

import onnx_ir as ir

from vitdeploy.graph.names import unused_name

_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(graph: ir.Graph) -> None:
    """Name each node after its module, `blocks.0.attn.qkv/MatMul`, as far as the exporter left that behind.

    PyTorch writes it as scopes into the metadata, or as `/blocks/blocks.0/attn/qkv/MatMul` into the name, and others
    as `model/blocks/0/MatMul`. Values keep their names.
    """
    taken: set[str] = set()
    for node in graph:
        path = _scopes(node) or ".".join(part for part in (node.name or "").split("/")[:-1] if part)
        node.name = unused_name(f"{path or 'graph'}/{node.op_type}", taken)
        taken.add(node.name)
        node.metadata_props.clear()
        node.doc_string = None


def _scopes(node: ir.Node) -> str:
    """The innermost module in the metadata of PyTorch's exporter, or nothing."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    modules = [scope for scope in scopes[:-1] if scope] if isinstance(scopes, list) else []
    return str(modules[-1]) if modules else ""

"""The graph of a bundle for those who look at it: every value with its shape and type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.bundle.bundle import MODEL, Bundle
from vitdeploy.errors import BundleError

if TYPE_CHECKING:
    import onnx_ir as ir


def read_model(bundle: Bundle) -> ir.Model:
    """The model of a bundle, which was checked against the manifest; needs onnx and onnx-ir.

    Raises BundleError where the file is damaged or contradicts itself.
    """
    from vitdeploy.graph.onnx_file import read_graph

    data = bundle.read(MODEL)
    try:
        return read_graph(data)
    except Exception as error:  # onnx and protobuf have no common base
        why = str(error).strip().splitlines() or [type(error).__name__]
        what = f"{MODEL} of {bundle.path} is not a valid ONNX model"
        raise BundleError(what, why=why[0], fix="export the bundle again") from error

"""Whether a bundle would build on a platform, and how well; decided from its graph and tables, without a GPU.

Light: `check` imports onnx when it is called.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.typed_graph import read_model
from vitdeploy.errors import MissingDependencyError, UsageError
from vitdeploy.platforms.boards import PLATFORMS, find_platform
from vitdeploy.platforms.report import CheckReport

# What a bundle is judged by that names no TensorRT: the generation of the system images that most boards have.
PORTABLE = "tensorrt10"

log = logging.getLogger(__name__)


@checked_arguments
def check(bundle: Bundle | str | Path, target: str | None = None) -> CheckReport:
    """Compare the graph of a bundle with what a TensorRT version or a board supports.

    Nothing is built or run: the answer is as good as the tables, whose rows name their sources.

    Args:
        bundle: A bundle, or its folder.
        target: A name of `boards.PLATFORMS`, such as `tensorrt10` or `jetson-orin-nano-jp6`, a board, such as
            `jetson-orin-nano` with its newest JetPack, or one version, such as `tensorrt10.7`; None for the one that
            the bundle was exported for, and `tensorrt10` for a portable one.

    Returns:
        What blocks the build, what fuses, what INT8 can bring, and what a board's accelerator could compute.

    Raises:
        UsageError: There is no such platform, or TensorRT does not read a bundle of this target.
        BundleError: The bundle or its graph is damaged.
        MissingDependencyError: onnx or onnx-ir is not installed.
    """
    _require_onnx()
    if target is not None:
        find_platform(target)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    platform = find_platform(_own(opened) if target is None else target)
    model = read_model(opened)

    from vitdeploy.graph.attention import find_attentions
    from vitdeploy.platforms.dla import judge_dla
    from vitdeploy.platforms.fusion_rules import judge_attention, judge_layer_norms
    from vitdeploy.platforms.graph_rules import check_graph, check_known_bad
    from vitdeploy.platforms.int8 import judge_int8

    attentions = tuple(judge_attention(found, platform) for found in find_attentions(model.graph))
    norms = tuple(judge_layer_norms(model.graph, platform))
    return CheckReport(
        bundle=str(opened.path),
        model=opened.manifest.model.name,
        precision=opened.manifest.precision,
        platform=platform,
        findings=(*check_graph(model, platform), *check_known_bad(model.graph, platform, attentions, norms)),
        attentions=attentions,
        layer_norms=norms,
        int8=judge_int8(model.graph),
        dla=judge_dla(model.graph, platform),
    )


def _own(bundle: Bundle) -> str:
    """The platform that a bundle was exported for; UsageError where NVIDIA's parser does not read its form."""
    manifest = bundle.manifest
    if manifest.platform is not None:
        return manifest.platform
    if manifest.target in PLATFORMS:
        return manifest.target
    if manifest.target == "portable":
        log.info("%s is for any TensorRT: judged by the rules of %s; --target names another", bundle.path, PORTABLE)
        return PORTABLE
    raise UsageError(
        f"{bundle.path} was exported for {manifest.target}, which TensorRT does not read",
        why="the rules are those of TensorRT and of the boards that have it",
        fix="--target tensorrt10, to judge it all the same, or --target jetson-orin-nano-jp6",
    )


def _require_onnx() -> None:
    for module, package in (("onnx", "onnx"), ("onnx_ir", "onnx-ir")):
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(package, needed_for="vitdeploy check", extra="export")

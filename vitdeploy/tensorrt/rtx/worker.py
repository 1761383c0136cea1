"""The child's end: parses and builds one ONNX file with NVIDIA's libraries, whose crashes end this process alone.

It reads and writes files in one folder: `request.json`, `model.onnx`; `log` gets a JSON value a line while the
libraries speak, so that their last words survive a crash; `engine` is what was built, if it was asked for;
`answer.json` is written last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from vitdeploy.tensorrt.logger import logger_of
from vitdeploy.tensorrt.rtx.requirements import import_bindings

REQUEST, MODEL, LOG, ENGINE, ANSWER = "request.json", "model.onnx", "log", "engine", "answer.json"


def serve() -> None:
    """Does what the request in the folder `sys.argv[1]` asks for."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / REQUEST).read_text())
    with (folder / LOG).open("w", buffering=1, encoding="utf-8") as log:
        answer = compile_file(folder / MODEL, request, log)
    (folder / ANSWER).write_text(json.dumps(answer))


def compile_file(model: Path, request: dict[str, Any], log: TextIO) -> dict[str, Any]:
    """What the parser and the builder make of the model; `unusable` where the libraries do not load."""
    try:
        trt = import_bindings()
    except Exception as error:
        return {"unusable": f"{type(error).__name__}: {error}"}

    logger = logger_of(trt, lambda severity, message: log.write(json.dumps([severity, message]) + "\n"))
    builder = trt.Builder(logger)
    # Strongly typed in any case: this product knows no other networks.
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model.read_bytes())
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    answer: dict[str, Any] = {
        "version": trt.__version__,
        "parsed": bool(parsed),
        "errors": [
            {
                "node": error.node_name(),
                "operator": error.node_operator(),
                "code": str(error.code()).rpartition(".")[2],
                "why": error.desc(),
            }
            for error in errors
        ],
        "plan_bytes": None,
    }
    if parsed:
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(request["sm"])
        for index, sm in enumerate(request["sm"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.max_aux_streams = 0  # so that no layers that only wait for others are made, and counted
        _set_up(config, request["engine"] or {}, trt)
        if request["shapes"]:
            profile = builder.create_optimization_profile()
            for name, shapes in request["shapes"].items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        answer["plan_bytes"] = None if plan is None else int(plan.nbytes)
        if plan is not None and request["engine"] is not None:
            model.with_name(ENGINE).write_bytes(memoryview(plan))
    return answer


def _set_up(config: Any, asked: dict[str, Any], trt: Any) -> None:
    """What was asked of an engine that is to be kept."""
    if "tf32" in asked and not asked["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is set from the start
    if asked.get("workspace") is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, asked["workspace"])

"""The child's end: parses and builds one ONNX file with NVIDIA's libraries, whose crashes end this process alone.

It reads and writes files in one folder: `request.json`, `model.onnx`; `log` gets a JSON value a line while the
libraries speak, so that their last words survive a crash; `answer.json` is written last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

REQUEST, MODEL, LOG, ANSWER = "request.json", "model.onnx", "log", "answer.json"


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
        import tensorrt_rtx_libs  # noqa: F401  loads the libraries that the bindings look for
        import tensorrt_rtx_bindings as trt  # isort: skip
    except Exception as error:
        return {"unusable": f"{type(error).__name__}: {error}"}

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.write(json.dumps([str(severity).rpartition(".")[2], message]) + "\n")

    logger = Log()
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
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{request['sm']}"), 0)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.max_aux_streams = 0  # so that no layers that wait for others are counted
        if request["shapes"]:
            profile = builder.create_optimization_profile()
            for name, shapes in request["shapes"].items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        answer["plan_bytes"] = None if plan is None else int(plan.nbytes)
    return answer

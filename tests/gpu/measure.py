"""One step of the acceptance run, in a process of its own: prints one JSON object on standard output.

    python -m tests.gpu.measure tensorrt BUNDLE WORK 1,8,32     with TensorRT's Python
    python -m tests.gpu.measure eager MODEL SIZE 1,8,32         with a Python that has torch
    python -m tests.gpu.measure compile MODEL SIZE 8
    python -m tests.gpu.measure probe                           imports everything, up to the first call of CUDA

Both sides take FP32 images from ordinary memory of the host and leave FP32 logits there, so that their times compare.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, FEWEST = 1.5, 30


def times(call: Callable[[], object], batch: int) -> dict[str, Any]:
    """Milliseconds of a call, and images a second."""
    for _ in range(10):
        call()
    seconds: list[float] = []
    while sum(seconds) < SECONDS or len(seconds) < FEWEST:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    ordered = sorted(seconds)
    return {
        "batch": batch,
        "calls": len(seconds),
        "p50_ms": 1000 * statistics.median(seconds),
        "p90_ms": 1000 * ordered[int(0.9 * (len(ordered) - 1))],
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "images_per_second": batch * len(seconds) / sum(seconds),
    }


def tensorrt(bundle: Path, work: Path, batches: list[int]) -> dict[str, Any]:
    """Builds and proves the engine, then measures it."""
    import numpy as np

    import vitdeploy
    from vitdeploy.tensorrt.cuda import open_cuda

    start = time.perf_counter()
    report = vitdeploy.build(bundle, cache=work / "engines", timing_cache=work / "timing.cache")
    found: dict[str, Any] = {"build": report.to_dict(), "build_seconds": time.perf_counter() - start}
    if not report.passed:
        return found
    cuda = open_cuda()
    cuda.enter()
    before, _ = cuda.memory()
    with vitdeploy.load(bundle, runtime="tensorrt", cache=work / "engines") as session:
        samples = session.bundle.reference().inputs
        found["runs"] = []
        for batch in batches:
            images = {name: array[np.arange(batch) % len(array)] for name, array in samples.items()}
            whole = times(lambda images=images: session.run(images), batch)
            found["runs"].append({**whole, "device_p50_ms": launch_ms(session.backend)})
        found["session"] = session.describe()
        found["memory_bytes"] = before - cuda.memory()[0]
        found["inspector"] = json.loads(session.backend.inspect())
    return found


def launch_ms(backend: Any) -> float | None:
    """Milliseconds of the recorded graph alone, without the host's copies to and from its own buffers."""
    engine = backend._native
    context = engine._idle.get()
    try:
        if context._graph is None:
            return None
        engine.cuda.enter()

        def call() -> None:
            context._graph.launch(context._stream)
            engine.cuda.synchronize(context._stream)

        return float(times(call, 1)["p50_ms"])
    finally:
        engine._idle.put(context)


def torch_side(model: str, size: int, batches: list[int], *, compiled: bool) -> dict[str, Any]:
    """PyTorch in FP16 on the same GPU."""
    import torch

    from vitdeploy.models.create import create_model

    torch.manual_seed(0)
    network: Any = create_model(model).half().cuda()
    run = torch.compile(network, dynamic=False) if compiled else network
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "runs": []}
    for batch in batches:
        images = torch.randn(batch, 3, size, size)

        def call(images: Any = images) -> object:
            with torch.inference_mode():
                return run(images.cuda().half()).float().cpu()

        start = time.perf_counter()
        call()
        found["runs"].append({**times(call, batch), "first_call_seconds": time.perf_counter() - start})
    found["memory_bytes"] = torch.cuda.max_memory_reserved()
    return found


def probe() -> dict[str, Any]:
    """What can be seen without a GPU: that everything imports, and that the builder then asks CUDA."""
    import tensorrt as trt

    import vitdeploy
    from vitdeploy.errors import BackendError
    from vitdeploy.tensorrt.cuda import open_cuda
    from vitdeploy.tensorrt.logger import collector

    found = {"tensorrt": trt.__version__, "vitdeploy": vitdeploy.__version__, "build": callable(vitdeploy.build)}
    try:
        open_cuda()
        found["driver"] = "there"
    except BackendError as error:
        found["driver"] = str(error.why)
    logger, lines = collector(trt)
    try:
        trt.Builder(logger)
        found["builder"] = "there"
    except Exception:  # the bindings raise a TypeError
        found["builder"] = next((line for line in lines if "CUDA init" in line), "no builder")
    return found


def main(words: list[str]) -> dict[str, Any]:
    """The result of one step; `error` where it failed."""
    kind, *rest = words
    if kind == "probe":
        return probe()
    numbers = [int(part) for part in rest[-1].split(",")]
    if kind == "tensorrt":
        return tensorrt(Path(rest[0]), Path(rest[1]), numbers)
    return torch_side(rest[0], int(rest[1]), numbers, compiled=kind == "compile")


if __name__ == "__main__":
    try:
        outcome = main(sys.argv[1:])
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(outcome))

"""A model repository of the Triton Inference Server.

Keys and their meaning: `model_config.proto` of triton-inference-server/common and the page "Model Configuration" of the
server's user guide. With `max_batch_size` above 0 the shapes leave out the batch, which the server puts in front of
them; with 0 they are those of the model. What its backends do and can be told: their sources, openvino_backend (read in
2026, that of OpenVINO 2024) and onnxruntime_backend of triton-inference-server; TF32: `use_tf32` of ONNX Runtime's page
on its CUDA execution provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vitdeploy.bundle import MODEL, TensorSpec
from vitdeploy.errors import UsageError
from vitdeploy.serving.arithmetic import integers_overflow, openvino_rounds
from vitdeploy.serving.content import Content, Destination, File, Request, label_lines, octal
from vitdeploy.serving.edits import without_scalars
from vitdeploy.serving.kserve import inference_service
from vitdeploy.tensorrt.options import BATCH_PROFILE

CONFIG, LABELS, WARMUP = "config.pbtxt", "labels.txt", "warmup"
# What `vitdeploy build` builds engines for, too.
MAX_BATCH = BATCH_PROFILE[-1]

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}

_START = (
    'docker run --rm -p 8000:8000 -p 8001:8001 -v "$PWD":/models nvcr.io/nvidia/tritonserver:VERSION-py3 \\\n'
    "  tritonserver --model-repository=/models"
)


class Word(str):
    """A name that stands without quotes: that of a value of an enumeration."""

    __slots__ = ()


def write(request: Request) -> Content:
    """The repository: the folder itself is what `--model-repository` is given."""
    name = request.name
    files = {f"{name}/1/{path}": file for path, file in _model_files(request).items()}
    largest = _largest_batch(request)
    warmup = {f"input_{index}": _sample(request, spec, largest) for index, spec in enumerate(request.manifest.inputs)}
    files |= {
        f"{name}/{WARMUP}/{path}": File(array.tobytes(), "an input of the reference, to warm up")
        for path, array in warmup.items()
    }
    if _has_labels(request):
        files[f"{name}/{LABELS}"] = label_lines(request)
    config = render(_config(request, largest, warmup))
    files[f"{name}/{CONFIG}"] = File(config.encode("utf-8", "replace"), "inputs, outputs, batching, warm-up")
    format_name = "triton" if request.engine is None else "tensorrt"
    files["kserve.yaml"] = inference_service(request, "kserve-tritonserver", format_name)
    return Content(
        files=files,
        baked=[f"{name} has the shape [1] and not []: the server knows no scalars." for name in _numbers(request)],
        start=[_START if request.engine is None else _START.replace("docker run", "docker run --gpus all")],
        differs=list(_differs(request, largest)),
        told=list(_told(request, largest)),
    )


def _model_files(request: Request) -> dict[str, File]:
    numbers = _numbers(request)
    if numbers and (request.engine is not None or request.native):
        raise UsageError(
            f"the server takes no single numbers, such as the output {numbers[0]}",
            why="they have no axis, and only a model of ONNX can be given one here",
            fix="--to triton without an engine, and with a bundle for another target than openvino",
        )
    if request.engine is not None:
        return {"model.plan": File(request.engine, "the engine that was given")}
    if numbers:
        return {MODEL: File(without_scalars(request.model), "the bundle's model, with what is said below")}
    return dict(request.native) or {MODEL: File(request.model, "the bundle's model")}


def _numbers(request: Request) -> list[str]:
    """Outputs that are a single number, whatever the batch."""
    return [spec.name for spec in request.manifest.outputs if not spec.shape]


def _largest_batch(request: Request) -> int:
    """`max_batch_size`: 0 where the server must not put requests together.

    The backend of OpenVINO computes that many images for every call, and so it is 0 there unless it is asked for.
    """
    if not request.batch_is_free:
        return 0
    return request.max_batch or (0 if _by_openvino(request) else MAX_BATCH)


def _by_openvino(request: Request) -> bool:
    return request.engine is None and bool(request.native)


def _config(request: Request, largest: int, warmup: Mapping[str, Any]) -> dict[str, Any]:
    manifest = request.manifest
    openvino = _by_openvino(request)
    platform = "tensorrt_plan" if request.engine is not None else "onnxruntime_onnx"
    kind = "KIND_GPU" if request.engine is not None else "KIND_CPU" if openvino else "KIND_AUTO"
    labels = {"label_filename": LABELS} if _has_labels(request) and _ranks_images(request, largest) else {}
    config: dict[str, Any] = {
        "name": request.name,
        **({"backend": "openvino"} if openvino else {"platform": platform}),
        "max_batch_size": largest,
        "input": [_tensor(spec, largest) for spec in manifest.inputs],
        "output": [{**_tensor(spec, largest), **labels} for spec in manifest.outputs],
        "instance_group": [{"count": 1, "kind": Word(kind)}],
    }
    if largest > 0:
        config["dynamic_batching"] = {}
    if openvino and largest > 0:  # else only requests that fill the batch are answered
        config["parameters"] = [{"key": "ENABLE_BATCH_PADDING", "value": {"string_value": "YES"}}]
    inputs = [
        {
            "key": spec.name,
            "value": {"data_type": Word(_TYPES[spec.dtype]), "dims": list(array.shape), "input_data_file": path},
        }
        for spec, (path, array) in zip(manifest.inputs, warmup.items(), strict=True)
    ]
    config["model_warmup"] = [
        {"name": f"reference, batch {batch}", "batch_size": batch, "inputs": inputs}
        for batch in sorted({1, max(1, largest)})
    ]
    return config


def _tensor(spec: TensorSpec, largest: int) -> dict[str, Any]:
    axes = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
    dims = axes[1:] if largest > 0 else axes
    found: dict[str, Any] = {"name": spec.name, "data_type": Word(_TYPES[spec.dtype]), "dims": dims or [1]}
    # The model has [batch], and whoever asks [batch, 1]; the server has no such way where it adds no batch.
    return {**found, "reshape": {}} if not dims and largest > 0 else found


def _sample(request: Request, spec: TensorSpec, largest: int) -> np.ndarray[Any, Any]:
    """The first image of the reference, or as many as a fixed batch has; without the batch where the server adds it."""
    first = spec.shape[0]
    rows = request.reference.inputs[spec.name][: first if isinstance(first, int) else 1]
    found = np.ascontiguousarray(rows[0] if largest > 0 else rows)
    return found.astype(found.dtype.newbyteorder("<"), copy=False)


def _has_labels(request: Request) -> bool:
    """Whether the network is a classifier whose classes have names."""
    outputs, labels = request.manifest.outputs, request.manifest.labels
    return bool(labels) and len(outputs) == 1 and outputs[0].shape[1:] == (len(labels),)


def _ranks_images(request: Request, largest: int) -> bool:
    """Whether the server can rank the classes of an image; where it adds no batch it ranks all of a call."""
    return largest > 0 or request.manifest.inputs[0].shape[0] == 1 or request.batch_is_free


def _differs(request: Request, largest: int) -> Iterator[str]:
    specs = (*request.manifest.inputs, *request.manifest.outputs)
    for spec in specs if largest > 0 else ():
        if len(spec.shape) == 1:
            yield f"{spec.name} has the shape [N, 1] and not [N]: the server knows no scalars."
    if request.engine is not None:
        yield "The engine was not compared with the bundle here; `vitdeploy build BUNDLE` proves it when it builds it."
        return
    if _by_openvino(request):
        yield openvino_rounds("The server's backend of OpenVINO")
    else:
        yield (
            "On a GPU since Ampere (`docker run --gpus all`), ONNX Runtime rounds FP32 products to TF32, unless the "
            "server is started with `NVIDIA_TF32_OVERRIDE=0` in its environment."
        )
    yield from integers_overflow(request.manifest, "the server")


def _told(request: Request, largest: int) -> Iterator[str]:
    yield "Replace `VERSION` by a release of the server whose image has the backend."
    together = f"The server puts requests together, up to {largest} images a call."
    if largest > 0 and _by_openvino(request):
        yield f"{together} Its backend of OpenVINO computes {largest} images for each call, however few were sent."
    elif largest > 0:
        yield together
    elif request.batch_is_free:
        yield (
            "The server does not put requests together, and each may bring another number of images. With --max-batch "
            "N it would, but its backend of OpenVINO computes N images for each call then, however few were sent."
        )
    elif isinstance(request.manifest.inputs[0].shape[0], int):
        yield "The batch of the model is fixed, so that the server does not put requests together."
    else:
        yield "The server does not put requests together, for inputs and outputs have not all one batch in front."
    yield "A client sends the batch in front, such as [1, …] for one image."
    if request.engine is not None:
        yield (
            "The engine runs on the GPU and with the version of TensorRT that it was built for. The batch must lie "
            "within the profile of the engine: the one of `vitdeploy build BUNDLE` reaches 32 by default."
        )
    if _has_labels(request) and not _ranks_images(request, largest):
        yield (
            "Take the logits, and do not ask for classes (`class_count`): the server ranks those of all images of a "
            "call together. `labels.txt` is for the client."
        )
    elif _has_labels(request):
        alone = "" if largest > 0 or not request.batch_is_free else ", for a call of one image"
        yield f"A client that asks for classes (`class_count`) gets the labels{alone}. They are ranked by logits."
    yield (
        "`kserve.yaml` serves the same folder under KServe, from a volume claim `models` that holds it. It was not "
        "tried in a cluster."
    )


def render(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format."""
    lines = []
    for key, value in message.items():
        if isinstance(value, list) and not any(isinstance(one, Mapping) for one in value):
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, value))}]\n")
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{key} {{\n{render(one, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{key}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, (int, Word)):
        return str(value)
    escaped = (letter if letter.isprintable() and letter not in '"\\' else octal(letter) for letter in value)
    return f'"{"".join(escaped)}"'


TRITON = Destination("the Triton Inference Server", write, frozenset({"engine", "max_batch"}))

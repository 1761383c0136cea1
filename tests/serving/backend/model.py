"""A backend of Triton that stands in for those of ONNX Runtime and OpenVINO, which NVIDIA ships in its images alone.

The server reads the configuration, warms up, puts requests together and names classes; this runs the model that it is
pointed to. It refuses what those backends refuse: tensors that the model does not have, or that it has in other types
or shapes, and a batch of the server's for a model whose batch is fixed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

Shape = list[int]  # -1 is a free axis


class TritonPythonModel:
    """One instance of a model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Nothing: what is missing stays missing, and is refused."""
        return config

    def initialize(self, arguments: dict[str, str]) -> None:
        """Load the model and compare its tensors with the configuration."""
        config = json.loads(arguments["model_config"])
        file = Path(arguments["model_repository"], arguments["model_version"], config["default_model_filename"])
        largest = config["max_batch_size"]
        self._run, there = _openvino(file, largest) if config["backend"] == "openvino" else _onnxruntime(file)
        for kind in ("input", "output"):
            for tensor in config[kind]:
                _check(tensor, largest, there)
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """All requests that the server put together, in one call of the model."""
        feeds = [
            {name: triton.get_input_tensor_by_name(one, name).as_numpy() for name in self._inputs} for one in requests
        ]
        together = {name: np.concatenate([one[name] for one in feeds]) for name in self._inputs}
        ends = np.cumsum([len(next(iter(one.values()))) for one in feeds])[:-1]
        rows = [np.split(value, ends) for value in self._run(self._outputs, together)]
        return [
            triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(self._outputs, values, strict=True)])
            for values in zip(*rows, strict=True)
        ]


def _onnxruntime(file: Path) -> tuple[Any, dict[str, tuple[Any, Shape]]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    types = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
    return session.run, {
        one.name: (types[one.type], [axis if isinstance(axis, int) else -1 for axis in one.shape])
        for one in (*session.get_inputs(), *session.get_outputs())
    }


def _openvino(file: Path, largest: int) -> tuple[Any, dict[str, tuple[Any, Shape]]]:
    import openvino

    core = openvino.Core()
    found = core.read_model(file)
    there = {
        port.any_name: (
            port.element_type.to_dtype(),
            [axis.get_length() if axis.is_static else -1 for axis in port.partial_shape],
        )
        for port in (*found.inputs, *found.outputs)
    }
    if largest > 0:  # as the backend does it: the batch of every call is filled up with zeros
        found.reshape({port.any_name: [largest, *list(port.partial_shape)[1:]] for port in found.inputs})
    model = core.compile_model(found, "CPU")

    def run(names: list[str], feeds: dict[str, Any]) -> list[Any]:
        count = len(next(iter(feeds.values())))
        if largest > 0:
            feeds = {
                name: np.concatenate([value, np.zeros((largest - count, *value.shape[1:]), value.dtype)])
                for name, value in feeds.items()
            }
        made = model(feeds)
        return [made[name][:count] if largest > 0 else made[name] for name in names]

    return run, there


def _check(tensor: dict[str, Any], largest: int, there: dict[str, tuple[Any, Shape]]) -> None:
    name = tensor["name"]
    if name not in there:
        raise triton.TritonModelException(f"the model has no {name!r}, but {', '.join(there)}")
    dtype, shape = there[name]
    dims = tensor["reshape"]["shape"] if "reshape" in tensor else tensor["dims"]
    told = [-1, *dims] if largest > 0 else dims
    if shape != told or np.dtype(triton.triton_string_to_numpy(tensor["data_type"])) != np.dtype(dtype):
        raise triton.TritonModelException(
            f"{name!r} is {dtype} {shape} in the model, and {tensor['data_type']} {told} in the configuration"
        )

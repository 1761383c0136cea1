"""Asks Triton over gRPC and HTTP, by its own client, and compares the answers:

    python triton_client.py GRPC HTTP MODEL INPUTS.npz OUTPUTS.npz [CLASSES]

OUTPUTS.npz gets the arrays, and with CLASSES the texts of so many likeliest classes under the name of the output.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import tritonclient.grpc
import tritonclient.http


def ask(
    protocol: ModuleType, address: str, model: str, inputs: dict[str, np.ndarray], classes: int
) -> dict[str, np.ndarray]:
    """The outputs that the server has for the inputs."""
    client = protocol.InferenceServerClient(address)
    assert client.is_model_ready(model)
    metadata = client.get_model_metadata(model, **({"as_json": True} if protocol is tritonclient.grpc else {}))
    given = []
    for tensor in metadata["inputs"]:
        array = inputs[tensor["name"]]
        given.append(protocol.InferInput(tensor["name"], list(array.shape), tensor["datatype"]))
        given[-1].set_data_from_numpy(array)
    names = [tensor["name"] for tensor in metadata["outputs"]]
    wanted = [protocol.InferRequestedOutput(name, class_count=classes) for name in names]
    # Many requests at once, which the server may put together, and then the last answer.
    if protocol is tritonclient.http:
        client = protocol.InferenceServerClient(address, concurrency=8)
        answers = [client.async_infer(model, given, outputs=wanted) for _ in range(8)]
        results = [answer.get_result() for answer in answers]
    else:
        results = [client.infer(model, given, outputs=wanted)]
    first, *others = ({name: result.as_numpy(name) for name in names} for result in results)
    for other in others:
        same(first, other)
    return first


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """AssertionError for other values, but for the rounding of a batch of another size."""
    for name, value in one.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-5 * np.abs(value).max())
        elif value.dtype == object:  # texts "logit:index:label"
            assert [text.split(b":")[1:] for text in value.ravel()] == [
                text.split(b":")[1:] for text in other[name].ravel()
            ]
        else:
            np.testing.assert_array_equal(other[name], value)


if __name__ == "__main__":
    grpc, http, model, source, target, *classes = sys.argv[1:]
    with np.load(source) as file:
        inputs = dict(file)
    found = [
        ask(protocol, address, model, inputs, int(classes[0]) if classes else 0)
        for protocol, address in ((tritonclient.grpc, grpc), (tritonclient.http, http))
    ]
    same(*found)
    np.savez(
        target, **{name: value.astype("S") if value.dtype == object else value for name, value in found[0].items()}
    )

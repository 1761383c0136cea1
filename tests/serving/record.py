"""Records the messages of Triton's model configuration, from the client package itself, into model_config.json here.

    python record.py

The package asks for older versions of protobuf and ml-dtypes than other packages bring, so that it is recorded in an
environment of its own, that of servers.sh, and the tests read the record. A test of the servers holds it against them.
"""

from __future__ import annotations

import base64
import json
from importlib import metadata
from pathlib import Path

RECORD = Path(__file__).with_name("model_config.json")


def recorded() -> dict[str, str]:
    """Version, licence and the serialized description of `model_config.proto`."""
    from tritonclient.grpc import model_config_pb2

    return {
        "tritonclient": metadata.version("tritonclient"),
        "license": "BSD-3-Clause",
        "description": base64.b64encode(model_config_pb2.DESCRIPTOR.serialized_pb).decode(),
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(recorded(), indent=2) + "\n")

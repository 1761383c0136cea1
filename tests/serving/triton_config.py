"""Reads configurations by the messages of Triton's own client, against which it holds the record of them:

python triton_config.py CONFIG.pbtxt…
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf import text_format
from record import RECORD, recorded
from tritonclient.grpc import model_config_pb2

if __name__ == "__main__":
    found, kept = recorded(), json.loads(RECORD.read_text())
    if found["description"] != kept["description"]:
        sys.exit(
            f"the record is of tritonclient {kept['tritonclient']}, and {found['tritonclient']} has other messages"
        )
    for path in sys.argv[1:]:
        config = text_format.Parse(Path(path).read_text(), model_config_pb2.ModelConfig())
        print(config.name, config.max_batch_size)

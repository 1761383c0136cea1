"""Record what TensorRT for RTX says of small networks: `python -m tests.tensorrt.rtx.record` with vitdeploy[nvidia].

Of the log, the layer list, the memory and whatever is serious are kept.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.transformer import transformer
from vitdeploy.tensorrt.rtx.compiler import run_compiler

FOLDER = Path(__file__).parent / "recorded"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, half in (("transformer_fp16", True), ("transformer_fp32", False)):
        outcome = run_compiler(transformer(half=half, batch=1), 86, {})
        kept = [
            [severity, text]
            for severity, text in outcome.log
            if "LayerType: " in text or text.startswith("Total ") or severity in ("WARNING", "ERROR", "INTERNAL_ERROR")
        ]
        document = {"version": outcome.version, "sm": 86, "log": kept}
        (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=0) + "\n")


if __name__ == "__main__":
    main()

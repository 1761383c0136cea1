"""What a user would otherwise do: torch.onnx.export, then onnxsim. Arguments: model name, output file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import onnx
import onnxsim
import torch
from torch import nn

from vitdeploy import create_model


def naive(model: nn.Module, example: torch.Tensor, outputs: Sequence[str] | None = ("logits",)) -> onnx.ModelProto:
    """Raises RuntimeError where onnxsim finds that its graph computes something else."""
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=18,
        input_names=["images"],
        output_names=None if outputs is None else list(outputs),
        verbose=False,
    )
    assert program is not None
    simplified, ok = onnxsim.simplify(program.model_proto)
    if not ok:
        raise RuntimeError("onnxsim could not simplify the model")
    return simplified


def main() -> None:
    name, output = sys.argv[1:]
    model = create_model(name)
    card: Any = model.card
    onnx.save(naive(model, torch.randn(1, 3, *card.image_size)), output)


if __name__ == "__main__":
    main()

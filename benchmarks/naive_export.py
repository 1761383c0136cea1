"""What a user would otherwise do: torch.onnx.export, then onnxsim. Arguments: model name, output file."""

from __future__ import annotations

import sys

import onnx
import onnxsim
import torch

from vitdeploy import create_model

name, output = sys.argv[1:]
model = create_model(name)
example = torch.randn(1, 3, *model.card.image_size)
program = torch.onnx.export(
    model, (example,), dynamo=True, opset_version=18, input_names=["images"], output_names=["logits"]
)
simplified, ok = onnxsim.simplify(program.model_proto)
if not ok:
    sys.exit("onnxsim could not simplify the model")
onnx.save(simplified, output)

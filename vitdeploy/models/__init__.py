"""Networks in plain PyTorch, with no knowledge of ONNX."""

"""NVIDIA's own ONNX parser and graph compiler on a machine without a GPU: TensorRT for RTX, which builds on the CPU."""

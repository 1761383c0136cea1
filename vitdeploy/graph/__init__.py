"""Tools for ONNX graphs that every other part uses."""

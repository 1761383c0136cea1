"""An `.onnx` file as a source: read with its checks, restated for the passes, and run as the reference."""

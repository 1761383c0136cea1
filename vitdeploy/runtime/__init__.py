"""What runs on the device: numpy, Pillow and one backend; never torch, onnx, `models` or `export`."""

"""What devices and TensorRT versions can do, as rules that need no device."""

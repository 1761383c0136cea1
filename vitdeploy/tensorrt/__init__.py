"""Making, proving and keeping a TensorRT engine, and running it."""

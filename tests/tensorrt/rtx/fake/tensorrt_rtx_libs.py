"""A stand-in for NVIDIA's libraries: there is nothing to load."""

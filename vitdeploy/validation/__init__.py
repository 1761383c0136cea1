"""Proof: parity with PyTorch, accuracy on data."""

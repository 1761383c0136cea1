"""From a PyTorch module to a verified bundle."""

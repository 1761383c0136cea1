"""What each layer and block of a network costs in INT8 or FP16 by itself, and why."""

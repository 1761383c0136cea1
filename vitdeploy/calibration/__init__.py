"""Post-training INT8: statistics of activations, Q/DQ placement, and the repairs that keep the accuracy."""

"""INT8: from an FP32 graph and calibration images to a graph with Q/DQ."""

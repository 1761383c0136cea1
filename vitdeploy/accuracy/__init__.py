"""What a bundle lost on labelled images, against FP32 and with its confidence interval."""

"""Classification: logits [classes] of each image against its class, top-1 judged."""

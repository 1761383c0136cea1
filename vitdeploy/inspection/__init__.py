"""What is inside a bundle, what a runtime makes of it, and what this machine can run."""

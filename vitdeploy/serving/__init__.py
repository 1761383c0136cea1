"""What serves a bundle elsewhere: the files that other programs read, one module for each of them."""

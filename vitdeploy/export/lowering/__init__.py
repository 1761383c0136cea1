"""Composite operators to standard ones, one file an operator, the form chosen by the target's data."""

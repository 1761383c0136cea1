"""Composite operators and opsets in the form that a target fuses."""

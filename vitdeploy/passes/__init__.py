"""Rewrites of a graph that change no output beyond rounding; one file each."""

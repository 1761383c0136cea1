"""Tests of `bisect`."""

"""Bytes and operations as people read them."""

from __future__ import annotations


def mebibytes(size: int) -> str:
    """15.8 MiB for a number of bytes."""
    return f"{size / 2**20:.1f} MiB"


def gigaflop(count: int) -> str:
    """1.24 GFLOP for a number of operations."""
    return f"{count / 1e9:.3g} GFLOP"

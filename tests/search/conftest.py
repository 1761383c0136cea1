"""What the tests of searches share."""

from __future__ import annotations

from tests.tensorrt.conftest import world

__all__ = ["world"]

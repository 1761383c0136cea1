"""What the tests of searches share."""

from __future__ import annotations

from tests.tensorrt.conftest import world
from tests.tensorrt.rtx.conftest import play
from tests.tensorrt.rtx.conftest import world as rtx_world

__all__ = ["play", "rtx_world", "world"]

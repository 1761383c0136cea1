"""From a PyTorch module to a verified bundle."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """`vitdeploy.export(...)` is the public function although this package carries the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from vitdeploy.export.pipeline import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage

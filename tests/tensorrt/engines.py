"""Engines of a model that has no bundle, for tests of what runs them."""

from __future__ import annotations

from typing import Any

from vitdeploy.runtime.options import Options
from vitdeploy.tensorrt.backend import TensorRtBackend
from vitdeploy.tensorrt.build import build
from vitdeploy.tensorrt.cache import EngineCache
from vitdeploy.tensorrt.options import BuildOptions


def loaded(model: bytes, **options: Any) -> TensorRtBackend:
    """An engine of `model`, built as `vitdeploy build` does, and loaded."""
    asked = BuildOptions.of(options.get("build"))
    timing = EngineCache().timing_file(TensorRtBackend.key(model, asked))
    return TensorRtBackend(build(model, asked, timing=timing).engine, Options(**options), asked)

"""The two sides of a comparison, what is trusted and what is suspected: both run ONNX files made on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitdeploy.errors import BackendError
from vitdeploy.graph.run import open_session
from vitdeploy.runtime.backends import Backend
from vitdeploy.runtime.options import Options
from vitdeploy.statistics import snr_db
from vitdeploy.tensorrt.backend import EngineBackend
from vitdeploy.tensorrt.cache import EngineCache
from vitdeploy.tensorrt.diagnosis import computed
from vitdeploy.tensorrt.options import BuildOptions

Array = NDArray[Any]
Computes = Callable[[bytes, Mapping[str, Array]], dict[str, Array]]

# As much as float32 rounds, with some room for what adds up.
_ROUNDING = 1e-6


def by_standard(model: bytes, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs by name as the ONNX standard defines them: node by node, in ONNX Runtime without any optimization.

    Raises BackendError for what ONNX Runtime does not take.
    """
    return _in_session(model, inputs, optimized=False)


def _in_session(model: bytes, inputs: Mapping[str, Array], *, optimized: bool) -> dict[str, Array]:
    session = open_session(model, "qdq" if optimized else "as_written")
    names = [port.name for port in session.get_outputs()]
    taken = {port.name for port in session.get_inputs()}
    try:
        results = session.run(names, {name: array for name, array in inputs.items() if name in taken})
    except Exception as error:  # its errors have no class of their own
        why = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise BackendError(
            "the model does not run on these inputs", why=why, fix="--inputs FILE.npz, with inputs that it takes"
        ) from error
    return dict(zip(names, results, strict=True))


class InRuntime:
    """A runtime with its options; each call loads a model, or builds its engine, and runs it once.

    facts  what the runtime said of itself when it was asked last
    calls  how many times it was asked
    """

    def __init__(self, kind: type[Backend], options: Options) -> None:
        self.kind, self.options = kind, options
        self.facts: dict[str, Any] = {}
        self.calls = 0

    def __call__(self, model: bytes, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by the names in the file; BackendError where the runtime does not take the model."""
        self.calls += 1
        names = [port.name for port in onnx.load_model_from_string(model).graph.output]
        if issubclass(self.kind, EngineBackend):
            found, self.facts = self._engine(self.kind, model, inputs)
            return {name: found[name] for name in names}
        backend = self.kind.load(model, options=self.options)
        try:
            self.facts = backend.describe()
            taken = {spec.name for spec in backend.inputs}
            found = backend.run({name: array for name, array in inputs.items() if name in taken})
            order = [spec.name for spec in backend.outputs]  # a tensor with two names may be told by the other one
        finally:
            backend.close()
        if len(order) != len(names):
            raise BackendError(
                f"{self.kind.name} gives {len(order)} outputs of {len(names)}", fix="another runtime for --runtime"
            )
        return {name: np.asarray(found[told]) for name, told in zip(names, order, strict=True)}

    def _engine(
        self, kind: type[EngineBackend], model: bytes, inputs: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        count = max((len(array) for array in inputs.values() if array.ndim), default=1)
        kind.require_builder()
        asked = kind.admit_build(replace(BuildOptions.of(self.options.build), profile=(1, count, count)))
        timing = asked.timing_cache or EngineCache(self.options.cache).timing_file(kind.key(model, asked))
        return computed(kind, model, inputs, self.options, asked, timing)

    @property
    def precision(self) -> str | None:
        """In which it computed, where that is coarser than FP32: `bf16` or `fp16`."""
        told = self.facts.get("compute_precision")
        return told if told in ("bf16", "fp16") else None


def rounding_db(model: bytes, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """What is left of the outputs, in dB, when the inputs or the sums on the way are rounded in other places."""
    generator = np.random.default_rng(0)
    moved = {
        name: (array * (1 + _ROUNDING * generator.normal(size=array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in inputs.items()
    }
    left = math.inf
    for other in (by_standard(model, moved), _in_session(model, inputs, optimized=True)):
        for name, array in expected.items():
            if array.dtype.kind == "f" and array.size and np.isfinite(array).all() and np.isfinite(other[name]).all():
                left = min(left, snr_db(array, other[name]))
    return left

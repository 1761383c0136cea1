"""Flax checkpoints (`flax.training.checkpoints`, `flax.serialization`) without Flax or JAX.

Such a file is MessagePack: nested maps, with arrays (extension 1) and numpy scalars (extension 3) packed as a triple of
shape, dtype name and bytes in C order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitdeploy.errors import MissingDependencyError

ARRAY, SCALAR = 1, 3


def read_flax_params(path: Path) -> dict[str, Tensor]:
    """The parameters in a file, by their path in the variable tree: `params/Block_0/Dense_0/kernel`.

    Optimiser state and step are left out; a file may also hold the parameter tree alone.
    """
    try:
        import msgpack
    except ImportError:
        raise MissingDependencyError("msgpack", needed_for="reading a Flax checkpoint", extra="export") from None
    tree = msgpack.unpackb(path.read_bytes(), ext_hook=_decode, raw=False, strict_map_key=False)
    if not isinstance(tree, Mapping):
        raise ValueError(f"expected a map of parameters, found {type(tree).__name__}")
    return dict(_flatten(tree.get("params", tree), "params"))


def _decode(code: int, packed: bytes) -> Any:
    import msgpack

    if code not in (ARRAY, SCALAR):
        return msgpack.ExtType(code, packed)
    shape, dtype, data = msgpack.unpackb(packed, raw=False)
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)


def _flatten(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flatten(value, f"{path}/{key}")
    else:
        yield path, tree

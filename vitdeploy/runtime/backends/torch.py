"""PyTorch, the reference: rebuilds the network that a bundle came from, where its weights are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vitdeploy.bundle import Bundle, ModelRecord, TensorSpec
from vitdeploy.bundle.manifest import ONNX
from vitdeploy.errors import BackendError, CheckpointError, UsageError, VitDeployError
from vitdeploy.preprocess import normalise
from vitdeploy.runtime.backends.base import Array, Backend, one_line
from vitdeploy.runtime.options import Options

if TYPE_CHECKING:
    from torch import nn

_DEVICES = {"CPU": "cpu", "GPU": "cuda"}


class TorchBackend(Backend):
    """The network in FP32 as the zoo defines it, whatever precision the bundle has: it reads none of its model files.

    The only backend that imports torch and the models.
    """

    name = "torch"
    package = "torch"
    extra = "export"
    reference = True
    proves_exports = False
    refuses: ClassVar[Mapping[str, str]] = {
        "build": Backend.refuses["build"],
        "threads": "the threads of PyTorch belong to the whole process: set OMP_NUM_THREADS",
        "compute_precision": "it is the FP32 reference",
        "cache": "it compiles nothing",
    }

    @classmethod
    def open(cls, bundle: Bundle, options: Options | None = None) -> Backend:
        """The network of the bundle's manifest with its weights.

        Raises BackendError where the network is not of the zoo, or its weights are neither seeded ones, nor packaged,
        nor in `options.checkpoint`.
        """
        options = cls.admit(options)
        try:
            model = rebuild(bundle.manifest.model, options.checkpoint)
            backend = cls(model, bundle, _device(options.device or "CPU"))
        except VitDeployError:
            raise
        except Exception as error:
            raise BackendError(
                "torch cannot rebuild the network", why=one_line(error), fix="use another runtime"
            ) from error
        backend.num_requests = options.num_requests or backend.num_requests
        return backend

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        raise BackendError(
            "torch cannot load the model",
            why="it reads no ONNX: it rebuilds the network that a bundle names",
            fix="use TorchBackend.open with a bundle",
        )

    def __init__(self, model: nn.Module, bundle: Bundle, device: str) -> None:
        from vitdeploy.models.outputs import choose_outputs

        manifest = bundle.manifest
        super().__init__(model.to(_DEVICES[device]), manifest.inputs, manifest.outputs)
        recipe = manifest.recipe
        self._normalise = partial(normalise, recipe=recipe) if manifest.preprocessing_in_graph else np.asarray
        self._wanted = choose_outputs(model, features="strides" in manifest.graph)
        self._device = device

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        with torch.inference_mode():
            given = inputs[self.inputs[0].name]
            # A copy: torch shares the memory of writable arrays only.
            images = torch.tensor(self._normalise(given), device=_DEVICES[self._device])
            results = self._wanted.call(native, {self.inputs[0].name: images})
        return {spec.name: _array(results[spec.name], spec) for spec in self.outputs}

    def _facts(self) -> dict[str, Any]:
        import torch

        return {
            "version": torch.__version__,
            "device": self._device,
            "compute_precision": "fp32",
            "threads": torch.get_num_threads(),
        }


def _array(tensor: Any, spec: TensorSpec) -> Array:
    array: Array = tensor.cpu().numpy()
    return array.astype(spec.dtype, copy=False)


def _device(device: str) -> str:
    import torch

    device = device.upper()
    if device not in _DEVICES or (device == "GPU" and not torch.cuda.is_available()):
        raise BackendError(f"torch finds no device {device} here", fix="device CPU")
    return device


def rebuild(record: ModelRecord, checkpoint: str | Path | None) -> nn.Module:
    """The network of the record in eval mode, with exactly the weights that the record names."""
    from vitdeploy.models.checkpoints import load_checkpoint, read_checkpoint
    from vitdeploy.models.registry import build, find_card

    if record.weights.kind == ONNX:
        raise BackendError(
            f"torch cannot rebuild {record.name}",
            why=f"it was made of {record.weights.detail}, which is a graph and no module",
            fix=f"another runtime, or the FP32 export of {record.weights.detail}",
        )
    try:
        card = find_card(record.name)
    except UsageError as error:
        raise BackendError(
            f"torch cannot rebuild {record.name}", why="it is not a network of the zoo", fix="another runtime"
        ) from error
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in record.hyperparameters.items()}
    card = card if record.image_size is None else card.resized(record.image_size)
    card = replace(card, num_classes=record.num_classes).tuned(tuples)
    if record.weights.kind == "random":
        return build(card).eval()
    path = Path(checkpoint) if checkpoint is not None else _packaged(card.checkpoint)
    if path is None or record.weights.sha256 is None:
        raise BackendError(
            f"the weights of {record.name} are not at hand",
            why=f"they are {record.weights.kind} {record.weights.detail}, and a bundle does not carry PyTorch weights",
            fix="checkpoint=FILE, the file that was exported" if record.weights.sha256 else "another runtime",
        )
    saved = read_checkpoint(path)
    if saved.sha256 != record.weights.sha256:
        raise CheckpointError(
            f"{path} does not hold the weights of this bundle",
            why=f"its sha256 is {saved.sha256[:12]}…, the manifest says {record.weights.sha256[:12]}…",
            fix=f"the {record.weights.detail} that was exported",
        )
    model = build(card)
    load_checkpoint(model, saved, model_name=card.name)
    return model.eval()


def _packaged(name: str | None) -> Path | None:
    import vitdeploy.models

    return Path(vitdeploy.models.__path__[0]) / "weights" / name if name else None

"""Reading and writing the weights of a network; no code inside a file is ever run.

Formats, by suffix:
  .safetensors                  what `save_checkpoint` writes; its metadata may describe the classifier
  .pth .pt .tar .bin .ckpt      PyTorch, through the weights-only loader
  .msgpack .flax or none        Flax, such as `checkpoint_93600`

A training file may hold several state dicts. The first of ENTRIES that the file has is taken, and searched in the same
way. Averaged weights (EMA) come first, because a training script with EMA validates and publishes those.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import CheckpointError, MissingDependencyError, UsageError, VitDeployError
from vitdeploy.files import hash_file, write_atomically
from vitdeploy.models.flax_msgpack import read_flax_params
from vitdeploy.models.misfit import adapt, find_misfit, likely_model
from vitdeploy.models.registry import ModelCard, Weights, as_image_size, find_card
from vitdeploy.preprocess import Preprocessing

ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|backbone)\.)+")
METADATA_KEY = "vitdeploy"
PLAIN_KEYS = ("num_classes", "labels", "image_size")


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint in memory.

    state     tensors by key, prefixes of training wrappers removed, floating point ones as finite float32
    sha256    of the file
    entry     which part of the file `state` is, such as `state_dict_ema`; empty for the whole file
    metadata  the metadata of a safetensors file: JSON under `vitdeploy` with any of num_classes, labels,
              image_size, hyperparameters and preprocessing, or the first three of these as JSON entries of their own
    """

    path: Path
    state: Mapping[str, Tensor]
    sha256: str
    entry: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def describe(self, card: ModelCard) -> ModelCard:
        """`card` with these weights, and with the classes, labels, size and preprocessing in the file's metadata.

        Raises CheckpointError where the metadata is invalid.
        """
        origin = f"{self.path.name} [{self.entry}]" if self.entry else self.path.name
        card = replace(card, weights=Weights("checkpoint", origin, self.sha256))
        try:
            facts = self._facts()
            card = _restate(card, facts)
            if "preprocessing" not in facts and self.path.name != card.checkpoint:
                unsaid = f"{origin} does not say how its images were preprocessed"
                card = replace(card, assumption=f"{unsaid}, the published preprocessing of {card.name} is assumed")
            if card.num_classes < 1 or len(card.labels) not in (0, card.num_classes):
                raise ValueError(f"{len(card.labels)} labels for {card.num_classes} classes")
        except (AttributeError, TypeError, ValueError, UsageError) as error:
            raise CheckpointError(
                f"the metadata of {self.path} is invalid",
                why=str(error),
                fix="write it again with vitdeploy.models.checkpoints.save_checkpoint",
            ) from error
        return card

    def _facts(self) -> dict[str, Any]:
        if METADATA_KEY in self.metadata:
            return dict(json.loads(self.metadata[METADATA_KEY]))
        return {key: json.loads(self.metadata[key]) for key in PLAIN_KEYS if key in self.metadata}


def read_checkpoint(path: Path) -> SavedCheckpoint:
    """The state dict in the file at `path`; the module's text lists the formats.

    Raises CheckpointError for a file that is missing, empty, damaged, of another format, that would run code, or whose
    weights are not all finite.
    """
    read = _reader(path)
    try:
        sha256, _ = hash_file(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be opened", why=error.strerror, fix=f"check its permissions: ls -l {path}"
        ) from error
    try:
        tree, metadata = read(path)
    except VitDeployError:
        raise
    except Exception as error:  # a damaged file makes its parser raise anything
        raise CheckpointError(
            f"{path} cannot be read",
            why=f"it is damaged, truncated, or not of the format of its suffix ({type(error).__name__})",
            fix="copy or download it again",
        ) from error
    entry, found = _find_state(path, tree)
    state = {WRAPPERS.sub("", key): t.float() if t.is_floating_point() else t for key, t in found.items()}
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{path}: {key} holds NaN or infinity",
                why="the training diverged, or a value exceeds the range of the file's precision",
                fix="use an earlier checkpoint of the same training",
            )
    return SavedCheckpoint(path, state, sha256, entry, metadata)


def load_checkpoint(model: nn.Module, saved: SavedCheckpoint, *, model_name: str) -> None:
    """Put every saved tensor into `model`; its `adapt_state_dict`, where it has one, maps an official layout first.

    Raises one CheckpointError for all keys and shapes that do not fit, with the option that would help.
    """
    state = adapt(model, saved.state)
    misfit = find_misfit(model, state)
    if misfit is None:
        model.load_state_dict(state, strict=False)
        return
    if classes := misfit.class_count:
        fix = f"--num-classes {classes} (in Python: num_classes={classes})"
    elif misfit.positions_only:
        fix = "--image-size with the size at which these weights were trained"
    elif likely := likely_model(saved.state):
        fix = f"{likely}: the network that these weights fit"
    elif not misfit.reshaped and not misfit.unexpected:
        fix = "use a checkpoint of the whole classifier; this one holds only a part, such as a backbone"
    else:
        fix = f"check that this is a checkpoint of {model_name}: it has the keys {', '.join(list(saved.state)[:3])}"
    raise CheckpointError(f"{saved.path} does not fit {model_name}", why=str(misfit), fix=fix)


def save_checkpoint(path: str | Path, model_or_state: nn.Module | Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a safetensors file from which `create_model(card.name, checkpoint=path)` restores the network.

    Its metadata holds the classes, labels, size and preprocessing of `card`, and the hyperparameters that differ from
    the zoo's. The file is written atomically; missing folders are created. Raises CheckpointError where it cannot be
    written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"cannot write a checkpoint as {path.name}",
            why="checkpoints are written as safetensors",
            fix=f"{path.stem}.safetensors",
        )
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    facts = {key: getattr(card, key) for key in PLAIN_KEYS} | {
        "hyperparameters": _own_hyperparameters(card),
        "preprocessing": asdict(card.preprocessing),
    }
    data = _safetensors().torch.save(
        {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state.items()},
        metadata={METADATA_KEY: json.dumps(facts)},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written", why=error.strerror, fix="choose another folder") from error


def _own_hyperparameters(card: ModelCard) -> dict[str, Any]:
    """The hyperparameters that differ from the zoo's.

    The others are left out, so that loading the file under the name of another variant is reported as a misfit.
    """
    published = find_card(card.name).hyperparameters
    return {key: value for key, value in card.hyperparameters.items() if value != published[key]}


def _restate(card: ModelCard, facts: Mapping[str, Any]) -> ModelCard:
    if "hyperparameters" in facts:
        card = card.tuned({key: _as_tuple(value) for key, value in facts["hyperparameters"].items()})
    if "preprocessing" in facts:
        preprocessing = Preprocessing(**{key: _as_tuple(value) for key, value in facts["preprocessing"].items()})
        card = replace(card, preprocessing=preprocessing).resized(as_image_size(preprocessing.size))
    if "image_size" in facts:
        card = card.resized(as_image_size(_as_tuple(facts["image_size"])))
    if "num_classes" in facts or "labels" in facts:
        labels = tuple(map(str, facts.get("labels", ())))
        card = replace(card, num_classes=int(facts.get("num_classes", len(labels))), labels=labels)
    return card


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _find_state(path: Path, tree: Any) -> tuple[str, Mapping[str, Tensor]]:
    """The entries that lead to the state dict in a file, joined by dots, and the state dict."""
    if isinstance(tree, Mapping):
        for entry in ENTRIES:
            if isinstance(tree.get(entry), Mapping) and tree[entry]:
                inner, state = _find_state(path, tree[entry])
                return ".".join(filter(None, (entry, inner))), state
        if tree and all(isinstance(key, str) and _is_plain(value) for key, value in tree.items()):
            return "", tree
        found = f"entries called {', '.join(map(str, list(tree)[:3]))}" if tree else "nothing"
    else:
        found = f"a {type(tree).__name__}"
    raise CheckpointError(
        f"{path} holds no state dict",
        why=f"a state dict maps names to dense tensors; this file holds {found}",
        fix="save model.state_dict() of the float network",
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise MissingDependencyError("safetensors", needed_for="a .safetensors checkpoint", extra="export") from None
    return safetensors


def _read_safetensors(path: Path) -> tuple[Any, Mapping[str, str]]:
    with _safetensors().safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_torch(path: Path) -> tuple[Any, Mapping[str, str]]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise
        raise CheckpointError(
            f"{path} is refused: reading it would run code",
            why=f"it calls {refused[1]}, and weights need only tensors",
            fix="save the weights alone where the file comes from: torch.save(model.state_dict(), 'weights.pth')",
        ) from None


def _read_flax(path: Path) -> tuple[Any, Mapping[str, str]]:
    return read_flax_params(path), {}


READERS: Mapping[str, Callable[[Path], tuple[Any, Mapping[str, str]]]] = {
    ".safetensors": _read_safetensors,
    **dict.fromkeys((".pth", ".pt", ".tar", ".bin", ".ckpt"), _read_torch),
    **dict.fromkeys((".msgpack", ".flax", ""), _read_flax),
}


def _reader(path: Path) -> Callable[[Path], tuple[Any, Mapping[str, str]]]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in READERS)
        fix = str(files[-1]) if files else "give the checkpoint file"
        raise CheckpointError(f"{path} is a folder, not a checkpoint", fix=fix)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}", fix=f"check the path: ls {path.parent}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty", why="it has 0 bytes", fix="copy or download it again")
    if path.suffix.lower() not in READERS:
        known = ", ".join(filter(None, READERS))
        raise CheckpointError(
            f"{path} is not in a known checkpoint format",
            why=f"the suffix decides the format: {known}, or none for Flax",
            fix="rename the file to the suffix of its format",
        )
    return READERS[path.suffix.lower()]

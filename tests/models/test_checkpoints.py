"""Checkpoint files of every supported layout, and of every kind that must be refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitdeploy.errors import CheckpointError
from vitdeploy.models import checkpoints
from vitdeploy.models.checkpoints import read_checkpoint, save_checkpoint
from vitdeploy.models.create import create_model
from vitdeploy.models.registry import find_card
from vitdeploy.preprocess import Preprocessing

EUROSAT = Path(checkpoints.__file__).parent / "weights" / "lemevit_tiny_eurosat.safetensors"


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.randn(4), "steps": torch.tensor(7)}


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, Tensor]:
    """Random weights of lemevit_tiny, 1000 classes."""
    return create_model("lemevit_tiny").state_dict()


def saved_as(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path, name: str = "lemevit_tiny", **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        create_model(name, checkpoint=path, **options)
    assert str(path) in caught.value.what
    return caught.value


def same(left: Any, right: Any) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


# Layouts of PyTorch checkpoints


@pytest.mark.parametrize(
    ("wrap", "entry"),
    [
        (lambda s: s, ""),
        (lambda s: OrderedDict(s), ""),
        (lambda s: {"model": s}, "model"),
        (lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}}, "state_dict"),
        (lambda s: {"model": {"state_dict": s}}, "model.state_dict"),
        (lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, model="x")}, "state_dict"),
        (lambda s: {"state_dict": s, "state_dict_ema": None}, "state_dict"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "pt", "pth.tar", "bin", "ckpt"])
def test_the_state_dict_is_found_in_every_training_layout(
    tmp_path: Path, state: dict[str, Tensor], wrap: Callable[[Any], Any], entry: str, suffix: str
) -> None:
    saved = read_checkpoint(saved_as(tmp_path / f"weights.{suffix}", wrap(state)))
    assert same(saved.state, state)
    assert saved.entry == entry


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_averaged_weights_come_before_the_last_ones(
    tmp_path: Path, state: dict[str, Tensor], average: str, plain: str
) -> None:
    averaged = {key: tensor + 1 for key, tensor in state.items()}
    path = saved_as(tmp_path / "weights.pth", {plain: state, average: averaged})
    saved = read_checkpoint(path)
    assert same(saved.state, averaged)
    assert saved.describe(find_card("lemevit_tiny")).weights.detail == f"weights.pth [{average}]"


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.", "module.backbone.", "_orig_mod.module."])
def test_prefixes_of_training_wrappers_are_removed(tmp_path: Path, state: dict[str, Tensor], prefix: str) -> None:
    path = saved_as(tmp_path / "weights.pth", {prefix + key: tensor for key, tensor in state.items()})
    assert same(read_checkpoint(path).state, state)


def test_a_prefix_in_the_middle_of_a_key_stays(tmp_path: Path) -> None:
    path = saved_as(tmp_path / "weights.pth", {"stage.module.weight": torch.ones(2)})
    assert list(read_checkpoint(path).state) == ["stage.module.weight"]


def test_the_format_before_torch_1_6_is_read(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = saved_as(tmp_path / "weights.pth", {"state_dict": state}, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(path).state, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_precisions_become_float32_and_integers_stay(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype, suffix: str
) -> None:
    stored = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(stored, path)
    read = read_checkpoint(path).state
    assert {tensor.dtype for tensor in read.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(read[key], stored[key].to(read[key].dtype)) for key in state)


def test_the_digest_is_the_files(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = saved_as(tmp_path / "weights.pth", state)
    saved = read_checkpoint(path)
    weights = saved.describe(find_card("lemevit_tiny")).weights
    assert saved.sha256 == weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (weights.kind, weights.detail) == ("checkpoint", "weights.pth")


# Flax


def flax_bytes(tree: Any) -> bytes:
    """`tree` as Flax serialises it: arrays are extension 1, numpy scalars extension 3."""

    def encode(value: Any) -> msgpack.ExtType:
        packed = msgpack.packb((value.shape, value.dtype.name, value.tobytes("C")), use_bin_type=True)
        return msgpack.ExtType(1 if isinstance(value, np.ndarray) else 3, packed)

    return msgpack.packb(tree, default=encode, strict_types=True)


FLAX_PARAMS = {
    "Dense_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float16)},
    "Block_1": {"Inner_0": {"scale": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}},
}


@pytest.mark.parametrize("file_name", ["checkpoint_93600", "weights.msgpack", "weights.flax"])
def test_flax_parameters_are_read_by_their_paths(tmp_path: Path, file_name: str) -> None:
    training = {
        "step": np.int32(5),
        "params": FLAX_PARAMS,
        "opt_state": {"0": {"mu": FLAX_PARAMS}},
        "batch_stats": None,
    }
    for tree in (training, FLAX_PARAMS):
        (tmp_path / file_name).write_bytes(flax_bytes(tree))
        state = read_checkpoint(tmp_path / file_name).state
        assert list(state) == ["params/Dense_0/kernel", "params/Dense_0/bias", "params/Block_1/Inner_0/scale"]
        np.testing.assert_array_equal(state["params/Dense_0/kernel"], FLAX_PARAMS["Dense_0"]["kernel"])
        np.testing.assert_array_equal(state["params/Block_1/Inner_0/scale"], np.arange(6).reshape(2, 3))
        assert state["params/Dense_0/bias"].dtype == torch.float32


def test_bfloat16_flax_parameters_are_read(tmp_path: Path) -> None:
    values = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    packed = msgpack.packb(((3,), "bfloat16", values.view(torch.int16).numpy().tobytes()))
    (tmp_path / "checkpoint_1").write_bytes(msgpack.packb({"params": {"w": msgpack.ExtType(1, packed)}}))
    assert torch.equal(read_checkpoint(tmp_path / "checkpoint_1").state["params/w"], values.float())


# What a file says about itself


def test_save_checkpoint_is_all_that_create_model_needs(tmp_path: Path) -> None:
    recipe = Preprocessing(size=(32, 48), mode="stretch", crop_ratio=1.0, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    trained = create_model("lemevit_tiny", num_classes=3, image_size=(32, 48))
    card = replace(trained.card, labels=("cat", "dog", "owl"), preprocessing=recipe)
    path = tmp_path / "new" / "folder" / "pets.safetensors"
    save_checkpoint(path, trained, card)

    loaded = create_model("lemevit_tiny", checkpoint=path)
    assert same(loaded.state_dict(), trained.state_dict())
    assert replace(loaded.card, weights=card.weights) == card
    assert [child.name for child in path.parent.iterdir()] == ["pets.safetensors"]


def test_hyperparameters_that_differ_from_the_zoo_travel_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    trained = create_model("qnavit_tiny_7x7", num_classes=2, image_size=64, hyperparameters={"windows": (8, 8, 4, 2)})
    save_checkpoint(path, trained, trained.card)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["vitdeploy"])
    assert facts["hyperparameters"] == {"windows": [8, 8, 4, 2]}  # kernel_size is part of what the name means

    loaded = create_model("qnavit_tiny_7x7", checkpoint=path)
    assert loaded.card.hyperparameters == trained.card.hyperparameters
    assert same(loaded.state_dict(), trained.state_dict())
    rewindowed = create_model("qnavit_tiny_7x7", checkpoint=path, hyperparameters={"windows": (4, 4, 2, 2)})
    assert rewindowed.card.hyperparameters["windows"] == (4, 4, 2, 2)
    assert "does not fit qnavit_small" in refusal(path, "qnavit_small").what
    assert "no hyperparameter 'windows'" in (refusal(path, "saevit_xs").why or "")


def test_the_users_options_come_before_what_the_file_says(tmp_path: Path) -> None:
    model = create_model("lemevit_tiny", num_classes=3, image_size=32)
    save_checkpoint(tmp_path / "a.safetensors", model, model.card)
    card = create_model("lemevit_tiny", checkpoint=tmp_path / "a.safetensors", image_size=(64, 32)).card
    assert (card.num_classes, card.image_size, card.preprocessing.size) == (3, (64, 32), (64, 32))


def test_a_file_that_says_nothing_of_preprocessing_leaves_an_assumption(tmp_path: Path) -> None:
    plain = create_model("lemevit_tiny", checkpoint=EUROSAT).card
    assert f"{EUROSAT.name} does not say" in plain.assumption
    assert "published preprocessing of lemevit_tiny is assumed" in plain.assumption
    assert create_model("lemevit_tiny.eurosat").card.assumption == ""
    told = plain.preprocessed({"mode": "stretch"})
    assert (told.assumption, told.preprocessing.mode, told.preprocessing.size) == ("", "stretch", (64, 64))
    save_checkpoint(tmp_path / "told.safetensors", create_model("lemevit_tiny", checkpoint=EUROSAT), told)
    again = create_model("lemevit_tiny", checkpoint=tmp_path / "told.safetensors").card
    assert (again.assumption, again.preprocessing) == ("", told.preprocessing)


def test_plain_entries_for_classes_labels_and_size_are_understood() -> None:
    card = create_model("lemevit_tiny", checkpoint=EUROSAT).card
    assert (card.num_classes, len(card.labels), card.image_size) == (10, 10, (64, 64))


@pytest.mark.parametrize(
    "facts",
    [
        {"num_classes": 3, "labels": ["cat", "dog"]},
        {"num_classes": "many"},
        {"num_classes": 0},
        {"image_size": [64]},
        {"preprocessing": {"size": [64, 64], "colour": "green"}},
        {"preprocessing": {"mode": "squeeze"}},
        {"preprocessing": 5},
        {"hyperparameters": {"windows": [7, 7, 14, 7]}},
        {"hyperparameters": 5},
        7,
    ],
)
def test_a_description_that_cannot_be_used_is_refused(tmp_path: Path, facts: Any) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"vitdeploy": json.dumps(facts)})
    assert "is invalid" in refusal(path).what


def test_saving_leaves_the_old_file_alone_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")

    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, {"a": torch.ones(2)}, find_card("lemevit_tiny"))
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_saving_takes_shared_and_strided_tensors(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save_checkpoint(tmp_path / "a.safetensors", {"a": weight, "b": weight, "c": weight.T}, find_card("lemevit_tiny"))
    assert torch.equal(load_file(tmp_path / "a.safetensors")["c"], weight.T)


def test_saving_under_another_suffix_or_into_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"try: weights\.safetensors"):
        save_checkpoint(tmp_path / "weights.pth", {}, find_card("lemevit_tiny"))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "a.safetensors", {}, find_card("lemevit_tiny"))


# Files that cannot be read


def test_a_missing_file_an_empty_one_a_folder_and_an_unknown_suffix_are_told_apart(tmp_path: Path) -> None:
    assert "there is no checkpoint" in refusal(tmp_path / "gone.pth").what
    (tmp_path / "empty.pth").touch()
    assert "empty" in refusal(tmp_path / "empty.pth").what
    (tmp_path / "model.h5").write_bytes(b"x")
    assert ".safetensors" in (refusal(tmp_path / "model.h5").why or "")
    folder = refusal(tmp_path)
    assert "folder" in folder.what
    assert folder.fix == str(tmp_path / "empty.pth")


@pytest.mark.parametrize("kept", [0.0001, 0.5, 0.99])
@pytest.mark.parametrize("file_name", ["a.pth", "old.pth", "a.safetensors", "checkpoint_1"])
def test_a_truncated_file_is_damaged(tmp_path: Path, state: dict[str, Tensor], file_name: str, kept: float) -> None:
    path = tmp_path / file_name
    if file_name == "a.safetensors":
        save_file(state, path)
    elif file_name == "checkpoint_1":
        path.write_bytes(flax_bytes({"params": {"w": np.ones(1000, np.float32)}}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=file_name == "a.pth")
    data = path.read_bytes()
    path.write_bytes(data[: max(1, int(kept * len(data)))])
    error = refusal(path)
    assert "cannot be read" in error.what
    assert "truncated" in (error.why or "")


@pytest.mark.parametrize("file_name", ["a.pth", "a.safetensors", "checkpoint_1"])
def test_noise_is_refused(tmp_path: Path, file_name: str) -> None:
    for seed in range(20):
        (tmp_path / file_name).write_bytes(np.random.default_rng(seed).bytes(500))
        refusal(tmp_path / file_name)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    content = {"state_dict": state, "hook": Bomb(tmp_path / "mark")}
    path = saved_as(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped)
    error = refusal(path)
    assert "would run code" in error.what
    assert "mkdir" in (error.why or "")
    assert not (tmp_path / "mark").exists()


def test_a_pickled_module_is_refused_with_the_way_to_save_its_weights(tmp_path: Path) -> None:
    error = refusal(saved_as(tmp_path / "a.pth", nn.Linear(2, 2)))
    assert "torch.nn.modules.linear.Linear" in (error.why or "")
    assert "model.state_dict()" in (error.fix or "")


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)],
        {},
        {"epoch": 3, "optimizer": {"lr": 0.1}},
        torch.ones(2),
        {"state_dict": {"w": [1.0, 2.0]}},
        {1: torch.ones(2)},
        {"w": torch.ones(2).to_sparse()},
    ],
    ids=["list", "empty", "training log", "tensor", "numbers", "int keys", "sparse"],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    assert "holds no state dict" in refusal(saved_as(tmp_path / "a.pth", content)).what


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantized_state_dict_is_refused(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    assert "float network" in (refusal(saved_as(tmp_path / "a.pth", {"w": quantized})).fix or "")


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, tiny_state: dict[str, Tensor], poison: float
) -> None:
    weight = tiny_state["head.weight"].clone()
    weight[3, 5] = poison
    error = refusal(saved_as(tmp_path / "a.pth", {**tiny_state, "head.weight": weight}))
    assert "head.weight holds NaN or infinity" in error.what


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved_as(tmp_path / "a.pth", {"w": torch.ones(2)})
    monkeypatch.setattr(Path, "open", forbidden)
    assert refusal(path).why == "Permission denied"

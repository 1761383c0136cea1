"""State dicts that do not fit the network they were given for: one error, with the option that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import CheckpointError
from vitdeploy.models import misfit, registry
from vitdeploy.models.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from vitdeploy.models.create import create_model
from vitdeploy.models.misfit import likely_model
from vitdeploy.models.registry import ModelCard, cards

ONE_OF_EACH_FAMILY = list({cards()[name].family: name for name in reversed(list(cards()))}.values())


@pytest.fixture(scope="module", autouse=True)
def networks_are_built_once() -> Iterator[None]:
    """To recognise a state dict, each network of the zoo is built without memory; no test changes one."""
    built: dict[str, nn.Module] = {}

    def build(card: ModelCard) -> nn.Module:
        if card.name not in built:
            built[card.name] = registry.build(card)
        return built[card.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(misfit, "build", build)
        yield


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, Tensor]:
    """Random weights of lemevit_tiny, 1000 classes."""
    return create_model("lemevit_tiny").state_dict()


def saved_as(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, name: str = "lemevit_tiny", **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        create_model(name, checkpoint=path, **options)
    assert caught.value.what == f"{path} does not fit {name}"
    return caught.value


def test_a_complete_checkpoint_loads_without_the_batch_counters(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    scaled = {key: t * 2 for key, t in tiny_state.items() if "num_batches_tracked" not in key}
    model = create_model("lemevit_tiny", checkpoint=saved_as(tmp_path / "a.pth", {"state_dict": scaled}))
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in scaled.items())


def test_another_class_count_names_the_option_with_the_number(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    other = {**tiny_state, "head.weight": torch.zeros(51, 320), "head.bias": torch.zeros(51)}
    path = saved_as(tmp_path / "a.pth", other)
    error = refusal(path)
    assert "--num-classes 51" in (error.fix or "")
    assert "head.weight" in (error.why or "")
    assert "1 more" in (error.why or "")
    assert "--num-classes 51" in (refusal(path, num_classes=10).fix or "")
    assert create_model("lemevit_tiny", checkpoint=path, num_classes=51).head.out_features == 51


@pytest.mark.parametrize(("asked", "classes"), [("lemevit_small", 1000), ("dualvit_s", 1000), ("lemevit_base", 10)])
def test_weights_of_another_network_are_recognised(
    tmp_path: Path, tiny_state: dict[str, Tensor], asked: str, classes: int
) -> None:
    head = {"head.weight": torch.zeros(classes, 320), "head.bias": torch.zeros(classes)}
    error = refusal(saved_as(tmp_path / "a.pth", {**tiny_state, **head}), asked)
    option = "" if classes == 1000 else f" --num-classes {classes}"
    assert (error.fix or "").startswith(f"lemevit_tiny{option}:")


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_foreign_keys_are_shown(tmp_path: Path, name: str) -> None:
    foreign = {
        "layer1.0.conv1.weight": torch.zeros(3, 3),
        "params/fc/kernel": torch.zeros(2),
        "fc.bias": torch.zeros(2),
    }
    error = refusal(saved_as(tmp_path / "a.pth", foreign), name)
    assert f"check that this is a checkpoint of {name}" in (error.fix or "")
    assert "layer1.0.conv1.weight" in (error.fix or "")


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_every_family_loads_what_it_saved_and_is_recognised_by_it(tmp_path: Path, name: str) -> None:
    model = create_model(name, num_classes=3)
    changed = {key: t + 0.25 if t.is_floating_point() else t for key, t in model.state_dict().items()}
    save_checkpoint(tmp_path / "a.safetensors", changed, model.card)
    loaded = create_model(name, checkpoint=tmp_path / "a.safetensors")
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in changed.items())
    assert likely_model(changed) == f"{name} --num-classes 3"


def test_a_backbone_without_its_classifier_is_called_a_part(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    backbone = {f"backbone.{key}": t for key, t in tiny_state.items() if not key.startswith("head.")}
    error = refusal(saved_as(tmp_path / "a.pth", {"state_dict": backbone}))
    assert "head.weight is missing from the file; 1 more" in (error.why or "")
    assert "whole classifier" in (error.fix or "")


def test_integer_weights_are_not_taken_for_float_ones(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    head = {key: (100 * tiny_state[key]).to(torch.int8) for key in ("head.weight", "head.bias")}
    error = refusal(saved_as(tmp_path / "a.pth", {**tiny_state, **head}))
    assert "head.weight is float32 [1000, 320] in the network and int8 [1000, 320] in the file" in (error.why or "")
    assert "--num-classes" not in (error.fix or "")


class Positioned(nn.Module):
    """A stand-in with a position table, a classifier and an official layout of its own."""

    def __init__(self, tokens: int = 49) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, 8))
        self.head = nn.Linear(8, 5)

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix("official."): tensor for key, tensor in state.items()}


def test_the_networks_own_adapter_maps_an_official_layout(tmp_path: Path) -> None:
    source, target = Positioned(), Positioned()
    official = {f"official.{key}": tensor for key, tensor in source.state_dict().items()}
    load_checkpoint(target, read_checkpoint(saved_as(tmp_path / "a.pth", official)), model_name="positioned")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_another_position_table_points_to_the_image_size(tmp_path: Path) -> None:
    saved = read_checkpoint(saved_as(tmp_path / "a.pth", Positioned(144).state_dict()))
    with pytest.raises(CheckpointError, match=r"pos_embed(?s:.*)--image-size"):
        load_checkpoint(Positioned(), saved, model_name="positioned")


def test_an_unfit_checkpoint_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = Positioned()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    other = {**Positioned().state_dict(), "head.bias": torch.ones(6)}
    with pytest.raises(CheckpointError):
        load_checkpoint(network, read_checkpoint(saved_as(tmp_path / "a.pth", other)), model_name="positioned")
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)

"""From a name to a network: the zoo's list, its cards, and what create_model does with its options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitdeploy.errors import CheckpointError, ModelError, UsageError
from vitdeploy.models import registry
from vitdeploy.models.create import create_model
from vitdeploy.models.registry import as_image_size, cards, find_card, list_models


def test_list_models_takes_shell_patterns() -> None:
    assert list_models() == list(cards())
    assert list_models("lemevit_*") == [name for name in cards() if name.startswith("lemevit_")]
    assert list_models("*.eurosat") == ["lemevit_tiny.eurosat"]
    assert list_models("lemevit_tiny") == ["lemevit_tiny"]
    assert list_models("resnet*") == []


def test_an_unknown_name_offers_the_closest_ones() -> None:
    with pytest.raises(UsageError, match=r"no model called 'lemevit_tinny'(?s:.*)try: lemevit_tiny\b"):
        create_model("lemevit_tinny")
    with pytest.raises(UsageError, match="try: vitdeploy models"):
        find_card("zzz")


def test_a_card_has_its_familys_network_and_a_name_that_starts_with_the_family() -> None:
    for name, card in cards().items():
        assert card.name == name
        assert card.preprocessing.size == card.image_size, name
        assert len(card.labels) in (0, card.num_classes), name
        assert name.startswith(card.family) or name == "vit_tiny"
        assert card.source, name


@pytest.mark.parametrize("size", [64, (64, 64), (32, 96)])
def test_image_size_reaches_the_card_and_its_preprocessing(size: int | tuple[int, int]) -> None:
    card = create_model("lemevit_tiny", image_size=size).card
    assert card.image_size == card.preprocessing.size == as_image_size(size)


@pytest.mark.parametrize("size", [0, (224, -1), (224,), (1, 2, 3), "224", 224.0, (224, None)])
def test_what_is_no_image_size_is_a_usage_error(size: object) -> None:
    with pytest.raises(UsageError, match="image"):
        create_model("lemevit_tiny", image_size=size)  # type: ignore[arg-type]


def test_num_classes_resizes_the_classifier_and_drops_labels() -> None:
    model = create_model("lemevit_tiny", num_classes=3, image_size=32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert (model.card.num_classes, model.card.labels) == (3, ())
    with pytest.raises(UsageError, match="at least one class"):
        create_model("lemevit_tiny", num_classes=0)


def test_random_weights_are_the_same_each_time_say_so_and_leave_the_callers_seed_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = (create_model("lemevit_tiny", image_size=32).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert create_model("lemevit_tiny").card.weights.kind == "random"


def test_a_model_comes_in_eval_mode() -> None:
    assert not any(module.training for module in create_model("lemevit_tiny").modules())


def test_a_tagged_name_brings_weights_classes_labels_and_size() -> None:
    model = create_model("lemevit_tiny.eurosat")
    assert model.card.weights.kind == "checkpoint"
    assert (model.card.num_classes, model.card.labels[1], model.card.image_size) == (10, "Forest", (64, 64))


def test_missing_packaged_weights_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(find_card("lemevit_tiny.eurosat"), checkpoint="gone.safetensors")
    monkeypatch.setattr(registry, "cards", lambda: {broken.name: broken})
    with pytest.raises(ModelError, match=r"missing from this installation(?s:.*)pip install"):
        create_model(broken.name)


def test_a_checkpoint_that_is_not_there_is_reported_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        create_model("lemevit_tiny", checkpoint=tmp_path / "gone.pth")


def test_a_hyperparameter_of_the_wrong_kind_is_refused_with_the_usual_one() -> None:
    with pytest.raises(UsageError, match=r"windows=8") as caught:
        create_model("qnavit_tiny", hyperparameters={"windows": 8})
    assert "windows=(7, 7, 14, 7)" in str(caught.value)
    with pytest.raises(UsageError, match="no hyperparameter 'window'"):
        create_model("qnavit_tiny", hyperparameters={"window": (7, 7, 14, 7)})

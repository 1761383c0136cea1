"""The training script: what it writes is all that a bundle needs, and its pixels are the package's."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.example_scripts import imported
from vitdeploy.data import open_data
from vitdeploy.models.create import create_model
from vitdeploy.models.registry import ModelCard
from vitdeploy.preprocess import Preprocessing, preprocess_batch

COLOURS = {"red": (220, 40, 30), "blue": (30, 40, 220)}
SMALL = ("--image-size", "32", "--batch", "8")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with imported("train_classifier") as module:
        yield module


def image(colour: str, number: int, size: tuple[int, int]) -> Image.Image:
    """Noise around a colour; `size` is (width, height)."""
    noise = np.random.default_rng(number).normal(COLOURS[colour], 40, (size[1], size[0], 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def write_images(root: Path, count: int = 8, size: tuple[int, int] = (32, 32)) -> Path:
    for colour in COLOURS:
        (root / colour).mkdir(parents=True)
        for number in range(count):
            image(colour, number, size).save(root / colour / f"{number}.png")
    return root


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight red and eight blue images of 32x32 pixels; not to be changed."""
    return write_images(tmp_path_factory.mktemp("images") / "data")


def card_of(path: Path, name: str = "cagevit_tiny") -> ModelCard:
    card = create_model(name, checkpoint=path).card
    assert isinstance(card, ModelCard)
    return card


# From images to a checkpoint


def test_two_colours_are_learned_and_the_checkpoint_needs_nothing_else(
    script: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "colours.safetensors"
    options = ("--val", str(data), "--epochs", "8", "--augment", "rot90", "-o", str(path))
    assert script.main(["cagevit_tiny", str(data), *SMALL, *options]) == 0
    out, err = capsys.readouterr()
    assert f"vitdeploy export cagevit_tiny --checkpoint {path}" in out
    assert "epoch 8/8" in err
    assert "min left" in err

    model = create_model("cagevit_tiny", checkpoint=path)
    card = card_of(path)
    assert card.labels == ("blue", "red")
    assert (card.image_size, card.preprocessing.mode, card.preprocessing.crop_ratio) == ((32, 32), "stretch", 1.0)
    unseen = [image(colour, 99, (32, 32)) for colour in ("red", "blue", "red")]
    logits = model(torch.from_numpy(preprocess_batch(unseen, card.preprocessing)))
    assert [card.labels[i] for i in logits.argmax(1)] == ["red", "blue", "red"]


def test_hyperparameters_and_the_order_of_labels_travel_with_a_checkpoint_trained_from_a_zip(
    script: ModuleType, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "data", count=2, size=(40, 36))
    (folder / "labels.txt").write_text("red\nblue\n")
    path = tmp_path / "colours.safetensors"
    options = ("--set", "windows=4,4,2,1", "--epochs", "1", "-o", str(path))
    assert script.main(["qnavit_tiny", str(zipped(folder)), *SMALL, *options]) == 0
    card = card_of(path, "qnavit_tiny")
    assert card.hyperparameters["windows"] == (4, 4, 2, 1)
    assert card.labels == ("red", "blue")
    assert card.preprocessing.mode == "crop_resize"  # the images have another size than the network


def test_layer_scale_starts_where_it_is_told_to(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Tensor] = {}

    def look(model: nn.Module, *_: Any) -> int:
        started.update(model.named_parameters())
        return 0

    monkeypatch.setattr(script, "train", look)
    output = str(tmp_path / "a.safetensors")
    assert script.main(["dualvit_s", str(data), *SMALL, "--layer-scale", "0.25", "-o", output]) == 0
    scales = [value for key, value in started.items() if ".gamma" in key]
    assert len(scales) == 53
    assert all((scale == 0.25).all() for scale in scales)


# Pixels


@pytest.mark.parametrize(
    "recipe",
    [
        Preprocessing(size=(24, 32)),
        Preprocessing(size=(32, 24), mode="stretch", channels="BGR", mean=(0.1, 0.5, 0.9), std=(0.3, 0.2, 0.1)),
        Preprocessing(size=(32, 32), mode="crop_resize", interpolation="bicubic_no_antialias"),
    ],
)
def test_training_sees_exactly_the_pixels_of_the_packages_preprocessing(
    script: ModuleType, tmp_path: Path, recipe: Preprocessing
) -> None:
    folder = write_images(tmp_path / "data", count=2, size=(50, 41))
    images = script.load_images(open_data(folder), recipe)
    assert images.classes.tolist() == [0, 0, 1, 1]
    expected = preprocess_batch(sorted(folder.rglob("*.png")), recipe)
    np.testing.assert_array_equal(script.normalize(images.pixels, recipe).numpy(), expected)


def test_augmentation_keeps_every_image_and_reaches_all_eight_orientations(script: ModuleType) -> None:
    torch.manual_seed(0)
    square = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    originals = square.repeat(64, 1, 1, 1)
    all_eight = {t.rot90(k, (1, 2)).numpy().tobytes() for t in (square, square.flip(2)) for k in range(4)}
    seen = {kind: {t.numpy().tobytes() for t in script.augment(originals, kind)} for kind in ("none", "flip", "rot90")}
    assert seen["none"] == {square.numpy().tobytes()}
    assert seen["flip"] == {square.numpy().tobytes(), square.flip(2).numpy().tobytes()}
    assert seen["rot90"] == all_eight


# What is learned and kept


def test_the_average_takes_in_weights_and_batch_norm_statistics(script: ModuleType) -> None:
    average, model = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    state = {"weight": [3.0], "bias": [0.0], "running_mean": [10.0], "running_var": [1.0], "num_batches_tracked": 7}
    model.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    script.update_average(average, model, 2)
    averaged = average.state_dict()
    assert averaged["weight"].item() == pytest.approx(0.25 * 1 + 0.75 * 3)
    assert averaged["running_mean"].item() == pytest.approx(7.5)
    assert averaged["num_batches_tracked"].item() == 7
    script.update_average(average, model, 10**6)
    assert averaged["running_mean"].item() == pytest.approx(0.998 * 7.5 + 0.002 * 10)


def test_cagevits_guide_learns_from_its_own_logits(script: ModuleType) -> None:
    model = create_model("cagevit_tiny", num_classes=2, image_size=32).train()
    script.loss_of(model, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name in ("guide.trunk.0.0.weight", "guide.fc.weight", "head.weight", "patch.weight"):
        gradient = gradients[name]
        assert gradient is not None
        assert gradient.abs().sum() > 0


def interrupting(script: ModuleType, after: int) -> Callable[..., Tensor]:
    """`loss_of` of a user who presses Ctrl-C after some steps."""
    calls, own = iter(range(10**6)), script.loss_of

    def loss_of(*args: Any) -> Tensor:
        if next(calls) == after:
            raise KeyboardInterrupt
        loss: Tensor = own(*args)
        return loss

    return loss_of


@pytest.mark.parametrize(("steps", "message"), [(1, "nothing was written"), (3, "holds the weights of epoch 1")])
def test_ctrl_c_keeps_the_epochs_that_are_done_and_says_so(
    script: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    message: str,
) -> None:
    monkeypatch.setattr(script, "loss_of", interrupting(script, steps))
    path = tmp_path / "a.safetensors"
    assert script.main(["cagevit_tiny", str(data), *SMALL, "-o", str(path)]) == 130
    assert message in capsys.readouterr().err
    assert [child.name for child in tmp_path.iterdir()] == [path.name] * path.exists()
    if path.exists():
        assert card_of(path).labels == ("blue", "red")


def test_the_checkpoint_is_the_epoch_that_scores_best(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([50.0, 75.0, 60.0])
    monkeypatch.setattr(script, "accuracy", lambda *_: next(scores))
    options = ("--val", str(data), "--epochs", "3", "-o", str(tmp_path / "a.safetensors"))
    assert script.main(["cagevit_tiny", str(data), *SMALL, *options]) == 0
    assert "the weights of epoch 2, top-1 75.00 % of 16" in capsys.readouterr().out


def test_a_training_that_diverges_ends_with_advice_and_without_a_file(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "loss_of", lambda model, *_: next(model.parameters()).sum() * float("nan"))
    assert script.main(["cagevit_tiny", str(data), *SMALL, "-o", str(tmp_path / "a.safetensors")]) == 2
    assert "diverged in epoch 1; nothing was written\n  try: --lr 0.0003" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Bad input


def test_bad_input_is_refused_before_training_and_nothing_is_written(
    script: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", count=1)
    shutil.rmtree(tmp_path / "one" / "red")
    damaged = write_images(tmp_path / "damaged", count=2)
    (damaged / "red" / "1.png").write_bytes((damaged / "red" / "0.png").read_bytes()[:900])
    (write_images(tmp_path / "other", count=1) / "red").rename(tmp_path / "other" / "green")
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "there.safetensors").touch()
    before = sorted(tmp_path.rglob("*"))

    def refusal(*arguments: object, output: str = "new.safetensors") -> str:
        assert script.main([*map(str, arguments), *SMALL, "-o", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert "error: " in error
        return error

    assert "there is no " in refusal("cagevit_tiny", tmp_path / "gone")
    assert "text.zip cannot be read" in refusal("cagevit_tiny", tmp_path / "text.zip")
    assert "one folder of images for each class (class/file.jpg)" in refusal("cagevit_tiny", tmp_path / "empty")
    assert "only one class" in refusal("cagevit_tiny", tmp_path / "one")
    assert f"red/1.png of {damaged} cannot be read" in refusal("cagevit_tiny", damaged)
    assert f"red/1.png of {damaged}.zip cannot be read" in refusal("cagevit_tiny", zipped(damaged))
    (tmp_path / "damaged.zip").unlink()
    assert "has images of green" in refusal("cagevit_tiny", data, "--val", tmp_path / "other")
    assert "try: cagevit_tiny" in refusal("cagevit_tyni", data)
    assert "no hyperparameter 'windows'" in refusal("cagevit_tiny", data, "--set", "windows=1,1")
    assert "must be positive" in refusal("cagevit_tiny", data, "--lr", "0")
    assert "try: -o new.safetensors" in refusal("cagevit_tiny", data, output="new.pth").replace(str(tmp_path), "")
    assert "exists" in refusal("cagevit_tiny", data, output="there.safetensors")
    assert sorted(tmp_path.rglob("*")) == before


def test_images_that_are_not_square_are_not_turned(
    script: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--image-size", "32x48", "--augment", "rot90", "-o", str(tmp_path / "a.safetensors"))
    assert script.main(["cagevit_tiny", str(data), *options]) == 2
    assert "--augment flip" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_checkpoint_becomes_a_verified_bundle_with_labels(
    script: ModuleType, data: Path, tmp_path: Path
) -> None:
    import vitdeploy

    path = tmp_path / "colours.safetensors"
    options = ("--set", "windows=4,4,2,1", "--epochs", "6", "-o", str(path))
    assert script.main(["qnavit_tiny", str(data), *SMALL, *options]) == 0
    bundle = vitdeploy.export("qnavit_tiny", tmp_path / "bundle", checkpoint=path, precision="fp16")
    with vitdeploy.load(bundle, runtime="onnxruntime") as session:
        found = session.predict([data / "red" / "3.png", data / "blue" / "5.png"], top_k=1)
    assert [best[0].label for best in found] == ["red", "blue"]

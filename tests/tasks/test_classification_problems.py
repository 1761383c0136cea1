"""Broken baselines are told from weak ones."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.tasks.classification.problems import find_problems

NAMES = tuple("abcdefgh")
SIZE = len(NAMES)


def answers(accuracy: float, count: int = 400, classes: int = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right classes, and those that a network of this accuracy chooses."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    guessed = random.integers(0, SIZE, count)
    return targets, np.where(random.random(count) < accuracy, targets, guessed)


def problems(targets: np.ndarray, chosen: np.ndarray, weights: str = "checkpoint", by_name: bool = True) -> str:
    return "; ".join(find_problems(targets, chosen, NAMES, weights=weights, by_name=by_name))


@pytest.mark.parametrize("accuracy", [0.99, 0.6, 0.2])
@pytest.mark.parametrize("classes", [SIZE, 3, 1])
@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_knows_something_is_sound(accuracy: float, classes: int, seed: int) -> None:
    assert problems(*answers(accuracy, classes=classes, seed=seed)) == ""


@pytest.mark.parametrize("seed", range(5))
def test_guessing_is_called_out(seed: int) -> None:
    targets, chosen = answers(0.0, seed=seed)
    told = problems(targets, chosen)
    assert f"it guesses: its top-1 is {100 * (targets == chosen).mean():.2f} %" in told
    assert "not trained" in told
    assert "its weights are random" in problems(targets, chosen, weights="random")


def test_one_answer_for_everything_is_called_out_even_where_it_is_often_right() -> None:
    targets = np.where(np.arange(300) % 10 == 0, 1, 0)
    told = problems(targets, np.zeros(300, int))
    assert "top-1 is 90.00 %" in told
    assert "100% of the images a; probably they are preprocessed in another way" in told


def test_few_images_and_images_of_one_class_are_no_proof() -> None:
    assert problems(*answers(0.0, count=10)) == ""
    assert problems(np.full(100, 3), np.full(100, 3)) == ""
    assert "it guesses" in problems(np.full(200, 3), np.arange(200) % SIZE)


@pytest.mark.parametrize(("step", "shown"), [(1, "k + 1"), (-1, "k - 1")])
def test_labels_that_count_from_another_number_look_shifted(step: int, shown: str) -> None:
    targets, chosen = answers(0.9, classes=6)
    told = problems(targets + 1, np.clip(chosen + 1 + step, 0, SIZE - 1), by_name=False)
    assert f"the labels look shifted: class number k is called k {'+' if step > 0 else '-'} 1" in told
    assert "count from 1, or an output for the background" in told
    assert "it guesses" not in told
    assert shown in told


def test_a_shift_that_ends_where_it_begins_is_a_shift() -> None:
    targets, chosen = answers(0.9)
    told = problems((targets + 1) % SIZE, chosen)
    assert "shifted: class number k is called k - 1 (a is called h; b is called a;" in told
    assert "folders under each other's names" in told


def test_two_classes_that_changed_places_are_named_with_what_it_costs() -> None:
    targets, chosen = answers(0.95)
    swapped = targets.copy()
    swapped[targets == 2], swapped[targets == 5] = 5, 2
    told = problems(swapped, chosen)
    assert "the labels look permuted: c is called f; f is called c" in told
    right, wrong = 100 * (targets == chosen).mean(), 100 * (swapped == chosen).mean()
    assert f"top-1 would be {right:.2f} % instead of {wrong:.2f} %" in told
    assert "names in the bundle in another order" in told


def test_a_permutation_of_numbers_points_at_the_order_of_data() -> None:
    targets, chosen = answers(0.9)
    order = np.array([3, 5, 0, 7, 1, 6, 2, 4])
    told = problems(order[targets], chosen, by_name=False)
    assert "the labels look permuted" in told
    assert "and 4 more" in told
    assert "a labels.txt can give it" in told


def test_classes_that_are_confused_with_one_another_are_a_weakness_and_no_permutation() -> None:
    targets, chosen = answers(0.9)
    chosen[targets == 2] = 5
    chosen[(targets == 4) & (np.arange(len(targets)) % 3 > 0)] = 5
    assert problems(targets, chosen) == ""


def test_answers_that_are_not_finite_are_called_out() -> None:
    targets, chosen = answers(0.9)
    chosen[:7] = -1
    assert problems(targets, chosen) == "it gives NaN or Inf on 7 of 400 images"

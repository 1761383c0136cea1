"""Statistics against what is computed in another way, and against published values."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitdeploy.statistics import (
    Z95,
    best_class,
    bootstrap_interval,
    confusion,
    decibels,
    energies,
    json_number,
    mcnemar,
    mean_interval,
    median_interval,
    pair,
    paired_ratio,
    pairs_needed,
    ranks,
    score_interval,
    snr_db,
    unpaired_ratio,
)

counts = st.integers(0, 40)


def log_likelihood(lost: int, won: int, total: int, q: float, difference: float) -> float:
    """Of a multinomial with probabilities q + difference (lost), q (won) and the rest."""
    parts = ((lost, q + difference), (won, q), (total - lost - won, 1 - 2 * q - difference))
    if any(p < -1e-15 or (p <= 0 and n) for n, p in parts):
        return -math.inf
    return sum(n * math.log(p) for n, p in parts if n)


def statistic(lost: int, won: int, total: int, difference: float) -> float:
    """The score statistic, with the likeliest q found by search instead of the closed form."""
    low, high = max(0.0, -difference), (1 - difference) / 2
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        better = log_likelihood(lost, won, total, a, difference) < log_likelihood(lost, won, total, b, difference)
        low, high = (a, high) if better else (low, b)
    q = (low + high) / 2
    return (lost - won - total * difference) / math.sqrt(total * (2 * q + difference * (1 - difference)))


# The interval of the drop


def test_the_interval_is_the_one_that_fagerland_lydersen_and_laake_publish() -> None:
    # Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), Tango's asymptotic score:
    # "Recommended tests and confidence intervals for paired binomial proportions", Statistics in Medicine 33, 2014.
    low, high = score_interval(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@given(counts, counts, st.integers(1, 200))
def test_the_ends_of_the_interval_are_where_the_score_test_turns(lost: int, won: int, rest: int) -> None:
    total = lost + won + rest
    low, high = score_interval(lost, won, total)
    assert -1 <= low <= (lost - won) / total <= high <= 1
    assert statistic(lost, won, total, low) == pytest.approx(Z95, abs=1e-4)
    assert statistic(lost, won, total, high) == pytest.approx(-Z95, abs=1e-4)


@given(counts, counts, st.integers(0, 200))
def test_exchanging_the_two_mirrors_the_interval(lost: int, won: int, rest: int) -> None:
    total = max(1, lost + won + rest)
    low, high = score_interval(lost, won, total)
    mirrored = score_interval(won, lost, total)
    assert (low, high) == pytest.approx((-mirrored[1], -mirrored[0]), abs=1e-9)


def test_the_interval_has_a_width_where_nothing_differs_and_ends_where_everything_does() -> None:
    low, high = score_interval(0, 0, 100)
    # q is then |difference|: n d / sqrt(n (2 d - d (1 + d))) = z, solved for d.
    assert (-low, high) == pytest.approx((Z95**2 / (100 + Z95**2),) * 2)
    assert score_interval(100, 0, 100)[1] == 1
    assert score_interval(0, 1, 1)[0] == -1


@given(st.floats(1e-5, 1))
def test_as_many_pairs_are_needed_as_show_the_difference_where_none_is_discordant(difference: float) -> None:
    needed = pairs_needed(difference)
    assert score_interval(0, 0, needed)[1] <= difference
    assert needed == 1 or score_interval(0, 0, needed - 1)[1] > difference * (1 - 1e-9)
    assert score_interval(1, 0, needed)[1] > score_interval(0, 0, needed)[1] or needed == 1


def test_95_of_100_intervals_hold_the_truth() -> None:
    total, p_lost, p_won = 200, 0.06, 0.03
    random = np.random.default_rng(0)
    drawn = random.multinomial(total, [p_lost, p_won, 1 - p_lost - p_won], size=2000)
    ends = {key: score_interval(*key, total) for key in {(int(a), int(b)) for a, b, _ in drawn}}
    held = np.mean([ends[int(a), int(b)][0] <= p_lost - p_won <= ends[int(a), int(b)][1] for a, b, _ in drawn])
    assert held == pytest.approx(0.95, abs=0.015)


# McNemar


@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_counts_the_outcomes_that_are_as_uneven(lost: int, won: int) -> None:
    total = lost + won
    uneven = sum(math.comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= abs(lost - won))
    assert mcnemar(lost, won) == pytest.approx(float(Fraction(uneven, 2**total)), rel=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(210, 190), (150, 0), (0, 150), (700, 600), (480, 520), (300, 300)])
def test_mcnemar_is_the_whole_sum_to_twelve_digits(lost: int, won: int) -> None:
    total = lost + won
    tail = sum(math.comb(total, k) for k in range(min(lost, won) + 1))
    assert mcnemar(lost, won) == pytest.approx(min(1.0, 2 * tail / 2**total), rel=1e-12, abs=0)


@given(st.integers(0, 700), st.integers(0, 700))
def test_mcnemar_is_the_exact_tail_of_any_counts(lost: int, won: int) -> None:
    total = lost + won
    tail = Fraction(sum(math.comb(total, k) for k in range(min(lost, won) + 1)), 2**total)
    assert (
        mcnemar(lost, won) == mcnemar(won, lost) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12, abs=0)
    )


def test_mcnemar_of_many_pairs_counts_one_term_from_its_factorials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others follow from it; it took ten seconds when every term was counted so."""
    counted, comb = [], math.comb

    def counting(n: int, k: int) -> int:
        counted.append((n, k))
        return comb(n, k)

    monkeypatch.setattr(math, "comb", counting)
    assert mcnemar(5000, 4800) == pytest.approx(0.0444041487998463, rel=1e-12)
    assert counted == [(9800, 4800)]


def test_mcnemar_by_enumeration_and_for_many_pairs() -> None:
    coins = list(itertools.product((0, 1), repeat=8))
    assert mcnemar(1, 7) == sum(abs(sum(c) - 4) >= 3 for c in coins) / len(coins)
    assert mcnemar(0, 0) == 1
    # The normal approximation with continuity correction, good for many pairs.
    approximate = math.erfc((abs(5100 - 4900) - 1) / math.sqrt(10000) / math.sqrt(2))
    assert mcnemar(5100, 4900) == pytest.approx(approximate, rel=1e-2)
    assert 0 <= mcnemar(0, 5000) < 1e-300


# Answers


def test_pairs_are_counted_and_the_drop_is_in_points() -> None:
    first = np.array([True, True, True, False, False])
    second = np.array([True, False, False, True, False])
    paired = pair(first, second)
    assert (paired.total, paired.lost, paired.won, paired.drop) == (5, 2, 1, pytest.approx(20))
    assert paired.interval() == pytest.approx(tuple(100 * end for end in score_interval(2, 1, 5)))
    assert paired.p_value() == 1


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=8), st.integers(0, 5))
def test_ranks_are_places_in_a_stable_sort(rows: list[list[int]], target: int) -> None:
    logits = np.array(rows, np.float32)
    targets = np.full(len(rows), target)
    expected = [sorted(range(6), key=lambda kind: (-row[kind], kind)).index(target) for row in rows]
    assert ranks(logits, targets).tolist() == expected
    assert best_class(logits).tolist() == [max(range(6), key=lambda kind: (row[kind], -kind)) for row in rows]


def test_rows_that_are_not_finite_have_no_best_class() -> None:
    logits = np.array([[1, 2, np.nan], [np.inf, 0, 0], [0, 1, 0]], np.float32)
    assert best_class(logits).tolist() == [-1, -1, 1]
    assert ranks(logits, np.array([1, 0, 1])).tolist() == [3, 3, 0]


def test_the_signal_to_noise_ratio_is_in_decibels() -> None:
    signal = np.full((10, 10), 2.0, np.float32)
    assert snr_db(signal, signal + 0.02) == pytest.approx(40, abs=1e-3)
    assert snr_db(signal, signal) == math.inf
    assert snr_db(0 * signal, 0 * signal) == math.inf
    assert snr_db(0 * signal, signal) == -math.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_signal_to_noise_ratio(value: float) -> None:
    signal = np.full((10, 10), 2.0, np.float32)
    broken = np.where(np.eye(10), value, signal)
    for reference, actual in ((signal, broken), (broken, signal), (broken, broken)):
        assert snr_db(reference, actual) == -math.inf


powers = st.floats(0) | st.sampled_from([math.nan, math.inf])


@example(signal=4.5e307, noise=0.25)
@given(signal=powers, noise=powers)
def test_decibels_are_never_nan(signal: float, noise: float) -> None:
    found = decibels(signal, noise)
    if not (math.isfinite(signal) and math.isfinite(noise)):
        assert found == -math.inf
    elif noise == 0:
        assert found == math.inf
    elif signal == 0:
        assert found == -math.inf
    else:
        assert math.isfinite(found)
        assert decibels(noise, signal) == pytest.approx(-found)
        ratio = Fraction(signal) / Fraction(noise)  # exact, and maybe beyond any float
        assert found == pytest.approx(10 * (math.log10(ratio.numerator) - math.log10(ratio.denominator)), abs=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_json_has_no_number_for_what_is_not_finite(value: float | None) -> None:
    assert json_number(value) is None
    assert json_number(value, 2) is None


def test_json_numbers_are_rounded_where_that_is_asked_for() -> None:
    assert json_number(np.float32(1.2345678)) == float(np.float32(1.2345678))
    assert json_number(1.2345678, 2) == 1.23


def test_the_confusion_matrix_counts_rows_by_right_class() -> None:
    found = confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, -1]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60, 301])
@pytest.mark.parametrize("confidence", [0.95, math.sqrt(0.95), 0.5])
def test_the_interval_of_a_median_is_the_narrowest_that_holds(n: int, confidence: float) -> None:
    low, high = median_interval(list(range(n))[::-1], confidence)
    if low is None:
        assert 1 - Fraction(2, 2**n) < confidence
        return
    assert high == n - 1 - low

    def coverage(k: int) -> Fraction:
        """Of the k-th smallest and k-th largest: at least k values below the median, and at least k above."""
        return Fraction(sum(math.comb(n, i) for i in range(k, n - k + 1)), 2**n)

    assert coverage(int(low) + 1) >= confidence
    assert low + 1 == n // 2 or coverage(int(low) + 2) < confidence


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rounds_have_no_interval(n: int) -> None:
    assert median_interval([1.0] * n, 0.95) == (None, None)
    assert paired_ratio([2.0] * n, [1.0] * n) == (2.0, None, None, True)
    assert unpaired_ratio([2.0] * n, [1.0] * n) == (2.0, None, None, False)


def test_many_rounds_do_not_overflow() -> None:
    low, high = median_interval(np.random.default_rng(0).normal(size=20_000).tolist(), 0.95)
    assert low is not None
    assert high is not None
    assert -0.03 < low < 0 < high < 0.03


def test_what_disturbs_the_whole_machine_cancels_out_of_paired_rounds() -> None:
    chance = np.random.default_rng(3)
    disturbance = chance.lognormal(sigma=1.0, size=40)
    baseline, candidate = disturbance, 0.8 * disturbance
    assert paired_ratio(candidate, baseline)[:3] == pytest.approx((0.8, 0.8, 0.8))
    shuffled = unpaired_ratio(chance.permutation(candidate), baseline)
    assert shuffled.low < 0.75
    assert shuffled.high > 0.85


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    chance = np.random.default_rng(7)
    paired = unpaired = 0
    trials = 800
    for _ in range(trials):
        drift = chance.lognormal(sigma=0.5, size=30)
        one, two = (chance.lognormal(sigma=0.2, size=30) for _ in range(2))
        ratio = paired_ratio((1.1 * drift * one).tolist(), (drift * two).tolist())
        paired += ratio.low <= 1.1 <= ratio.high
        ratio = unpaired_ratio((1.1 * one).tolist(), two.tolist())
        unpaired += ratio.low <= 1.1 <= ratio.high
    slack = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert paired / trials > 0.95 - slack
    assert unpaired / trials > 0.95 - slack


# The bootstrap


def test_the_interval_of_a_mean_is_about_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = mean_interval(values)
    half = Z95 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert mean_interval(values) == (low, high)
    assert mean_interval(np.full(7, 2.5)) == pytest.approx((2.5, 2.5))


def test_a_bootstrap_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = mean_interval(values)
    monkeypatch.setattr("vitdeploy.statistics._BOOTSTRAP_VALUES", 50 * 7)
    assert mean_interval(values) == pytest.approx(whole)


def test_rounds_that_tell_nothing_do_not_count() -> None:
    def some(drawn: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(drawn)) % 2, np.nan, 1.0)

    assert bootstrap_interval(some, 5) == (1.0, 1.0)
    nothing = bootstrap_interval(lambda drawn: np.full(len(drawn), np.nan), 5)
    assert all(map(math.isnan, nothing))


@pytest.mark.parametrize("values", [1, 7, 30, 1 << 20])
def test_parts_of_an_array_give_what_the_whole_gives(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(23, 6)).astype(np.float32), rng.integers(0, 6, 23)
    logits[5, 2] = np.nan
    other = logits + np.float32(0.25)
    expected = best_class(logits).tolist(), ranks(logits, targets).tolist(), energies(logits[:5], other[:5])
    monkeypatch.setattr("vitdeploy.statistics._PART_VALUES", values)
    assert best_class(logits).tolist() == expected[0]
    assert ranks(logits, targets).tolist() == expected[1]
    assert energies(logits[:5], other[:5]) == pytest.approx(expected[2], rel=1e-12)
    assert energies(np.float32(3), np.float32(1)) == (9.0, 4.0)

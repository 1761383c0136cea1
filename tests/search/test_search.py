"""Both searches on networks whose whole front is known, and the journal that they share."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.search.networks import WHOLE, Network
from vitdeploy.errors import InputError, MissingDependencyError, UsageError
from vitdeploy.search.front import covered, front
from vitdeploy.search.greedy import greedy_plans
from vitdeploy.search.plan import FIXED, OPTUNA, Plan, Trial
from vitdeploy.search.study import JOURNAL, Study
from vitdeploy.statistics import Paired, Ratio

pytest.importorskip("optuna")
ABOUT = {"source": "a", "runtime": "openvino"}
CORNER = (1.0, -20.0)


def area(trials: list[Trial]) -> float:
    return covered([trial.values for trial in trials], CORNER)


@settings(max_examples=examples(20))
@given(seed=st.integers(0, 10_000), count=st.integers(1, 9))
def test_greedy_plans_lie_on_the_front_where_times_and_noises_add_up(seed: int, count: int) -> None:
    network = Network(count, seed)
    plans = greedy_plans(WHOLE, network.groups(), most=count)
    useful = sum(group.saved > 0 for group in network.groups().values())
    assert len(plans) == useful
    tried = [network.measure(plan) for plan in plans]
    assert len(front(tried, lambda trial: trial.values)) == len(tried)  # none beats another
    # The prefixes are the corners of the convex hull of the front in time and power of noise.
    for trial in tried:
        power = 10 ** (-trial.snr_db / 10)
        for other in network.best():
            if other.ratio.value < trial.ratio.value - 1e-12:
                assert 10 ** (-other.snr_db / 10) > power - 1e-15


@pytest.mark.parametrize("most", [1, 2, 5, 40])
def test_no_more_greedy_plans_than_asked_for_and_the_fastest_is_among_them(most: int) -> None:
    network = Network(20, 3)
    plans = greedy_plans(WHOLE, network.groups(), most)
    assert 1 <= len(plans) <= most
    useless = {name for name, group in network.groups().items() if group.saved <= 0}
    assert set(plans[0].floats) == useless
    assert all(set(a.floats) < set(b.floats) for a, b in itertools.pairwise(plans))


def opened(folder: Path, choices: Mapping[Plan, Sequence[str]]) -> Study:
    study = Study(folder, ABOUT)
    study.search_among(choices)
    return study


def searched(folder: Path, network: Network, count: int) -> list[Trial]:
    study = opened(folder, {WHOLE: network.names})
    for plan in greedy_plans(WHOLE, network.groups(), most=6):
        study.add(network.measure(plan))
    for number, proposal in enumerate(study.proposals()):
        if number == count:
            proposal.give_up()
            break
        proposal.tell(network.measure(proposal.plan, OPTUNA))
    return study.trials()


def test_the_search_finds_more_of_the_front_than_it_was_given(tmp_path: Path) -> None:
    network = Network(8, 7, interaction=3.0)
    trials = searched(tmp_path, network, 40)
    first = [trial for trial in trials if trial.by != OPTUNA]
    assert len(trials) == len(first) + 40
    assert len({trial.plan for trial in trials}) == len(trials)  # nothing is measured twice
    assert area(trials) > area(first)
    assert area(trials) > 0.9 * area(network.best())


def test_a_small_space_is_searched_to_its_end(tmp_path: Path) -> None:
    network = Network(3, 1)
    trials = searched(tmp_path, network, 1000)
    assert {trial.plan for trial in trials} == set(network.all_plans())


def test_what_was_tried_is_there_when_the_search_goes_on(tmp_path: Path) -> None:
    network = Network(6, 2)
    first = searched(tmp_path, network, 3)
    again = opened(tmp_path, {WHOLE: network.names})
    assert again.trials() == first
    proposal = next(again.proposals())
    assert proposal.plan not in {trial.plan for trial in first}
    proposal.tell(network.measure(proposal.plan, OPTUNA))
    assert len(opened(tmp_path, {WHOLE: network.names}).trials()) == len(first) + 1


def test_a_trial_in_float_is_kept_with_an_infinite_ratio_to_noise(tmp_path: Path) -> None:
    study = opened(tmp_path, {WHOLE: ["a"]})
    fp32 = Trial(Plan(), FIXED, Ratio(1.0, None, None, paired=True), float("inf"), Paired(9, 1, 0), 3.0)
    study.add(fp32)
    assert study.trials() == [fp32]
    json.dumps(fp32.to_dict(), allow_nan=False)


def test_several_searchers_share_a_study(tmp_path: Path) -> None:
    network = Network(7, 5)
    failures: list[BaseException] = []

    def search() -> None:
        try:
            study = opened(tmp_path, {WHOLE: network.names})
            for number, proposal in enumerate(study.proposals()):
                if number == 5:
                    proposal.give_up()
                    return
                proposal.tell(network.measure(proposal.plan, OPTUNA))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(opened(tmp_path, {WHOLE: network.names}).trials()) == 15


def test_a_study_about_something_else_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, {WHOLE: ["a"]})
    with pytest.raises(UsageError, match="runtime: openvino, now onnxruntime"):
        Study(tmp_path, {**ABOUT, "runtime": "onnxruntime"})


@pytest.mark.parametrize("text", [b"{", b"\0\xff\n", b"[]\n", b'{"op_code": 99}\n'])
def test_a_damaged_journal_is_told(tmp_path: Path, text: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(text + b"\n")
    with pytest.raises(InputError, match=JOURNAL.replace(".", r"\.")):
        opened(tmp_path, {WHOLE: ["a"]})


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match="optimize"):
        opened(tmp_path, {WHOLE: ["a"]})


@given(seed=st.integers(0, 1000))
def test_plans_survive_json(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = Plan("int8", "portable", "mse", tuple(sorted(f"g{i}" for i in rng.integers(0, 9, 3))), None)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan

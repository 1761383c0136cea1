"""The search by Optuna: it asks which groups to leave in float, is told what came of it, and keeps all in a journal.

Several processes may share a study: each asks, measures and tells.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError, MissingDependencyError, UsageError
from vitdeploy.search.plan import Plan, Trial

JOURNAL = "study.journal"
_NAME = "vitdeploy"
_ABOUT, _TRIAL = "about", "trial"
# Proposals that are known already, one after another: then there is little left to find.
REPEATS = 50


class Study:
    """The trials of one search, in a file that other processes may write to as well.

    about  what the results depend on, as JSON values: source, runtime, machine, data. UsageError where the file is of a
           study about something else.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], *, seed: int = 0) -> None:
        optuna = _library()
        self._choices: dict[str, Plan] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._path = folder / JOURNAL
        try:
            self._study = optuna.create_study(
                storage=_storage(self._path),
                sampler=_sampler(seed),
                study_name=_NAME,
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
            known = self._study.user_attrs.get(_ABOUT)
        except Exception as error:  # a damaged journal raises many kinds
            raise InputError(
                f"{self._path} is damaged", why=f"{type(error).__name__}: {error}", fix=f"remove {self._path}"
            ) from error
        stated = json.loads(json.dumps(dict(about)))
        if known is None:
            self._study.set_user_attr(_ABOUT, stated)
        elif known != stated:
            differing = sorted(key for key in known.keys() | stated if known.get(key) != stated.get(key))
            raise UsageError(
                f"{self._path} is of another search",
                why="; ".join(f"{key}: {known.get(key)}, now {stated.get(key)}" for key in differing),
                fix="another folder, or --force to begin anew",
            )

    def search_among(self, choices: Mapping[Plan, Sequence[str]]) -> None:
        """What is proposed and learned from: plans in INT8 with nothing in float, and the groups of each."""
        self._choices = {plan.label: plan for plan in choices}
        self._groups = {plan.label: tuple(groups) for plan, groups in choices.items()}

    def trials(self) -> list[Trial]:
        """All that were told, by any process, in their order."""
        kept = self._study.get_trials(deepcopy=False)
        return [Trial.from_dict(one.user_attrs[_TRIAL]) for one in kept if _TRIAL in one.user_attrs]

    def add(self, trial: Trial) -> None:
        """A trial that somebody else proposed; from one in INT8 that it might propose itself the search learns."""
        optuna = _library()
        attributes = {_TRIAL: trial.to_dict()}
        if trial.plan.label not in self._choices:
            frozen = optuna.trial.create_trial(values=list(trial.values), user_attrs=attributes)
        else:
            frozen = optuna.trial.create_trial(
                values=list(trial.values),
                params=self._parameters(trial.plan),
                distributions=self._distributions(trial.plan),
                user_attrs=attributes,
            )
        self._study.add_trial(frozen)

    def proposals(self) -> Iterator[_Proposal]:
        """Plans to try, each of which is to be told; ends where the search proposes nothing new any more."""
        while True:
            for _ in range(REPEATS):
                asked = self._study.ask()
                plan = self._plan(asked)
                known = next((one for one in self.trials() if one.plan == plan), None)
                if known is None:
                    break
                self._study.tell(asked, list(known.values))
            else:
                return
            yield _Proposal(plan, self._study, asked)

    def _plan(self, asked: Any) -> Plan:
        label = asked.suggest_categorical("form", sorted(self._choices))
        floats = [
            group for group in self._groups[label] if asked.suggest_categorical(_parameter(label, group), [False, True])
        ]
        return self._choices[label].with_floats(frozenset(floats))

    def _parameters(self, plan: Plan) -> dict[str, Any]:
        groups = self._groups[plan.label]
        return {"form": plan.label, **{_parameter(plan.label, one): one in plan.floats for one in groups}}

    def _distributions(self, plan: Plan) -> dict[str, Any]:
        categorical = _library().distributions.CategoricalDistribution
        groups = self._groups[plan.label]
        switches = {_parameter(plan.label, one): categorical([False, True]) for one in groups}
        return {"form": categorical(sorted(self._choices)), **switches}


class _Proposal:
    """A plan that Optuna asks about, until it is told what came of it or that nothing did."""

    def __init__(self, plan: Plan, study: Any, asked: Any) -> None:
        self.plan = plan
        self._study, self._asked = study, asked

    def tell(self, trial: Trial) -> None:
        """What came of it."""
        self._asked.set_user_attr(_TRIAL, trial.to_dict())
        self._study.tell(self._asked, list(trial.values))

    def give_up(self) -> None:
        """That it could not be tried, so that nobody waits for it."""
        with contextlib.suppress(Exception):  # on the way out of an error, which is the one to see
            self._study.tell(self._asked, state=_library().trial.TrialState.FAIL)


def _parameter(label: str, group: str) -> str:
    return f"{label}: {group} in float"


def _library() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError("optuna", needed_for="the search", extra="optimize") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sampler(seed: int) -> Any:
    import optuna

    with warnings.catch_warnings():  # that `group`, which learns of each form by itself, may change some day
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


def _storage(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))

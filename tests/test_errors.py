"""Errors arrive whole from another process, as those of a pool or of a cluster do."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

from vitdeploy import tensorrt
from vitdeploy.errors import GateError, MissingDependencyError, UsageError, VitDeployError
from vitdeploy.tensorrt.build import BuildError


def kinds(base: type[VitDeployError] = VitDeployError) -> Iterator[type[VitDeployError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def made(kind: type[VitDeployError]) -> VitDeployError:
    if kind is MissingDependencyError:
        return MissingDependencyError("openvino", needed_for="running there", extra="openvino")
    if kind is BuildError:
        return BuildError("it broke", log="[E] no kernel", why="it is old", fix="vitdeploy doctor")
    return kind("it broke", why="it is old", fix="vitdeploy doctor")


def test_every_kind_of_error_arrives_whole() -> None:
    for found in pkgutil.iter_modules(tensorrt.__path__, "vitdeploy.tensorrt."):
        importlib.import_module(found.name)
    every, some = set(kinds()), {GateError.__name__, MissingDependencyError.__name__, BuildError.__name__}
    assert some < {kind.__name__ for kind in every}
    assert len(every) >= 14
    for kind in every:
        error = made(kind)
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(twin) is kind
            assert (str(twin), twin.exit_code) == (str(error), error.exit_code)
            assert vars(twin) == vars(error)


@pytest.mark.parametrize("error", [UsageError("only this"), UsageError("no reason", fix="vitdeploy doctor")])
def test_what_is_not_known_stays_so(error: UsageError) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.why, twin.fix) == (str(error), None, error.fix)

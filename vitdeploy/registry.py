"""Things found by name when they are first asked for: our own, and those that installed packages announce.

A package adds to a registry by an entry point of its group; no line of vitdeploy changes:

    [project.entry-points."vitdeploy.backends"]
    mine = "my_package.backend:MyBackend"

The groups are `vitdeploy.backends`, `vitdeploy.targets`, `vitdeploy.passes`, `vitdeploy.destinations` and
`vitdeploy.range_methods`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from vitdeploy.errors import PluginError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing.

    group    of the entry points
    kind     what messages call a thing: `runtime`
    option   what to type to name one: `--runtime`
    kept     our own: the thing, or `module:attribute`, which is imported when it is asked for
    aliases  short names, and the names that they stand for
    """

    def __init__(
        self,
        group: str,
        *,
        kind: str,
        option: str,
        kept: Mapping[str, T | str],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.group, self.kind, self.option = group, kind, option
        self._kept, self._aliases = kept, aliases or {}
        self._loaded: dict[str, T] = {}

    @cached_property
    def _announced(self) -> dict[str, EntryPoint]:
        """What installed packages announce; PluginError where two things have one name."""
        found: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
            other = found.get(point.name)
            if point.name in {*self._kept, *self._aliases} or (other is not None and other.value != point.value):
                owner = "vitdeploy" if other is None else _owner(other)
                raise PluginError(
                    f"{_owner(point)} announces a {self.kind} called {point.name!r}, which {owner} has too",
                    fix=f"pip uninstall {_owner(point)}",
                )
            found[point.name] = point
        return found

    def names(self) -> tuple[str, ...]:
        """All names, ours first; importing nothing."""
        return (*self._kept, *self._announced)

    def full(self, name: str) -> str:
        """The name that an alias stands for; any other name as it is."""
        return self._aliases.get(name, name)

    def find(self, name: str) -> T:
        """The thing called `name`, or that an alias stands for.

        Raises UsageError for a name that nothing has, and PluginError for one whose package cannot be imported.
        """
        name = self.full(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def announced(self) -> tuple[T, ...]:
        """What installed packages announce, by name."""
        return tuple(self.find(name) for name in self._announced)

    def _load(self, name: str) -> T:
        point = self._announced.get(name)
        kept = self._kept.get(name)
        if isinstance(kept, str):
            module, _, attribute = kept.partition(":")
            thing: T = getattr(importlib.import_module(module), attribute)
            return thing
        if kept is not None:
            return kept
        if point is None:
            close = get_close_matches(name, self.names(), n=1)
            raise UsageError(
                f"there is no {self.kind} called {name!r}",
                why=f"there are {', '.join(self.names())}",
                fix=f"{self.option} {close[0] if close else self.names()[0]}",
            )
        try:
            thing = point.load()
        except Exception as error:
            raise PluginError(
                f"the {self.kind} {name} of {_owner(point)} cannot be loaded",
                why=f"{point.value}: {type(error).__name__}: {error}",
                fix=f"pip install --upgrade {_owner(point)}, or pip uninstall it",
            ) from error
        return thing


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value

"""Show the caches with their sizes and limits, or clear them.

  vitdeploy cache
  vitdeploy cache --clear                   (all of them)
  vitdeploy cache --clear engines
  vitdeploy cache --cache DIR               (the folder that was given to another command as --cache)

Every cache has a limit of 10 GiB, or of what the environment variable VITDEPLOY_CACHE_LIMIT says (500M, 20G, none).
What was not used for longest goes first. An entry that another process is writing stays; what a running process has
loaded already it does not miss. Whatever is cleared is made again when it is needed: an engine by vitdeploy build.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "sizes of the caches, and clearing them"

_ALL = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy cache`."""
    parser.add_argument(
        "--clear", nargs="?", const=_ALL, metavar="NAME", help="clear this cache, or all of them where none is named"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="look at a folder that was given as --cache")


def run(args: argparse.Namespace) -> int:
    """List the caches, or clear what was named."""
    from vitdeploy.caches import caches
    from vitdeploy.errors import UsageError

    found = caches(args.cache)
    if args.clear:
        names = [cache.name for cache in found]
        if args.clear not in names:
            raise UsageError(
                f"there is no cache called {args.clear}",
                why=f"there are {', '.join(names)}",
                fix=f"vitdeploy cache --clear {names[0]}, or --clear alone for all of them",
            )
        found = [cache for cache in found if cache.name == args.clear]
    cleared = {} if args.clear is None else {cache.name: cache.clear() for cache in found}
    rows = [{**cache.to_dict(), **({"cleared": cleared[cache.name]._asdict()} if cleared else {})} for cache in found]
    if args.json:
        print(json.dumps({"caches": rows}))
        return 0
    for name, done in cleared.items():
        stay = f"; {done.in_use} stay, since they are in use" if done.in_use else ""
        print(f"cleared {name}: {done.entries} entries, {_size(done.bytes)}{stay}")
    if not cleared:
        from vitdeploy.table import render

        cells = [
            [
                row["name"],
                str(row["entries"]),
                _size(row["bytes"]),
                "none" if row["limit_bytes"] is None else _size(row["limit_bytes"]),
                row["folder"],
                row["what"],
            ]
            for row in rows
        ]
        print(render(cells, header=("cache", "entries", "size", "limit", "folder", "what")))
    return 0


def _size(count: int) -> str:
    """`1.5 GiB`, `12 MiB`, `0 B`."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"

"""List the JSON Schemas of the manifest and of what each command prints with --json, or print one.

  vitdeploy schema
  vitdeploy schema verify > verify.schema.json

A schema is complete in itself: a validator of JSON Schema 2020-12 needs no other file and no network. The number at the
end of its $id is its version.
"""

from __future__ import annotations

import argparse
import json

HELP = "the JSON Schemas of manifests and of --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy schema`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this schema (default: list all)")


def run(args: argparse.Namespace) -> int:
    """Print the names with one line each, or one schema."""
    from vitdeploy.schemas import names, schema

    if args.name is not None:
        print(json.dumps(schema(args.name), indent=2, ensure_ascii=False))
        return 0
    found = {name: schema(name) for name in names()}
    if args.json:
        rows = [
            {"name": name, "id": one["$id"], "title": one["title"], "description": one["description"]}
            for name, one in found.items()
        ]
        print(json.dumps({"schemas": rows}))
        return 0
    from vitdeploy.table import render

    cells = [[name, one["$id"].rpartition(":")[2], one["title"]] for name, one in found.items()]
    print(render(cells, header=("schema", "version", "describes")))
    return 0

"""Show what vitdeploy does, or what one command does, with its options.

vitdeploy help
vitdeploy help export
"""

from __future__ import annotations

import argparse

from vitdeploy.cli.parser import command_parsers

HELP = "what a command does, with its options"
PRINTS_JSON = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy help`."""
    parser.add_argument("topic", nargs="?", metavar="COMMAND", help="a command (default: list all of them)")


def run(args: argparse.Namespace) -> int:
    """Print what `--help` prints."""
    if args.topic is None:
        args.parser.print_help()
        return 0
    commands = command_parsers(args.parser)
    if args.topic not in commands:
        args.parser.parse_args([args.topic])  # which says what was meant
    commands[args.topic].print_help()
    return 0

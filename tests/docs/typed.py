"""Types a tutorial: its files are written, its commands run in order in one folder, and their output is compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.docs.pages import ROOT, Block, blocks

_STOP = 900


class Step(NamedTuple):
    """One command of a page: the lines that the page shows for it, and what came of it."""

    command: str
    shown: list[str]
    code: int
    output: str

    def missing(self) -> list[str]:
        """The lines of the page that the command did not print; numbers may be others, but not exit codes."""
        printed = {masked(line) for line in self.output.splitlines()}
        return [line for line in self.shown if line.strip() and line.strip() != "…" and masked(line) not in printed]


def masked(line: str) -> str:
    """A line without what differs between two runs: numbers, the blanks that align them, and where a file lies."""
    if re.fullmatch(r"exit code \d+", line.strip()):
        return line.strip()
    line = re.sub(r"(?:/[\w.@+-]+)+/(?=[\w-])", "", line)
    return re.sub(r"\s+", " ", re.sub(r"-?\d[\d.,]*(e[+-]?\d+)?", "#", line)).strip()


def type_page(page: str, folder: Path) -> Iterator[Step]:
    """What one gets who types a page in `folder`: blocks with a title are files, `sh` and `console` are typed.

    Blocks without a language are not typed: they install packages, or need another machine.
    """
    environment = surroundings(folder)
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text)
        elif block.language in ("sh", "console"):
            for command, shown in typed(block):
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=folder,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=_STOP,
                )
                yield Step(command, shown, done.returncode, done.stdout)


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of a user: this interpreter is `python`, this package `vitdeploy`, and no cache is there."""
    programs = folder / ".programs"
    programs.mkdir()
    for name, words in (("python", ""), ("vitdeploy", " -m vitdeploy")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / ".cache")}


def typed(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a block with the output that it shows; a block without output is one command."""
    if not re.search(r"^\$ ", block.text, re.MULTILINE):
        return [(f"set -e\n{block.text}", [])]
    found: list[tuple[str, list[str]]] = []
    goes_on = False
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif goes_on:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        else:
            found[-1][1].append(line)
        goes_on = (line.startswith("$ ") or goes_on) and line.endswith("\\")
    return found


if __name__ == "__main__":  # python -m tests.docs.typed PAGE FOLDER: shows what a page has to show
    for step in type_page(sys.argv[1], Path(sys.argv[2])):
        print(f"$ {step.command}\n{step.output}# exit code {step.code}", flush=True)
        for line in step.missing():
            print(f"# not printed: {line}", flush=True)

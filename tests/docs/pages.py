"""The pages of the documentation, their blocks of code, and the commands in them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
# By the path of each as pages name it: from the root for the three there, from docs/ for the others.
PAGES = {name: ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
PAGES |= {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
TEXT = {name: path.read_text() for name, path in PAGES.items()}

_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```\s*$", re.MULTILINE | re.DOTALL)
_SEPARATORS = {";", "&&", "||", "|", "&", "(", ")", "\n"}


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its language, the text, the line of the fence, and the file that it is, if any."""

    page: str
    language: str
    text: str
    line: int
    title: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The blocks of code of a page, in order; those in a list without its indentation."""
    found = []
    for match in _FENCE.finditer(TEXT[page]):
        indent, head, text = match.groups()
        language, _, options = head.strip().partition(" ")
        title = re.fullmatch(r'title="([\w./-]+)"', options)
        assert title or not options, f"{page}: ```{head}"
        text = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        line = TEXT[page].count("\n", 0, match.start()) + 1
        found.append(Block(page, language, text, line, title[1] if title else ""))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def script(block: Block) -> str:
    """What one types of a block for the shell: all of it, or what follows `$ ` where output stands between."""
    if not re.search(r"^\$ ", block.text, re.MULTILINE):
        return block.text
    typed, goes_on = [], False
    for line in block.text.splitlines():
        if line.startswith("$ ") or goes_on:
            typed.append(line.removeprefix("$ "))
            goes_on = line.endswith("\\")
    return "\n".join(typed) + "\n"


def commands(text: str) -> list[list[str]]:
    """The words of every simple command of a script, without redirections, assignments, comments and documents."""
    text = re.sub(r"<<-?'?(\w+)'?([^\n]*)\n.*?^\1$", r"\2", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(^|\s)#.*$", r"\1", text.replace("\\\n", " "), flags=re.MULTILINE)
    for name, value in re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE):
        text = text.replace(f"${name}", value)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters = " \t", ""
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if set(word) <= set("\n;&|()") and (word in _SEPARATORS or "\n" in word):
            found.append([])
            skip = False
        elif skip:
            skip = False
        elif re.fullmatch(r"[<>]+&?", word):
            skip = True
        elif found[-1] or not re.fullmatch(r"\w+=.*", word):
            found[-1].append(word)
    return [words for words in found if words]


def called(node: ast.AST) -> str:
    """The name of the public function that a node calls as `vitdeploy.NAME(…)`; empty for any other node."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.attr if node.func.value.id == "vitdeploy" else ""
    return ""


def calls(program: str) -> Iterator[tuple[str, ast.Call]]:
    """The calls of public functions in a program."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Call) and called(node):
            yield called(node), node

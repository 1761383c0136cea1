"""What MkDocs does for the site of docs/ besides rendering it: pages from outside docs/, the command line, pictures.

Links in the Markdown files are those of the repository, so that they work where it is browsed. In the site, a link to
a file that is no page leads to `repo_url` where mkdocs.yml has one, and is the name of the file otherwise.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import textwrap
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from vitdeploy.cli import whole_parser

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that are pages too.
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# What stands in a page of the site in the place of a file of the repository.
PAGES = {**OUTSIDE, "README.md": "index.md"}
COMMANDS = "<!-- the help of every command -->"

_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`(?!\]))", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_PICTURE = re.compile(r'<img alt="([^"]*)" src="([^":]+\.svg)"\s*/?>')


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of the repository that are pages."""
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with the help of the commands, and with links that lead somewhere in the site."""
    here = page.file.src_uri
    source = next((name for name, made in OUTSIDE.items() if made == here), f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        inside = PAGES.get(path, path.removeprefix("docs/"))
        if (path in PAGES or path.startswith("docs/")) and files.get_file_from_path(inside):
            return f"[{words}]({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # MkDocs reports it
        if config.repo_url:
            return f"[{words}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        name = f"`{path}`"
        return name if words.strip("`") in (path, target) else f"{words} ({name})"

    parts = _CODE.split(markdown.replace(COMMANDS, commands()))
    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(parts))


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its drawings inside it, which then follow the colours of the site."""

    def drawing(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.dest_uri), match[2]))
        return re.sub(r"<\?xml.*?\?>\s*", "", (ROOT / "docs" / path).read_text())

    return _PICTURE.sub(drawing, html)


def commands() -> str:
    """The help of every command as Markdown, from the parser that reads the command line."""
    (subparsers,) = [one for one in whole_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return "\n\n".join(section(name, parser) for name, parser in subparsers.choices.items())


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """One command: how it is called, what it says of itself, and a table of each group of its arguments."""
    formatter = argparse.HelpFormatter(parser.prog, width=78)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    usage = formatter.format_help().strip().removeprefix("usage: ")
    parts = [f"## vitdeploy {name}", f"```text\n{usage}\n```"]
    for paragraph in (parser.description or "").strip("\n").split("\n\n"):
        parts.append(f"```text\n{textwrap.dedent(paragraph)}\n```" if paragraph.startswith("  ") else paragraph)
    for group in parser._action_groups:
        rows = [row(action) for action in group._group_actions if action.help != argparse.SUPPRESS]
        if rows:
            title = (group.title or "").rstrip(":").removeprefix("positional ")
            parts.append("\n".join([f"| {title} | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


def row(action: argparse.Action) -> str:
    """The row of one argument."""
    value = "" if action.nargs == 0 or not action.option_strings else f" {metavar(action)}"
    names = ", ".join(f"`{name}{value}`" for name in action.option_strings) or f"`{metavar(action)}`"
    help_ = (action.help or "") % {**vars(action), "prog": "vitdeploy"}
    return f"| {names} | {help_.replace('|', '&#124;').replace('<', '&lt;')} |"


def metavar(action: argparse.Action) -> str:
    """The word for the value of an argument."""
    word = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    return word if isinstance(word, str) else " ".join(word)

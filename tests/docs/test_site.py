"""The site of docs/: it builds without a warning and a network, and holds every page, name and command."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

import vitdeploy
from tests.source_files import load_file
from vitdeploy.cli import COMMANDS, whole_parser

pytest.importorskip("mkdocs", reason="the site needs the packages of the extra docs")
for package in ("material", "mkdocstrings", "mkdocstrings_handlers.python", "pymdownx"):
    pytest.importorskip(package, reason="the site needs the packages of the extra docs")

ROOT = Path(__file__).resolve().parent.parent.parent
LINKS = re.compile(r'<a\b[^>]*?\shref="([^"]+)"')
# What a browser fetches by itself: never a link that a reader follows.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object|image|use)\b[^>]*?\s(?:src|data|href|xlink:href)=\"([^\"]+)\""
    r"|<link\b(?=[^>]*\srel=\"(?!canonical|next|prev|edit)[^\"]*\")[^>]*?\shref=\"([^\"]+)\""
    r"|url\(\s*[\"']?([^\"')]+)"
    r"|@import\s+[\"']([^\"']+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def nav() -> list[str]:
    """The pages that mkdocs.yml lists."""
    listed = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    return re.findall(r"([\w/-]+)\.md$", listed, re.MULTILINE)


def test_every_page_of_the_navigation_and_every_page_of_docs_is_there(site: Path) -> None:
    pages = nav()
    assert len(pages) > 10
    assert [page for page in pages if not (site / f"{page}.html").is_file()] == []
    docs = ROOT / "docs"
    assert {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")} <= set(pages)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    fetched = [
        (path.name, address) for path in files for found in FETCHED.findall(path.read_text()) for address in found
    ]
    assert sum(bool(address) for _, address in fetched) > 50, "the pattern finds what pages fetch"
    assert [one for one in fetched if re.match(r"(https?:)?//", one[1])] == []


def test_every_link_of_a_page_leads_to_a_page_and_an_anchor_of_the_site(site: Path) -> None:
    pages = {path: path.read_text() for path in site.rglob("*.html") if path.name != "404.html"}
    anchors = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in pages.items()}
    wrong, followed = [], 0
    for path, text in pages.items():
        for link in LINKS.findall(text):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            followed += 1
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                wrong.append((path.relative_to(site).as_posix(), link))
    assert followed > 500
    assert wrong == []


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    assert [name for name in vitdeploy.__all__ if f'id="vitdeploy.{name}"' not in page] == []


def test_the_picture_of_the_first_page_is_drawn_in_it_and_has_every_command(site: Path) -> None:
    drawings = re.findall(r"<svg class=\"drawing\".*?</svg>", (site / "index.html").read_text(), re.DOTALL)
    assert len(drawings) == 2
    shown = {
        name
        for drawing in drawings
        for found in re.findall(r'class="name"[^>]*>([^<]+)', drawing)
        for name in found.split(", ")
    }
    about_the_command_line = {"completion", "help", "schema"}
    assert shown == {module.__name__.rpartition(".")[2] for module in COMMANDS} - about_the_command_line
    for drawing in drawings:
        assert re.search(r'role="img" aria-labelledby="\S+ \S+"', drawing)
        assert all(f'id="{name}"' in drawing for name in re.findall(r'aria-labelledby="(\S+) (\S+)"', drawing)[0])
        assert "prefers-color-scheme: dark" in drawing


def test_every_argument_of_every_command_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text()
    (commands,) = [one for one in whole_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    for name, parser in commands.choices.items():
        section = page.partition(f'<h2 id="vitdeploy-{name}">')[2].partition("<h2 ")[0]
        assert [option for option in parser._option_string_actions if f"<code>{option}" not in section] == [], name


@pytest.mark.parametrize(
    ("link", "without_host", "with_host"),
    [
        ("[targets](../targets.md#forms)", "[targets](../targets.md#forms)", "[targets](../targets.md#forms)"),
        ("[more](../../CONTRIBUTING.md)", "[more](../contributing.md)", "[more](../contributing.md)"),
        (
            "[scripts/env.sh](../../scripts/env.sh)",
            "`scripts/env.sh`",
            "[scripts/env.sh](HOST/blob/main/scripts/env.sh)",
        ),
        ("[how](../../scripts/env.sh)", "how (`scripts/env.sh`)", "[how](HOST/blob/main/scripts/env.sh)"),
        ("`[a](../../scripts/env.sh)`", "`[a](../../scripts/env.sh)`", "`[a](../../scripts/env.sh)`"),
        ("[no](../../missing.md)", "[no](../../missing.md)", "[no](../../missing.md)"),
        ("[web](https://example.org)", "[web](https://example.org)", "[web](https://example.org)"),
    ],
)
def test_a_link_of_the_repository_leads_somewhere_in_the_site(link: str, without_host: str, with_host: str) -> None:
    pages = {"targets.md", "contributing.md"}
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in pages else None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/int8.md"))
    for host, expected in ((None, without_host), ("https://example.org/us", with_host)):
        made = hooks().on_page_markdown(link, page=page, config=SimpleNamespace(repo_url=host), files=files)
        assert made == expected.replace("HOST", str(host))


def hooks() -> ModuleType:
    """scripts/docs_hooks.py, which is in no package."""
    return load_file(ROOT / "scripts" / "docs_hooks.py")


@pytest.mark.parametrize("name", ["contributing", "changelog"])
def test_a_page_from_outside_docs_links_to_pages_of_the_site(site: Path, name: str) -> None:
    page = (site / f"{name}.html").read_text()
    assert "docs/" not in " ".join(LINKS.findall(page))
    assert "<h1" in page

"""The whole page: its parts in order, its style, and nothing that it would have to fetch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle
from vitdeploy.progress import Progress
from vitdeploy.reporting import layers, sections
from vitdeploy.reporting.contents import contents
from vitdeploy.reporting.findings import Findings
from vitdeploy.reporting.markup import Markup, Section, element, join, pairs, paragraph

_STYLE = Path(__file__).with_name("style.css")
# The browser itself holds the page to it: no script, and nothing from anywhere else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def parts_of(
    found: Findings, bundles: Mapping[str, Bundle], machine: Mapping[str, Any], commands: Sequence[str]
) -> list[Section]:
    """The parts of the page in their order."""
    makers: tuple[Callable[[], Section | None], ...] = (
        *(partial(make, found) for make in (sections.summary, sections.front, sections.accuracy)),
        *(partial(make, found) for make in (sections.confusions, sections.flips, sections.latency)),
        *(partial(make, found) for make in (layers.sensitivity, layers.tried)),
        partial(contents, bundles),
        partial(_where, bundles, machine, found),
        partial(_repeat, commands),
    )
    parts = []
    with Progress("drawing the page", len(makers)) as progress:
        for make in makers:
            parts.append(make())
            progress.advance()
    return [part for part in parts if part is not None]


def page(title: str, subtitle: str, head: Markup, parts: Sequence[Section]) -> str:
    """The text of the file."""
    links = [element("li", element("a", part.title, href=f"#{part.ident}")) for part in parts]
    body = element(
        "body",
        element("header", element("h1", title), paragraph(subtitle, class_="soft"), head),
        element("nav", element("ul", *links), aria_label="Parts of this page"),
        element("main", *(part.html for part in parts)),
    )
    top = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(_STYLE.read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{element('html', top, body, lang='en')}\n"


def _where(bundles: Mapping[str, Bundle], machine: Mapping[str, Any], found: Findings) -> Section:
    """The machine, and the versions of what measured and of what exported."""
    tools: dict[str, set[str]] = {}
    for bundle in bundles.values():
        for name, version in bundle.manifest.tools.items():
            tools.setdefault(str(name), set()).add(str(version))
    settings = {
        one.name: _in_words({key: value for key, value in one.settings.items() if key != "environment"})
        for one in (found.latency.candidates if found.latency else ())
    }
    parts = [pairs("This machine", {name.replace("_", " "): _one(value) for name, value in machine.items()})]
    if settings:
        parts.append(pairs("How the runtimes computed", settings))
    if tools:
        versions = {name: ", ".join(sorted(some)) for name, some in sorted(tools.items())}
        parts.append(pairs("What the bundles were exported with", versions))
    return Section("machine", "Machine and versions", join(parts))


def _in_words(settings: Mapping[str, Any]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {_one(value)}" for name, value in settings.items())


def _one(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _repeat(commands: Sequence[str]) -> Section:
    told = paragraph("From the folder that the paths begin in:")
    return Section("repeat", "To repeat it", join([told, element("pre", element("code", "\n".join(commands)))]))

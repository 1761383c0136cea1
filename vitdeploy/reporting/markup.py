"""HTML out of values: what is no markup already is escaped, so that a name cannot become a part of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_EMPTY = ("br", "img", "meta", "link")


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def markup(value: object) -> Markup:
    """HTML that shows `value`; None shows nothing, and what is markup already stays."""
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None else escape(str(value)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`element("td", text, class_="number")`. `_` in the name of an attribute is `-`; one that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Several values one after the other."""
    return Markup("".join(map(markup, children)))


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> Markup:
    """A table whose first `words` columns are texts and whose others are figures.

    A narrow page shows each row as a card, whose lines begin with the names in the header. The roles say that it is a
    table all the same.
    """

    def cell(place: int, value: object) -> Markup:
        kind, role = ("th", "rowheader") if place == 0 else ("td", "cell")
        attributes = {"scope": "row"} if place == 0 else {"class_": None if place < words else "figure"}
        shown = "–" if value is None or value == "" else value
        return element(kind, element("span", shown), role=role, data_label=header[place], **attributes)

    heads = [element("th", name, scope="col", role="columnheader") for name in header]
    body = [element("tr", *(cell(place, value) for place, value in enumerate(row)), role="row") for row in rows]
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads, role="row"), role="rowgroup"),
        element("tbody", *body, role="rowgroup"),
        role="table",
    )


def pairs(caption: str, values: Mapping[str, object]) -> Markup:
    """Names with a value each."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", element("span", value)))
        for name, value in values.items()
    ]
    return element("table", element("caption", caption), element("tbody", *rows), class_="pairs")


def details(summary: str, *children: object, opened: bool = False) -> Markup:
    """What a reader may open, or close."""
    return element("details", element("summary", summary), *children, open="" if opened else None)


def figure(picture: Markup, caption: str, *figures: Markup) -> Markup:
    """A picture with what it says, and the same as figures to open."""
    return element("figure", picture, element("figcaption", caption), details("The figures", *figures))


def beside(picture: Markup, caption: str, figures: Markup) -> Markup:
    """A picture with what it says, and where the page is wide the same as figures beside it."""
    shown = element("figure", picture, element("figcaption", caption))
    return element("div", shown, details("The figures", figures, opened=True), class_="pictures")


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; `ident` is its address in the page. `present` is False where it says what to
    type for what the page lacks.
    """

    ident: str
    title: str
    inside: Markup
    present: bool = True

    @property
    def html(self) -> Markup:
        """The part as it stands in the page."""
        heading = element("h2", self.title, id=f"{self.ident}-title")
        return element("section", heading, self.inside, id=self.ident, aria_labelledby=f"{self.ident}-title")


def paragraph(*children: object, class_: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", *children, class_=class_)


def bullets(lines: Iterable[object]) -> Markup:
    """A list."""
    return element("ul", *(element("li", line) for line in lines))


def missing(what: str, *commands: str) -> Markup:
    """What a page lacks, and what to type for it."""
    typed = Markup(" and then ").join(element("code", command) for command in commands)
    return paragraph(f"{what} To add it: ", Markup(typed), class_="missing")

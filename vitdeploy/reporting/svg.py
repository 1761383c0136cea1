"""A figure of matplotlib as SVG inside a page: colours of the page, names of its own, and a text that says it all."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from vitdeploy.errors import MissingDependencyError
from vitdeploy.reporting.markup import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib is given these, and the page its own in their place, which depend on whether it is light or dark.
INK, GRID, GROUND = "#01fe01", "#01fe02", "#01fe03"
SERIES = tuple(f"#01fe1{place}" for place in range(8))
_OF_PAGE = {
    INK: "currentColor",
    GRID: "var(--line)",
    GROUND: "var(--ground)",
    **{colour: f"var(--series-{place})" for place, colour in enumerate(SERIES)},
}

WIDTH = 420.0  # units of a picture, of which 12 are a line of text: readable on 400 pixels and on 1400
_POINTS = 72.0

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may have dollars
    "axes.unicode_minus": False,
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_XLINK = "{http://www.w3.org/1999/xlink}href"


def require_matplotlib() -> None:
    """MissingDependencyError where there is no matplotlib; asked before anything is measured."""
    try:
        # Where it makes its list of fonts for the first time it says so, which is nobody's concern.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("matplotlib", needed_for="vitdeploy report", extra="report") from error


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """An empty figure, WIDTH wide and `height` units high, in the style of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    # Characters that its font lacks are no matter: the page has its own.
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield Figure(figsize=(WIDTH / _POINTS, height / _POINTS), dpi=_POINTS, layout="constrained")


def inline(figure: Figure, ident: str, title: str, description: str) -> Markup:
    """The figure as an element of the page; names in it begin with `ident`, so that no two pictures share one."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style would hold for the whole page, and nobody needs to know the maker of each picture.
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for one in root.iter():
        one.tag = _local(one.tag)
        one.attrib.update({key: _of_page(value, ident) for key, value in one.attrib.items()})
        if "id" in one.attrib:
            one.set("id", f"{ident}-{one.attrib['id']}")
        if _XLINK in one.attrib:
            one.set("href", f"#{ident}-{one.attrib.pop(_XLINK).removeprefix('#')}")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{ident}-title {ident}-about")
    for place, (tag, name, text) in enumerate((("title", "title", title), ("desc", "about", description))):
        child = ElementTree.Element(tag, {"id": f"{ident}-{name}"})
        child.text = text
        root.insert(place, child)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _of_page(value: str, ident: str) -> str:
    for colour, own in _OF_PAGE.items():
        value = value.replace(colour, own)
    value = re.sub(r"url\(#", f"url(#{ident}-", value)
    return re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;]*", r"font-size: \1px", value)


def _local(tag: Any) -> str:
    return str(tag).rpartition("}")[2]

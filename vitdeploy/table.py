"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def render(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None) -> str:
    """Rows of cells in aligned columns; cells that start with a digit are set to the right."""
    body = [list(row) for row in rows]
    table = ([list(header)] if header else []) + body
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    right = [bool(body) and all(not row[i] or row[i][0] in "-0123456789" for row in body) for i in range(len(widths))]

    def line(row: Sequence[str]) -> str:
        cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return "  ".join(cells).rstrip()

    lines = [line(row) for row in table]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)

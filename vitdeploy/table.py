"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def render(
    rows: Sequence[Sequence[str]],
    *,
    header: Sequence[str] | None = None,
    align: str | None = None,
    rule: bool = True,
) -> str:
    """Rows of cells as aligned columns, two spaces apart; empty without rows and header.

    header  names of the columns, above a rule of dashes unless `rule` is False
    align   `<` (left) or `>` (right) for each column; without it a column is right-aligned where each of its cells in
            `rows` is empty or starts with a digit or a minus sign
    """
    table = ([list(header)] if header else []) + [list(row) for row in rows]
    if not table:
        return ""
    sides = align or "".join(_side([row[i] for row in rows]) for i in range(len(table[0])))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if len(sides) != len(widths):
        raise ValueError(f"{len(widths)} columns, but {len(sides)} alignments: {sides!r}")
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in table
    ]
    if header and rule:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _side(cells: Sequence[str]) -> str:
    numbers = bool(cells) and all(not cell or cell[0] in "-0123456789" for cell in cells)
    return ">" if numbers else "<"
